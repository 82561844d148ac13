"""Laws of errors, as a user meets them: exit status 2 and one line that says what was found and
what mends it, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax  # noqa: F401 before gptjax.cli, which would otherwise choose CPU flags for this process
import pytest

from gptjax.cli import main as cli
from gptjax.data import Characters
from gptjax.data.tokenizers import tokenizer as tokenizers

ROOT = Path(__file__).parents[1]
CONFIG = """
from gptjax.data import Bytes, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment

experiment = Experiment(
    data=DataConfig(source=Text({text!r}), tokenizer=Bytes(), cache={cache!r}),
    model=ModelConfig(context=32, width=32, num_layers=1, num_heads=2),
    evaluation=Evaluation(every=2, rows=8, sample=SampleConfig(new_tokens=2)),
    steps=2,
    batch=8,
)
"""
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40


def quiet(patched: pytest.MonkeyPatch, folder: Path) -> None:
    """The commands set these in their own process; here they must not outlive a test."""
    patched.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(folder / "cache")))
    patched.setenv(
        "JAX_COMPILATION_CACHE_DIR",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled")),
    )
    patched.setenv("JAX_PLATFORMS", "cpu")
    patched.delenv("GPTJAX_DEBUG", raising=False)
    patched.chdir(folder)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    quiet(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a text and a config of a tiny model."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text(TEXT)
    (folder / "tiny.py").write_text(
        CONFIG.format(text=str(folder / "text.txt"), cache=str(folder / "data"))
    )
    return folder


@pytest.fixture(scope="module")
def run(home) -> Path:
    """A run of two steps, in a directory in which a refused start left its traces."""
    with pytest.MonkeyPatch.context() as patched:
        quiet(patched, home)
        assert (
            cli.main(
                [
                    "train",
                    str(home / "tiny.py"),
                    "--dir",
                    str(home / "run"),
                    "--model.context",
                    "9999",
                ]
            )
            == 2
        )
        # A process of its own, because XLA's quick way to compile is chosen at the start: a third
        # of the time.
        patched.setenv(
            "XLA_FLAGS",
            "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        )
        patched.delenv("JAX_COMPILATION_CACHE_DIR")
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            str(home / "tiny.py"),
            "--dir",
            str(home / "run"),
        ]
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return home / "run"


def refused(capsys, args: list[str], *words: str) -> None:
    """The command ends with status 2 and one line that has all `words`."""
    capsys.readouterr()
    status = cli.main(args)
    one_line(status, capsys.readouterr().err, words)


def one_line(status: int, said: str, words: tuple[str, ...]) -> None:
    assert "Traceback" not in said
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
    assert said.rstrip().endswith((".", "?", "]", "help", "config.json")), said
    for word in words:
        assert word in said, (word, said)
    assert status == 2, said


# --- train: the config ---

FLAGS = {
    "heads that do not divide the width": (
        "--model.num-heads 3",
        "model.width is 32",
        "3 heads",
        "--model.width 33",
    ),
    "key/value heads that do not divide": (
        "--model.num-heads 4 --model.num-kv-heads 3",
        "4",
        "3 key/value heads",
        "--model.num-kv-heads",
    ),
    "micro-batches that do not divide": (
        "--micro-batch 3",
        "micro_batch is 3",
        "batch of 8",
        "--micro-batch 8",
    ),
    "no steps": ("--steps 0", "steps is 0", "at least 1", "--steps"),
    "no rows": ("--batch 0", "batch is 0", "--batch"),
    "wrong type": ("--steps many", "--steps", "'many'", "--help"),
    "half a step": ("--steps 1.5", "--steps", "'1.5'", "--help"),
    "unknown choice": ("--model.positions ropes", "'ropes'", "--model.positions", "'rope'"),
    "missing value": ("--model.width", "--model.width", "--help"),
    "not a number": ("--optim.peak nan", "optim.peak is nan", "--optim.peak"),
    "infinite": ("--skip-norm inf", "skip_norm is inf", "finite"),
    "negative": ("--optim.peak -1", "optim.peak is -1.0", "--optim.peak"),
    "too many dropped": ("--model.residual-dropout 1.0", "model.residual_dropout is 1.0", "[0, 1)"),
    "validation above all": (
        "--data.validation 1.5",
        "data.validation is 1.5",
        "[0, 1)",
        "--data.validation 0.1",
    ),
    "validation below nothing": (
        "--data.validation -0.1",
        "data.validation is -0.1",
        "--data.validation 0.1",
    ),
    "vocabulary too small": (
        "--model.vocab-size 100",
        "model.vocab_size is 100",
        "257",
        "--model.vocab-size 257",
    ),
    "text shorter than a row": (
        "--model.context 5000",
        "tokens, fewer than one row of 5001",
        "--data.source.path",
        "--model.context 1",
    ),
    "missing data": (
        "--data.source.path nothere.txt",
        "nothere.txt is not there",
        "--data.source.path",
    ),
    "mesh larger than the machine": ("--mesh.tensor 1000", "1000", "devices", "--mesh.tensor"),
    "unknown flag": ("--stepz 3", "--stepz is not a flag", "Did you mean '--steps'"),
    "unknown flag below": (
        "--model.num-layer 3",
        "--model.num-layer is not a flag",
        "'--model.num-layers'",
    ),
    "a word too much": ("again", "'again'", "--"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_wrong_flag_of_train_ends_in_one_line(name, home, capsys):
    flags, *words = FLAGS[name]
    refused(capsys, ["train", str(home / "tiny.py"), "--dir", "run", *flags.split()], *words)


CONFIGS = {
    "wrong key": (
        "config.py",
        "from gptjax.train.experiment import Experiment\nexperiment = Experiment(stepz=1)\n",
        "stepz",
        "Experiment",
        "'steps'",
    ),
    "no experiment": ("config.py", "x = 1\n", "config.py", "must define `experiment`"),
    "error": ("config.py", "x = [][1]\n", "config.py", "IndexError"),
    "syntax": ("config.py", "x = = 1\n", "config.py", "SyntaxError", "line 1"),
    "error of two lines": ("config.py", "raise OSError('a\\n\\nb')\n", "config.py", "OSError"),
    "wrong type": (
        "config.py",
        "from gptjax.train.experiment import Experiment\nexperiment = Experiment(steps='x')\n",
        "config.py",
        "steps is 'x'",
        "a whole number",
    ),
    "wrong key in JSON": ("config.json", '{"modle": {}}', "modle", "Experiment", "'model'"),
    "wrong type in JSON": ("config.json", '{"steps": "x"}', "steps is 'x'", "a whole number"),
    "twice in JSON": (
        "config.json",
        '{"steps": 1, "steps": 2}',
        "duplicate key 'steps'",
        "keep one",
    ),
    "half of a JSON": ("config.json", '{"steps": ', "config.json is not JSON", "Restore"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_ends_in_one_line(name, tmp_path, capsys):
    file, content, *words = CONFIGS[name]
    (tmp_path / file).write_text(content)
    refused(capsys, ["train", file, "--dir", "run"], *words)
    assert not (tmp_path / "run").exists()


BAD = {  # what the file says → a word that names it, and one that mends it
    "a typo": ('{"stepz": 1}', "stepz", "'steps'"),
    "a typo below": ('{"model": {"num_layer": 3}}', "model.num_layer", "'num_layers'"),
    "a typo two below": (
        '{"evaluation": {"sample": {"temprature": 1}}}',
        "evaluation.sample.temprature",
        "'temperature'",
    ),
    "a kind's typo": ('{"optim": {"kind": "AdamW", "beta_1": 0.9}}', "optim.beta_1", "'beta1'"),
    "another kind's key": ('{"optim": {"kind": "SGD", "beta1": 0.9}}', "optim.beta1", "SGD"),
    "an unknown kind": ('{"optim": {"kind": "Adamm"}}', "optim.kind", "'Adam'"),
    "no kind": ('{"data": {"source": {"path": "x"}}}', "data.source.kind", "Text"),
    "a number as text": (
        '{"optim": {"kind": "AdamW", "peak": "1e-4"}}',
        "optim.peak is '1e-4'",
        "a number",
    ),
    "text for a whole number": ('{"steps": "many"}', "steps is 'many'", "a whole number"),
    "half a step": ('{"steps": 1.5}', "steps is 1.5", "a whole number"),
    "true for a number": ('{"batch": true}', "batch is True", "a whole number"),
    "a number for true": ('{"model": {"bias": 1}}', "model.bias is 1", "true/false"),
    "null": ('{"seed": null}', "seed is None", "a whole number"),
    "an unknown choice": ('{"model": {"positions": "ropes"}}', "model.positions", "'rope'"),
    "a list for an object": ('{"model": []}', "model is []", "ModelConfig"),
    "a key twice": ('{"steps": 1, "steps": 2}', "'steps'", "keep one"),
    "a key twice below": ('{"model": {"width": 64, "width": 32}}', "'width'", "keep one"),
    "NaN": ('{"skip_norm": NaN}', "NaN", "finite"),
    "out of range": ('{"batch": 0}', "batch is 0", "at least 1"),
    "half a file": ('{"steps": ', "config.json", "Restore"),
}


@pytest.mark.row(50)
def test_bad_configs_are_refused_by_key_within_a_second(tmp_path, capsys, record_property):
    slowest, command = 0.0, [sys.executable, "-m", "gptjax", "train", "config.json", "--dir", "run"]
    (tmp_path / "config.json").write_text(BAD["a typo"][0])
    begun = time.perf_counter()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 2
    whole = time.perf_counter() - begun
    refused(capsys, command[3:], "stepz")  # imports what is imported late
    for content, *words in BAD.values():
        (tmp_path / "config.json").write_text(content)
        begun = time.perf_counter()
        refused(capsys, ["train", "config.json", "--dir", "run"], *words)
        slowest = max(slowest, time.perf_counter() - begun)
    assert not (tmp_path / "run").exists() and slowest < 1
    record_property(
        "figure",
        f"{len(BAD)} of {len(BAD)} bad configs refused by key in at most {1e3 * slowest:.0f} ms, 0"
        f" keys ignored ({whole:.1f} s from process start to its end)",
    )


def test_a_config_that_exits_is_no_success(tmp_path, capsys):
    (tmp_path / "config.py").write_text("raise SystemExit\n")
    refused(capsys, ["train", "config.py"], "config.py")


def test_a_config_that_is_not_there_is_named(tmp_path, capsys):
    refused(capsys, ["train", "nothere.py"], "nothere.py is not there", "config")
    refused(capsys, ["train", "nothere/config.json"], "nothere/config.json is not there", "config")
    refused(capsys, ["train", str(tmp_path)], "holds no config.json", "give a config file")
    refused(capsys, ["train"], "first argument is missing", "config")
    refused(capsys, ["inspect"], "first argument is missing", "config")


# --- train: the data ---

DATA = {
    "empty": ("a.txt", b"", "a.txt is empty", "--data.source.path"),
    "only a byte order mark": ("a.txt", b"\xef\xbb\xbf", "a.txt is empty", "--data.source.path"),
    "not UTF-8": (
        "a.txt",
        "größer".encode("latin-1"),
        "a.txt is not UTF-8",
        "0xf6",
        "--data.source.encoding cp1252",
    ),
    "UTF-16": (
        "a.txt",
        TEXT.encode("utf-16"),
        "a.txt is not UTF-8",
        "--data.source.encoding utf-16",
    ),
    "short": (
        "a.txt",
        b"too short",
        "tokens, fewer than one row of 33",
        "--data.source.path",
        "--model.context",
    ),
    "no gzip": ("a.txt.gz", b"\x1f\x8bnot", "gzip", "--data.source.path"),
    "JSONL without the field": (
        "a.jsonl",
        b'{"content": "x"}\n',
        "a.jsonl:1 has no field 'text'",
        "'content'",
        "--data.source.field",
    ),
    "no JSONL": (
        "a.jsonl",
        b'{"text": "x"}\nhello\n',
        "a.jsonl:2 is not JSON",
        "--data.source.max-bad-records",
    ),
    "no text in the field": ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1 has no text in 'text'"),
    "empty JSONL": ("a.jsonl", b"\n\n", "a.jsonl is empty", "--data.source.path"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_text_that_can_not_be_used_is_named(name, home, tmp_path, capsys):
    file, content, *words = DATA[name]
    (tmp_path / file).write_bytes(content)
    refused(
        capsys, ["train", str(home / "tiny.py"), "--dir", "run", "--data.source.path", file], *words
    )


def test_an_empty_folder_is_named(home, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    refused(
        capsys,
        ["train", str(home / "tiny.py"), "--data.source.path", "folder"],
        "folder has no file that matches",
        "--data.source.pattern",
    )


def test_a_held_out_text_without_a_prediction_is_refused_before_the_first_step(
    home, tmp_path, capsys, monkeypatch
):
    """One character, spelled without a mark at its ends, predicts nothing."""
    monkeypatch.setattr("gptjax.train.program.build", lambda *_: pytest.fail("nothing was refused"))
    config = (
        (home / "tiny.py")
        .read_text()
        .replace("Bytes()", "Characters(end_of_document=False)")
        .replace("Bytes", "Characters")
    )
    (tmp_path / "tiny.py").write_text(config)
    refused(
        capsys,
        ["train", "tiny.py", "--dir", "run", "--data.validation", "1e-9"],
        "--data.validation",
    )


# --- a run directory ---


def test_a_run_directory_is_not_overwritten_by_another_run(run, home, capsys):
    files = {
        name: (run / name).read_bytes()
        for name in ("config.json", "identity.json", "metrics.jsonl")
    }
    train = ["train", str(home / "tiny.py"), "--dir", str(run)]
    refused(
        capsys,
        [*train, "--seed", "1"],
        str(run),
        "another run",
        "seed was 0, now 1",
        "--dir",
        "--allow-changes",
    )
    refused(capsys, [*train, "--model.width", "64"], "model.width was 32, now 64", "--dir")
    (home / "other.txt").write_text(TEXT.upper())
    refused(
        capsys, [*train, "--data.source.path", str(home / "other.txt")], "data.source.path", "--dir"
    )
    assert files == {name: (run / name).read_bytes() for name in files}


def test_a_text_that_changed_under_a_run_is_another_run(run, home, capsys):
    try:
        (home / "text.txt").write_text(TEXT.replace("fox", "cat"))
        refused(
            capsys,
            ["train", str(run / "config.json")],
            "another run",
            "data (its content)",
            "--dir",
        )
    finally:
        (home / "text.txt").write_text(TEXT)


# --- sample ---

SAMPLES = {
    "below nothing": (
        "--temperature -1",
        "temperature is -1.0",
        "0 (greedy) or more",
        "--temperature",
    ),
    "not a number": ("--temperature nan", "temperature is nan", "--temperature"),
    "a word": ("--temperature hot", "--temperature", "'hot'", "--help"),
    "top-p of nothing": ("--top-p 0", "top_p is 0.0", "--top-p"),
    "top-k below nothing": ("--top-k -1", "top_k is -1", "--top-k"),
    "top-k beyond the vocabulary": ("--top-k 999", "top_k is 999", "257", "--top-k 0"),
    "no new tokens": ("--new-tokens 0", "new_tokens is 0", "--new-tokens"),
    "no samples": ("--num-samples 0", "num_samples is 0", "--num-samples"),
    "another step": ("--step 7", "no step 7", "2"),
    "a long prompt": (f"--prompt {'x' * 40}", "a prompt has 41 tokens", "context is 32", "shorten"),
    "a missing prompt file": ("--prompt-file nothere", "nothere is not there", "--prompt-file"),
    "flag of another program": ("--max-tokens 5", "--max-tokens is not a flag", "'--new-tokens'"),
    "unknown flag": ("--temprature 1", "--temprature is not a flag", "'--temperature'"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_wrong_flag_of_sample_ends_in_one_line(name, run, capsys):
    flags, *words = SAMPLES[name]
    refused(capsys, ["sample", str(run), *flags.split()], *words)


def test_a_prompt_file_that_is_not_utf8_is_named(run, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"\xff")
    refused(
        capsys, ["sample", str(run), "--prompt-file", "prompts"], "prompts is not UTF-8", "convert"
    )


def test_what_is_no_run_is_not_sampled(run, tmp_path, capsys):
    refused(capsys, ["sample", "nothere"], "nothere is not a directory", "give a run directory")
    refused(capsys, ["sample", str(tmp_path)], "has no config.json", "give a run directory")
    refused(capsys, ["sample"], "first argument is missing", "needs a run")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.json").write_bytes((run / "config.json").read_bytes())
    refused(
        capsys,
        ["sample", "begun"],
        "begun has no checkpoint yet",
        "python train.py begun/config.json",
    )
    (tmp_path / "begun/config.json").write_text(json.dumps({"stepz": 1}))
    refused(capsys, ["sample", "begun"], "does not describe a model", "give a run directory")


@pytest.mark.row(49)
def test_another_tokenizer_in_a_run_is_refused(run, tmp_path, capsys, record_property):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "tokenizer")
    tokenizers.save_tokenizer(copy / "tokenizer", tokenizers.train_tokenizer(Characters(), [TEXT]))
    refused(
        capsys,
        ["sample", str(copy)],
        f"{copy}/tokenizer is not the tokenizer that this run was trained with",
        "restore it from a copy",
    )
    record_property("figure", "a whole tokenizer of another run refused too")


# --- the command itself ---


def test_an_unknown_command_is_named_with_the_nearest_right_one(capsys):
    refused(capsys, ["trian"], "'trian' is not a command", "'train'", "--help")
    refused(capsys, ["--version?"], "is not a command", "--help")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--help"],
        ["train", "--help"],
        ["sample", "--help"],
        ["inspect", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_help_is_no_error(args, capsys):
    assert cli.main(args) == 0
    said = capsys.readouterr()
    assert said.err == "" and "usage: gptjax" in said.out


def test_what_no_user_can_mend_has_status_1_and_still_one_line(capsys):
    def broken(args):
        raise RuntimeError("first line\nsecond line")

    assert cli.guarded(broken, []) == 1
    assert (
        capsys.readouterr().err
        == "error: RuntimeError: first line second line (GPTJAX_DEBUG=1 shows where)\n"
    )


def test_gptjax_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("GPTJAX_DEBUG", "1")
    with pytest.raises(cli.ConfigError):
        cli.main(["train", "nothere.py"])


def test_an_interruption_before_the_first_step_is_one_line(capsys):
    def stopped(args):
        raise KeyboardInterrupt

    assert cli.guarded(stopped, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


PROGRAMS = {
    "train.py nothere.py": (["train.py", "nothere.py"], "nothere.py is not there"),
    "sample.py nothere": (
        ["sample.py", "nothere", "--temperature", "0"],
        "nothere is not a directory",
    ),
    "python -m gptjax trian": (["-m", "gptjax", "trian"], "Did you mean 'train'?"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_scripts_end_with_the_same_status(name, tmp_path):
    args, *words = PROGRAMS[name]
    environment = os.environ | {"PYTHONWARNINGS": "error" if "-m" in args else "default"}
    done = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    one_line(done.returncode, done.stderr, tuple(words))
    assert done.stdout == ""
