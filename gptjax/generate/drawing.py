"""Pictures from models that write them as tokens (`data.tasks.picture_tokens`).

Read `drawing_settings`, which turns settings of text into those of one picture, then
`picture_grid`. The text itself is written as any other, with guidance and all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gptjax.core.arrays import Num
from gptjax.core.config import require
from gptjax.data.tasks import PictureTokens, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.settings import GenerateConfig

GAP = 2
"""Pixels between the pictures of a grid."""
SIDE = 112
"""Pixels that the longer side of a picture of a grid has at least."""


def drawing_task(task: Task) -> PictureTokens:
    """Returns the task of a model that draws pictures.

    Raises:
      ConfigError: the model has another one.
    """
    require(
        isinstance(task, PictureTokens),
        f"this model draws no pictures: its data.task is {type(task).__name__}, not PictureTokens"
        " or MaskedPictureTokens; omit --picture.",
    )
    assert isinstance(task, PictureTokens)
    return task


def drawing_settings(
    task: PictureTokens, tokenizer: Tokenizer, prompt: str, settings: GenerateConfig
) -> GenerateConfig:
    """Returns the settings by which a model writes the rest of one picture, and nothing else.

    Args:
      prompt: a caption, and as much of the picture as is there. Without a caption, any.

    Raises:
      ConfigError: the prompt holds a whole picture, or its caption comes behind pixels.
    """
    left = task.remaining(prompt)
    caption = prompt[: len(prompt) - (task.places - left)]
    require(
        left > 0 and task.remaining(caption) == task.places,
        f"the prompt {prompt[:40]!r} leaves no picture to draw; give a caption, and up to"
        f" {task.places - 1} pixels behind it.",
    )
    changed = dataclasses.replace(settings, new_tokens=left, min_new_tokens=0)
    if task.mask_id(tokenizer) is not None:
        return changed
    changed = dataclasses.replace(changed, allowed=task.level_ids(tokenizer))
    if settings.guidance != 1 and not settings.negative_prompt:
        return dataclasses.replace(changed, negative_prompt=prompt[len(caption) :])
    return changed


def picture_grid(
    pictures: Sequence[Num[np.ndarray, "H W 3"]], columns: int = 0
) -> Num[np.ndarray, "h w 3"]:
    """Returns pictures of one size side by side, row by row, enlarged without smoothing.

    Args:
      columns: pictures of a row; 0 is about as many as there are rows.
    """
    columns = columns or math.ceil(len(pictures) ** 0.5)
    height, width, _ = pictures[0].shape
    scale = max(1, math.ceil(SIDE / max(height, width)))
    rows = -(-len(pictures) // columns)
    down, across = height * scale + GAP, width * scale + GAP
    grid = np.full((rows * down - GAP, columns * across - GAP, 3), 128, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * down, number % columns * across
        large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        grid[top : top + large.shape[0], left : left + large.shape[1]] = large
    return grid
