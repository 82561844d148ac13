"""Laws of configs: what is written is read back, what is wrong is named in one line, and a flag
changes a value and nothing else."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptjax.core import config, user_config
from gptjax.core.config import (
    ConfigError,
    Open,
    differences,
    formerly,
    from_dict,
    load_config,
    save_config,
    stable_dict,
    to_dict,
)
from gptjax.core.user_config import cli, load_python, load_with_flags
from gptjax.data import (
    GPT2,
    Bytes,
    Characters,
    Classification,
    Comparisons,
    DataConfig,
    Mixture,
    Preferences,
    Records,
    SentencePiece,
    Text,
    Tfds,
)
from gptjax.generate import SampleConfig
from gptjax.losses import Preference
from gptjax.model import ModelConfig, gpt2, llama, small
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.optim import SGD, Adafactor, Adam, AdamW, Lion, Muon, Schedule

DIAL = Path(__file__).parents[1] / "configs/dial.py"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))

KINDS = {
    "default": Experiment(),
    **{cls.__name__: Experiment(optim=cls()) for cls in (AdamW, Adam, SGD, Lion, Adafactor, Muon)},
    "Bytes": Experiment(data=DataConfig(source=Text('a é " \\ \n 🙂.txt'), tokenizer=Bytes())),
    "Characters": Experiment(
        data=DataConfig(
            source=Tfds("lm1b", split="train[:10%]"), tokenizer=Characters(end_of_document=False)
        )
    ),
    "SentencePiece": Experiment(
        data=DataConfig(tokenizer=SentencePiece(vocab_size=500, algorithm="unigram"))
    ),
    "Mixture": Experiment(
        data=DataConfig(
            source=Mixture((Text("a"), Tfds("b"), Text("c", field="d")), (0.5, 1.0, 1e-9)),
            tokenizer=GPT2("files"),
        )
    ),
    "gpt2": Experiment(model=gpt2("355m"), schedule=Schedule("wsd", floor=0.0)),
    "llama": Experiment(model=llama("3-70b"), mesh=MeshConfig(data=2, fsdp=2, tensor=2)),
    "limits": Experiment(
        evaluation=Evaluation(
            every=7, rows=3, prompt="\0\u2028", sample=SampleConfig(temperature=0.0)
        ),
        checkpoints=Checkpoints(every=3, keep_newest=5, keep_best=0),
        optim=AdamW(peak=5e-324, clip_norm=None, epsilon=1.7976931348623157e308),
        seed=2**31 - 1,
        micro_batch=4,
    ),
}


def one_line(error: ConfigError, *words: str) -> None:
    message = str(error)
    assert "\n" not in message and message.endswith((".", "?")), message
    for word in words:
        assert word in message, message


def refused(value: object, *words: str) -> None:
    """`value` is no Experiment, and the message holds all `words`."""
    with pytest.raises(ConfigError) as caught:
        from_dict(Experiment, value)
    one_line(caught.value, *words)


# --- there and back


@pytest.mark.parametrize("experiment", KINDS.values(), ids=KINDS)
def test_what_is_saved_is_loaded_again(experiment, tmp_path):
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    save_config(tmp_path / "config.json", experiment)
    again = load_config(Experiment, tmp_path / "config.json")
    assert again == experiment and hash(again) == hash(experiment)
    assert repr(again) == repr(experiment), "1 and 1.0, True and 1 are equal but not the same"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_file_is_an_experiment_that_survives_its_json(path, tmp_path):
    experiment = load_python(Experiment, path)
    save_config(tmp_path / "config.json", experiment)
    assert load_config(Experiment, tmp_path / "config.json") == experiment


def test_a_saved_config_is_plain_json_in_which_no_field_is_left_out(tmp_path):
    def walk(value, plain):
        fields = {f.name for f in dataclasses.fields(value)}
        assert set(plain) | {"kind"} == fields | {"kind"}
        for name in fields:
            if dataclasses.is_dataclass(getattr(value, name)):
                walk(getattr(value, name), plain[name])

    save_config(tmp_path / "config.json", KINDS["limits"])
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    walk(KINDS["limits"], json.loads(text, parse_constant=pytest.fail))


def test_a_field_that_is_left_out_has_its_default():
    assert from_dict(Experiment, {}) == Experiment()
    assert from_dict(Experiment, {"model": {"width": 64}}).model == ModelConfig(width=64)


def test_a_whole_number_is_a_number_but_no_number_is_a_whole_one():
    result = from_dict(Experiment, {"skip_norm": 3}).skip_norm
    assert result == 3.0 and type(result) is float
    refused({"steps": 3.0}, "steps", "3.0", "a whole number")


def test_configs_are_frozen_and_hashable():
    @dataclass
    class Loose:
        x: int = 0

    for experiment in KINDS.values():
        assert (
            len(
                {
                    experiment,
                    dataclasses.replace(experiment),
                    from_dict(Experiment, to_dict(experiment)),
                }
            )
            == 1
        )
    reachable = user_config._reachable(Experiment)
    assert {
        Experiment,
        ModelConfig,
        DataConfig,
        Muon,
        Tfds,
        Mixture,
        GPT2,
        SampleConfig,
        MeshConfig,
    } <= reachable
    for cls in reachable:
        assert cls.__dataclass_params__.frozen, cls
    assert not Loose.__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().steps = 3


def test_every_setting_says_what_it_is():
    """The line under a field is what --help shows."""
    import ast
    import inspect
    import textwrap

    for cls in user_config._reachable(Experiment):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{cls.__name__}.{node.target.id} has no line under it"
                )


# --- what is refused

WRONG = {
    "unknown key": ({"stepz": 1}, "stepz", "Experiment", "'steps'"),
    "unknown key below": ({"model": {"num_layer": 3}}, "model.num_layer", "'num_layers'"),
    "unknown key of a kind": (
        {"optim": {"kind": "Lion", "beta3": 0.1}},
        "optim.beta3",
        "Lion",
        "'beta",
    ),
    "key of another kind": ({"optim": {"kind": "SGD", "beta1": 0.1}}, "optim.beta1", "SGD"),
    "unknown key in a list": (
        {
            "data": {
                "source": {
                    "kind": "Mixture",
                    "sources": [{"kind": "Text"}, {"kind": "Text", "pth": "x"}],
                    "weights": [1, 1],
                }
            }
        },
        "data.source.sources.1.pth",
        "'path'",
    ),
    "text for a number": ({"steps": "x"}, "steps", "'x'", "a whole number"),
    "number for text": ({"evaluation": {"prompt": 3}}, "evaluation.prompt", "3", "text"),
    "bool for int": ({"steps": True}, "steps", "True", "a whole number"),
    "int for bool": ({"model": {"bias": 1}}, "model.bias", "1", "true/false"),
    "bool for float": ({"skip_norm": False}, "skip_norm", "False", "a number"),
    "null": ({"steps": None}, "steps", "None", "a whole number"),
    "wrong option": (
        {"model": {"vocab_size": "big"}},
        "model.vocab_size",
        "'big'",
        "a whole number",
    ),
    "NaN": ({"skip_norm": float("nan")}, "skip_norm", "finite"),
    "infinity": ({"optim": {"kind": "AdamW", "peak": float("inf")}}, "optim.peak", "finite"),
    "unknown kind": ({"optim": {"kind": "Adamm"}}, "optim.kind", "'Adamm'", "Lion", "'Adam'"),
    "missing kind": ({"optim": {"peak": 1.0}}, "optim.kind", "AdamW"),
    "kind where there is one": ({"model": {"kind": "ModelConfig"}}, "model.kind"),
    "unknown choice": (
        {"model": {"positions": "ropes"}},
        "model.positions",
        "'ropes'",
        "'learned'",
        "Did you mean 'rope'?",
    ),
    "list for a choice": ({"model": {"positions": ["rope"]}}, "model.positions", "'learned'"),
    "missing field": ({"data": {"source": {"kind": "Tfds"}}}, "data.source", "'name'", "Tfds"),
    "text for a list": (
        {"data": {"source": {"kind": "Mixture", "sources": [{"kind": "Text"}], "weights": "1"}}},
        "data.source.weights",
        "a list",
    ),
    "list for an object": ({"model": []}, "model", "[]", "ModelConfig"),
    "number for an object": ({"optim": 3}, "optim", "3", "an object"),
    "null for an object": ({"data": None}, "data", "None", "DataConfig"),
    "a list": ([], "the config", "[]", "Experiment"),
    "out of range": ({"steps": 0}, "steps", "0", "at least 1", "--steps"),
    "rule of two fields": (
        {"model": {"width": 30, "num_heads": 4}},
        "model.width",
        "30",
        "4 heads",
        "--model.width",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_what_is_needed(name):
    value, *words = WRONG[name]
    refused(value, *words)


def test_a_whole_number_beyond_all_numbers_is_refused():
    refused({"skip_norm": 10**400}, "skip_norm", "finite")


def test_a_kind_that_is_no_text_is_refused():
    refused({"optim": {"kind": []}}, "optim.kind", "[]", "AdamW")


def test_the_kind_is_never_what_should_be_text():
    """Where several kinds may stand, an object without `kind` is not guessed at."""
    refused({"data": {"tokenizer": {}}}, "data.tokenizer.kind", "SentencePiece")
    refused({"data": {"source": {"path": "x"}}}, "data.source.kind", "Text")


NOT_JSON = {
    "nothing": (b"", "is not JSON"),
    "half": (b'{"steps": 1', "is not JSON"),
    "other encoding": (b"\xff\xfe{}", "is not JSON"),
    "Python": (b"experiment = Experiment()", "is not JSON"),
    "key twice": (b'{"steps": 1, "steps": 2}', "'steps'", "duplicate"),
    "key twice below": (b'{"model": {"width": 64, "width": 32}}', "'width'", "duplicate"),
    "NaN": (b'{"skip_norm": NaN}', "NaN", "finite"),
    "-Infinity": (b'{"skip_norm": -Infinity}', "-Infinity", "finite"),
    "1e999": (b'{"skip_norm": 1e999}', "skip_norm", "finite"),
    "null": (b"null", "the config", "Experiment"),
    "5000 digits": (b'{"steps": ' + b"9" * 5000 + b"}", "is not JSON"),
    "nested": (b"[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_damaged_config_json_is_refused(name, tmp_path):
    content, *words = NOT_JSON[name]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, tmp_path / "config.json")
    one_line(caught.value, *words)


def test_a_config_json_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, tmp_path / "config.json")
    one_line(caught.value, str(tmp_path / "config.json"), "is not there")


def test_reading_a_config_json_executes_nothing(tmp_path):
    (tmp_path / "config.json").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError):
        load_config(Experiment, tmp_path / "config.json")
    assert not (tmp_path / "ran").exists()


# --- classes from elsewhere, and earlier versions


class Shape(Open):
    """A family that others may extend."""


@dataclass(frozen=True)
class Square(Shape):
    """One of ours."""

    side: int = 1


@formerly("Disc", "Round", fields={"r": "radius"}, added=("filled",))
@dataclass(frozen=True)
class Circle(Shape):
    """Another of ours, with a history."""

    radius: int = 1
    filled: bool = False


@dataclass(frozen=True)
class Star(Shape):
    """Somebody else's."""

    points: int = 5


def split_size(old: dict) -> dict:
    """Version 1 wrote `size: [shape, scale]`."""
    if "size" not in old:
        return old
    rest = {key: value for key, value in old.items() if key != "size"}
    return {**rest, "shape": old["size"][0], "scale": old["size"][1]}


@formerly(migrate=split_size)
@dataclass(frozen=True)
class Drawing:
    """Holds shapes."""

    shape: Square | Circle | Shape = Square()
    more: tuple[Square | Circle | Shape, ...] = ()
    scale: float = 1.0


def test_a_class_from_elsewhere_is_written_and_read_where_it_is_handed_in(tmp_path):
    drawing = Drawing(Star(7), (Square(2), Star(), Circle(3)))
    save_config(tmp_path / "a.json", drawing)
    assert load_config(Drawing, tmp_path / "a.json", known=(Star,)) == drawing
    assert load_config(Drawing, tmp_path / "a.json", known=config.classes_in(drawing)) == drawing
    with pytest.raises(ConfigError) as caught:
        load_config(Drawing, tmp_path / "a.json")
    one_line(caught.value, "'Star'", "Square, Circle", "Python config file", "known=(Star,)")
    with pytest.raises(ConfigError) as caught:
        from_dict(Drawing, {"shape": {"kind": "Sqare"}}, known=(Star,))
    one_line(caught.value, "'Sqare'", "Did you mean 'Square'?")
    with pytest.raises(ConfigError, match="kind is 'Options'"):
        from_dict(Drawing, {"shape": {"kind": "Options"}}, known=(Options,))


def test_a_class_from_elsewhere_is_changed_by_flags():
    base = Drawing(Star())
    _, changed = cli(Options, ["--shape.points", "6"], prog="test", base=base)
    assert changed == Drawing(Star(6))


def test_a_class_from_elsewhere_in_a_config_file_is_read(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom gptjax.core.config import Open\n"
        "from gptjax.data import Bytes, DataConfig, Task\n"
        "from gptjax.train.experiment import Experiment\n\n"
        "@dataclass(frozen=True)\nclass Mine(Task):\n    every: int = 2\n\n"
        "experiment = Experiment(data=DataConfig(task=Mine(3)))\n"
    )
    experiment = load_python(Experiment, path)
    assert experiment.data.task.every == 3 and type(experiment.data.task).__name__ == "Mine"


def test_a_class_from_elsewhere_may_not_take_a_name_of_ours():
    other = dataclasses.make_dataclass("Square", [], bases=(Shape,), frozen=True)
    with pytest.raises(ConfigError, match="rename yours"):
        to_dict(Drawing(other()))


def test_names_and_forms_of_earlier_versions_are_read():
    assert from_dict(Drawing, {"shape": {"kind": "Disc", "r": 4}}) == Drawing(Circle(4))
    assert from_dict(Drawing, {"shape": {"kind": "Round", "radius": 4}}) == Drawing(Circle(4))
    assert from_dict(Drawing, {"size": [{"kind": "Square"}, 2.0]}) == Drawing(Square(), scale=2.0)
    assert from_dict(Drawing, to_dict(Drawing(Circle(4)))) == Drawing(Circle(4))


def test_a_fingerprint_is_made_of_the_oldest_names_and_of_no_later_default():
    assert stable_dict(Drawing(Circle(4)))["shape"] == {"kind": "Disc", "r": 4}
    assert stable_dict(Drawing(Circle(4, True)))["shape"] == {
        "kind": "Disc",
        "r": 4,
        "filled": True,
    }
    assert to_dict(Drawing(Circle(4)))["shape"] == {"kind": "Circle", "radius": 4, "filled": False}


# --- Python files

PYTHON = {
    "unknown keyword": ("experiment = Experiment(stepz=3)", "stepz", "Experiment", "'steps'"),
    "unknown keyword below": (
        "experiment = Experiment(checkpoints=Checkpoints(evry=1))",
        "evry",
        "Checkpoints",
        "'every'",
    ),
    "missing variable": ("experimant = Experiment()", "must define `experiment`", "Experiment"),
    "another variable": ("experiment = Checkpoints()", "must define `experiment`", "Checkpoints"),
    "exception": ("x = 1 / 0", "ZeroDivisionError", "division by zero"),
    "syntax": ("def f(:", "SyntaxError", "line 3"),
    "missing module": ("import nothere", "ModuleNotFoundError", "nothere"),
    "missing name": ("experiment = Experimant()", "NameError", "Experimant"),
    "out of range": ("experiment = Experiment(steps=0)", "steps", "at least 1"),
    "another call": ("def f(a): pass\nf(b=1)", "TypeError", "'b'"),
    "wrong type": ('experiment = Experiment(steps="x")', "steps", "config.py"),
    "function": ("def experiment(depth: int): return Experiment(steps=depth)", "--depth"),
    "function without types": ("def experiment(depth=1): ...", "depth", "no type", "depth: int"),
    "function of something else": ("def experiment(): return 3", "experiment", "gives int"),
    "function that fails": ("def experiment(a: int = 0):\n    return 1 / a", "line 4", "1 / a"),
    "two lines": ('raise ValueError("a\\nb")', "ValueError", "a b"),
    "exit": ("raise SystemExit(0)", "config.py", "SystemExit"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_a_wrong_config_file_is_refused_in_one_line(name, tmp_path):
    code, *words = PYTHON[name]
    path = tmp_path / "config.py"
    path.write_text(f"from gptjax.train.experiment import Checkpoints, Experiment\n\n{code}\n")
    try:
        load_python(Experiment, path)
        pytest.fail("nothing was refused")
    except ConfigError as error:
        one_line(error, *words)
    except SystemExit:
        pytest.fail("the config file ended the program")


@pytest.mark.parametrize("flag", [["--depth", "3"], ["--depth=3"]])
def test_parameters_of_a_config_that_is_a_function_are_flags(flag, tmp_path):
    path = tmp_path / "dial.py"
    path.write_text(
        "from typing import Literal\nfrom gptjax.train.experiment import Experiment\n\n"
        "def experiment(depth: int = 2, kind: Literal['a', 'b'] = 'a', text: str | None = None):\n"
        "    return Experiment(steps=depth, batch=8 if kind == 'a' else 16)\n"
    )
    assert load_python(Experiment, path) == Experiment(steps=2, batch=8)
    flags = ["--optim.peak", "1", *flag, "--kind", "b", "--batch", "4"]
    found, rest = load_with_flags(Experiment, path, flags)
    assert found == Experiment(steps=3, batch=16)
    assert rest == ["--optim.peak", "1", "--batch", "4"]
    for wrong, words in (
        ("--depth x", "--depth whole"),
        ("--kind c", "--kind"),
        ("--depth 2 4", "4 too many once for each"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_with_flags(Experiment, path, wrong.split())
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words.split())


def test_a_config_file_is_checked_as_strictly_as_json(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from gptjax.train.experiment import Experiment\nexperiment ="
        " Experiment()\nobject.__setattr__(experiment, 'log_every', 2.5)\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_python(Experiment, path)
    one_line(caught.value, "log_every", "2.5", "a whole number")


def test_the_dial_gives_a_deeper_model_what_follows_from_its_depth():
    shallow, deep = (load_with_flags(Experiment, DIAL, ["--depth", n])[0] for n in ("2", "16"))
    assert deep.model.width == 8 * shallow.model.width == 64 * deep.model.num_heads
    assert deep.batch > shallow.batch and deep.steps > shallow.steps
    assert deep.optim.peak > shallow.optim.peak
    assert deep.optim.weight_decay < shallow.optim.weight_decay
    read = [e.steps * e.batch * e.model.context for e in (shallow, deep)]
    assert read[1] == pytest.approx(512 * read[0], rel=0.01), "tokens grow with the weights"
    with pytest.raises(ConfigError, match="--depth is at least 1"):
        load_with_flags(Experiment, DIAL, ["--depth", "0"])
    gpt2, _ = load_with_flags(Experiment, DIAL, ["--depth", "12", "--recipe", "gpt2"])
    assert gpt2.optim.peak == pytest.approx(7e-4, rel=0.1) and gpt2.base_width is None


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_python(Experiment, tmp_path / "nothere.py")
    one_line(caught.value, "nothere.py is not there", "configs/")


# --- command line


@dataclass(frozen=True)
class Options:
    """Flags of a command."""

    dir: str | None = None
    """A directory."""
    force: bool = False
    """Whether."""


def flags(*args: str, base: Experiment | None = None) -> tuple[Options, Experiment]:
    return cli(Options, list(args), prog="test", base=base or Experiment())


def refused_flags(words: tuple[str, ...], *args: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flags(*args)
    one_line(caught.value, *words)


def test_without_flags_nothing_changes():
    for experiment in KINDS.values():
        assert flags(base=experiment) == (Options(), experiment)


def test_a_flag_changes_its_value_and_nothing_else():
    typed = (
        "--steps 7 --dir runs/x --force --model.num-layers 6 --model.vocab-size 512 --data.isolated"
        " False --micro-batch 8"
    )
    options, changed = flags(*typed.split())
    assert options == Options("runs/x", True)
    wanted = {
        "steps": 7,
        "model.num_layers": 6,
        "model.vocab_size": 512,
        "data.isolated": False,
        "micro_batch": 8,
    }
    assert {key: new for key, (_, new) in differences(Experiment(), changed).items()} == wanted


def test_a_flag_is_read_with_dashes_or_underscores_and_with_or_without_an_equals_sign():
    assert (
        flags("--model.num-layers", "6")
        == flags("--model.num_layers", "6")
        == flags("--model.num-layers=6")
    )


def test_kinds_stay_when_their_values_change():
    base = dataclasses.replace(KINDS["Mixture"], optim=Muon())
    _, changed = flags(
        "--optim.peak",
        "3e-4",
        "--data.source.weights",
        "1",
        "2",
        "3",
        "--data.tokenizer.path",
        "other",
        base=base,
    )
    assert type(changed.optim) is Muon and changed.optim == Muon(peak=3e-4)
    assert changed.data.source == dataclasses.replace(base.data.source, weights=(1.0, 2.0, 3.0))
    assert changed.data.tokenizer == GPT2("other")


KINDS_BY_FLAG = {
    "--optim sgd": ("optim", SGD()),
    "--optim=lion --optim.peak 1e-4": ("optim", Lion(peak=1e-4)),
    "--optim.peak 0.5 --optim SGD": ("optim", SGD(peak=0.5)),
    "--data.tokenizer bytes": ("data", DataConfig(tokenizer=Bytes())),
    "--data.tokenizer gpt2 --data.tokenizer.path d": ("data", DataConfig(tokenizer=GPT2("d"))),
    "--data.source tfds --data.source.name lm1b": ("data", DataConfig(source=Tfds("lm1b"))),
    "--data.source records --data.source.path x.tsv --data.task classification": (
        "data",
        DataConfig(source=Records("x.tsv"), task=Classification()),
    ),
}


@pytest.mark.parametrize("typed", KINDS_BY_FLAG)
def test_a_flag_chooses_the_class_of_a_field_that_takes_several(typed):
    field, wanted = KINDS_BY_FLAG[typed]
    options, changed = flags(*typed.split(), "--steps", "7", "--force")
    assert getattr(changed, field) == wanted and changed.steps == 7 and options.force
    assert differences(dataclasses.replace(Experiment(steps=7), **{field: wanted}), changed) == {}


def test_a_class_that_is_unknown_or_lacks_a_value_is_refused():
    refused_flags(("--optim is 'sgdd'", "Did you mean 'sgd'?"), "--optim", "sgdd")
    refused_flags(("data.source", "'name'", "Tfds"), "--data.source", "tfds")
    refused_flags(("Classification", "needs Records"), "--data.task", "classification")


def test_a_whole_number_is_enough_for_a_number():
    _, changed = flags("--skip-norm", "3")
    assert changed.skip_norm == 3.0 and type(changed.skip_norm) is float


def test_none_is_a_value_where_none_may_stand():
    _, changed = flags("--micro-batch", "None", "--optim.clip-norm", "None", base=KINDS["llama"])
    assert (changed.micro_batch, changed.optim.clip_norm) == (None, None)


def said() -> Iterator[str]:
    """All texts of files with messages, on one line each; what is filled in is {}."""
    for path in sorted((CONFIGS[0].parents[1] / "gptjax").rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)) if re.search("require|ConfigError", source) else ():
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [getattr(part, "value", None) for part in parts]
            if isinstance(node, ast.JoinedStr) or isinstance(texts[0], str):
                yield " ".join("".join(t if isinstance(t, str) else "{}" for t in texts).split())


def takes(base: Experiment, flag: str, word: str) -> bool:
    with contextlib.suppress(ConfigError):
        return bool(flags(flag, word, base=base))
    return False


def test_a_message_that_says_none_says_what_the_flag_takes():
    pairs = DataConfig(Comparisons("pairs.jsonl"), task=Preferences())
    bases = (Experiment(), Experiment(data=pairs, loss=Preference()))
    texts, pattern = list(said()), re.compile(r"(--[\w.-]+)[ =]([nN]one)\b")
    advised = {pair for text in texts for pair in pattern.findall(text)}
    assert ("--base-width", "None") in advised
    for flag, word in advised:
        assert any(takes(base, flag, word) for base in bases), (flag, word)
    needed = [text for text in texts if re.search(r"it needs [^;]*, or none(?! at all)\b", text)]
    assert not needed, "the value is written None"


UNKNOWN = {
    "--stepz": "--steps",
    "--model.num-layer": "--model.num-layers",
    "--optim.peek": "--optim.peak",
    "--dirr": "--dir",
}


@pytest.mark.parametrize("flag", UNKNOWN)
def test_an_unknown_flag_is_named_with_the_nearest_right_one(flag):
    refused_flags((f"{flag} is not a flag", f"Did you mean '{UNKNOWN[flag]}'?"), flag, "3")


def test_a_word_that_belongs_to_no_flag_is_named():
    refused_flags(("'extra' was not expected",), "extra")


def test_a_flag_of_a_wrong_type_is_named():
    for typed in (
        "--steps x",
        "--steps 1.5",
        "--skip-norm hot",
        "--data.isolated maybe",
        "--model.positions ropes",
        "--micro-batch x",
    ):
        refused_flags(tuple(typed.split()), *typed.split())
    refused_flags(("--steps",), "--steps")


@pytest.mark.parametrize("typed", ["--steps x", "--model.positions ropes", "--stepz 3", "extra"])
def test_a_terminal_without_utf8_shows_the_same_message(typed, monkeypatch):
    messages = []
    for encoding in ("utf-8", "ascii"):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        with pytest.raises(ConfigError) as caught:
            flags(*typed.split())
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "---" not in messages[1]


def test_a_value_that_can_not_be_is_named_whichever_way_it_comes():
    refused_flags(("optim.peak", "nan"), "--optim.peak", "nan")
    refused_flags(("skip_norm", "inf", "finite"), "--skip-norm", "inf")
    refused_flags(("steps is 0", "at least 1"), "--steps", "0")
    refused_flags(("model.width is 30", "--model.width"), "--model.width", "30")


IN_PYTHON = {
    "model.pattern",
    "model.first",
    "model.rope_scaling",
    "model.latent",
    "model.recurrent",
    "model.shortcuts",
    "model.query_growth",
    "model.experts",
    "model.frames",
    "model.vision",
    "loss.adversarial",
    "loss.distillation",
    "rollout",
    "data.clean",
}
"""Kinds that only a Python config file chooses."""


def test_help_lists_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        flags("--help", base=KINDS["limits"])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert not stop.value.code
    for key, value in config.flat_settings(to_dict(KINDS["limits"])):
        if key not in IN_PYTHON and (key.rpartition(".")[2] != "kind" or key == "schedule.kind"):
            flag = "--" + key.replace("_", "-")
            assert re.search(rf"{re.escape(flag)}(?![\w-])", shown), flag
            if isinstance(value, int) and not isinstance(value, bool):
                assert f"default: {value}" in shown, f"{flag} does not say its default {value}"


# --- comparison


def test_differences_name_each_changed_value_old_and_new():
    old = Experiment()
    new = dataclasses.replace(
        old,
        steps=old.steps + 1,
        model=dataclasses.replace(old.model, width=64),
        data=dataclasses.replace(old.data, source=Text("x")),
    )
    assert differences(old, old) == {}
    assert differences(old, new) == {
        "steps": (1000, 1001),
        "model.width": (128, 64),
        "data.source.path": (None, "x"),
    }
    assert differences(new, old) == {key: (b, a) for key, (a, b) in differences(old, new).items()}


def test_another_kind_is_a_difference_too():
    result = differences(Experiment(optim=AdamW()), Experiment(optim=SGD()))
    assert (
        result["optim.kind"] == ("AdamW", "SGD")
        and result["optim.beta1"] == (0.9, None)
        and result["optim.momentum"] == (None, 0.9)
    )


def test_presets_differ():
    assert differences(Experiment(model=small("tiny")), Experiment(model=small("1m"))).keys() <= {
        f"model.{f.name}" for f in dataclasses.fields(ModelConfig)
    }
