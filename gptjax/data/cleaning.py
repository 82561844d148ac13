"""How text is cleaned before it is tokenised: the settings of each stage, in the order in which
the stages run. `gptjax.clean` does what they say.

Read `Cleaning`, then its stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gptjax.core.config import nearest, require

PII_TYPES = ("secret", "email", "iban", "card", "ip", "phone", "name")
"""In the order in which they are looked for: what one of them finds, the next ones leave alone."""

GOPHER = (
    "gopher_words",
    "gopher_word_length",
    "gopher_symbols",
    "gopher_bullets",
    "gopher_ellipses",
    "gopher_alphabetic",
    "gopher_stop_words",
    "gopher_repeated_lines",
    "gopher_repeated_paragraphs",
    "gopher_top_ngrams",
    "gopher_repeated_ngrams",
)
C4 = ("c4_placeholder_text", "c4_braces", "c4_sentences")
FINEWEB = ("fineweb_punctuation", "fineweb_repeated_characters", "fineweb_short_lines")
RULES = (*GOPHER, *C4, *FINEWEB)
"""Names of the quality rules; each is a function of `gptjax/clean/quality.py`."""


@dataclass(frozen=True)
class Normalise:
    """One spelling of the same text."""

    form: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normal form; NFKC also replaces ligatures, full-width letters and the like."""
    mojibake: bool = True
    """Mend text that was decoded in the wrong encoding (needs ftfy)."""
    controls: bool = True
    """Remove control characters, byte order marks and soft hyphens; every line ends with \\n."""
    whitespace: bool = True
    """Remove white space at the ends of lines and blank lines beyond two."""


@dataclass(frozen=True)
class Languages:
    """Which languages are kept, by a classifier of 97 languages (needs py3langid)."""

    keep: tuple[str, ...] = ()
    """Codes of ISO 639-1, such as en de zh; () keeps all."""
    min_probability: float = 0.5
    """Least probability of the language."""
    count: bool = False
    """Count languages also where all are kept."""

    def __post_init__(self) -> None:
        _require_share("language.min_probability", self.min_probability)
        for code in self.keep:
            require(
                code.isalpha() and code.islower() and len(code) in (2, 3),
                f"language.keep has {code!r}; it needs codes such as en: pass --language.keep en.",
            )


@dataclass(frozen=True)
class Quality:
    """Rules that tell running text from the rest of the web, with the limits of their papers:
    Gopher (arXiv:2112.11446, table A1), C4 (arXiv:1910.10683), FineWeb (arXiv:2406.17557)."""

    rules: tuple[str, ...] = (*GOPHER, "c4_placeholder_text")
    """Names of the rules that apply; () is none."""
    min_words: int = 50
    """Least number of words."""
    max_words: int = 100_000
    """Largest number of words."""
    min_word_length: float = 3.0
    """Mean number of characters of a word, at least."""
    max_word_length: float = 10.0
    """The same, at most."""
    max_symbols: float = 0.1
    """Number signs and ellipses, each per word."""
    max_bullets: float = 0.9
    """Share of lines that begin with a bullet."""
    max_ellipses: float = 0.3
    """Share of lines that end with an ellipsis."""
    min_alphabetic: float = 0.8
    """Share of words with a letter."""
    min_stop_words: int = 2
    """Different ones of the, be, to, of, and, that, have, with; where the language was identified,
    only of English text."""
    max_repeated_lines: float = 0.3
    """Share of lines, and of paragraphs, that repeat an earlier one."""
    max_repeated_line_characters: float = 0.2
    """The same as a share of the characters."""
    max_top_ngrams: tuple[float, float, float] = (0.20, 0.18, 0.16)
    """Share of the characters in the commonest 2-, 3- and 4-gram of words."""
    max_repeated_ngrams: tuple[float, float, float, float, float, float] = (
        *(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    )
    """Share of the characters in repeated 5- to 10-grams of words."""
    min_sentences: int = 3
    """Least number of sentences."""
    min_punctuated: float = 0.12
    """Share of lines that end with a punctuation mark."""
    max_repeated_characters: float = 0.1
    """Share of characters in lines that repeat an earlier one."""
    max_short_lines: float = 0.67
    """Share of lines below 30 characters."""

    def __post_init__(self) -> None:
        _require_known("quality.rules", self.rules, RULES)


@dataclass(frozen=True)
class Decontaminate:
    """Drops training text that holds items of test sets."""

    files: tuple[str, ...] = ()
    """Evaluation files in the shapes of `gptjax evaluate --tasks`."""
    words: int = 13
    """Length of the shortest run of words that counts; source arXiv:2005.14165, appendix C. Of an
    item with fewer words, from 8 on, the whole has to stand in the text."""

    def __post_init__(self) -> None:
        require(
            self.words >= 8,
            f"decontaminate.words is {self.words}; common phrases are as long: pass"
            " --decontaminate.words 13, or at least 8.",
        )


@dataclass(frozen=True)
class Classify:
    """Drops texts by a classifier that gptjax trained (task `Classification`)."""

    run: str | None = None
    """Its run directory; `None` is no classifier."""
    drop: tuple[str, ...] = ()
    """Labels whose texts are dropped."""
    min_probability: float = 0.5
    """Least probability of such a label."""

    def __post_init__(self) -> None:
        _require_share("classifier.min_probability", self.min_probability)
        require(
            (self.run is None) == (not self.drop),
            f"classifier.run is {self.run} and classifier.drop {self.drop}; a classifier needs"
            " both: pass --classifier.run RUN --classifier.drop LABEL.",
        )


@dataclass(frozen=True)
class Pii:
    """Replaces what identifies a person or opens a door by the name of its type."""

    types: tuple[str, ...] = PII_TYPES[:-1]
    """Of secret, email, iban, card, ip, phone (needs phonenumbers) and name; () replaces
    nothing."""
    placeholder: str = "<{type}>"
    """What stands instead; {type} is the type in upper case."""
    regions: tuple[str, ...] = (
        *("US", "GB", "DE", "FR", "ES", "IT", "NL", "CH", "AT", "AU", "IN", "BR", "JP", "PL", "SE"),
    )
    """Countries (ISO 3166) whose national phone numbers are known; international ones always
    are."""
    names: str | None = None
    """File of names, one a line, for the type name."""

    def __post_init__(self) -> None:
        _require_known("pii.types", self.types, PII_TYPES)
        require(
            ("name" in self.types) == (self.names is not None),
            f"pii.types is {self.types} and pii.names {self.names}; names need both: pass"
            " --pii.names FILE and name among --pii.types.",
        )


@dataclass(frozen=True)
class Duplicates:
    """Keeps the first of several equal or similar texts."""

    exact: bool = True
    """Drop texts equal to an earlier one but for case, punctuation and white space."""
    near: bool = True
    """Drop texts similar to an earlier one that is kept."""
    similarity: float = 0.6
    """Least Jaccard similarity of the sets of n-grams of two near duplicates. A text of which a
    fifth was replaced in one piece has about 0.65 to the original."""
    ngram: int = 5
    """Words of an n-gram; a Chinese character or a kana is a word."""
    bands: int = 32
    """Chances of two similar texts to be compared; source of the scheme: Broder 1997."""
    rows: int = 4
    """Minima that have to be equal in a band: texts of similarity s are compared with probability
    1 − (1 − s^rows)^bands."""
    lines: bool = False
    """Remove lines that stood in an earlier kept text (CCNet, arXiv:1911.00359)."""
    min_line: int = 40
    """Characters from which a line is compared."""

    def __post_init__(self) -> None:
        _require_share("duplicates.similarity", self.similarity)
        for name in ("ngram", "bands", "rows", "min_line"):
            require(
                getattr(self, name) >= 1,
                f"duplicates.{name} is {getattr(self, name)}; it needs 1 or more.",
            )


@dataclass(frozen=True)
class Sample:
    """How often each source is written."""

    sources: tuple[str, ...] = ()
    """Patterns of file names, such as 'web/*'; the first that fits decides, others weigh 1."""
    weights: tuple[float, ...] = ()
    """One for each pattern: 0.25 keeps a quarter of the records, 2 writes each twice."""

    def __post_init__(self) -> None:
        require(
            len(self.sources) == len(self.weights),
            f"sample has {len(self.sources)} sources and {len(self.weights)} weights; it needs a"
            " weight for each: --sample.sources 'web/*' --sample.weights 0.5.",
        )
        good = all(0 <= weight <= 100 for weight in self.weights)
        require(
            good,
            f"sample.weights is {self.weights}; each needs to be from 0 to 100.",
        )


@dataclass(frozen=True)
class Cleaning:
    """What is done to each record, in this order. The result is a function of the source, these
    settings and the seed, whatever the number of processes."""

    normalise: Normalise = field(default_factory=Normalise)
    """One spelling of the same text."""
    language: Languages = field(default_factory=Languages)
    """Which languages are kept."""
    quality: Quality = field(default_factory=Quality)
    """Rules that tell running text from the rest."""
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    """Test items that may not stand in the text."""
    classifier: Classify = field(default_factory=Classify)
    """Labels of a model of your own that are dropped."""
    pii: Pii = field(default_factory=Pii)
    """What is replaced by the name of its type."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    """Which repetitions go."""
    sample: Sample = field(default_factory=Sample)
    """How often each source is written."""
    fields: tuple[str, ...] = ()
    """Fields of a JSON record that hold its text, as in messages.*.content, where * is every item
    of a list; () is the field of the source. PII is replaced in all texts of a record."""
    seed: int = 0
    """Of the hash functions and of what is sampled."""
    shard_bytes: int = 2**22
    """Bytes of text that are cleaned and written together."""

    def __post_init__(self) -> None:
        require(
            self.shard_bytes >= 1,
            f"shard_bytes is {self.shard_bytes}; it needs 1 or more: pass --shard-bytes 4194304.",
        )


def _require_known(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        require(
            value in known,
            f"{name} has {value!r}, which is none of {', '.join(known)}.{nearest(value, known)}",
        )


def _require_share(name: str, value: float) -> None:
    flag = "--" + name.replace("_", "-")
    require(0 <= value <= 1, f"{name} is {value}; it needs a number in [0, 1]: pass {flag} 0.5.")
