"""`gptjax probe MODEL PROBE`: what accuracy on a test set does not say of a model.

Read `probe_command`, then `_sections`, which says what each probe needs: a model, or only the text
that it was trained on.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.cli.arguments import first_path, read_experiment
from gptjax.core import backend, config, user_config
from gptjax.core.config import ConfigError, nearest, require

if TYPE_CHECKING:
    from gptjax.data.prepare import Prepared
    from gptjax.data.store import Store
    from gptjax.data.tokenizers.tokenizer import Tokenizer
    from gptjax.evaluate.figure import Figure
    from gptjax.evaluate.probes.corpus import Documents
    from gptjax.evaluate.probes.finding import Finding
    from gptjax.evaluate.probes.options import (
        CanaryOptions,
        ContaminationOptions,
        MemorisationOptions,
        ProbeOptions,
    )
    from gptjax.evaluate.probes.sections import Answer, Section

EVERY = 2.0
"""Seconds between lines of progress."""

USAGE = "gptjax probe MODEL robustness|sensitivity|bias|memorisation|contamination|refusals [flags]"


def probe_command(args: list[str]) -> None:
    """Prints what a probe finds in a model; `gptjax probe canaries` makes canaries."""
    backend.configure()
    path, flags = first_path(
        args, USAGE, "a run directory, a Hugging Face directory or a .gguf file"
    )
    if path is None:
        print(f"usage: {USAGE}\n       gptjax probe canaries --out FILE\n\n{_KINDS}", end="")
        return
    if user_config.asks_for_help(flags) and f"  {path} " in _KINDS:  # without a model
        _options(str(path), flags)
    if str(path) == "canaries":
        _make_canaries(_canary_options(flags))
        return
    from gptjax.evaluate.report import as_json

    name, flags = first_path(flags, USAGE, "the name of a probe")
    options = _options(str(name), flags)
    began = time.monotonic()
    sections = _sections(path, str(name), options)
    found = {
        "model": str(path),
        "probe": str(name),
        "seconds": round(time.monotonic() - began, 1),
        "sections": [_plain(section) for section in sections],
    }
    written = json.dumps(as_json(found), ensure_ascii=False, indent=1, allow_nan=False)
    if options.out:
        try:
            Path(options.out).write_text(f"{written}\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{options.out} can't be written ({error.strerror}); choose another file (--out)."
            ) from None
    print(written if options.json else "\n\n".join(map(_table, sections)))


_KINDS = """  robustness     what a misspelling, a capital or a filler in the question costs
  sensitivity    what the order of choices and the form of the prompt decide
  bias           which of two groups sentences, answers, pronouns and texts prefer
  memorisation   what the model knows of its training text word for word, and of canaries
  contamination  which test items stand in the training text of a run
  refusals       how often it declines to answer, by the form of the question
"""


def _options(name: str, flags: list[str]) -> ProbeOptions:
    from gptjax.evaluate.probes import options

    kinds: dict[str, type[ProbeOptions]] = {
        "robustness": options.RobustnessOptions,
        "sensitivity": options.SensitivityOptions,
        "bias": options.BiasOptions,
        "memorisation": options.MemorisationOptions,
        "contamination": options.ContaminationOptions,
        "refusals": options.RefusalOptions,
    }
    require(
        name in kinds,
        f"{name!r} is not a probe.{nearest(name, kinds)} There are {', '.join(kinds)}.",
    )
    doc = " ".join((kinds[name].__doc__ or "").split())
    return user_config.cli(kinds[name], flags, prog=f"gptjax probe MODEL {name}", description=doc)


def _canary_options(flags: list[str]) -> CanaryOptions:
    from gptjax.evaluate.probes.options import CanaryOptions

    return user_config.cli(
        CanaryOptions,
        flags,
        prog="gptjax probe canaries",
        description="Makes secrets to put into a training text, so that memorisation can be"
        " measured on them.",
    )


def _make_canaries(options: CanaryOptions) -> None:
    from gptjax.evaluate.probes.canaries import make_canaries, write_canaries

    write_canaries(Path(options.out), make_canaries(options.count, options.seed))
    print(
        f"{options.out} has {options.count} canaries; put the text of each into the training text,"
        f" train, then gptjax probe MODEL memorisation --canaries {options.out}"
    )


# --- what a probe needs


def _sections(path: Path, name: str, options: Any) -> list[Section]:
    from gptjax.evaluate.probes import sections
    from gptjax.runs.open import open_tokenizer

    if name == "contamination":
        return sections.contamination_sections(options, _corpus(path, options), _watching())
    answer = _answering(path, options)
    if name == "robustness":
        return sections.robustness_sections(options, answer)
    if name == "sensitivity":
        return sections.sensitivity_sections(options, answer)
    if name == "bias":
        return sections.bias_sections(options, answer)
    if name == "refusals":
        return sections.refusal_sections(options, answer, open_tokenizer(path))
    tokenizer = open_tokenizer(path)
    train, held_out = _texts(path, tokenizer, options)
    return sections.memorisation_sections(options, answer, tokenizer, train, held_out)


def _answering(path: Path, options: ProbeOptions) -> Answer:
    """Answers by the model, which is loaded when it is asked first: files are read before."""
    from gptjax.api import load
    from gptjax.evaluate.requests import Write
    from gptjax.evaluate.respond import respond

    model = functools.cache(lambda: load(path, options.step))
    writer = functools.cache(lambda: model().prepared())

    def answer(requests: Sequence[Any]) -> list[Any]:
        writes = any(isinstance(one, Write) for one in requests)
        opened = writer() if writes else model()
        return respond(opened, requests, rows=options.rows, progress=_saying())

    return answer


def _saying() -> Callable[[Any], None]:
    """Says on standard error how far it is, at most every two seconds."""
    said = time.monotonic()

    def say(what: Any) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            print(what, file=sys.stderr, flush=True)

    return say


def _watching() -> Callable[[int, int], None]:
    say = _saying()
    return lambda documents, words: say(f"{documents:,} documents, {words:,} words")


def _own_data(path: Path) -> Prepared | None:
    """What a run prepared to train on; `None` of a model that is not a run."""
    if not (path / "config.json").is_file() or not (path / "identity.json").is_file():
        return None
    from gptjax.data.prepare import Kept, prepare
    from gptjax.runs.open import open_tokenizer
    from gptjax.train import start

    experiment = start.from_elsewhere(read_experiment(path)[0], path)
    recorded = config.load_config(dict, path / "identity.json")
    prepared = prepare(
        experiment.data,
        say=lambda line: print(line, file=sys.stderr),
        given=open_tokenizer(path),
        kept=Kept(recorded["data"], recorded["prepared"]),
    )
    require(
        prepared.content == recorded["data"],
        f"the text of {path} has changed since it was trained on; give the text as it was"
        " (--train FILE, --corpus FILE).",
    )
    return prepared


def _corpus(path: Path, options: ContaminationOptions) -> Callable[[], Documents]:
    """The training text, which can be read again for each file of items."""
    from gptjax.data.documents.sources import Text, read_documents
    from gptjax.evaluate.probes.corpus import store_documents, text_documents

    if options.corpus:
        text = Text(options.corpus)
        return lambda: text_documents(document.text for document in read_documents(text))
    prepared = _own_data(path)
    if prepared is None:
        raise ConfigError(
            f"{path} is not a run, so its training text is not known; give it (--corpus FILE)."
        )
    backward = getattr(prepared.task, "backward", False)
    return lambda: store_documents(prepared.train, prepared.tokenizer, backward=backward)


def _texts(
    path: Path, tokenizer: Tokenizer, options: MemorisationOptions
) -> tuple[Store | None, Store | None]:
    """Training text and held-out text."""
    from gptjax.data.documents.sources import Text, read_documents
    from gptjax.evaluate.probes.windows import texts_as_store

    def read(name: str | None) -> Store | None:
        if name is None:
            return None
        return texts_as_store((one.text for one in read_documents(Text(name))), tokenizer)

    if options.train is None and options.held_out is None:
        prepared = _own_data(path)
        require(
            prepared is not None or options.canaries is not None,
            f"{path} is not a run, so its training text is not known; give it (--train FILE"
            " --held-out FILE), or canaries (--canaries FILE).",
        )
        return (prepared.train, prepared.validation) if prepared else (None, None)
    require(
        options.train is not None,
        "held-out text without training text tells nothing; give both (--train FILE).",
    )
    return read(options.train), read(options.held_out)


# --- how it is shown


def _plain(section: Section) -> dict[str, Any]:
    findings = [
        {
            "name": one.name,
            "unit": one.unit,
            **one.figure._asdict(),
            "null": one.null,
            "found": one.found,
        }
        for one in section.findings
    ]
    return {"title": section.title, "findings": findings, "notes": list(section.notes)}


def _table(section: Section) -> str:
    """A line for each finding; a star where the interval excludes what no effect would give."""
    width = max((len(_named(one)) for one in section.findings), default=0)
    lines = [section.title, f"  {'':{width}}     value         95 % interval      n  no effect"]
    for one in section.findings:
        figure = one.figure
        null = "" if one.null is None else f"{one.null:10.4g}{' *' if one.found else ''}"
        between = f"{_number(figure, figure.low)} … {_number(figure, figure.high)}"
        value = _number(figure, figure.value)
        line = f"  {_named(one):{width}}  {value:>8}  {between:>20}  {figure.n:5,} {null}"
        lines.append(line.rstrip())
    lines += [f"  {note}" for note in section.notes]
    return "\n".join(lines)


def _named(finding: Finding) -> str:
    return f"{finding.name} ({finding.unit})" if finding.unit else finding.name


def _number(figure: Figure, value: float) -> str:
    """A number with as many places as its interval tells apart."""
    spread = figure.high - figure.low
    places = 3 if spread < 0.5 else 2 if spread < 5 else 1
    return f"{value:.{places}f}"
