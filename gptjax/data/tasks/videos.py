"""Texts about videos: `VideoAnswers`, which reads the frames of a video as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.moving import MOVING, draw_video
from gptjax.data.rows import Plan, RowNumbers
from gptjax.data.store import Store
from gptjax.data.tasks.pictures import VisualAnswers

if TYPE_CHECKING:
    from gptjax.core.arrays import Num  # it imports jax, and preparing data needs none


@dataclass(frozen=True)
class VideoAnswers(VisualAnswers):
    """A question about a video is answered, or a video described; otherwise as `VisualAnswers`.
    Frames are taken at even distances, the first and the last included, each is brought to `size`,
    and the embeddings of all stand before the prompt. It needs `Media` with the names of videos, or
    `MovingShapes`.

    Source: Arnab et al. 2021, ViViT, arXiv:2103.15691, section 3.2 (uniform frame sampling).
    """

    frames: int = 8
    """Frames of a video that are read, as `model.vision.frames`; shorter videos repeat some."""
    still: bool = False
    """All frames show the last one: a control of what can be answered without motion."""

    sources: ClassVar[tuple[str, ...]] = ("Media", "MovingShapes")
    kind: ClassVar[str] = "videos"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.frames > 1,
            f"data.task.frames is {self.frames}; a video needs 2 or more (pictures are for"
            " VisualAnswers).",
        )

    @property
    def frames_each(self) -> int:
        """Pictures that a name stands for."""
        return self.frames

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of what a name stands for: the frames of a video."""
        return (self.frames, *self.size, 3)

    def _pixels_of(self, name: str) -> np.ndarray:
        """A video at `size`: a file or folder, or a scene of `documents.moving`."""
        if name.startswith(MOVING):
            return draw_video(name, self.size, self.frames)
        return self.frames_of(name)

    def frames_of(self, video: str | Path | np.ndarray) -> Num[np.ndarray, "F H W 3"]:
        """Returns the frames that are read of a video, at `size`.

        Args:
          video: a file, a folder, or an array of 8 bits a colour [frames H W 3].

        Raises:
          ConfigError: it can't be read.
        """
        from gptjax.model.inputs.image import prepared  # most runs read no videos
        from gptjax.model.inputs.video_files import read_video, sampled

        if isinstance(video, np.ndarray):
            good = video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3
            good = good and min(video.shape) > 0
            require(good, "a video as an array needs 8 bits a colour and the shape [frames H W 3].")
            found = iter(video[sampled(len(video), self.frames)])
        else:
            found = read_video(video, self.frames)
        return np.stack([prepared(one, self.size, self.fit, self.cubic) for one in found])

    def pixels(self, store: Store, plan: Plan, at: RowNumbers) -> np.ndarray:
        """Returns the frames of rows, 8 bits a colour [B I·F H W 3]; 0 where there is none."""
        videos = super().pixels(store, plan, at)
        if self.still:
            videos = np.repeat(videos[:, :, -1:], self.frames, axis=2)
        return videos.reshape(len(videos), -1, *self.size, 3)

    def _changed(self, pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The videos of a row, shifted and mirrored at random, all frames of one alike."""
        together = np.moveaxis(pictures, 1, 3).reshape(len(pictures), *self.size, -1)
        changed = super()._changed(together, draw)
        return np.moveaxis(changed.reshape(len(pictures), *self.size, self.frames, 3), 3, 1)
