"""What `convert` makes smaller, and what that costs: flags, calibration, the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptjax.core.config import require

if TYPE_CHECKING:
    import numpy as np

    from gptjax.compress.moments import Moments
    from gptjax.formats import OpenedModel

TOKENS = 256
"""Tokens of a row of calibration and held-out text."""


@dataclass(frozen=True)
class CompressOptions:
    """Flags of `convert` that make the model smaller."""

    quantise: Literal["int8", "int4", "int3", "int2", "nf4"] | None = None
    """Round the kernels of the layers to whole numbers of so many bits, or to the levels of NF4.
    The written model keeps them narrow: open it with --packed."""
    group: int | None = 32
    """Inputs that share a scale; None means all inputs of an output."""
    asymmetric: bool = False
    """Give each group an offset besides."""
    method: Literal["nearest", "gptq", "awq", "awq+gptq"] | None = None
    """How numbers are rounded. `None` is gptq with --calibrate, else nearest."""
    outer: Literal["int8", "same", "float"] = "int8"
    """Embedding and head: in 8 bits (with nf4 as they are), as the kernels, or as they are."""
    targets: tuple[str, ...] = ("*layers",)
    """Patterns of the kernels to round or prune, such as `layers/mlp`."""
    prune: float | None = None
    """Share of the weights of each kernel that become zero."""
    prune_pattern: str | None = None
    """N:M keeps N of M consecutive inputs instead, such as 2:4."""
    score: Literal["magnitude", "wanda"] | None = None
    """By what weights are pruned. `None` is wanda with --calibrate, else magnitude."""
    keep_layers: int | None = None
    """Take layers out until so many are left; the written model has a smaller config."""
    keep_kv_heads: int | None = None
    """Take key and value heads out, with the queries that read them, until so many are left."""
    keep_columns: int | None = None
    """Take columns of the MLPs out until so many are left."""
    trim_vocabulary: Path | None = None
    """Text whose tokens, and those without which some text could not be spelled, are kept."""
    calibrate: Path | None = None
    """Text by which rounding, pruning and taking out are chosen."""
    calibrate_rows: int = 128
    """Rows of 256 tokens of it that are read."""
    held_out: Path | None = None
    """Text on which the change of loss and predictions is measured."""
    held_out_rows: int = 32
    """Rows of 256 tokens of it that are read."""

    def __post_init__(self) -> None:
        rounds, prunes = self.quantise is not None, self.prunes
        both = "--quantise int4 or --prune 0.5"
        for flag, given, used, by in (
            ("--group", self.group != 32, rounds, "--quantise int4"),
            ("--asymmetric", self.asymmetric, rounds, "--quantise int4"),
            ("--method", self.method is not None, rounds, "--quantise int4"),
            ("--outer", self.outer != "int8", rounds, "--quantise int4"),
            ("--targets", self.targets != ("*layers",), rounds or prunes, both),
            ("--score", self.score is not None, prunes, "--prune 0.5"),
            ("--calibrate", self.calibrate is not None, self.chooses, both),
            ("--held-out", self.held_out is not None, self.compresses, both),
        ):
            require(not given or used, f"{flag} changes nothing by itself; omit it, or add {by}.")
        require(
            self.prune is None or self.prune_pattern is None,
            f"--prune {self.prune} and --prune-pattern {self.prune_pattern} both say how many"
            " weights become zero; omit one.",
        )
        for rows in (self.calibrate_rows, self.held_out_rows):
            require(rows >= 1, f"{rows} rows of text say nothing; read at least 1.")

    @property
    def chooses(self) -> bool:
        """Whether a text can help to choose what is rounded, pruned or taken out."""
        return self.quantise is not None or self.prunes or self.takes_out

    @property
    def compresses(self) -> bool:
        """Whether the model is to be smaller."""
        return self.chooses or self.trim_vocabulary is not None

    @property
    def prunes(self) -> bool:
        """Whether weights become zero."""
        return self.prune is not None or self.prune_pattern is not None

    @property
    def takes_out(self) -> bool:
        """Whether parts are taken out."""
        return (self.keep_layers, self.keep_kv_heads, self.keep_columns) != (None,) * 3


def compressed(
    original: OpenedModel, options: CompressOptions, kind: str, say: Callable[[str], Any]
) -> OpenedModel:
    """Returns a smaller model, and says what that costs.

    Args:
      kind: the format to write, since grids differ.

    Raises:
      ConfigError: what is asked for is impossible, or needs text that is not given.
    """
    require(
        options.quantise is None or kind in ("huggingface", "gguf"),
        f"--quantise writes a Hugging Face directory or a GGUF file, not a {kind}; omit --to.",
    )
    from gptjax.compress import Smaller, take_out, trim_vocabulary
    from gptjax.compress.moments import read_text
    from gptjax.compress.structure import CHOSEN_BY

    for file in (options.calibrate, options.held_out):
        if file is not None:
            read_text(file)  # refused before anything is computed
    smaller = original
    if options.trim_vocabulary is not None:
        text = read_text(options.trim_vocabulary)
        original = smaller = trim_vocabulary(original, [text])
        say(f"tokens: {smaller.config.vocabulary}")
    if options.takes_out:
        need = "--keep-… needs text to choose by"
        rows, moments = _calibrated(smaller, options, need, CHOSEN_BY)
        how = Smaller(options.keep_layers, options.keep_kv_heads, options.keep_columns)
        config, params = take_out(smaller.config, smaller.params, how, rows, moments)
        smaller = smaller._replace(config=config, params=params)
    if options.prunes:
        smaller = _pruned(smaller, options)
    if options.quantise is not None:
        smaller = _quantised(smaller, options, kind)
    for line in cost(original, smaller, options):
        say(line)
    return smaller


def _calibrated(
    model: OpenedModel, options: CompressOptions, need: str, targets: tuple[str, ...]
) -> tuple[np.ndarray, Moments]:
    """Rows of calibration text, and the moments of a model's inputs on them."""
    from gptjax.compress import input_moments, text_rows

    require(options.calibrate is not None, f"{need}: --calibrate FILE.")
    require(model.tokenizer is not None, "the model has no tokenizer, so it reads no text.")
    length = min(TOKENS, model.config.context)
    rows = text_rows(model.tokenizer, options.calibrate, length, options.calibrate_rows)
    return rows, input_moments(model.config, model.params, rows, targets)


def _pruned(model: OpenedModel, options: CompressOptions) -> OpenedModel:
    from gptjax.compress import Pruning, prune_weights

    score = options.score or ("wanda" if options.calibrate else "magnitude")
    how = Pruning(
        0.5 if options.prune is None else options.prune,
        options.prune_pattern,
        score,
        options.targets,
    )
    moments = None
    if score == "wanda":
        _, moments = _calibrated(model, options, "--score wanda needs text", options.targets)
    return model._replace(params=prune_weights(model.config, model.params, how, moments))


def _quantised(model: OpenedModel, options: CompressOptions, kind: str) -> OpenedModel:
    """The model with narrow weights. GGUF has minima where other files have whole zeros."""
    from gptjax.compress import Quantising, quantise_weights
    from gptjax.weights.rounding import Rounding

    assert options.quantise is not None
    method = options.method or ("gptq" if options.calibrate else "nearest")
    offset = "none"
    if options.asymmetric:
        offset = "minimum" if kind == "gguf" else "zero"
    normal = options.quantise == "nf4"  # of which one file holds nothing else, and float32 scales
    require(
        not normal or kind == "huggingface",
        "GGUF has no NF4; write a Hugging Face directory, or use --quantise int4.",
    )
    scale = "float32" if normal else "float16"
    grid = Rounding(options.quantise, options.group, offset, "own", scale)
    outer = "float" if normal and options.outer == "int8" else options.outer
    how = Quantising(grid, method, options.targets, outer)
    moments = None
    if method != "nearest":
        _, moments = _calibrated(model, options, f"--method {method} needs text", options.targets)
    return model._replace(params=quantise_weights(model.config, model.params, how, moments))


def cost(original: OpenedModel, smaller: OpenedModel, options: CompressOptions) -> list[str]:
    """What a smaller model takes in memory and costs in predictions, in words."""
    from gptjax.compress import bits_per_weight, compared, text_rows

    own, before = (bits_per_weight(model.params) for model in (smaller, original))
    lines = [f"bits per weight in memory: {own:.2f} (of {before:.2f})"]
    if options.prunes:
        lines.append(f"zeros: {zeros_in(smaller.params):.1%} of the layers' kernels")
    if original.tokenizer is None or options.held_out is None:
        return lines
    config = original.config
    length = min(TOKENS, config.context)
    rows = text_rows(original.tokenizer, options.held_out, length, options.held_out_rows)
    found = compared(config, original.params, smaller.config, smaller.params, rows)
    where, change = f"{options.held_out} ({found.num_tokens} tokens)", f"{found.change:+.4f}"
    lines.append(f"loss on {where}: {found.loss:.4f} nats per token, a change of {change}")
    lines.append(f"KL divergence from the model: {found.divergence:.4f} nats per token")
    lines.append(f"same most likely next token: {found.agreement:.1%}")
    return lines


def zeros_in(params: Any) -> float:
    """The share of zeros in the kernels of the layers."""
    import numpy as np

    from gptjax.weights import dense
    from gptjax.weights.kernels import leaves_of

    zeros = total = 0
    for path, leaf in leaves_of(params):
        if path.startswith("layers/") and path.endswith("kernel"):
            numbers = np.asarray(dense(leaf))
            zeros, total = zeros + int((numbers == 0).sum()), total + numbers.size
    return zeros / max(total, 1)
