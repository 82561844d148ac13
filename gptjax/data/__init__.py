"""Text becomes a store of tokens, a step number becomes a batch. Computes with numpy alone."""

from gptjax.data.batches import Batch, Plan, Side, batch, plan
from gptjax.data.prepare import DataConfig, Prepared, prepare
from gptjax.data.sources import Document, Mixture, Text, Tfds
from gptjax.data.tasks import LanguageModel, MaskedLanguageModel, SpanCorruption
from gptjax.data.tokenizer import GPT2, Bytes, Characters, Published, SentencePiece, Tokenizer

__all__ = [
    "GPT2",
    "Batch",
    "Bytes",
    "Characters",
    "DataConfig",
    "Document",
    "LanguageModel",
    "MaskedLanguageModel",
    "Mixture",
    "Plan",
    "Prepared",
    "Published",
    "SentencePiece",
    "Side",
    "SpanCorruption",
    "Text",
    "Tfds",
    "Tokenizer",
    "batch",
    "plan",
    "prepare",
]
