"""The run directory: its lock, its steps, and the proof that a step is whole. Importing this
imports neither JAX nor Orbax."""

from gptjax.checkpoint.manifest import Leaf
from gptjax.checkpoint.run import Run, leaves

__all__ = ["Leaf", "Run", "leaves"]
