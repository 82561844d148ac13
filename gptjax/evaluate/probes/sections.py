"""Each probe from its flags to its findings: files are read, requests made and answered, findings
made of the responses.

`Section` is what a probe returns for each file. The model is only met as `Answer`, which the
command makes of `respond`, and tests of a script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.structured import read_objects
from gptjax.data.store import Store
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.probes import (
    ambiguous,
    canaries,
    contamination,
    continuation,
    membership,
    paired_sentences,
    pronouns,
    refusals,
    representation,
    robustness,
    sensitivity,
)
from gptjax.evaluate.probes.asking import askable, cloze_answers, cloze_requests, with_choices
from gptjax.evaluate.probes.corpus import Documents
from gptjax.evaluate.probes.finding import Finding
from gptjax.evaluate.probes.options import (
    BiasOptions,
    ContaminationOptions,
    MemorisationOptions,
    ProbeOptions,
    RefusalOptions,
    RobustnessOptions,
    SensitivityOptions,
)
from gptjax.evaluate.probes.perturbations import perturbations, read_misspellings
from gptjax.evaluate.probes.windows import pieces_of
from gptjax.evaluate.records import Choices, Pair, Question, Record, read_task_records
from gptjax.evaluate.requests import Write
from gptjax.evaluate.tasks import sample_of
from gptjax.generate import GenerateConfig, SampleConfig

Answer = Callable[[Sequence[Any]], list[Any]]
"""Requests → responses, in their order."""


class Section(NamedTuple):
    """What a probe found on one file."""

    title: str
    findings: list[Finding]
    notes: tuple[str, ...] = ()


def robustness_sections(options: RobustnessOptions, answer: Answer) -> list[Section]:
    """Returns how much accuracy each perturbation costs, for each file."""
    known = read_misspellings(Path(options.misspellings)) if options.misspellings else None
    sections = []
    for path in _paths(options.tasks):
        records = askable(_drawn(read_task_records(path), options))
        cases = robustness.robustness_cases(records, perturbations(known), options.seeds)
        responses = answer(robustness.robustness_requests(records, cases))
        findings = robustness.robustness_findings(records, cases, responses)
        sections.append(Section(f"robustness, {path.name}", findings))
    return sections


def sensitivity_sections(options: SensitivityOptions, answer: Answer) -> list[Section]:
    """Returns how much the order of choices and the form of the prompt decide, for each file."""
    sections = []
    for path in _paths(options.tasks):
        records = with_choices(_drawn(read_task_records(path), options))
        orders = sensitivity.order_requests(records)
        responses = answer([*orders, *sensitivity.form_requests(records)])
        turned, formed = responses[: len(orders)], responses[len(orders) :]
        findings = sensitivity.order_findings(records, turned)
        sections.append(Section(f"order of choices, letters form, {path.name}", findings))
        findings = sensitivity.form_findings(records, formed)
        sections.append(Section(f"form of the prompt, cloze form, {path.name}", findings))
    return sections


def bias_sections(options: BiasOptions, answer: Answer) -> list[Section]:
    """Returns what was asked for: pairs, questions, pronouns, texts."""
    sections = []
    if options.pairs:
        path = Path(options.pairs)
        records = _drawn(read_task_records(path), options)
        pairs = [record for record in records if isinstance(record, Pair) and record.bias]
        require(
            len(pairs) == len(records),
            f"{path} has no sentence pairs; give a CSV with the columns sent_more, sent_less and"
            " bias_type (--pairs FILE).",
        )
        responses = answer(paired_sentences.pair_requests(pairs))
        findings = paired_sentences.pair_findings(pairs, responses)
        sections.append(Section(f"sentence pairs, {path.name}", findings))
    if options.questions:
        path = Path(options.questions)
        asked = _drawn(ambiguous.read_group_questions(path), options)
        answers = ambiguous.group_answers(asked, answer(ambiguous.group_requests(asked)))
        findings = ambiguous.group_findings(asked, answers)
        sections.append(Section(f"questions about groups, {path.name}", findings))
    if options.pronouns:
        paths = _paths(options.pronouns)
        records = [record for path in paths for record in read_task_records(path)]
        some = with_choices(_drawn(records, options))
        names = ", ".join(path.name for path in paths)
        sections.append(_pronouns(names, some, answer))
    if options.texts:
        sections.append(_representation(options, answer))
    return sections


def _pronouns(name: str, records: Sequence[Choices], answer: Answer) -> Section:
    pairs = [(one, one._replace(query=pronouns.with_other_gender(one.query))) for one in records]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    require(bool(pairs), f"{name} has no record with pronouns of one gender (--pronouns FILE).")
    ordered = [pair if pronouns.is_female(pair[0].query) else pair[::-1] for pair in pairs]
    asked = [record for pair in ordered for record in pair]
    responses = answer([request for record in asked for request in cloze_requests(record)])
    answers = cloze_answers(asked, responses)
    golds = [pair[0].gold for pair in ordered]
    findings = pronouns.pronoun_findings(answers[::2], answers[1::2], golds)
    return Section(f"pronouns exchanged, {name}", findings)


def _sampled(options: BiasOptions, number: int) -> SampleConfig:
    """Settings that sample the model's own distribution."""
    return SampleConfig(
        new_tokens=options.new_tokens, temperature=1, top_p=1, seed=options.seed + number
    )


def _representation(options: BiasOptions, answer: Answer) -> Section:
    lists = representation.PRONOUNS
    if options.word_lists:
        lists = representation.read_word_lists(Path(options.word_lists))
    prompts = representation.representation_prompts(lists)
    asked = [
        Write(prompt, _sampled(options, k)) for prompt in prompts for k in range(options.texts)
    ]
    prefixes = [str(request.context) for request in asked]
    texts = [written.text for written in answer(asked)]
    findings = representation.representation_findings(prefixes, texts, lists, options.seed)
    title = f"words of groups in {len(texts)} texts of {options.new_tokens} tokens"
    notes = () if findings else ("No text names a group.",)
    return Section(title, findings, notes)


def memorisation_sections(
    options: MemorisationOptions,
    answer: Answer,
    tokenizer: Tokenizer,
    train: Store | None,
    held_out: Store | None,
) -> list[Section]:
    """Returns what the model knows of its training text and of its canaries.

    Args:
      train: text that it was trained on; `None` measures canaries alone.
      held_out: the like of it that it has not seen, if there is any.
    """
    sections = []
    if train is not None:
        size, limit = options.prefix + options.length, options.limit or 10**9
        stores = [train] if held_out is None else [train, held_out]
        pieces = [pieces_of(store, limit, size, options.seed) for store in stores]
        asked = [one for some in pieces for one in some]
        requests = continuation.continuation_requests(asked, options.prefix)
        found = continuation.recalls(asked, options.prefix, answer(requests))
        own, other = found[: len(pieces[0])], found[len(pieces[0]) :]
        title = f"continuation of {options.prefix} tokens by {options.length}"
        sections.append(Section(title, continuation.continuation_findings(own, other)))
        if held_out is not None:
            scored = [
                membership.membership_scores(
                    some, answer(membership.membership_requests(some)), tokenizer
                )
                for some in pieces
            ]
            title = f"membership of pieces of {size} tokens"
            sections.append(Section(title, membership.membership_findings(*scored)))
    if options.canaries:
        known, count = canaries.read_canaries(Path(options.canaries)), options.candidates
        responses = answer(canaries.canary_requests(known, count, options.seed))
        findings = canaries.exposure_findings(known, count, responses)
        title = f"{len(known)} canaries among {count + 1:,} secrets"
        sections.append(Section(title, findings))
    return sections


def contamination_sections(
    options: ContaminationOptions,
    documents: Callable[[], Documents],
    watch: Callable[[int, int], None],
) -> list[Section]:
    """Returns which items of each file stand in the documents.

    Args:
      documents: gives the training text, from its beginning.
      watch: gets the number of documents and words that were read.
    """
    sections = []
    for path in _paths(options.tasks):
        records = _drawn(read_task_records(path), options)
        index = contamination.index_items(list(map(item_text, records)), options.words)
        overlaps = contamination.find_overlaps(index, documents(), watch)
        short = sum(len(words) < options.words for words in index.items)
        notes = [f"{short:,} items are shorter than {options.words} words."] if short else []
        longest = sorted(overlaps, key=lambda one: -one.longest)[: options.show]
        notes += [
            f"record {records[one.item].id}: {one.longest} of {len(index.items[one.item])} words,"
            f" document {one.document + 1}: {_shortened(one.words)}"
            for one in longest
            if one.longest
        ]
        findings = contamination.contamination_findings(index, overlaps)
        sections.append(Section(f"contamination, {path.name}", findings, tuple(notes)))
    return sections


def item_text(record: Record) -> str:
    """Returns what a test item says: its question, and its right answer."""
    if isinstance(record, Choices):
        return f"{sensitivity.bare_question(record.query)}\n{record.choices[record.gold]}"
    if isinstance(record, Question):
        return f"{sensitivity.bare_question(record.context)}\n{record.answer}"
    fields = {k: v for k, v in record._asdict().items() if k not in ("id", "group")}
    if "contexts" in fields:
        fields["contexts"] = fields["contexts"][fields["gold"]]
    return "\n".join(value for value in fields.values() if isinstance(value, str))


def _shortened(words: str, most: int = 120) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


def refusal_sections(
    options: RefusalOptions, answer: Answer, tokenizer: Tokenizer
) -> list[Section]:
    """Returns how often the model declines, by the form in which it is asked; and how often it
    declines what is harmless, if the options name such prompts."""
    form = chat.choose_template(options.template, tokenizer)
    closing = chat.ends(form, tokenizer)
    settings = GenerateConfig(
        new_tokens=options.new_tokens, temperature=0, stop=closing.texts, stop_ids=closing.ids
    )

    def written(text: str) -> Sequence[int]:
        return tuple(chat.render(form, [Message("user", text)], tokenizer))

    sections = []
    for title, file, flag in (
        ("refusals", options.prompts, "--prompts"),
        ("over-refusals", options.benign, "--benign"),
    ):
        if file is None:
            continue
        prompts = _drawn(refusal_prompts(Path(file), flag), options)
        responses = answer(refusals.refusal_requests(prompts, written, settings))
        findings = refusals.refusal_findings([one.text for one in responses])
        sections.append(Section(f"{title}, {Path(file).name}", findings))
    return sections


def refusal_prompts(path: Path, flag: str = "--prompts") -> list[str]:
    """Reads prompts: JSON lines with a `prompt`, or with a dialogue as `chosen`.

    Args:
      flag: that named the file, for messages.

    Raises:
      ConfigError: the file can't be read, or a record has neither.
    """
    prompts = []
    for number, value, broken in read_objects(path, "jsonl", "utf-8"):
        text = value.get("prompt")
        if text is None and isinstance(value.get("chosen"), str):
            turns = value["chosen"].split("\n\nHuman:")
            text = turns[1].split("\n\nAssistant:")[0] if len(turns) > 1 else None
        if broken or not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f"{path}:{number} {broken or 'has no prompt'}; it needs a prompt, or chosen with a"
                f" dialogue of Human and Assistant ({flag} FILE)."
            )
        prompts.append(text.strip())
    require(bool(prompts), f"{path} has no prompts ({flag} FILE).")
    return prompts


def _drawn(records: Sequence[Any], options: ProbeOptions) -> list[Any]:
    """As many of them as the options say, in the order of the file."""
    return sample_of(records, options.limit, options.seed)[0]


def _paths(names: str) -> list[Path]:
    return [Path(name.strip()) for name in names.split(",") if name.strip()]
