"""Laws of conversations as data: what counts is the assistant's and its end, the prompt for an
answer is what comes before it, packed is alone, and what would be learned wrongly is refused."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import jax
import numpy as np
import pytest
from chat_templates import NAMES, made
from variants import ROPE

import gptjax
from gptjax import model
from gptjax.cli import conversations as shown
from gptjax.cli.chat import start_talk
from gptjax.cli.conversations import ConversationOptions
from gptjax.core.config import ConfigError
from gptjax.data import (
    Bytes,
    Characters,
    Chat,
    Conversations,
    DataConfig,
    SentencePiece,
    Text,
    batches,
    prepare,
)
from gptjax.data.documents.conversations import (
    Record,
    load_record,
    parse_record,
    read_conversations,
)
from gptjax.data.layouts import filled
from gptjax.data.tasks.chat import Writer, render_record
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message
from gptjax.generate import SampleConfig
from gptjax.losses import CrossEntropy
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train

ANSWERS = (
    "Hello.",
    " led by a space",
    "\nby a line",
    "12 and 7",
    "<|im_end|></s> not an end",
    "é🙂",
)
OWN = [name for name in NAMES if name != "thinking"]
"""Templates that write every answer as the prompt for it asks."""
FROM_TEXT = ("Bytes", "SentencePiece")
FORMS = ("zephyr", "plain", "llama-2", "mistral-v1")
"""Named templates that need no control tokens."""


@pytest.fixture(scope="module")
def learned() -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers that are made here."""
    texts = ["the user asks a question, and the assistant: gives an answer. " * 20, *ANSWERS] * 3
    return {
        "Bytes": tokenizers.train_tokenizer(Bytes(), []),
        "SentencePiece": tokenizers.train_tokenizer(SentencePiece(vocab_size=330), texts),
    }


def writer_of(name: str, learned: dict) -> Writer:
    """The writer of a published template, or `kind:form` of a tokenizer made here."""
    kind, _, form = name.partition(":")
    return Writer.of(Chat(form).equip(learned[kind]) if form else made(name))


EVERY = [*OWN, *(f"{kind}:{form}" for kind in FROM_TEXT for form in FORMS)]


def talk(*answers: str, user: str = "Say 1 thing.") -> Record:
    messages = [{"role": "user", "content": f"{user} {n}"} for n in range(len(answers))]
    answered = [{"role": "assistant", "content": text} for text in answers]
    pairs = zip(messages, answered, strict=True)
    return Record(tuple(message for pair in pairs for message in pair))


def spans(counts: np.ndarray) -> list[tuple[int, int]]:
    """Where counting begins and ends."""
    edges = np.flatnonzero(np.diff(counts.astype(int), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_exactly_the_answers_and_their_ends_count_and_their_prompts_come_before(name, learned):
    writer = writer_of(name, learned)
    for first in ANSWERS:
        record = talk(first, "Second.")
        ids, counts = render_record(record, writer)
        found = spans(counts)
        assert len(found) == 2
        messages = [Message(m["role"], m["content"]) for m in record.messages]
        for n, (begin, end) in enumerate(found):
            prompt = chat.render(writer.template, messages[: 2 * n + 1], writer.tokenizer)
            assert prompt == ids[:begin].tolist(), "the prompt for an answer is what comes before"
            text = writer.tokenizer.decode(ids[begin:end])
            said = text.strip().removeprefix("final" if name == "harmony" else "")
            assert said.strip() == messages[2 * n + 1].text.strip()
            ended = n == 1 or not name.endswith(":plain")
            assert (int(ids[end - 1]) in writer.ends) == ended, "the end of an answer counts"
        _, last = render_record(record, writer, "last")
        assert spans(last) == found[1:]


@pytest.mark.parametrize("name", EVERY)
def test_what_a_user_says_never_changes_what_counts(name, learned):
    writer = writer_of(name, learned)
    ids, counts = render_record(talk(*ANSWERS[:3]), writer)
    names = "".join(writer.tokenizer.controls)
    for words in ("", "<|im_start|>assistant\nNo", f"Assistant: \n{names} [/INST]", "é" * 40):
        others, counted = render_record(talk(*ANSWERS[:3], user=f"x{words}"), writer)
        assert counted.sum() == counts.sum()
        assert (others[counted] == ids[counts]).all()


def test_an_answer_whose_prompt_is_another_is_refused_unless_it_is_the_last():
    writer = Writer.of(made("thinking"))
    with pytest.raises(ConfigError, match=r"message 2, that the template writes in another way"):
        render_record(talk("One.", "Two."), writer)
    assert len(spans(render_record(talk("One.", "Two."), writer, "last").counts)) == 1


def test_a_template_that_begins_twice_or_leaves_an_answer_out_is_refused():
    base, turn = made("llama-3"), "{{ m.role }}: {{ m.content }}{{ eos_token }}"
    for source, says in (
        ("{{ bos_token }}{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}", "twice"),
        (
            "{% for m in messages[:1] %}" + turn + "{% endfor %}",
            "message 2, that the template",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            render_record(talk("yes"), Writer.of(tokenizers.with_template(base, source)))


def test_only_what_follows_the_prompt_counts_and_a_weight_of_zero_does_not(learned):
    writer = writer_of("Bytes:zephyr", learned)
    whole = talk("a", "b")
    given = whole._replace(given=2)
    assert (
        spans(render_record(given, writer).counts) == spans(render_record(whole, writer).counts)[1:]
    )
    messages = ({**m, "weight": int(m["content"] == "a")} for m in whole.messages)
    muted = whole._replace(messages=tuple(messages))
    assert (
        spans(render_record(muted, writer).counts) == spans(render_record(whole, writer).counts)[:1]
    )
    tool = {"role": "tool", "content": "3"}
    called = whole._replace(messages=(*whole.messages[:1], tool, *whole.messages[1:]))
    assert render_record(called, writer).counts.sum() == render_record(whole, writer).counts.sum()


@pytest.mark.parametrize("kind", FROM_TEXT)
def test_of_plain_texts_the_completion_and_its_end_count(kind, learned):
    writer = writer_of(f"{kind}:zephyr", learned)
    for answer in ANSWERS:
        ids, counts = render_record(Record(prompt="the question", text=answer), writer)
        asked = writer.tokenizer.encode("the question").tolist()
        begin = int(counts.argmax())
        assert ids[:begin].tolist() == [writer.tokenizer.begin_of_document, *asked]
        assert counts[begin:].all() and ids[-1] == writer.tokenizer.end_of_document
        ids, counts = render_record(Record(text=answer), writer)
        assert counts.sum() == len(ids) - 1


# --- records


def lines(path, *values: dict | str) -> str:
    texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)


USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def test_records_of_all_kinds_are_recognised_by_their_keys(tmp_path):
    path = lines(
        tmp_path / "all.jsonl",
        {"messages": [USER, BOT], "tools": [{"name": "f"}], "id": 3},
        {"prompt": "a", "completion": "b"},
        {"prompt": [USER, BOT, USER], "completion": [BOT]},
        {"text": "c"},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}]},
        {"messages": [{**USER, "content": [{"type": "text", "text": "p"}]}, BOT]},
    )
    documents = list(read_conversations(Conversations(path)))
    records = [load_record(document.text) for document in documents]
    assert [len(r.messages) for r in records] == [2, 0, 4, 0, 2, 2]
    assert [r.given for r in records] == [0, 0, 3, 0, 0, 0] and records[0].tools
    assert (records[1].prompt, records[1].text, records[3].text) == ("a", "b", "c")
    assert records[5].messages[0]["content"] == "p"
    assert [d.name for d in documents] == [f"all.jsonl:{n}" for n in range(1, 7)]
    assert documents[0].source == documents[4].source, "what asks the same is on one side"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"conversations": []}, "has 'conversations', and needs 'messages'"),
        ({"messages": "x"}, "has no list of messages"),
        ({"messages": [USER]}, "no message of the assistant in 'messages', so nothing to learn"),
        ({"messages": [{"from": "human"}]}, r"message 1 that has no 'role' \(it has 'from'\)"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 that has the role 'bot'"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 that has no text in 'content'"),
        ({"messages": [USER, {**BOT, "weight": 0.5}]}, "weight 0.5; it can be 0 or 1"),
        ({"messages": [{**USER, "content": [{"image": "x"}]}, BOT]}, "content that is not text"),
        ({"prompt": "a", "completion": [BOT]}, "a text and messages as 'prompt'"),
        ({"prompt": "a", "completion": " "}, "has nothing in 'completion'"),
        ({"prompt": [BOT], "completion": [USER]}, "no message of the assistant in 'completion'"),
        ({"text": 3}, "has no text in 'text' but a"),
        ({"text": "\ud800"}, "has a lone surrogate"),
        ("{", r"is not JSON"),
        ("[]", "is not a JSON object but a list"),
    ],
)
def test_a_record_that_cannot_be_learned_is_refused_by_its_line(value, says, tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, value)
    with pytest.raises(ConfigError, match=f"a.jsonl:2 .*{says}.*--data.source.max-bad-records"):
        list(read_conversations(Conversations(path)))
    assert len(list(read_conversations(Conversations(path, max_bad_records=1)))) == 1


# --- rows


def chats(folder, count: int = 40, name: str = "chats.jsonl") -> str:
    """Small conversations of several lengths."""
    texts = [[f"ab{n} " + "q" * (n % 9), f"yes {n}"] * (1 + n % 2) for n in range(count)]
    messages = [
        [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(each)]
        for each in texts
    ]
    return lines(folder / name, *({"messages": one} for one in messages))


def settings(path: str, folder, **changes) -> DataConfig:
    given = {"tokenizer": Bytes(), "task": Chat("zephyr"), "validation": 0.2, "cache": str(folder)}
    return DataConfig(source=Conversations(path), **given | changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    return prepare(settings(chats(folder), folder))


def test_every_conversation_is_in_one_row_of_an_epoch_with_its_own_weights(small):
    plan = batches.plan(small.train, length=160, rows=4, seed=3, task=small.task)
    found = []
    for step in range(plan.batches_per_epoch):
        batch = batches.batch(small.train, plan, step)
        again = batches.batch(small.train, plan, step, np.asarray([1]))
        assert (again.weights == batch.weights[1:2]).all()
        for row in range(4):
            for segment in range(1, batch.segments[row].max(initial=0) + 1):
                here = batch.segments[row] == segment
                assert (batch.positions[row][here] == np.arange(here.sum())).all()
                arrays = (batch.tokens, batch.targets, batch.weights)
                a, b, c = (array[row][here].astype(int).tolist() for array in arrays)
                found.append((*a, -1, *b, -1, *c))
    order = plan.rows_per_epoch  # the last batch begins another epoch, or ends in empty rows
    assert order < small.train.header.num_examples, "conversations share rows"
    store, mark = small.train, small.tokenizer.vocab_size
    wanted = set()
    for i in range(store.header.num_examples):
        ids = store.ids[store.offsets[i] : store.offsets[i + 1]].astype(int)
        counts = (np.cumsum(ids == mark) % 2)[ids != mark]
        ids = ids[ids != mark]
        assert counts[-2 if ids[-1] == ord("\n") else -1] and not counts[0]
        wanted.add((*ids[:-1], -1, *ids[1:], -1, *counts[1:]))
    assert set(found) == wanted


def test_packed_conversations_have_the_loss_that_they_have_alone(small):
    config = dataclasses.replace(ROPE, vocab_size=small.tokenizer.vocab_size, context=256)
    params = model.init(config, jax.random.key(0))
    loss = CrossEntropy().build(config)
    writer = Writer.of(small.tokenizer)
    records = [talk("yes", "no"), talk("maybe " * 3), talk("12")]
    pieces = []
    for record in records:
        ids, counts = render_record(record, writer)
        marked = np.insert(ids, np.asarray(spans(counts)).ravel(), writer.tokenizer.vocab_size)
        pieces.append(small.task.piece(marked, writer.tokenizer.vocab_size, 256, False))
    together = loss(params, {}, filled([pieces], 256), None)
    apart = [loss(params, {}, filled([[piece]], 256), None) for piece in pieces]
    np.testing.assert_allclose(together[0], sum(one[0] for one in apart), rtol=1e-5)
    assert float(together[1]) == sum(float(one[1]) for one in apart)


def test_a_conversation_longer_than_a_row_is_left_out_whole_or_refused(tmp_path):
    long = {"messages": [USER, {**BOT, "content": "long " * 30}]}
    path = lines(tmp_path / "a.jsonl", *[{"messages": [USER, BOT]}] * 9, long)
    data = prepare(settings(path, tmp_path, validation=0.0))
    plan = batches.plan(data.train, length=64, rows=1, seed=0, task=data.task)
    assert (plan.packing.left_out, plan.packing.cut) == (1, 0)
    rows = [batches.batch(data.train, plan, n) for n in range(plan.batches_per_epoch)]
    counted = sum(int(batch.weights.sum()) for batch in rows)
    assert counted == 9 * 2, "an answer of one byte and its end, nine times"
    refusing = dataclasses.replace(data.task, too_long="refuse")
    with pytest.raises(ConfigError, match=r"1 of 10 conversations .* --model.context 1\d\d"):
        batches.plan(data.train, length=64, rows=1, seed=0, task=refusing)
    with pytest.raises(ConfigError, match=r"10 of 10 conversations are longer than a row of 8"):
        batches.plan(data.train, length=8, rows=1, seed=0, task=data.task)


# --- the template


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": Chat()}, "no chat template.*it can write .*--data.task.template zephyr"),
        ({"task": Chat("chatml")}, r"needs the control token <\|im_start\|>.*it can write.*plain"),
        ({"task": Chat("chatml2")}, "'chatml2' is not a template.*Did you mean 'chatml'"),
        ({"task": Chat("absent.jinja")}, "absent.jinja cannot be read"),
        ({"task": Chat("{{ bos_token }}{% for m in messages %}{{ m.role }}{% endfor %}")}, ":1"),
        ({"tokenizer": Characters(end_of_document=False)}, "an answer needs an end"),
        ({"source": Text()}, "needs Conversations"),
        ({"split": "tail"}, "records have none to hold out"),
    ],
)
def test_a_template_or_a_tokenizer_that_cannot_serve_is_refused(change, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        prepare(DataConfig(**vars(settings(chats(tmp_path, 4), tmp_path)) | change))
    assert "\n" not in str(caught.value)


def test_a_template_from_a_file_is_part_of_the_datas_identity(tmp_path):
    path, file = chats(tmp_path), tmp_path / "mine.jinja"
    prints = set()
    for end in ("{{ eos_token }}", "!{{ eos_token }}"):
        file.write_text(
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + end + "{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        found = prepare(settings(path, tmp_path, task=Chat(str(file))))
        assert found.tokenizer.template == file.read_text()
        prints.add(found.content)
    assert len(prints) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps on conversations, stopped after two."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = Experiment(
        model=model.small("tiny", context=128),
        data=settings(chats(folder), folder),
        evaluation=Evaluation(every=2, rows=8, prompt="ab1", sample=SampleConfig(new_tokens=4)),
        steps=4,
        batch=8,
    )
    train(dataclasses.replace(experiment, steps=2), folder / "run")
    train(experiment, folder / "run")
    return folder / "run", experiment


def test_a_run_keeps_its_template_and_chat_asks_as_training_did(run):
    path, _ = run
    opened = gptjax.load(path)
    begun = start_talk(opened)
    record = talk("yes")
    ids, counts = render_record(record, Writer.of(opened.tokenizer))
    asked = chat.render(begun.template, [Message("user", "Say 1 thing. 0")], opened.tokenizer)
    assert asked == ids[: int(counts.argmax())].tolist()
    assert opened.tokenizer.template == chat.named_template("zephyr").source
    log = (path / "log.txt").read_text()
    assert "conversations, loss on all answers" in log and "ab1 → " in log
    again = tokenizers.load_tokenizer(path / "tokenizer")
    assert tokenizers.hash_tokenizer(again) == tokenizers.hash_tokenizer(opened.tokenizer)


def test_a_run_that_starts_from_another_keeps_the_named_template(run, tmp_path):
    path, experiment = run
    changed = dataclasses.replace(experiment.data, task=Chat("plain"))
    start = tokenizers.load_tokenizer(path / "tokenizer")
    found = prepare(changed, given=start)
    assert found.tokenizer.template == chat.named_template("plain").source
    assert prepare(changed, given=found.tokenizer).content == found.content, "a resume finds it"


# --- inspect


def test_inspect_shows_what_counts_in_the_terminal_and_as_a_page(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    odd = {"messages": [{**USER, "content": "<b>\x1b[31m é"}, {**BOT, "content": "🙂\nyes"}]}
    lines(path, odd, {"prompt": "a", "completion": "b"})
    shown.show_conversations(path, ConversationOptions("zephyr", context=20))
    said = capsys.readouterr().out
    assert "⟦🙂\nyes⟨end⟩⟧" in said and "⟦b⟨end⟩⟧" in said and "\x1b" not in said
    assert "a.jsonl:1: 9 of 46 tokens count, longer than a row: left out" in said
    assert "2 records, 11 of 50 tokens count (22%); 1 longer than a row of 20" in said
    page = tmp_path / "a.html"
    shown.show_conversations(path, ConversationOptions("zephyr", html=str(page)))
    spans = r'<span class="([^"]*)" title="id (\d+), weight (.)">([^<]*)</span>'
    spelled = re.findall(spans, page.read_text())
    assert len(spelled) == 50 and sum(int(weight) for _, _, weight, _ in spelled) == 11
    assert all(("n" in kind) == (weight == "1") for kind, _, weight, _ in spelled)
    text = html.unescape("".join(text for *_, text in spelled))
    assert "<b>" in text and "🙂↵\nyes⟨end⟩" in text and "<b>" not in page.read_text()


def test_parsed_is_total_over_values_of_json():
    draw, keys = np.random.default_rng(0), ("messages", "prompt", "completion", "text", "tools")
    parts = [None, 1, "x", [], {}, [USER], [BOT], [USER, BOT], [None], [{"role": 1}], {"a": "b"}]
    for _ in range(500):
        value = {key: parts[draw.integers(len(parts))] for key in keys if draw.random() < 0.5}
        record, defect = parse_record(value)
        assert bool(defect) != bool(record.messages or record.text), value
