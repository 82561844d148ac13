"""Constraints over tokens: what each token of a vocabulary does in each state of an automaton.

`compiled` turns a JSON schema, regular expression, grammar or list of choices into a
`TokenAutomaton`. Bytes that no state distinguishes become one symbol, tokens of equal symbols one
word, and words that begin alike are followed together; so a vocabulary of 50,000 tokens takes
seconds at most.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.constraints.languages import token_mark

GROUP = 1 << 20
"""Pairs of a state and a word that are computed together."""

KINDS = ("schema", "grammar", "regex", "choices", "excerpt")
"""The settings that constrain an answer."""


class TokenAutomaton(NamedTuple):
    """One constraint for one tokenizer; its arrays are those of `masks.Constraint`."""

    masks: np.ndarray
    shortest: np.ndarray
    mask: np.ndarray
    need: np.ndarray
    table: np.ndarray
    least: int
    """Number of tokens of the shortest answer, without the end-of-document id."""


@functools.lru_cache(maxsize=16)
def compiled(
    kind: str, source: Any, tokenizer: Tokenizer, banned: frozenset[int] = frozenset()
) -> TokenAutomaton:
    """The token automaton of a constraint, cached by source, tokenizer and banned ids.

    Args:
      kind: one of `KINDS`.
      banned: ids that are never written; answers must be possible without them.

    Raises:
      ConfigError: the source is malformed or too large to compile, or no tokens of this tokenizer
        (that are not banned) spell such a text.
    """
    return compile_tokens(kind, source, spell(tokenizer), ends_of(tokenizer), banned)


def ends_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that may end an answer under a constraint: that of a document, first, and others. None if
    documents have no end."""
    end = tokenizer.end_of_document
    return () if end is None else (end, *tokenizer.ends)


def compile_tokens(
    kind: str, source: Any, pieces: np.ndarray, ends: tuple[int, ...], banned: frozenset[int]
) -> TokenAutomaton:
    """Like `compiled`, from arrays alone.

    Args:
      pieces: from `spell`.
      ends: from `ends_of`.
    """
    # the compilers of languages are a tenth of gptjax; only answers under a constraint need them
    from gptjax.generate.constraints.syntaxes import byte_automaton

    require(
        bool(ends) and ends[0] not in banned,
        f"an answer under a {kind} ends with the end-of-document id, which this tokenizer"
        f" {'has, but it is banned' if ends else 'lacks'} (--{kind}).",
    )
    automaton = byte_automaton(kind, source)
    pieces = np.where(np.isin(np.arange(len(pieces)), [*banned])[:, None], -1, pieces)
    table, symbol = automaton.symbols()
    levels, word = _trie(np.where(pieces >= 0, symbol[pieces], -1))
    words = int(word.max()) + 1
    row = np.full((1, table.shape[1]), -1)  # where state −1 leads
    after = functools.partial(_after, np.append(table, row, axis=0).astype(np.int32), levels, words)
    groups = np.array_split(_alike(table), -(-len(table) * words // GROUP))
    following: list[list[int]] = [[]] * len(table)
    for states in groups:
        for state, to in zip(states, after(states), strict=True):
            following[state] = _distinct(to[to >= 0], len(table))
    distance = _distances(following, automaton.accepting)
    require(
        np.isfinite(distance[0]),
        f"no tokens of this tokenizer{' that are not banned' if banned else ''} spell a text that"
        f" the {kind} allows (--{kind}).",
    )
    masks = _Masks(len(table), word, [*ends])
    for states in groups:
        steps = np.append(distance, np.inf)[after(states)]
        masks.add(states, steps, distance[states], automaton.accepting[states])
    return masks.automaton(automaton.table, int(distance[0]))


@functools.lru_cache(maxsize=2)
def spell(tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of each token [V bytes] int16, −1 after its end; the width is a power of two.
    Control tokens have bytes that no text has, and that only a grammar can name; a token that has
    such a byte is part of no text, so it spells nothing here."""
    pieces = [tokenizer.token_bytes([i]) for i in range(tokenizer.vocab_size)]
    pieces = [b"" if token_mark(0)[0] in piece else piece for piece in pieces]
    for control in tokenizer.controls.values():
        pieces[control.id] = pieces[control.id] or token_mark(control.id)
    table = np.full((len(pieces), 1 << (max(map(len, pieces)) - 1).bit_length()), -1, np.int16)
    for row, piece in zip(table, pieces, strict=True):
        row[: len(piece)] = list(piece)
    return table


class _Level(NamedTuple):
    """All distinct beginnings of words that have one certain length."""

    before: np.ndarray
    """The beginning that is one symbol shorter, as its index in the level before."""
    symbol: np.ndarray
    """The last symbol."""
    words: np.ndarray
    """The words that end at this level."""
    place: np.ndarray
    """The index of the beginning that each of them is."""


def _trie(pieces: np.ndarray) -> tuple[list[_Level], np.ndarray]:
    """All beginnings of all words by length, and the word of each token.

    Tokens of the same symbols are one word; −1 marks tokens that spell nothing.
    """
    levels, word, count = [], np.full(len(pieces), -1), 0
    lengths, place = (pieces >= 0).sum(axis=1), np.zeros(len(pieces), np.int64)
    for i in range(lengths.max()):
        longer, ending = np.flatnonzero(lengths > i), lengths == i + 1
        known, place[longer] = np.unique(
            place[longer] * 256 + pieces[longer, i], return_inverse=True
        )
        ends, same = np.unique(place[ending], return_inverse=True)
        word[ending] = count + same
        levels.append(_Level(known // 256, known % 256, count + np.arange(len(ends)), ends))
        count += len(ends)
    return levels, word


def _alike(table: np.ndarray) -> np.ndarray:
    """All states, those together in which the same symbols may come, so that words die together."""
    possible = np.packbits(table >= 0, axis=1)
    return np.lexsort(possible.T)


def _after(table: np.ndarray, levels: list[_Level], words: int, states: np.ndarray) -> np.ndarray:
    """The state after each word in each of these states [S words]; −1 where it is not possible.

    Args:
      table: its last row, which is that of state −1, holds −1.
    """
    symbols, flat = table.shape[1], table.reshape(-1)
    after = np.full((len(states), words), -1, np.int32)
    here = states.astype(np.int32)[:, None]
    column = np.zeros(1, np.int64)
    for level in levels:
        kept = np.flatnonzero(column[level.before] >= 0)
        here = np.take(
            flat,
            here[:, column[level.before[kept]]] * symbols
            + level.symbol[kept].astype(np.int32)[None],
        )
        alive = (here >= 0).any(axis=0)
        here, column = here[:, alive], np.full(len(level.symbol), -1)
        column[kept[alive]] = np.arange(here.shape[1])
        ending = column[level.place]
        after[:, level.words[ending >= 0]] = here[:, ending[ending >= 0]]
    return after


def _distinct(states: np.ndarray, size: int) -> list[int]:
    """The distinct ones of some of `size` states, in time linear in their number but for a
    logarithm."""
    if 16 * len(states) < size:
        return np.unique(states).tolist()
    return np.flatnonzero(np.bincount(states)).tolist()


def _distances(following: list[list[int]], accepting: np.ndarray) -> np.ndarray:
    """Smallest number of tokens from each state to an accepting one; infinite where impossible."""
    before: list[list[int]] = [[] for _ in following]
    for state, others in enumerate(following):
        for other in others:
            before[other].append(state)
    distance = np.where(accepting, 0.0, np.inf)
    todo = np.flatnonzero(accepting).tolist()
    for state in todo:  # grows: breadth first
        for other in before[state]:
            if distance[other] == np.inf:
                distance[other] = distance[state] + 1
                todo.append(other)
    return distance


class _Masks:
    """Collects the masks of states over words; equal ones are stored once."""

    def __init__(self, size: int, word: np.ndarray, ends: list[int]) -> None:
        """Args: `word` is that of each token, −1 for none; `ends` are ids that end an answer."""
        self.word, self.ends = word, ends
        self.known: dict[bytes, int] = {}
        self.mask, self.need = np.zeros(size, np.int32), np.zeros(size, np.int32)

    def add(
        self, states: np.ndarray, steps: np.ndarray, distance: np.ndarray, accepting: np.ndarray
    ) -> None:
        """Sets the masks of some of the `size` states.

        Args:
          steps: [S words] distances after each word, infinite where it is not possible.
          distance: [S] distances of the states themselves.
        """
        possible = np.isfinite(steps)
        shorter = possible & (steps < distance[:, None])
        rows = np.concatenate([possible, shorter, accepting[:, None]], axis=1)
        for state, row in zip(states, np.packbits(rows, axis=1), strict=True):
            self.mask[state] = self.known.setdefault(row.tobytes(), len(self.known))
        self.need[states] = 1 + np.where(possible, steps, 0).max(axis=1)

    def automaton(self, table: np.ndarray, least: int) -> TokenAutomaton:
        """The token automaton, once all states have been added."""
        words = int(self.word.max()) + 1
        rows = np.frombuffer(b"".join(self.known), np.uint8).reshape(len(self.known), -1)
        flags = np.unpackbits(rows, axis=1)[:, : 2 * words + 1].astype(bool)
        return TokenAutomaton(
            masks=self._packed(flags[:, :words], flags[:, -1]),
            shortest=self._packed(flags[:, words : 2 * words], flags[:, -1]),
            mask=self.mask,
            need=self.need,
            table=table,
            least=least,
        )

    def _packed(self, flags: np.ndarray, accepting: np.ndarray) -> np.ndarray:
        """Flags of words as bits of tokens."""
        size = len(self.word)
        whole = np.zeros((len(flags), -(-size // 32) * 32), bool)
        whole[:, :size] = np.append(flags, np.zeros((len(flags), 1), bool), axis=1)[:, self.word]
        whole[:, self.ends] = accepting[:, None]
        return np.packbits(whole, axis=1, bitorder="little").view("<i4")
