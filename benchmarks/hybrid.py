"""A small hybrid of gated DeltaNet and attention against its twin of attention alone, which has as
many parameters: bits per byte of held-out text, several seeds.

    python benchmarks/hybrid.py --text input.txt
    python benchmarks/hybrid.py --books books.jsonl.gz

What both models share is in `twins.py`.
"""

from __future__ import annotations

import statistics

import twins

import gptjax
from gptjax.core import backend

CONFIGS = {"attention": "shakespeare_char", "hybrid, 3:1": "shakespeare_hybrid"}


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    args = twins.flags(__doc__, "runs/benchmark_hybrid").parse_args()
    backend.configure()
    from gptjax.train.overview import model_facts

    print("| model | parameters | bits per byte, by seed | mean |")
    print("|---|---|---|---|")
    for kind, config in CONFIGS.items():
        found = twins.trained(config, args)
        bits = [line["validation_bits_per_byte"] for line in found.values()]
        listed = ", ".join(f"{one:.3f}" for one in bits)
        count = model_facts(gptjax.load(str([*found][-1])).config)["parameters"]
        print(f"| {kind} | {count:,} | {listed} | {statistics.mean(bits):.3f} |", flush=True)


if __name__ == "__main__":
    main()
