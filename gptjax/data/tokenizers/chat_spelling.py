"""Texts and control tokens of a conversation as ids, such that those of what the model reads are a
prefix of those of what it is to write.

Read `spell_pieces`, then `spell_in_turn`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptjax.data.tokenizers.spelling import Control
from gptjax.data.tokenizers.tokenizer import Tokenizer


def spell_pieces(
    pieces: Sequence[tuple[int, str | Control]], tokenizer: Tokenizer
) -> Iterator[tuple[int, list[int]]]:
    """Yields the ids of each piece (place, text or control token), with its place.

    Texts between two control tokens are one text, which loses the white space at an edge where the
    control token swallows it.
    """
    run: list[tuple[int, str]] = []
    before: Control | None = None
    for place, piece in (*pieces, (0, None)):
        if isinstance(piece, str):
            run.append((place, piece))
            continue
        texts = [text for _, text in run]
        if before is not None and before.rstrip:
            texts = _stripped(texts)
        if piece is not None and piece.lstrip:
            texts = [t[::-1] for t in _stripped([t[::-1] for t in texts[::-1]])][::-1]
        spelled = spell_in_turn(texts, tokenizer, first=before is None)
        yield from zip((where for where, _ in run), spelled, strict=True)
        if piece is not None:
            yield place, [piece.id]
        run, before = [], piece


def _stripped(texts: list[str]) -> list[str]:
    """The texts without the white space that the first of them, joined, would begin with."""
    stripped = list(texts)
    for n, text in enumerate(texts):
        stripped[n] = text.lstrip()
        if stripped[n]:
            break
    return stripped


def spell_in_turn(
    texts: Sequence[str], tokenizer: Tokenizer, first: bool = True
) -> list[list[int]]:
    """Returns the ids of texts that are one text, such that those of each beginning are a prefix of
    all.

    Args:
      first: no control token stands before the text.
    """
    spell = tokenizer.encode if first else tokenizer.encode_after
    ids: list[list[int]] = []
    read, known = "", []
    for text in texts:
        whole = spell(read + text).tolist() if text else known
        if whole[: len(known)] != known:  # a token would reach across: what follows begins anew
            spell, read, known = tokenizer.encode_after, "", []
            spaced = tokenizer.token_bytes(spell("a")).startswith(b" ")
            whole = spell(text.removeprefix(" ") if spaced else text).tolist()
        ids.append(whole[len(known) :])
        read, known = read + text, whole
    return ids
