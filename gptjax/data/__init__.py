"""Text becomes a store of tokens, a step number becomes a batch. Computes with numpy alone."""

from gptjax.data.batches import Batch, Plan, batch, plan
from gptjax.data.prepare import DataConfig, Prepared, prepare
from gptjax.data.sources import Document, Mixture, Text, Tfds
from gptjax.data.tokenizer import GPT2, Bytes, Characters, SentencePiece, Tokenizer

__all__ = [
    "GPT2",
    "Batch",
    "Bytes",
    "Characters",
    "DataConfig",
    "Document",
    "Mixture",
    "Plan",
    "Prepared",
    "SentencePiece",
    "Text",
    "Tfds",
    "Tokenizer",
    "batch",
    "plan",
    "prepare",
]
