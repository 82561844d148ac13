"""A watermark in generated text: a secret key divides the vocabulary after each token, and the
tokens of one part, the green list, are written more often than chance has it.

Read `Watermark`, then `favour_green`, which writes it, and `detect_watermark`, which finds it. Both
ask `encrypt` whether a token is green after the tokens before it: a block cipher under the key, in
integer arithmetic that is the same in numpy and jax and in every version of either. Without the key
green tokens look like any others.

Source: Kirchenbauer et al. 2023, A Watermark for Large Language Models, arXiv:2301.10226, algorithm
2. Unlike there, each token is green by itself with probability gamma, so the size of the list
varies; then tokens of a text that owes nothing to the key are green as independent coins are, and
the p-value is exact.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.core import config
from gptjax.core.arrays import Float, Int, Numbers
from gptjax.core.config import ConfigError, require
from gptjax.generate.history import History

WIDEST = 4
"""The most tokens before a token that its green list depends on."""

ROUNDS = 27


@dataclass(frozen=True)
class Watermark:
    """What a key file holds: the secret, and how strongly and by what texts are marked."""

    key: str
    """The secret: 32 hexadecimal digits."""
    gamma: float = 0.25
    """Share of tokens that are green."""
    delta: float = 2.0
    """Added to the logits of green tokens, after temperature and truncation: larger is easier to
    detect and costs more of the text's quality."""
    width: int = 1
    """Number of tokens before a token that its green list depends on, 1 to 4. More are harder to
    learn from marked texts; each edited token unmarks as many more."""

    def __post_init__(self) -> None:
        digits = len(self.key) == 32 and set(self.key) <= set("0123456789abcdef")
        require(
            digits,
            "the key of a watermark needs 32 hexadecimal digits in lower case; make a file with"
            " gptjax detect-watermark --new-key FILE.",
        )
        require(
            0 < self.gamma < 1,
            f"gamma of a watermark is {self.gamma}; it needs a share in (0, 1), such as 0.25.",
        )
        require(
            math.isfinite(self.delta) and self.delta >= 0,
            f"delta of a watermark is {self.delta}; it needs 0 or more, such as 2.",
        )
        require(
            1 <= self.width <= WIDEST,
            f"width of a watermark is {self.width}; it needs 1 to {WIDEST} tokens.",
        )

    @property
    def text(self) -> str:
        """What a key file holds."""
        return json.dumps(asdict(self))


def new_watermark(**settings: Any) -> Watermark:
    """Returns a watermark with a random key.

    Args:
      settings: its other fields.
    """
    return Watermark(secrets.token_hex(16), **settings)


def watermark_of(text: str) -> Watermark:
    """Returns the watermark that a text describes, as `Watermark.text` wrote it.

    Raises:
      ConfigError: it describes none; the message holds nothing of the text, which may be a key.
    """
    try:
        fields = json.loads(text)
        return config.from_dict(Watermark, fields)
    except (ConfigError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError) and "of a watermark" in str(error):
            raise
        raise ConfigError(
            "the watermark is not what a key file holds; make one with gptjax detect-watermark"
            " --new-key FILE and name it (--watermark FILE)."
        ) from None


def read_watermark(path: Path | str) -> Watermark:
    """Reads a key file.

    Raises:
      ConfigError: it is not there, or holds no watermark.
    """
    file = Path(path)
    require(
        file.is_file(),
        f"{file} is not there; make a key with gptjax detect-watermark --new-key {file}.",
    )
    try:
        return watermark_of(file.read_text("utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


# --- which tokens are green


def round_keys(key: str) -> np.ndarray:
    """Returns the round keys of a secret, uint32 [27].

    Source: Beaulieu et al. 2013, The SIMON and SPECK Families of Lightweight Block Ciphers, IACR
    eprint 2013/404, section 4; Speck64/128.
    """
    words = [int(key[i : i + 8], 16) for i in (24, 16, 8, 0)]
    rest, keys, size = words[1:], [words[0]], 2**32
    for i in range(ROUNDS - 1):
        turned = (rest[i] >> 8 | rest[i] << 24) % size
        rest.append((keys[i] + turned) % size ^ i)
        keys.append((keys[i] << 3 | keys[i] >> 29) % size ^ rest[-1])
    return np.asarray(keys, np.uint32)


def encrypt(keys: Any, left: Any, right: Any) -> Any:
    """Returns the left half of the block (left, right), encrypted with Speck64/128.

    Args:
      keys: round keys, uint32 [... 27].
      left, right: uint32, of shapes that broadcast with that of `keys` without its last axis; all
        arrays of numpy, or all of jax.
    """
    for i in range(ROUNDS):
        left = ((left >> 8 | left << 24) + right) ^ keys[..., i]
        right = (right << 3 | right >> 29) ^ left
    return left


class Marks(NamedTuple):
    """The watermark of each row, as arrays."""

    keys: Int[Numbers, "B rounds"]
    """Round keys, uint32."""
    least: Int[Numbers, " B"]
    """uint32: a token is green whose encrypted number is below this; 0 marks nothing."""
    delta: Float[Numbers, " B"]
    width: Int[Numbers, " B"]


def marks_of(watermarks: Sequence[Watermark | None]) -> Marks:
    """Returns the watermark of each row as arrays; `None` marks nothing."""
    none = Watermark("0" * 32, delta=0.0)
    each = [one or none for one in watermarks]
    return Marks(
        keys=np.stack([round_keys(one.key) for one in each]),
        least=np.asarray([0 if one is None else _least(one) for one in watermarks], np.uint32),
        delta=np.asarray([one.delta for one in each], np.float32),
        width=np.asarray([one.width for one in each], np.int32),
    )


def _least(watermark: Watermark) -> int:
    return round(watermark.gamma * (2**32 - 1))


def favour_green(
    logits: Float[Numbers, "B V"], history: History, marks: Marks
) -> Float[Numbers, "B V"]:
    """Adds delta to the logits of the tokens that are green after the last tokens of each row. An
    id that is out of the question (-inf) stays so; rows without a watermark are unchanged."""
    context = jnp.zeros(len(logits), jnp.uint32)
    for back in range(WIDEST, 0, -1):
        place = jnp.maximum(history.length - back, 0)[:, None]
        token = jnp.take_along_axis(history.ids, place, axis=1)[:, 0].astype(jnp.uint32)
        further = encrypt(marks.keys, context, token)
        context = jnp.where(back <= marks.width, further, context)
    ids = jnp.arange(logits.shape[1], dtype=jnp.uint32)[None]
    number = encrypt(marks.keys[:, None], context[:, None], ids)
    return jnp.where(number < marks.least[:, None], logits + marks.delta[:, None], logits)


def green_tokens(ids: Sequence[int], watermark: Watermark) -> np.ndarray:
    """Returns which tokens of a text are green after those before them, bool [n − width]: of every
    token but the first `width`, for which these are not known."""
    tokens = np.asarray(ids).astype(np.uint32)
    keys, width = round_keys(watermark.key), watermark.width
    count = max(0, len(tokens) - width)
    context = np.zeros(count, np.uint32)
    for back in range(width, 0, -1):
        context = encrypt(keys, context, tokens[width - back : width - back + count])
    return encrypt(keys, context, tokens[width:]) < np.uint32(_least(watermark))


# --- whether a text is marked


class Detected(NamedTuple):
    """What a text says of a watermark."""

    tokens: int
    """Tokens that count: each sequence of `width` + 1 tokens once, wherever it is repeated."""
    green: int
    """Those of them that are green."""
    z: float
    """Standard deviations by which these are more than chance gives."""
    p_value: float
    """Probability of as many green tokens or more in a text that owes nothing to the key."""


def detect_watermark(ids: Sequence[int], watermark: Watermark) -> Detected:
    """Returns how likely the tokens of a text, without its prompt, are marked with a key.

    A sequence that is repeated counts once, for its tokens are green together: counted again they
    would be evidence where there is none (arXiv:2301.10226, section 4.1).
    """
    tokens, gamma, width = np.asarray(ids, np.int64), watermark.gamma, watermark.width
    if len(tokens) <= width:
        return Detected(tokens=0, green=0, z=0.0, p_value=1.0)
    grams = np.lib.stride_tricks.sliding_window_view(tokens, width + 1)
    _, first = np.unique(grams, axis=0, return_index=True)
    count, green = len(first), int(green_tokens(ids, watermark)[first].sum())
    z = (green - gamma * count) / math.sqrt(count * gamma * (1 - gamma))
    return Detected(count, green, z, binomial_tail(green, count, gamma))


def binomial_tail(least: int, count: int, share: float) -> float:
    """Returns the probability of `least` or more successes in `count` trials."""
    if least <= 0:
        return 1.0
    successes = np.arange(least, count + 1)
    chosen = math.lgamma(count + 1) - np.asarray(
        [math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in successes.tolist()]
    )
    logs = chosen + successes * math.log(share) + (count - successes) * math.log1p(-share)
    top = logs.max()
    return min(1.0, float(np.exp(top) * np.exp(logs - top).sum()))
