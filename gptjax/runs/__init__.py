"""The run directory: its lock, its checkpoints and the proof that each is intact; and
`gptjax.runs.open`, which opens a model of any format.

Importing this room imports neither JAX nor Orbax; importing `gptjax.runs.open` does.
"""

from gptjax.runs.checkpoints import Run, leaves
from gptjax.runs.manifest import Leaf
from gptjax.runs.mirror import mirrored

__all__ = ["Leaf", "Run", "leaves", "mirrored"]
