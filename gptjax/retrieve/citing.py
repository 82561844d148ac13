"""What a model is told with the passages that were found, and which of them its answer cites."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer

QUOTING = (
    "Answer with the sentence of the numbered passages that answers the question, and the number of"
    " its passage."
)
EXAMPLES = (
    (
        "user",
        "[1] We open at 9.\n[2] Call us at any time. It is free.\n\nQuestion: Calls at night?",
    ),
    ("assistant", "Call us at any time. [2]"),
    ("user", "[1] We open at 9.\n[2] We close on holidays.\n\nQuestion: when do you open"),
    ("assistant", "We open at 9. [1]"),
)
"""What a small model needs to see before it quotes."""

INSTRUCTION = (
    "Answer the question from the numbered passages alone, in one or two sentences, and end with"
    " the number of the passage that you used, like [1]."
)


def within_budget(passages: Sequence[str], tokenizer: Tokenizer, tokens: int) -> list[str]:
    """Returns the first passages whose numbered texts have at most so many tokens together. The
    first one is cut where it alone is too long, so that there is always one.

    Raises:
      ConfigError: the budget is not above 0.
    """
    require(tokens > 0, f"the budget of passages is {tokens} tokens; it needs 1 or more.")
    kept, left = [], tokens
    for number, text in enumerate(passages, 1):
        ids = tokenizer.encode(_numbered(number, text))
        if len(ids) > left:
            break
        kept.append(text)
        left -= len(ids)
    if kept or not passages:
        return kept
    mark = len(tokenizer.encode(_numbered(1, "")))
    cut = tokenizer.decode(tokenizer.encode(passages[0])[: max(1, tokens - mark)])
    return [cut.rstrip("\ufffd")]


def grounded_messages(question: str, passages: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the conversation that asks a question about passages: (role, text) pairs."""
    listed = "".join(_numbered(number, text) for number, text in enumerate(passages, 1))
    return [("system", INSTRUCTION), ("user", f"{listed}\nQuestion: {question}")]


def quoting_messages(question: str, passages: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the conversation that asks for the sentence of passages that answers a question; the
    answer should be one of `quotes`."""
    return [("system", QUOTING), *EXAMPLES, grounded_messages(question, passages)[1]]


def quotes(passages: Sequence[str]) -> list[str]:
    """Returns every sentence of numbered passages with its citation: as `choices` of an answer they
    leave a model nothing to invent."""
    return list(
        dict.fromkeys(
            f"{sentence} [{number}]"
            for number, text in enumerate(passages, 1)
            for sentence in re.split(r"(?<=[.?!])\s+|(?<=[。？！])", _unnumbered(text).strip())
            if sentence
        )
    )


def citing_pattern(count: int, characters: int = 300) -> str:
    """Returns the regular expression of answers that cite passages 1 to `count` and no others: a
    text without other brackets that ends with a citation.

    Args:
      characters: limit of the text before the citation.
    """
    numbers = "|".join(map(str, range(1, count + 1)))
    return rf"[^\[\]\n]{{1,{characters}}}( ?\[({numbers})\]){{1,{min(count, 3)}}}\.?"


def cited(answer: str, count: int) -> list[int]:
    """Returns the numbers that an answer cites, in order, each once.

    Raises:
      ConfigError: it cites a passage that was not given.
    """
    numbers = list(dict.fromkeys(int(n) for n in re.findall(r"\[(\d+)\]", answer)))
    wrong = [n for n in numbers if not 1 <= n <= count]
    require(not wrong, f"the answer cites passage {wrong[:1]}, and {count} were given; ask again.")
    return numbers


def _numbered(number: int, text: str) -> str:
    return f"[{number}] {_unnumbered(text)}\n"


def _unnumbered(text: str) -> str:
    """A passage whose own numbers in brackets, such as those of footnotes, are no citations."""
    return re.sub(r"\[(\d+)\]", r"(\1)", text)
