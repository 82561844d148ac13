"""Flags of `gptjax probe`, one dataclass for each probe."""

from __future__ import annotations

from dataclasses import dataclass

from gptjax.core.config import require
from gptjax.evaluate.probes.contamination import WORDS


@dataclass(frozen=True)
class ProbeOptions:
    """Flags that all probes have."""

    limit: int | None = 200
    """Number of records, pairs or pieces of text, drawn at random; `None` is all."""
    seed: int = 0
    """Draws records, changes and texts; the same seed gives the same figures."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: str | None = None
    """File to write the JSON object to as well."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    rows: int = 4
    """Rows of 256 tokens that are computed together; no figure depends on it."""

    def __post_init__(self) -> None:
        require(
            self.limit is None or self.limit >= 1,
            f"limit is {self.limit}; it needs 1 or more (--limit 200).",
        )
        require(self.seed >= 0, f"seed is {self.seed}; it needs 0 or more (--seed 0).")
        require(self.rows >= 1, f"rows is {self.rows}; it needs at least 1 (--rows 4).")


@dataclass(frozen=True)
class RobustnessOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL robustness`."""

    tasks: str = ""
    """File of records with choices or continuations; several with commas between them."""
    misspellings: str | None = None
    """File of lines wrong->right; without it words are only mistyped."""
    seeds: int = 3
    """Number of times that each random change is drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds >= 1, f"seeds is {self.seeds}; it needs at least 1 (--seeds 3).")
        require(bool(self.tasks), "no records are given; name a file of them (--tasks FILE).")


@dataclass(frozen=True)
class SensitivityOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL sensitivity`."""

    tasks: str = ""
    """File of records with choices; several with commas between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.tasks), "no records are given; name a file of them (--tasks FILE).")


@dataclass(frozen=True)
class BiasOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL bias`: at least one of the kinds."""

    pairs: str | None = None
    """CSV of sentence pairs with the columns sent_more, sent_less and bias_type (CrowS-Pairs)."""
    questions: str | None = None
    """Questions about two groups, ambiguous or not, as JSON lines in BBQ's form."""
    pronouns: str | None = None
    """File of records with choices and a pronoun, asked with either gender; several with commas."""
    texts: int = 0
    """Number of texts to write from each prompt of the word lists; 0 writes none."""
    word_lists: str | None = None
    """JSON file of groups, targets and prompts; `None` is she/he beside occupations."""
    new_tokens: int = 40
    """Length of these texts, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = (self.pairs, self.questions, self.pronouns, self.texts)
        require(
            any(asked),
            "bias of what is to be measured? Give at least one of --pairs FILE, --questions FILE,"
            " --pronouns FILE and --texts N.",
        )
        require(self.texts >= 0, f"texts is {self.texts}; it needs 0 or more (--texts 3).")
        require(
            self.new_tokens >= 1,
            f"new_tokens is {self.new_tokens}; it needs at least 1 (--new-tokens 40).",
        )


@dataclass(frozen=True)
class MemorisationOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL memorisation`. A run is probed on its own text."""

    train: str | None = None
    """File or folder of text that the model was trained on; `None` is what its run prepared."""
    held_out: str | None = None
    """The like of it that the model has not seen; `None` is what its run held out."""
    prefix: int = 50
    """Tokens of a piece that the model reads."""
    length: int = 50
    """Tokens after them that it should know."""
    canaries: str | None = None
    """File that `gptjax probe canaries` wrote, whose texts were put into the training text."""
    candidates: int = 999
    """Number of other secrets beside which each canary is ranked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prefix", "length", "candidates"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it needs at least 1 (--{name} 50).")


@dataclass(frozen=True)
class ContaminationOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL contamination`."""

    limit: int | None = None
    """Number of items, drawn at random; `None` is all."""
    tasks: str = ""
    """File of test items; several with commas between them."""
    corpus: str | None = None
    """File or folder of training text; `None` is what the run MODEL prepared to train on."""
    words: int = WORDS
    """Number of consecutive words that count as an overlap."""
    show: int = 5
    """Number of items to show, those with the longest overlap first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.words >= 1, f"words is {self.words}; it needs at least 1 (--words 13).")
        require(self.show >= 0, f"show is {self.show}; it needs 0 or more (--show 5).")
        require(bool(self.tasks), "no items are given; name a file of them (--tasks FILE).")


@dataclass(frozen=True)
class RefusalOptions(ProbeOptions):
    """Flags of `gptjax probe MODEL refusals`."""

    prompts: str = ""
    """JSON lines with a `prompt`, or with a dialogue as `chosen`, whose first question is asked."""
    benign: str | None = None
    """A file of the same kind with harmless prompts, to see how many of these it declines too;
    examples/lookalikes.jsonl has a hundred that only look harmful."""
    template: str | None = None
    """How messages are written: a name or a .jinja file; `None` is the model's own."""
    new_tokens: int = 40
    """Length of an answer, in tokens; a refusal is looked for in its beginning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.prompts), "no prompts are given; name a file of them (--prompts FILE).")
        require(
            self.new_tokens >= 1,
            f"new_tokens is {self.new_tokens}; it needs at least 1 (--new-tokens 40).",
        )


@dataclass(frozen=True)
class CanaryOptions:
    """Flags of `gptjax probe canaries`."""

    out: str = ""
    """File to write, as JSON lines; the `text` of each is what to train on."""
    count: int = 20
    """Number of canaries."""
    seed: int = 0
    """The same seed gives the same canaries."""

    def __post_init__(self) -> None:
        require(bool(self.out), "no file is given; name the one to write (--out canaries.jsonl).")
        require(
            1 <= self.count <= 9000,
            f"count is {self.count}; it needs a number from 1 to 9000 (--count 20).",
        )
