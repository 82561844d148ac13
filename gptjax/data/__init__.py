"""Text becomes a store of tokens, a step number becomes a batch. Computes with numpy alone."""

from gptjax.data.batches import batch, plan
from gptjax.data.documents.sources import (
    Comparisons,
    Conversations,
    Document,
    Mixture,
    Records,
    Text,
    Tfds,
)
from gptjax.data.layouts import Batch, Side
from gptjax.data.prepare import DataConfig, Prepared, prepare
from gptjax.data.rows import Plan
from gptjax.data.tasks import (
    UL2,
    Chat,
    Classification,
    Feedback,
    LanguageModel,
    MaskedLanguageModel,
    Preferences,
    PrefixLanguageModel,
    RecordTask,
    SequenceToSequence,
    SpanCorruption,
    Task,
)
from gptjax.data.tokenizers.tokenizer import (
    GPT2,
    Bytes,
    Characters,
    Given,
    Published,
    SentencePiece,
    Tokenizer,
)

__all__ = [
    "GPT2",
    "UL2",
    "Batch",
    "Bytes",
    "Characters",
    "Chat",
    "Classification",
    "Comparisons",
    "Conversations",
    "DataConfig",
    "Document",
    "Feedback",
    "Given",
    "LanguageModel",
    "MaskedLanguageModel",
    "Mixture",
    "Plan",
    "Preferences",
    "PrefixLanguageModel",
    "Prepared",
    "Published",
    "RecordTask",
    "Records",
    "SentencePiece",
    "SequenceToSequence",
    "Side",
    "SpanCorruption",
    "Task",
    "Text",
    "Tfds",
    "Tokenizer",
    "batch",
    "plan",
    "prepare",
]
