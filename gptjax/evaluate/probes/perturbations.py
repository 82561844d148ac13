"""Small changes of a question that leave its meaning and its right answer alone.

A perturbation is a pure function (text, generator of random numbers) → text. Read `perturbed`,
which keeps choices and labels out of its reach, then the perturbations. Source of the kinds: Liang
et al. 2022, Holistic Evaluation of Language Models, arXiv:2211.09110, section D.1.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gptjax.core.config import ConfigError, require

Perturbation = Callable[[str, random.Random], str]

DRAWN = ("misspelling", "typo", "spacing", "filler")
"""Perturbations that depend on the seed; the others are always the same."""

SHARE = 0.3
"""Share of the words that can be changed which a drawn perturbation changes; at least one."""

LABEL = r"^[ \t]*[^\W\d_]+:[ \t]*|(?<!\S)[^\W\d_]+:(?=\s*$)|^[ \t]*[A-Z][.)][ \t].*$"
"""A word and a colon at the beginning of a line or at the end of the text, such as `Question:`; a
line that lists a choice, such as `A. a choice`."""


def perturbed(
    text: str, perturbation: Perturbation, key: str, protected: Sequence[str] = ()
) -> str:
    """Returns a changed text; its labels, and the protected texts in it, are left as they are.

    Args:
      key: decides the random numbers; the same key and text give the same result.
      protected: choices. An occurrence counts that is no part of a longer word.
    """
    words = sorted({word for word in protected if word.strip()}, key=len, reverse=True)
    kept = [LABEL, *(rf"(?<!\w){re.escape(word.strip())}(?!\w)" for word in words)]
    marks = (chr(code) for code in range(0xF0000, 0xFFFFD) if chr(code) not in text)
    spans: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        mark = next(marks)
        spans[mark] = match[0]
        return mark

    hidden = re.sub("|".join(kept), hide, text, flags=re.MULTILINE)
    changed = perturbation(hidden, random.Random(key))
    return "".join(spans.get(character, character) for character in changed)


def perturbations(misspellings: Mapping[str, Sequence[str]] | None) -> dict[str, Perturbation]:
    """Returns all perturbations by name.

    Args:
      misspellings: word → how people misspell it; without it there is no `misspelling`, and `typo`
        stands alone.
    """
    known: dict[str, Perturbation] = {
        "typo": typo,
        "lower case": lambda text, _: text.lower(),
        "upper case": lambda text, _: text.upper(),
        "spacing": spacing,
        "contraction": contraction,
        "expansion": expansion,
        "filler": filler,
    }
    return {"misspelling": misspelling(misspellings)} | known if misspellings else known


def read_misspellings(path: Path) -> dict[str, list[str]]:
    """Reads lines `wrong->right` or `wrong->right, other,`; returns right word → wrong ones.

    Of a wrong word that stands for several right ones nobody knows which was meant, so it is left
    out, and so is one that is itself the right spelling of another.

    Raises:
      ConfigError: the file can't be read, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read ({error}); give lines such as teh->the (--misspellings FILE)."
        ) from None
    pairs = []
    for number, line in enumerate(lines, 1):
        wrong, arrow, rights = line.partition("->")
        right = [word.strip() for word in rights.split(",") if word.strip()]
        require(
            not line.strip() or bool(wrong.strip() and arrow and right),
            f"{path}:{number} is {line!r}; it needs a line such as teh->the (--misspellings FILE).",
        )
        if len(right) == 1 and " " not in right[0]:
            pairs.append((wrong.strip(), right[0]))
    words = {right for _, right in pairs}
    found: dict[str, list[str]] = defaultdict(list)
    for wrong, right in pairs:
        if wrong not in words:
            found[right].append(wrong)
    return dict(found)


# --- the perturbations

_WORD = re.compile(r"[^\W\d_]+")
"""A run of letters."""


def misspelling(known: Mapping[str, Sequence[str]]) -> Perturbation:
    """Returns the perturbation that misspells words as people do."""

    def misspell(text: str, numbers: random.Random) -> str:
        words = [m for m in _WORD.finditer(text) if m[0].lower() in known]

        def wrong(word: str) -> str:
            return _cased_like(word, numbers.choice(known[word.lower()]))

        return _replaced(text, words, wrong, numbers)

    return misspell


ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Of the keyboard."""
NEIGHBOURS = {
    key: [row[at] for at in (i - 1, i + 1) if 0 <= at < len(row)]
    for row in ROWS
    for i, key in enumerate(row)
}


def typo(text: str, numbers: random.Random) -> str:
    """Slips on the keyboard inside words of four letters or more: two letters swapped, one left
    out, doubled, or hit beside its key."""

    def slip(word: str) -> str:
        at = numbers.randrange(1, len(word) - 1)
        before, letter, after = word[:at], word[at], word[at + 1 :]
        kinds = [before + after, before + 2 * letter + after]
        if after[0] != letter:
            kinds.append(before + after[0] + letter + after[1:])
        kinds += [before + near + after for near in NEIGHBOURS.get(letter, ())]
        return numbers.choice(kinds)

    words = [m for m in _WORD.finditer(text) if len(m[0]) >= 4 and m[0].isascii()]
    return _replaced(text, words, slip, numbers)


def spacing(text: str, numbers: random.Random) -> str:
    """Writes each space between words one to three times, at least one of them more than once."""
    gaps = list(re.finditer(r"(?<=\S) (?=\S)", text))
    return _replaced(text, gaps, lambda gap: gap * numbers.randint(2, 3), numbers, share=2 / 3)


FILLERS = ("um,", "uh,", "well,", "you know,", "I mean,", "so,", "like,")


def filler(text: str, numbers: random.Random) -> str:
    """Puts a word that says nothing into some gaps between words."""
    gaps = list(re.finditer(r"(?<=[^\W\d_]) (?=[^\W\d_])", text))
    return _replaced(text, gaps, lambda gap: f" {numbers.choice(FILLERS)} ", numbers, share=0.1)


SHORT = {
    **{f"{verb} not": f"{verb}n't" for verb in ("is", "are", "was", "were", "do", "does", "did")},
    **{f"{verb} not": f"{verb}n't" for verb in ("has", "have", "had", "would", "could", "should")},
    "will not": "won't",
    "cannot": "can't",
    **{
        f"{who} is": f"{who}'s"
        for who in ("it", "he", "she", "that", "what", "who", "where", "there")
    },
    **{f"{who} are": f"{who}'re" for who in ("you", "we", "they")},
    **{f"{who} will": f"{who}'ll" for who in ("I", "you", "we", "they", "he", "she", "it")},
    "I am": "I'm",
}
"""Written out → contracted."""


def contraction(text: str, _: random.Random) -> str:
    """Contracts what English often contracts, before another word: do not → don't."""
    return _exchanged(text, SHORT, r"(?=\s+\w)")


def expansion(text: str, _: random.Random) -> str:
    """Writes contractions out: don't → do not."""
    return _exchanged(text.replace("’", "'"), {short: full for full, short in SHORT.items()})


def _exchanged(text: str, table: Mapping[str, str], where: str = "") -> str:
    lower = {key.lower(): value for key, value in table.items()}
    longest = sorted(map(re.escape, lower), key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(longest)})\b{where}", re.IGNORECASE)
    return pattern.sub(lambda match: _cased_like(match[0], lower[match[0].lower()]), text)


def _replaced(
    text: str,
    places: Sequence[re.Match[str]],
    change: Callable[[str], str],
    numbers: random.Random,
    share: float = SHARE,
) -> str:
    """The text with a share of the places changed, one at least if there is any."""
    chosen = [place for place in places if numbers.random() < share]
    if places and not chosen:
        chosen = [numbers.choice(places)]
    ends = [0, *itertools.chain(*(place.span() for place in chosen)), len(text)]
    kept = [text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)]
    changed = [change(place[0]) for place in chosen]
    return "".join(itertools.chain(*itertools.zip_longest(kept, changed, fillvalue="")))


def _cased_like(word: str, other: str) -> str:
    """The other word, in capitals or with a first capital where the word is."""
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
