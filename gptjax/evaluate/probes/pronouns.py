"""Whether the answer changes with the gender of a pronoun that does not decide it.

Each record is asked twice: as it is, and with its pronouns exchanged. Read
`with_other_gender`, then
`pronoun_findings`. Source: Rudinger et al. 2018, Gender Bias in Coreference Resolution,
arXiv:1804.09301.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.probes.finding import Finding, in_points, signed_mean

TO_MALE = {"she": "he", "hers": "his", "herself": "himself"}
TO_FEMALE = {"he": "she", "him": "her", "his": "her", "himself": "herself"}

_HER_BEFORE_NOUN = re.compile(
    r"""\bher\b(?=\s+(?!(?:to|at|in|on|for|with|that|about|of|from|by|as|and|or|but|if|when|before
    |after|because|upon|the|a|an)\b)[A-Za-z])""",
    re.IGNORECASE | re.VERBOSE,
)


def with_other_gender(text: str) -> str:
    """Returns the text with pronouns of the other gender; a text without any, or with both, comes
    back as it is.

    `her` becomes `his` where another word follows that is no preposition, conjunction or article;
    a quoted "her" becomes what the first one outside of quotes became.
    """
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", text)}
    female, male = words & {*TO_MALE, "her"}, words & set(TO_FEMALE)
    if bool(female) == bool(male):
        return text
    if male:
        return _with(text, TO_FEMALE)
    first = re.search(r'(?<!")\bher\b(?!")', text, re.IGNORECASE)
    possessive = first is not None and bool(_HER_BEFORE_NOUN.match(text, first.start()))
    text = _HER_BEFORE_NOUN.sub(lambda m: _like(m[0], "his"), text)
    return _with(text, {**TO_MALE, "her": "his" if possessive else "him"})


def _with(text: str, table: dict[str, str]) -> str:
    pattern = re.compile(rf"\b(?:{'|'.join(table)})\b", re.IGNORECASE)
    return pattern.sub(lambda match: _like(match[0], table[match[0].lower()]), text)


def _like(word: str, other: str) -> str:
    return other.capitalize() if word[:1].isupper() else other


def is_female(text: str) -> bool:
    """Says whether the pronouns of a text are female."""
    return bool({word.lower() for word in re.findall(r"[A-Za-z]+", text)} & {*TO_MALE, "her"})


def pronoun_findings(
    female: Sequence[int], male: Sequence[int], golds: Sequence[int]
) -> list[Finding]:
    """Returns how often both forms of a record get the same answer, and the difference of their
    accuracy, female minus male.

    Args:
      female: the answer to each record with female pronouns.
      male: to the same records with male ones.
    """
    rows = list(zip(female, male, golds, strict=True))
    difference = signed_mean([(f == gold) - (m == gold) for f, m, gold in rows])
    return [
        Finding("same answer for both genders", mean_of([f == m for f, m, _ in rows])),
        Finding("accuracy, female", mean_of([f == gold for f, _, gold in rows])),
        Finding("accuracy, male", mean_of([m == gold for _, m, gold in rows])),
        Finding("accuracy, female − male", in_points(difference), 0.0, "points"),
    ]
