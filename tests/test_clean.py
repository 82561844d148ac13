"""Laws of cleaning: what is written depends on the source and the settings alone, every record is
accounted for, and no stage undoes another."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gptjax.clean import Cleaning, Job, clean_source, duplicates, minhash
from gptjax.clean.normalise import normalising
from gptjax.clean.pii import scrubber
from gptjax.clean.quality import RULES as FUNCTIONS
from gptjax.clean.quality import Measures
from gptjax.clean.records import Item, everywhere, texts_at
from gptjax.clean.run import Report
from gptjax.clean.stages import build_stages, run_stages
from gptjax.clean.writing import copies_of
from gptjax.cli.main import main
from gptjax.core.config import ConfigError, to_dict
from gptjax.data import DataConfig, Text, prepare
from gptjax.data.cleaning import (
    RULES,
    Classify,
    Decontaminate,
    Duplicates,
    Normalise,
    Pii,
    Quality,
    Sample,
)
from gptjax.data.tokenizers.tokenizer import Bytes

WORDS = """the of and to in that is was he for it with as his on be at by this had not are but from
or have an they which one you were all her she there would their we him been has when who
will""".split()  # noqa: SIM905
PLAIN = Cleaning(
    normalise=Normalise(mojibake=False),
    quality=Quality(rules=()),
    pii=Pii(types=("email", "card", "iban", "ip", "secret")),
)
"""Without what the extra's packages do."""


def prose(seed: int, words: int = 80) -> str:
    """A text of common words that no other seed has."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + "."


def write(path: Path, texts: list[str], **more) -> Text:
    rows = [json.dumps({"id": k, "text": text, **more}) for k, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Text(path=str(path))


def files(out: Path) -> dict[str, bytes]:
    """Everything that a cleaning wrote."""
    return {
        str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()
    }


def rows(out: Path) -> list[dict]:
    return [
        json.loads(line)
        for file in sorted((out / "data").iterdir())
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def dropped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]


def corpus() -> list[str]:
    """Texts with exact, near and line duplicates, PII and blanks."""
    texts = [
        f"{prose(k)}\nWrite to person{k}@example.org for all the rest of it." for k in range(40)
    ]
    texts[7] = texts[3].upper()
    texts[13] = texts[5].replace(" the ", " THE  ")
    texts[21] = texts[20][:300] + " But here it ends otherwise."
    texts[30] = " \n\t"
    texts[35] = texts[35] + "\n" + texts[2].split("\n")[0]
    return texts


# --- the whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Job, Path, Report]:
    folder = tmp_path_factory.mktemp("whole")
    lines = dataclasses.replace(PLAIN.duplicates, lines=True)
    settings = dataclasses.replace(PLAIN, duplicates=lines, shard_bytes=2000)
    job = Job(write(folder / "texts.jsonl", corpus()), settings)
    return job, folder / "out", clean_source(job, folder / "out", processes=1)


def test_every_record_is_written_or_dropped_by_a_rule_and_line(whole):
    _, out, report = whole
    gone = {line["place"]: line["rule"] for line in dropped(out)}
    ids = [row["id"] for row in rows(out)]
    assert sorted([*ids, *(int(place.split(":")[1]) - 1 for place in gone)]) == list(range(40))
    assert gone == {
        "texts.jsonl:8": "exact_duplicate",
        "texts.jsonl:14": "exact_duplicate",
        "texts.jsonl:22": "near_duplicate",
        "texts.jsonl:31": "empty",
    }
    assert report["source"]["records"] == 40
    assert report["written"]["records"] == len(ids) == 36
    assert sum(sum(s["dropped"].values()) for s in report["stages"]) == len(gone)
    assert report["counts"]["pii"]["email"] >= 36
    assert not any("@" in row["text"] for row in rows(out))


def test_a_line_that_stood_in_an_earlier_text_is_removed_and_the_first_stays(whole):
    _, out, report = whole
    by_id = {row["id"]: row["text"] for row in rows(out)}
    repeated = corpus()[2].split("\n")[0]
    assert repeated in by_id[2] and repeated not in by_id[35]
    assert prose(35) in by_id[35]
    assert report["edits"] == {"lines": 36}, "the line with the placeholder, too"


def test_the_number_of_processes_changes_no_byte(whole, tmp_path):
    job, out, _ = whole
    clean_source(job, tmp_path / "two", processes=2)
    assert files(tmp_path / "two") == files(out)


def test_a_second_call_takes_over_what_is_there_and_refuses_another_job(whole, tmp_path):
    job, out, report = whole
    before, said = files(out), []
    assert clean_source(job, out, say=said.append) == json.loads(json.dumps(report))
    assert files(out) == before and "already" in said[0]
    other = job._replace(cleaning=dataclasses.replace(job.cleaning, seed=1))
    with pytest.raises(ConfigError, match=r"other settings.*cleaning.seed: 0, now 1"):
        clean_source(other, out)
    copy = tmp_path / "texts.jsonl"
    shutil.copy(str(job.source.path), copy)
    copy.write_text(copy.read_text().replace("person9@", "person8@"))
    with pytest.raises(ConfigError, match="changed since"):
        clean_source(job._replace(source=Text(path=str(copy))), out)


def killed(job: Job, out: Path, *, shards: int, processes: int, later: float = 0.0) -> None:
    """Begins a cleaning in a process of its own and kills it, as kill -9 does, when some shards are
    committed and some seconds have passed."""
    program = (
        "import json, sys\n"
        "from gptjax.clean import Job, clean_source\n"
        "from gptjax.core.config import from_dict\n"
        "from gptjax.data import Text\n"
        "from gptjax.data.cleaning import Cleaning\n"
        "from gptjax.clean import work\n"
        "import time\n"
        "slow = work.commit_shard\n"
        "work.commit_shard = lambda *a: (slow(*a), time.sleep(0.02))\n"
        "s, c = json.loads(sys.argv[1]), json.loads(sys.argv[2])\n"
        "clean_source(Job(from_dict(Text, s), from_dict(Cleaning, c)), sys.argv[3],"
        f" processes={processes})"
    )
    plain = [json.dumps(to_dict(part)) for part in (job.source, job.cleaning)]
    process = subprocess.Popen([sys.executable, "-c", program, *plain, str(out)])
    while process.poll() is None:
        done = len(list((out / ".work").glob("[0-9]*")))
        if (out / ".work").is_dir() and done >= shards:
            break
        time.sleep(0.002)
    time.sleep(later)
    process.kill()
    process.wait()


def test_what_was_killed_goes_on_to_the_same_bytes(whole, tmp_path):
    job, out, _ = whole
    killed(job, tmp_path / "out", shards=2, processes=1)
    assert not (tmp_path / "out/clean.json").exists(), "it was killed on the way"
    clean_source(job, tmp_path / "out", processes=1)
    assert files(tmp_path / "out") == files(out)


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_ten_kills_at_any_moment_leave_the_same_bytes(tmp_path, record_property):
    texts = [prose(k, 60 + k % 50) for k in range(1500)]
    for k in range(0, 1500, 10):
        texts[k + 1] = texts[k]
    settings = dataclasses.replace(PLAIN, shard_bytes=10_000)
    job = Job(write(tmp_path / "texts.jsonl", texts), settings)
    clean_source(job, tmp_path / "out", processes=1)
    draw, whole = random.Random(0), files(tmp_path / "out")
    for number in range(10):
        out = tmp_path / f"killed-{number}"
        kills = 0
        while not (out / "clean.json").exists() and kills < 4:
            done = len(list((out / ".work").glob("[0-9]*")))
            shards, later = done + draw.randint(0, 30), draw.choice((0.0, 0.0, draw.random()))
            killed(job, out, shards=shards, processes=1 + number % 2, later=later)
            kills += 1
        clean_source(job, out, processes=2)
        assert files(out) == whole, number
    record_property("figure", "10 cleanings killed up to 4 times each: the same bytes")


# --- formats


@pytest.mark.parametrize("packing", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_every_packing_holds_the_same_texts(packing, tmp_path):
    if packing != "jsonl.gz":
        pytest.importorskip("pyarrow")
    source = write(tmp_path / "texts.jsonl", [prose(k) for k in range(5)])
    job = Job(source, PLAIN, packing)
    report = clean_source(job, tmp_path / "out", processes=1)
    again = clean_source(job, tmp_path / "again", processes=1)
    assert report["outputs"] == again["outputs"]
    from gptjax.data.documents.sources import read_documents

    found = [d.text for d in read_documents(Text(path=str(tmp_path / "out/data")))]
    assert found == [prose(k) for k in range(5)]


def test_text_files_gzip_and_parquet_are_read_alike(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    texts = [prose(k) for k in range(4)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(texts))
    with gzip.open(folder / "b.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": prose(10 + k)}) + "\n" for k in range(3))
    parquet.write_table(pa.table({"text": [prose(20), texts[1]]}), folder / "c.parquet")
    source = Text(path=str(folder), separator="\n\n")
    report = clean_source(Job(source, PLAIN), tmp_path / "out", processes=1)
    assert [row["text"] for row in rows(tmp_path / "out")] == [
        *texts,
        *(prose(10 + k) for k in range(3)),
        prose(20),
    ]
    assert report["source"]["records"] == 9
    assert dropped(tmp_path / "out")[0] == {
        "place": "c.parquet:2",
        "stage": "exact",
        "rule": "exact_duplicate",
        "value": "a.txt:2",
    }


def test_conversations_are_cleaned_where_they_stand(tmp_path):
    def talk(k):
        said = [("user", f"{prose(k)} I am a{k}@example.org."), ("assistant", prose(50 + k))]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    records = [talk(0), talk(1), talk(0)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = dataclasses.replace(PLAIN, fields=("messages.*.content",))
    job = Job(Text(path=str(tmp_path / "chats.jsonl")), settings)
    clean_source(job, tmp_path / "out", processes=1)
    found = rows(tmp_path / "out")
    assert [r["messages"][1]["content"] for r in found] == [prose(50), prose(51)]
    assert found[0]["messages"][0] == {"role": "user", "content": f"{prose(0)} I am <EMAIL>."}


def test_unreadable_records_are_counted_within_their_quota(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "{prose(0)}"}}\nno json\n{{"text": 3}}\n')
    with pytest.raises(ConfigError, match=r"texts.jsonl:2 is not JSON"):
        clean_source(Job(Text(path=str(file)), PLAIN), tmp_path / "refused", processes=1)
    source = Text(path=str(file), max_bad_records=2)
    report = clean_source(Job(source, PLAIN), tmp_path / "out", processes=1)
    assert report["stages"][0] == {"stage": "read", "dropped": {"unreadable": 2}}
    assert dropped(tmp_path / "out")[0]["value"].startswith("texts.jsonl:2 is not JSON")


def test_text_is_judged_as_it_was_written_and_compared_as_it_is_kept(tmp_path):
    """Placeholders are words of none of the rules; texts that differ only in what was replaced are
    equal."""
    texts = [f"{prose(0, 50)} a{k}@example.org " + "x@example.org, " * 20 for k in range(2)]
    mean = sum(map(len, texts[0].split())) / len(texts[0].split())
    rules = Quality(rules=("gopher_word_length",), min_word_length=mean - 0.1)
    settings = dataclasses.replace(PLAIN, quality=rules)
    clean_source(Job(write(tmp_path / "t.jsonl", texts), settings), tmp_path / "out", processes=1)
    assert [row["id"] for row in rows(tmp_path / "out")] == [0]
    [one] = dropped(tmp_path / "out")
    assert (one["place"], one["rule"]) == ("t.jsonl:2", "exact_duplicate")


# --- normalisation


def test_normal_form_controls_and_white_space():
    steps = [step for _, step in normalising(Normalise(mojibake=False))]
    text = "e\u0301\x00 a\u00adb \r\nline\x85end \t\n\n\n\n\n\ufefflast"
    for step in steps:
        text = step(text)
    assert text == "é ab\nline\nend\n\n\nlast"
    for step in steps:
        assert step(text) == text, "clean text stays"


def test_mojibake_is_mended_and_right_text_stays():
    pytest.importorskip("ftfy")
    [(_, mend), *_] = normalising(Normalise())
    assert mend("schÃ¶n") == "schön"
    assert mend("Ã la carte, naïve façade — “quoted”") == "à la carte, naïve façade — “quoted”"
    for right in ("schön", "日本語", "C’est l’été…"):
        assert mend(right) == right


# --- quality


BREAKS = {
    "gopher_words": "too short",
    "gopher_word_length": "of " * 100 + "a " * 300,
    "gopher_symbols": prose(1) + " # … " * 30,
    "gopher_bullets": "\n".join(f"- {prose(k, 5)}" for k in range(20)),
    "gopher_ellipses": "\n".join(f"{prose(k, 5)[:-1]}..." for k in range(20)),
    "gopher_alphabetic": prose(1, 40) + " 123 456" * 20,
    "gopher_stop_words": "colourless green ideas sleep furiously " * 20,
    "gopher_repeated_lines": "\n".join([prose(1, 8)] * 9 + [prose(2, 8)]),
    "gopher_repeated_paragraphs": "\n\n".join([prose(1, 30)] * 3),
    "gopher_top_ngrams": prose(1, 50) + " buy it" * 20,
    "gopher_repeated_ngrams": f"{prose(1, 40)}\n{prose(1, 40)} {prose(3, 20)}",
    "c4_placeholder_text": prose(1) + " Lorem ipsum dolor",
    "c4_braces": "if (x) { return; }",
    "c4_sentences": "one line without an end",
    "fineweb_punctuation": "\n".join(prose(k, 6)[:-1] for k in range(20)),
    "fineweb_repeated_characters": "\n".join([prose(1, 40)] * 3 + [prose(k) for k in range(4)]),
    "fineweb_short_lines": "\n".join(["a short line."] * 8 + [prose(1)]),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_drops_what_it_is_for_and_keeps_prose(rule):
    limits = Quality(rules=(rule,))
    good = "\n".join(prose(40 + k, 30).capitalize() for k in range(6))
    assert FUNCTIONS[rule](Measures(good), limits) is None
    assert FUNCTIONS[rule](Measures(BREAKS[rule]), limits) is not None


def test_rules_are_named_once_and_tell_their_figure():
    assert tuple(FUNCTIONS) == RULES
    figure = FUNCTIONS["gopher_words"](Measures("one two three"), Quality())
    assert figure == 3
    assert FUNCTIONS["gopher_stop_words"](Measures("eins zwei drei", "de"), Quality()) is None


# --- languages


def test_other_languages_are_dropped_by_name():
    pytest.importorskip("py3langid")
    from gptjax.clean.language import language_stage
    from gptjax.data.cleaning import Languages

    texts = [
        "The children went down to the river, where their father was mending the old boat.",
        "Die Kinder gingen hinunter zum Fluss, wo ihr Vater das alte Boot ausbesserte.",
        "孩子们走到河边,他们的父亲正在那里修理那条旧船。",
    ]
    stage = language_stage(Languages(keep=("en", "zh")))
    assert stage is not None
    outcome = stage([Item(str(k), {"text": text}, ("text",)) for k, text in enumerate(texts)])
    assert [(item.place, item.language) for item in outcome.kept] == [("0", "en"), ("2", "zh")]
    assert [(one.place, one.rule, one.value) for one in outcome.dropped] == [
        ("1", "other_language", "de")
    ]
    with pytest.raises(ConfigError, match="has xx, which is not known"):
        language_stage(Languages(keep=("xx",)))


# --- duplicates


def test_bands_meet_as_often_as_the_formula_says():
    """Pairs of sets with Jaccard similarity 0.5 meet in one of 8 bands of 4 rows with probability
    1 − (1 − 0.5⁴)⁸ = 0.403."""
    draw, met = np.random.default_rng(0), 0
    for seed in range(300):
        functions = minhash.Functions(Duplicates(bands=8, rows=4), seed)
        values = draw.integers(0, 2**63, 80, np.uint64)
        a, b = values[:60], values[20:]
        met += bool((functions.band_hashes(a) == functions.band_hashes(b)).any())
    assert abs(met / 300 - 0.403) < 4 * (0.403 * 0.597 / 300) ** 0.5


def test_minima_estimate_similarity_as_datasketch_does():
    datasketch = pytest.importorskip("datasketch")
    functions = minhash.Functions(Duplicates(bands=64, rows=4), 0)
    ours, theirs, true = [], [], []
    for seed in range(20):
        words = prose(seed, 200).split()
        other = words[: 150 - seed] + prose(100 + seed, 50).split()
        sets = [minhash.ngram_hashes(text, 3) for text in (words, other)]
        true.append(minhash.jaccard(*sets))
        ours.append(float((functions.minima(sets[0]) == functions.minima(sets[1])).mean()))
        sketches = [datasketch.MinHash(256, seed=1) for _ in sets]
        for sketch, values in zip(sketches, sets, strict=True):
            sketch.update_batch([value.tobytes() for value in values])
        theirs.append(sketches[0].jaccard(sketches[1]))
    errors = [np.abs(np.subtract(made, true)) for made in (ours, theirs)]
    assert errors[0].max() < 4 * (0.25 / 256) ** 0.5
    assert errors[0].mean() < 1.5 * errors[1].mean()


def test_places_are_found_in_parts_as_in_one(monkeypatch):
    column = np.random.default_rng(0).integers(0, 400, 1000, np.uint64)
    wanted = np.random.default_rng(1).random(1000) < 0.8

    def pairs() -> set[tuple[int, int, int]]:
        found = duplicates.equal_places(lambda: np.split(column, [300, 301]), 1000, wanted)
        return {tuple(map(int, t)) for one in found for t in zip(*one, strict=True)}

    seen: dict[int, list[int]] = {}
    expected = set()
    for place in np.flatnonzero(wanted).tolist():
        places = seen.setdefault(int(column[place]), [])
        if places:
            expected.add((place, places[0], places[-1]))
        places.append(place)
    assert pairs() == expected
    monkeypatch.setattr(duplicates, "PART", 64)
    assert pairs() == expected


def test_similarity_is_not_passed_on_from_one_to_the_next(tmp_path):
    """A resembles B and B resembles C, but A does not resemble C: B goes for A, C stays."""
    words = prose(0, 400).split()
    texts = [" ".join(words[at : at + 200]) for at in (0, 70, 140)]
    sets = [minhash.ngram_hashes(text.split(), 5) for text in texts]
    near = Duplicates(similarity=0.45, bands=64, rows=3)
    assert minhash.jaccard(*sets[:2]) > 0.45 < minhash.jaccard(*sets[1:])
    assert minhash.jaccard(sets[0], sets[2]) < 0.2
    job = Job(write(tmp_path / "t.jsonl", texts), dataclasses.replace(PLAIN, duplicates=near))
    clean_source(job, tmp_path / "out", processes=1)
    assert [row["id"] for row in rows(tmp_path / "out")] == [0, 2]


# --- test items


def test_texts_with_test_items_are_dropped(tmp_path):
    asked = [
        ("Which of the seven bridges of the old town did the tired traveller cross first?", "none"),
        ("The traveller crossed the", "seventh bridge first today"),
        ("What is it?", "a bridge"),
    ]
    items = tmp_path / "eval.jsonl"
    items.write_text(
        "".join(json.dumps({"question": q, "answer": answer}) + "\n" for q, answer in asked)
    )
    texts = [
        prose(0),
        f"{prose(1)} WHICH of the seven bridges, of the old town, did the tired traveller cross?",
        f"{prose(2)} Which of the seven bridges did the tired traveller cross first?",
        f"{prose(3)} What is it?",
        f"{prose(4)} And the traveller crossed the seventh bridge first today.",
    ]
    settings = dataclasses.replace(PLAIN, decontaminate=Decontaminate(files=(str(items),)))
    clean_source(Job(write(tmp_path / "t.jsonl", texts), settings), tmp_path / "out", processes=1)
    assert [row["id"] for row in rows(tmp_path / "out")] == [0, 2, 3]
    assert {(one["place"], one["rule"], one["value"]) for one in dropped(tmp_path / "out")} == {
        ("t.jsonl:2", "contaminated", " ".join(asked[0][0].lower().split()[:13])),
        ("t.jsonl:5", "contaminated", "the traveller crossed the seventh bridge first today"),
    }


# --- classifier and sampling


def test_a_classifier_of_gptjax_drops_its_labels(tmp_path):
    from gptjax import model
    from gptjax.data import Classification, Records
    from gptjax.train.experiment import Experiment
    from gptjax.train.loop import train

    texts = [("aaaa" if k % 2 else "bbbb", "bad" if k % 2 else "good") for k in range(40)]
    table = tmp_path / "labels.tsv"
    table.write_text("".join(f"{text} {k}\t{label}\n" for k, (text, label) in enumerate(texts)))
    data = DataConfig(
        source=Records(str(table)), tokenizer=Bytes(), task=Classification(), validation=0.2
    )
    tiny = model.small("tiny", width=32, num_heads=2, num_layers=1, context=16)
    train(Experiment(model=tiny, data=data, steps=2, batch=8), tmp_path / "run")
    settings = dataclasses.replace(
        PLAIN,
        classifier=Classify(str(tmp_path / "run"), drop=("bad",), min_probability=0.0),
        duplicates=Duplicates(exact=False, near=False),
    )
    items = [Item(str(k), {"text": text}, ("text",)) for k, (text, _) in enumerate(texts)]
    judged = run_stages(items, build_stages(settings), scrubber(settings.pii))
    assert not judged.kept and {one.rule for _, one in judged.dropped} == {"classifier_bad"}
    assert sum(judged.counts["classifier"].values()) == 40
    hashed = Job(Text(path="x"), settings).made_of()["classifier"]
    assert hashed and hashed == Job(Text(path="x"), settings).made_of()["classifier"]
    with pytest.raises(ConfigError, match="'worse', which is no label"):
        build_stages(
            dataclasses.replace(settings, classifier=Classify(settings.classifier.run, ("worse",)))
        )


def test_weights_are_met_and_the_draw_is_of_the_seed_and_the_place():
    sample = Sample(sources=("web/*", "books/*"), weights=(0.25, 2.5))
    web = [copies_of(f"web/a.jsonl:{k}", sample, 0) for k in range(2000)]
    books = [copies_of(f"books/b.txt:{k}", sample, 0) for k in range(2000)]
    assert abs(np.mean(web) - 0.25) < 0.04 and set(web) == {0, 1}
    assert abs(np.mean(books) - 2.5) < 0.05 and set(books) == {2, 3}
    assert copies_of("other.txt:1", sample, 0) == 1
    assert web != [copies_of(f"web/a.jsonl:{k}", sample, 1) for k in range(2000)]


# --- data.clean and the command


def test_data_clean_runs_once_and_the_run_knows_what_was_cleaned(tmp_path, monkeypatch):
    source = write(tmp_path / "texts.jsonl", corpus())
    config = DataConfig(
        source=source, tokenizer=Bytes(), clean=PLAIN, cache=str(tmp_path / "cache")
    )
    said: list[str] = []
    first = prepare(config, said.append)
    [facts] = first.cleaned
    page = Path(facts["page"])
    assert page.is_file() and page.parent.parent == tmp_path / "cache/cleaned"
    assert facts["dropped"]["exact_duplicate"] == 2
    assert facts["written sha256"] != facts["read sha256"]
    assert any(line.startswith("cleaned: 36 of 40 records") for line in said)
    monkeypatch.setattr("gptjax.clean.cached.clean_source", None)  # is not called again
    again = prepare(config)
    assert again.fingerprint == first.fingerprint and again.cleaned == first.cleaned
    raw = prepare(dataclasses.replace(config, clean=None))
    assert raw.content != first.content and raw.cleaned == ()


def test_the_column_of_a_table_is_cleaned_and_found_again(tmp_path):
    def train_tokens(source: Text, **more) -> list[int]:
        places = {"cache": str(tmp_path / "c"), "validation": 0.0}
        store = prepare(DataConfig(source=source, tokenizer=Bytes(), **places, **more)).train
        return store.ids[0 : int(store.offsets[-1])].tolist()

    texts = [prose(k) for k in range(12)]
    plain = write(tmp_path / "texts.jsonl", texts)
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, mark in (("a.csv", ","), ("b.tsv", "\t")):
        rows = "".join(f"{k}{mark}{text}\n" for k, text in enumerate(texts))
        (folder / name).write_text(f"id{mark}body\n{rows}")
        table = Text(path=str(folder / name), field="body")
        assert train_tokens(table, clean=PLAIN) == train_tokens(plain, clean=PLAIN), name
    write(folder / "c.jsonl", texts)
    with pytest.raises(ConfigError, match=r"JSON beside tables.*--data\.source\.pattern"):
        train_tokens(Text(path=str(folder), field="body"), clean=PLAIN)


def test_a_file_that_is_not_there_is_named_with_its_own_flag(tmp_path):
    source, gone = write(tmp_path / "texts.jsonl", corpus()), str(tmp_path / "gone")
    for setting, flag in (
        ({"decontaminate": Decontaminate(files=(gone,))}, "--decontaminate.files"),
        ({"pii": Pii(types=("name",), names=gone)}, "--pii.names"),
        ({"classifier": Classify(run=gone, drop=("spam",))}, "--classifier.run"),
    ):
        with pytest.raises(ConfigError, match=rf"gone.* is not there; .*\({flag}\)"):
            clean_source(Job(source, dataclasses.replace(PLAIN, **setting)), tmp_path / "out")


def test_the_command_cleans_and_says_what_is_wrong(tmp_path, capsys):
    source = write(tmp_path / "texts.jsonl", corpus())
    flags = ["--quality.rules", "--normalise.mojibake", "False", "--pii.types", "email"]
    out = tmp_path / "out"
    assert main(["clean", str(source.path), str(out), *flags, "--processes", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "clean.json").read_bytes())
    again = [str(tmp_path / "again"), "--config", str(out / "clean.json"), "--processes", "1"]
    assert main(["clean", str(source.path), *again]) == 0
    assert files(tmp_path / "again") == files(out)
    page = (out / "clean.html").read_text()
    assert "exact_duplicate" in page and "<script" not in page and "EMAIL" in page
    capsys.readouterr()
    for wrong, needed in (
        (["clean", str(source.path)], "needs a folder to write to"),
        (["clean", str(tmp_path / "none.txt"), str(tmp_path / "x")], "none.txt is not there"),
        (["clean", str(source.path), str(out), "--quality.rules", "gopher_word"], "Did you mean"),
        (["clean", str(tmp_path), str(tmp_path / "x")], "lies in"),
    ):
        assert main(wrong) == 2, wrong
        assert needed in capsys.readouterr().err


def test_texts_are_found_and_changed_along_paths():
    record = {"a": [{"b": "x", "c": 1}, {"b": "y"}], "t": "z", "n": None}
    assert texts_at(record, ("a.*.b", "t", "n", "missing")) == ["x", "y", "z"]
    changed = Item("", record, ("a.*.b",)).edited(str.upper).record
    assert changed == {"a": [{"b": "X", "c": 1}, {"b": "Y"}], "t": "z", "n": None}
    assert everywhere(record, str.upper)["t"] == "Z"
