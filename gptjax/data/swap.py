"""Counterfactual data augmentation: training documents whose words of one gender become those of
the other, so that a model meets both in the same places.

Read `Swap`, then `swap_words`. Sources: Lu et al. 2018, Gender Bias in Neural Natural Language
Processing, arXiv:1807.11714; for names, Hall Maudslay et al. 2019, It's All in the Name,
arXiv:1909.00871.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptjax.core.config import require
from gptjax.data.documents.document import Document

WORDS = (
    *(("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls")),
    *(("father", "mother"), ("fathers", "mothers"), ("dad", "mum"), ("son", "daughter")),
    *(("sons", "daughters"), ("brother", "sister"), ("brothers", "sisters"), ("uncle", "aunt")),
    *(("uncles", "aunts"), ("nephew", "niece"), ("nephews", "nieces"), ("husband", "wife")),
    *(("husbands", "wives"), ("grandfather", "grandmother"), ("king", "queen")),
    *(("kings", "queens"), ("prince", "princess"), ("princes", "princesses"), ("duke", "duchess")),
    *(("lord", "lady"), ("lords", "ladies"), ("gentleman", "gentlewoman"), ("sir", "madam")),
    *(("mr", "mrs"), ("actor", "actress"), ("actors", "actresses"), ("waiter", "waitress")),
    *(("host", "hostess"), ("hero", "heroine"), ("heroes", "heroines"), ("monk", "nun")),
    *(("monks", "nuns"), ("widower", "widow"), ("widowers", "widows"), ("wizard", "witch")),
    *(("male", "female"), ("males", "females"), ("policeman", "policewoman")),
    *(("chairman", "chairwoman"), ("spokesman", "spokeswoman"), ("himself", "herself")),
    *(("businessman", "businesswoman"), ("landlord", "landlady"), ("he", "she")),
)
"""Pairs of words that are exchanged, whatever their case. `his`, `him`, `her` and `hers`, which
have no one partner, are exchanged by their place in the sentence."""

NAMES = (
    *(("James", "Mary"), ("John", "Anna"), ("Robert", "Emma"), ("Michael", "Laura")),
    *(("David", "Sarah"), ("William", "Elizabeth"), ("Richard", "Susan"), ("Joseph", "Jane")),
    *(("Thomas", "Margaret"), ("Charles", "Helen"), ("Daniel", "Emily"), ("George", "Catherine")),
    *(("Edward", "Alice"), ("Henry", "Clara"), ("Peter", "Sophia"), ("Paul", "Julia")),
    *(("Arthur", "Ellen"), ("Frank", "Rose"), ("Walter", "Martha"), ("Philip", "Caroline")),
)
"""Given names, men's and women's. Which name takes whose place depends on the document."""

_TABLE = dict(WORDS) | {b: a for a, b in WORDS}
_PRONOUNS = ("his", "him", "her", "hers")

_AFTER_OBJECT = re.compile(
    r"""(?:a|about|after|again|alone|also|although|always|and|any|as|at|away|back|because|before
    |behind|but|by|down|either|even|ever|every|for|from|hard|here|home|how|if|in|into|is|it|just
    |like|more|most|never|no|not|nothing|now|of|off|on|or|out|over|she|since|so|some|something|still
    |than|that|the|then|there|they|this|through|till|to|today|together|tomorrow|tonight|too|toward
    |towards|twice|under|until|up|upon|very|was|well|were|what|when|where|whether|which|while|who
    |why|with|without|would|yesterday)""",
    re.VERBOSE | re.IGNORECASE,
)
"""Words that follow `her` or `his` only where these stand alone, as object or as possession."""

_NEXT = re.compile(r"[ \t\r\n]+([^\W\d_]+)")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Swap:
    """Counterfactual augmentation (`data.swap`): training documents in which words, pronouns and
    names of one gender are exchanged for those of the other. Held-out text stays as it is."""

    share: float = 0.0
    """Share of the documents that are swapped; 0 swaps none, 0.5 balances the words."""
    keep: Literal["one", "both"] = "one"
    """A swapped document stands in the place of its original, or both are trained on."""
    names: bool = True
    """Exchange given names too."""
    words: tuple[tuple[str, str], ...] = ()
    """Further pairs of words to exchange, such as those of other groups."""
    seed: int = 0
    """Which documents are swapped, and which name takes whose place, follow from it and the
    document alone."""

    def __post_init__(self) -> None:
        require(
            0 <= self.share <= 1,
            f"data.swap.share is {self.share}; it needs a share in [0, 1] (--data.swap.share 0.5).",
        )
        flat = [word.lower() for pair in self.words for word in pair]
        known = {*_TABLE, *_PRONOUNS}
        twice = next((w for w in flat if flat.count(w) > 1 or w in known), None)
        require(
            twice is None,
            f"data.swap.words exchanges {twice!r} twice; name each word once, and none that is"
            " exchanged already.",
        )
        odd = next((w for w in flat if not _WORD.fullmatch(w)), None)
        require(odd is None, f"data.swap.words has {odd!r}; each needs to be one word of letters.")


def swapped_documents(swap: Swap, document: Document) -> Iterator[Document]:
    """Yields a training document as the setting has it: as it is, swapped, or both. It depends on
    the seed and the document alone."""
    if not swap.share:
        yield document
        return
    key = _key(swap.seed, document)
    chosen = key % 2**32 < swap.share * 2**32
    if swap.keep == "both" or not chosen:
        yield document
    if chosen:
        shift = key >> 32
        source = None if document.source is None else swap_words(document.source, swap, shift)
        yield document._replace(text=swap_words(document.text, swap, shift), source=source)


def _key(seed: int, document: Document) -> int:
    content = f"{seed}\0{document.source or ''}\0{document.text}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def swap_words(text: str, swap: Swap, shift: int = 0) -> str:
    """Returns a text with its words exchanged, each in the case of the one that it replaces.

    `her` becomes `his` before a noun and `him` elsewhere; `his` becomes `her` before a noun and
    `hers` elsewhere. Which it is, is told from the next word, so it is wrong now and then:
    docs/responsible-use.md says how often.

    Args:
      shift: which name takes whose place, the same in the whole text.
    """
    table = _TABLE | _both_ways(swap.words)
    names = _names(shift) if swap.names else {}

    def other(match: re.Match[str]) -> str:
        word = match[0]
        if (name := word.capitalize()) in names and not word.islower():
            return _cased(word, names[name])
        lower = word.lower()
        if lower in _PRONOUNS:
            return _cased(word, _pronoun(lower, text, match.end()))
        return _cased(word, table[lower]) if lower in table else word

    return _WORD.sub(other, text)


def _both_ways(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    lower = [(a.lower(), b.lower()) for a, b in pairs]
    return dict(lower) | {b: a for a, b in lower}


def _names(shift: int) -> dict[str, str]:
    """Name → the name that takes its place; its own inverse."""
    men, women = zip(*NAMES, strict=True)
    turned = [women[(i + shift) % len(women)] for i in range(len(men))]
    return dict(zip(men, turned, strict=True)) | dict(zip(turned, men, strict=True))


def _pronoun(word: str, text: str, end: int) -> str:
    if word == "him":
        return "her"
    if word == "hers":
        return "his"
    following = _NEXT.match(text, end)
    before_noun = following is not None and not _AFTER_OBJECT.fullmatch(following[1])
    if word == "her":
        return "his" if before_noun else "him"
    return "her" if before_noun else "hers"


def _cased(word: str, other: str) -> str:
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other
