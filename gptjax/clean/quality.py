"""Rules that tell running text from menus, lists, keywords, logs and what programs repeat.

Each rule is a function from measures of a text and the limits to the figure that breaks a limit,
or `None`; `RULES` names them. Read `Measures`, then the rules by their sources: Gopher
(arXiv:2112.11446, table A1), C4 (arXiv:1910.10683, section 2.2), FineWeb (arXiv:2406.17557,
section 3.6).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

from gptjax.clean.records import Item
from gptjax.clean.stage import Stage, Verdict, filtering
from gptjax.data.cleaning import Quality

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
ELLIPSES = ("…", "...")
BULLETS = ("•", "‣", "●", "○", "■", "□", "▪", "▫", "–", "—", "-", "*", "·")
PUNCTUATION = (*".!?。！？…\"'”’»:;", ")", "]")
SHORT = 30
"""Characters below which a line is short."""
_WIDE = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]")
_WORDS = re.compile(rf"{_WIDE.pattern}|\S+")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE = re.compile(r"(?<![.!?。！？])[.!?。！？]++(?=[\s\"'”’»)\]]|$)")


class Measures:
    """A text and what the rules count in it, each figure computed when a rule first asks."""

    def __init__(self, text: str, language: str = ""):
        self.text, self.language = text, language

    @functools.cached_property
    def words(self) -> list[str]:
        """Runs of anything but white space; a Chinese character or a kana is one."""
        return _WORDS.findall(self.text)

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines with text, without the white space around them."""
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """Texts between blank lines."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    def share_of_lines(self, fits: Callable[[str], bool]) -> float:
        """The share of lines that fit."""
        return sum(map(fits, self.lines)) / max(1, len(self.lines))


Rule = Callable[[Measures, Quality], float | str | None]


def quality_stage(settings: Quality) -> Stage | None:
    """Returns the stage that drops a text by the first rule that it breaks; `None` without
    rules."""
    rules = [(name, RULES[name]) for name in settings.rules]
    if not rules:
        return None

    def judge(item: Item) -> Verdict | None:
        measures = Measures(item.text, item.language)
        for name, rule in rules:
            value = rule(measures, settings)
            if value is not None:
                return name, value
        return None

    return filtering(judge)


def _outside(value: float, low: float | None = None, high: float | None = None) -> float | None:
    """The value, if it is outside the limits."""
    below, above = low is not None and value < low, high is not None and value > high
    return value if below or above else None


# --- Gopher: what text looks like


def gopher_words(text: Measures, limits: Quality) -> float | None:
    """Number of words outside [`min_words`, `max_words`]."""
    return _outside(len(text.words), limits.min_words, limits.max_words)


def gopher_word_length(text: Measures, limits: Quality) -> float | None:
    """Mean length of a word outside the limits; of text that is written without spaces any."""
    if 2 * sum(bool(_WIDE.match(word)) for word in text.words) > len(text.words):
        return None  # Chinese, Japanese: a character is a word
    mean = sum(map(len, text.words)) / max(1, len(text.words))
    return _outside(mean, limits.min_word_length, limits.max_word_length)


def gopher_symbols(text: Measures, limits: Quality) -> float | None:
    """Number signs, or ellipses, per word above `max_symbols`."""
    signs = text.text.count("#"), sum(map(text.text.count, ELLIPSES))
    return _outside(max(signs) / max(1, len(text.words)), high=limits.max_symbols)


def gopher_bullets(text: Measures, limits: Quality) -> float | None:
    """Share of lines that begin with a bullet above `max_bullets`."""
    return _outside(
        text.share_of_lines(lambda line: line.startswith(BULLETS)), high=limits.max_bullets
    )


def gopher_ellipses(text: Measures, limits: Quality) -> float | None:
    """Share of lines that end with an ellipsis above `max_ellipses`."""
    return _outside(
        text.share_of_lines(lambda line: line.endswith(ELLIPSES)), high=limits.max_ellipses
    )


def gopher_alphabetic(text: Measures, limits: Quality) -> float | None:
    """Share of words with a letter below `min_alphabetic`; punctuation alone is no word."""
    words = [word for word in text.words if any(map(str.isalnum, word))]
    letters = sum(bool(_LETTER.search(word)) for word in words)
    return _outside(letters / max(1, len(words)), limits.min_alphabetic)


def gopher_stop_words(text: Measures, limits: Quality) -> float | None:
    """Number of different English stop words below `min_stop_words`; none where the language was
    identified and is another."""
    if text.language not in ("", "en"):
        return None
    found = STOP_WORDS.intersection(word.strip(".,;:!?\"'()").lower() for word in text.words)
    return _outside(len(found), limits.min_stop_words)


# --- Gopher: repetition


def _repeated(parts: Sequence[str]) -> tuple[float, float]:
    """Share of parts that repeat an earlier one, and of the characters in them."""
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]
    characters = sum(map(len, parts))
    return len(again) / max(1, len(parts)), sum(map(len, again)) / max(1, characters)


def _too_repeated(parts: Sequence[str], limits: Quality) -> float | None:
    number, characters = _repeated(parts)
    above = _outside(number, high=limits.max_repeated_lines)
    if above is None:
        return _outside(characters, high=limits.max_repeated_line_characters)
    return above


def gopher_repeated_lines(text: Measures, limits: Quality) -> float | None:
    """Share of lines that repeat an earlier one above `max_repeated_lines`, or of the characters
    above `max_repeated_line_characters`."""
    return _too_repeated(text.lines, limits)


def gopher_repeated_paragraphs(text: Measures, limits: Quality) -> float | None:
    """The same of paragraphs."""
    return _too_repeated(text.paragraphs, limits)


def gopher_top_ngrams(text: Measures, limits: Quality) -> float | None:
    """Share of the characters in the commonest 2-, 3- or 4-gram above `max_top_ngrams`."""
    words, total = text.words, max(1, sum(map(len, text.words)))
    for n, most in zip((2, 3, 4), limits.max_top_ngrams, strict=True):
        counts = Counter(zip(*(words[k:] for k in range(n)), strict=False))
        gram, count = max(counts.items(), key=lambda one: one[1], default=((), 0))
        share = count * sum(map(len, gram)) / total
        if count > 1 and share > most:
            return share
    return None


def gopher_repeated_ngrams(text: Measures, limits: Quality) -> float | None:
    """Share of the characters in 5- to 10-grams that stood before above `max_repeated_ngrams`;
    characters in several such n-grams count once."""
    words, total = text.words, max(1, sum(map(len, text.words)))
    for n, most in zip(range(5, 11), limits.max_repeated_ngrams, strict=True):
        seen: set[tuple[str, ...]] = set()
        repeated, end = 0, 0
        for at, gram in enumerate(zip(*(words[k:] for k in range(n)), strict=False)):
            if gram in seen:
                repeated += sum(map(len, words[max(at, end) : at + n]))
                end = at + n
            seen.add(gram)
        if not repeated:
            return None  # no longer n-gram is repeated either
        if repeated / total > most:
            return repeated / total
    return None


# --- C4


def c4_placeholder_text(text: Measures, limits: Quality) -> str | None:
    """Has "lorem ipsum"."""
    return "lorem ipsum" if "lorem ipsum" in text.text.lower() else None


def c4_braces(text: Measures, limits: Quality) -> str | None:
    """Has a curly bracket, as program text does."""
    return "{" if "{" in text.text else None


def c4_sentences(text: Measures, limits: Quality) -> float | None:
    """Number of sentences below `min_sentences`."""
    return _outside(len(_SENTENCE.findall(text.text)), limits.min_sentences)


# --- FineWeb


def fineweb_punctuation(text: Measures, limits: Quality) -> float | None:
    """Share of lines that end with a punctuation mark at or below `min_punctuated`."""
    share = text.share_of_lines(lambda line: line.endswith(PUNCTUATION))
    return share if share <= limits.min_punctuated else None


def fineweb_repeated_characters(text: Measures, limits: Quality) -> float | None:
    """Share of characters in lines that repeat an earlier one at or above
    `max_repeated_characters`."""
    share = _repeated(text.lines)[1]
    return share if share >= limits.max_repeated_characters else None


def fineweb_short_lines(text: Measures, limits: Quality) -> float | None:
    """Share of short lines at or above `max_short_lines`."""
    share = text.share_of_lines(lambda line: len(line) < SHORT)
    return share if share >= limits.max_short_lines else None


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(gopher_words, gopher_word_length, gopher_symbols, gopher_bullets, gopher_ellipses),
        *(gopher_alphabetic, gopher_stop_words, gopher_repeated_lines),
        *(gopher_repeated_paragraphs, gopher_top_ngrams, gopher_repeated_ngrams),
        *(c4_placeholder_text, c4_braces, c4_sentences),
        *(fineweb_punctuation, fineweb_repeated_characters, fineweb_short_lines),
    )
}
"""Name → rule."""
