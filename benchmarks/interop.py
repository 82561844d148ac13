"""Time and memory of loading a model of SmolLM2-135M's shape: `python benchmarks/interop.py`.

The script writes a directory of random weights (540 MB in float32, half of it with `--dtype
bfloat16`), loads it in a process of its own, and prints the seconds that took and the peak memory
above what the process held before, as a multiple of the parameters' bytes in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gptjax.formats import OpenedModel, huggingface, layout
from gptjax.model import smollm

READ = """
import pathlib, re, sys, time
import jax
from gptjax import formats, model
jax.block_until_ready(jax.numpy.ones(8) + 1)
def held(what):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(what + r":\\s+(\\d+)", status)[1]) * 1024
before, begin = held("VmRSS"), time.perf_counter()
found = formats.load_model(sys.argv[1])
jax.block_until_ready(found.params)
seconds = time.perf_counter() - begin
size = sum(leaf.nbytes for leaf in jax.tree.leaves(found.params))
share = (held("VmHWM") - before) / size
print(f"{size / 1e6:.0f} MB in {seconds:.2f} s; at most {share:.2f} times that in memory")
"""


def random_model() -> OpenedModel:
    """A model of SmolLM2-135M's shape with random weights, without a tokenizer."""
    config, tree = smollm("2-135m"), {}
    for path, leaf in layout.leaf_shapes(config).items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = np.random.default_rng(0).standard_normal(leaf.shape, np.float32) * 0.02
    return OpenedModel(config, tree, None)


def main() -> None:
    """Makes the directory, reads it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", help="of the weights in the file")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_huggingface(Path(folder) / "m", random_model(), options.dtype)
        for _ in range(options.times):
            print(
                subprocess.run(
                    [sys.executable, "-c", READ, f"{folder}/m"],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout,
                end="",
            )


if __name__ == "__main__":
    main()
