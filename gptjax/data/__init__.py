"""Text becomes a store of tokens, a step number becomes a batch. Computes with numpy alone."""

from gptjax.data.batches import Plan, batch, plan
from gptjax.data.documents.sources import Document, Mixture, Records, Text, Tfds
from gptjax.data.layouts import Batch, Side
from gptjax.data.prepare import DataConfig, Prepared, prepare
from gptjax.data.tasks.tasks import (
    Classification,
    Denoisers,
    LanguageModel,
    MaskedLanguageModel,
    PrefixLanguageModel,
    SequenceToSequence,
    SpanCorruption,
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
    "Batch",
    "Bytes",
    "Characters",
    "Classification",
    "DataConfig",
    "Denoisers",
    "Document",
    "Given",
    "LanguageModel",
    "MaskedLanguageModel",
    "Mixture",
    "Plan",
    "PrefixLanguageModel",
    "Prepared",
    "Published",
    "Records",
    "SentencePiece",
    "SequenceToSequence",
    "Side",
    "SpanCorruption",
    "Text",
    "Tfds",
    "Tokenizer",
    "batch",
    "plan",
    "prepare",
]
