"""The run directory: its lock, its steps, and the proof that a step is whole. Importing this
imports neither JAX nor Orbax."""

from gptjax.runs.checkpoints import Run, leaves
from gptjax.runs.manifest import Leaf

__all__ = ["Leaf", "Run", "leaves"]
