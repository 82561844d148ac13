"""How a model reads pictures, as frozen values: `Vision`, a field of `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptjax.core.config import require
from gptjax.model.config_parts import Activation

IMAGENET = (0.5, 0.5, 0.5)
"""Mean and deviation of colours for ViT and SigLIP; CLIP's are in its own files."""


@dataclass(frozen=True)
class Joint:
    """A space in which a picture and its text lie close together, instead of an answer.

    Sources: softmax: Radford et al. 2021, CLIP, arXiv:2103.00020, section 2.3; sigmoid: Zhai et al.
    2023, SigLIP, arXiv:2303.15343, section 3.
    """

    width: int = 128
    """Width of the space."""
    kind: Literal["softmax", "sigmoid"] = "softmax"
    """Each picture is told from the texts of the others in the batch, or each pair is judged
    alone, with a learned bias."""

    def __post_init__(self) -> None:
        require(self.width > 0, f"model.vision.joint.width is {self.width}; it needs at least 1.")


@dataclass(frozen=True)
class Vision:
    """How pictures become embeddings that stand where a text has placeholders for them.

    A picture is cut into patches and each is projected: straight to the embeddings of the model
    (`num_layers` 0: ViT's and Fuyu's way), or to the width of an encoder of its own, whose states a
    projector maps to the embeddings (LLaVA, PaliGemma, Idefics 3). Initialisation, compute type and
    ways to run are the model's; the encoder has no dropout.

    Sources: Dosovitskiy et al. 2020, ViT, arXiv:2010.11929; Liu et al. 2023, LLaVA,
    arXiv:2304.08485; Beyer et al. 2024, PaliGemma, arXiv:2407.07726.
    """

    size: tuple[int, int] = (64, 64)
    """Height and width in pixels to which pictures are brought."""
    patch: int = 8
    """Side of a patch, in pixels."""
    overlap: int = 0
    """Pixels around its own that a patch sees too."""
    mean: tuple[float, float, float] = IMAGENET
    """Of red, green and blue between 0 and 1: what becomes 0."""
    std: tuple[float, float, float] = IMAGENET
    """Of red, green and blue: what above the mean becomes 1."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How a picture of another shape is brought to `size`."""
    cubic: bool = False
    """Pixels are interpolated by cubic curves instead of lines."""
    patch_bias: bool = True
    """The projection of patches has a bias."""
    num_layers: int = 0
    """Blocks of an encoder of pictures; 0 is none."""
    width: int = 128
    """Width of the encoder."""
    num_heads: int = 4
    """Attention heads of the encoder."""
    feed_forward: int | None = None
    """Width inside the encoder's MLP; `None` means 4 × width."""
    activation: Activation = "gelu"
    """The encoder's nonlinearity."""
    norm_epsilon: float = 1e-6
    """Added to the variance in the encoder."""
    class_token: bool = False
    """The encoder reads a learned vector before the patches (CLIP)."""
    embedding_norm: bool = False
    """The encoder's input is normalised (CLIP)."""
    pool: Literal["none", "first", "mean", "attention"] = "none"
    """What stands for a whole picture: each of its states, the first (the class token's), their
    mean, or what a learned query attends to (SigLIP)."""
    merge: int = 1
    """Side of a square of states that become one."""
    merged: Literal["joined", "mean"] = "joined"
    """States of a square stand side by side (pixel shuffle, Idefics 3), or are averaged (Gemma
    3)."""
    projector_norm: bool = False
    """States pass an RMSNorm before the projector (Gemma 3)."""
    projector: Literal["none", "linear", "mlp"] = "none"
    """From the encoder's states to embeddings: nothing, a linear layer, or two with GELU
    between."""
    projector_bias: bool = True
    """The projector has biases."""
    frames: int = 1
    """Frames of a video, each of which has a learned place in time; 1 reads pictures."""
    token: int | None = None
    """Id that stands for an embedding of a picture in texts; `None` takes one that the task
    adds."""
    joint: Joint | None = None
    """The model compares pictures and texts (CLIP, SigLIP) instead of writing."""

    def __post_init__(self) -> None:
        height, width = self.size
        good = min(height, width, self.patch) > 0 and not (
            height % self.patch or width % self.patch
        )
        require(
            good,
            f"model.vision.size is {height} × {width}, which patches of {self.patch} pixels do not"
            f" divide; use multiples (--model.vision.patch {max(1, min(height, width) // 8)}).",
        )
        rows, columns = self.grid
        require(
            self.merge > 0 and rows % self.merge == 0 and columns % self.merge == 0,
            f"model.vision.merge is {self.merge} and a picture has {rows} × {columns} patches; use"
            " a divisor of both.",
        )
        require(
            self.frames == 1 or (self.frames > 1 and self.joint is None),
            f"model.vision.frames is {self.frames}; it needs 1 for pictures, or more for videos,"
            " which go without model.vision.joint.",
        )
        require(self.overlap >= 0, f"model.vision.overlap is {self.overlap}; it needs 0 or more.")
        plain = self.merge == 1 and self.projector == "none" and self.pool == "none"
        require(
            self.num_layers > 0 or (plain and not self.class_token and not self.embedding_norm),
            "model.vision.num_layers is 0, so patches are projected straight to embeddings: it goes"
            " without projector, merge, pool, class_token and embedding_norm.",
        )
        require(
            (self.joint is None) == (self.pool == "none"),
            "model.vision.pool makes one vector of a picture, which model.vision.joint compares; a"
            " model that writes keeps all states (pool 'none').",
        )
        require(
            self.pool != "first" or self.class_token,
            "model.vision.pool is 'first', the class token's; it needs class_token.",
        )
        require(
            not self.class_token or self.merge == 1,
            "model.vision.merge makes squares of patches, which a class token does not belong to;"
            " omit one.",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Lines and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def patches(self) -> int:
        """Number of patches of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def side(self) -> int:
        """Pixels of a side of what a patch sees."""
        return self.patch + 2 * self.overlap

    @property
    def tokens(self) -> int:
        """Number of embeddings that a picture, or a frame, becomes in a text."""
        return self.patches // self.merge**2
