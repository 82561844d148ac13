"""Tasks: what is predicted from what. One file each; `task` has the protocol."""

from __future__ import annotations

from gptjax.data.tasks.chat import Chat
from gptjax.data.tasks.classification import Classification
from gptjax.data.tasks.diffusion import DiffusionChat, MaskedDiffusion, Noise
from gptjax.data.tasks.language_model import LanguageModel
from gptjax.data.tasks.masked import MaskedLanguageModel
from gptjax.data.tasks.middle import FillInMiddle
from gptjax.data.tasks.picture_tokens import MaskedPictureTokens, PictureTokens
from gptjax.data.tasks.pictures import PictureTexts, VisualAnswers
from gptjax.data.tasks.preferences import Feedback, Preferences
from gptjax.data.tasks.prompts import Prompts
from gptjax.data.tasks.sequence_to_sequence import SequenceToSequence
from gptjax.data.tasks.spans import UL2, PrefixLanguageModel, SpanCorruption
from gptjax.data.tasks.task import RecordTask, Shape, Task
from gptjax.data.tasks.transcription import Transcription
from gptjax.data.tasks.videos import VideoAnswers

__all__ = [
    "UL2",
    "Chat",
    "Classification",
    "DiffusionChat",
    "Feedback",
    "FillInMiddle",
    "LanguageModel",
    "MaskedDiffusion",
    "MaskedLanguageModel",
    "MaskedPictureTokens",
    "Noise",
    "PictureTexts",
    "PictureTokens",
    "Preferences",
    "PrefixLanguageModel",
    "Prompts",
    "RecordTask",
    "SequenceToSequence",
    "Shape",
    "SpanCorruption",
    "Task",
    "TaskConfig",
    "Transcription",
    "VideoAnswers",
    "VisualAnswers",
    "default_task",
]

TaskConfig = (
    LanguageModel
    | FillInMiddle
    | MaskedLanguageModel
    | MaskedDiffusion
    | SpanCorruption
    | PrefixLanguageModel
    | UL2
    | SequenceToSequence
    | Classification
    | VisualAnswers
    | VideoAnswers
    | PictureTexts
    | PictureTokens
    | MaskedPictureTokens
    | Chat
    | DiffusionChat
    | Preferences
    | Feedback
    | Prompts
    | Transcription
    | Task
)
"""A task of gptjax, or one defined elsewhere."""


def default_task(shape: Shape) -> Task:
    """Returns the usual task of text without answers for a model shape."""
    tasks = {
        "decoder": LanguageModel(),
        "encoder": MaskedLanguageModel(),
        "encoder-decoder": SpanCorruption(),
    }
    return tasks[shape]
