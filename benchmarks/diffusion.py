"""Masked diffusion against its autoregressive twin: bits per byte of held-out text, several seeds.

    python benchmarks/diffusion.py --text input.txt
    python benchmarks/diffusion.py --books books.jsonl.gz

What both models share is in `twins.py`. The figure of diffusion is an upper bound, that of the twin
exact.
"""

from __future__ import annotations

import statistics

import twins

from gptjax.core import backend

CONFIGS = {"autoregressive": "shakespeare_char", "masked diffusion": "diffusion_shakespeare"}


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = twins.flags(__doc__, "runs/benchmark_diffusion")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    args = parser.parse_args()
    backend.configure()
    print("| model | bits per byte, by seed | mean | interval of the bound, nats a token |")
    print("|---|---|---|---|")
    for kind in args.models:
        found = twins.trained(CONFIGS[kind], args).values()
        bits = [one["validation_bits_per_byte"] for one in found]
        wide = max(one.get("validation_interval", 0.0) for one in found)
        most = "≤ " * (wide > 0)
        listed = ", ".join(f"{most}{one:.3f}" for one in bits)
        interval = f"± {wide:.4f}" if wide else "exact"
        print(f"| {kind} | {listed} | {most}{statistics.mean(bits):.3f} | {interval} |", flush=True)


if __name__ == "__main__":
    main()
