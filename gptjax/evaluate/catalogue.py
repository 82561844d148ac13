"""Tasks by name: the file that holds their records, how they are asked, and what counts.

A file whose name without its endings is in `CATALOGUE` is asked as its entry says, wherever it
lies. Read `Entry`, then `located_task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gptjax.core.config import nearest, require
from gptjax.data.documents.opening import bare_name
from gptjax.evaluate.prompt_form import PromptForm


class Entry(NamedTuple):
    """A known task."""

    file: str
    kind: str
    """Of its records."""
    metric: str
    prompt: PromptForm = PromptForm()
    shots: int = 0
    new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)


ANSWER = PromptForm(cue="\nAnswer:")

CATALOGUE: Mapping[str, Entry] = {
    "arc_easy": Entry("arc_easy.jsonl", "choices", "acc_norm", ANSWER),
    "arc_challenge": Entry("arc_challenge.jsonl", "choices", "acc_norm", ANSWER),
    "bigbench_movie_recommendation": Entry("bigbench_movie_recommendation.jsonl", "choices", "acc"),
    "boolq": Entry("boolq.jsonl", "choices", "acc", ANSWER),
    "copa": Entry("copa.jsonl", "choices", "acc"),
    "crows_pairs": Entry("crows_pairs_anonymized.csv", "pair", "stereotype"),
    "lambada_openai": Entry("lambada_openai.jsonl", "continuation", "acc"),
    "openbook_qa": Entry("openbook_qa.jsonl", "choices", "acc_norm"),
    "piqa": Entry("piqa.jsonl", "choices", "acc_norm", PromptForm(cue="Answer:")),
    "scitldr": Entry(
        "summaries/dev.jsonl", "free", "f1", PromptForm(cue="\nTL;DR:"), new_tokens=64
    ),
    "simple_arithmetic_withspaces": Entry(
        "simple_arithmetic_withspaces.jsonl", "continuation", "acc"
    ),
    "svamp": Entry(
        "svamp.jsonl",
        "question",
        "number_flexible",
        PromptForm(question="Question: {question}", cue="\nAnswer:"),
        new_tokens=64,
        stop=("\n\n", "\nQuestion:"),
    ),
    "triviaqa_sm_sub": Entry("triviaqa_sm_sub.jsonl", "question", "exact_match"),
    "winogender_mc_female": Entry("winogender_mc_female.jsonl", "choices", "acc"),
    "winogender_mc_male": Entry("winogender_mc_male.jsonl", "choices", "acc"),
    "winograd_wsc": Entry("winograd_wsc.jsonl", "contexts", "acc"),
}
"""Name → entry. Prompts are what lm-evaluation-harness writes where the files leave that open."""


class Located(NamedTuple):
    """A task whose file is known."""

    name: str
    file: Path
    entry: Entry | None


def located_task(word: str, folder: Path | None = None) -> Located:
    """Returns the file of a task, given as a path or as a name of the catalogue.

    Args:
      folder: where files of named tasks lie, or in one of its folders; `None` is here.

    Raises:
      ConfigError: there is no such file or name.
    """
    path = Path(word)
    if path.suffix or path.is_file():
        file = path if path.is_file() or folder is None else folder / path
        require(
            file.is_file(),
            f"{file} is not there; give a file of records, or a name (--tasks FILE).",
        )
        name = bare_name(file).split(".")[0]
        known = {entry.file: key for key, entry in CATALOGUE.items()}
        name = known.get(file.name, name)
        return Located(name, file, CATALOGUE.get(name))
    require(
        word in CATALOGUE,
        f"{word!r} is neither a file nor a known task; there are {', '.join(CATALOGUE)}"
        f" (--tasks FILE).{nearest(word, CATALOGUE)}",
    )
    entry, home = CATALOGUE[word], folder or Path()
    places = [home / entry.file, *sorted(home.glob(f"*/{entry.file}"))]
    file = next((place for place in places if place.is_file()), None)
    require(
        file is not None,
        f"{word} needs the file {entry.file}, which is not in {home}; name the folder that has it"
        " (--tasks-dir DIR).",
    )
    assert file is not None
    return Located(word, file, entry)
