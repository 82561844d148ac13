"""Laws of models that read pictures and videos: what stands in a text for them, who sees it, and
that nothing else changes. Read `SEEING` and `TASKS` first."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import api, generate, model
from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data import (
    Bytes,
    Characters,
    DataConfig,
    Media,
    PictureTexts,
    Shapes,
    VideoAnswers,
    VisualAnswers,
    batches,
    prepare,
)
from gptjax.data.documents.media import Pictured, read_media
from gptjax.data.documents.shapes import COLOURS, Thing, draw_scene, read_shapes
from gptjax.losses import Contrastive, CrossEntropy
from gptjax.losses.cross_entropy import forward_batch
from gptjax.model import Joint, ModelConfig, Vision
from gptjax.model.inputs.image_files import save_png
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, place_batch, replicated
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

SIZE = (8, 12)
ENCODED = Vision(
    SIZE, patch=2, overlap=1, num_layers=1, width=16, num_heads=2, merge=2, projector="mlp"
)
STRAIGHT = Vision(SIZE, patch=4)
VIDEO = Vision(SIZE, patch=4, num_layers=1, width=16, num_heads=2, projector="linear", frames=2)
SHRUNK = {"vocab_size": 64, "context": 40, "width": 32, "num_layers": 1, "num_heads": 4}
ROPE = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
SEEING = {
    "encoder and projector": ModelConfig(**SHRUNK, **ROPE, vision=ENCODED),
    "patches in a prefix LM": ModelConfig(**SHRUNK, vision=STRAIGHT, prefix_lm=True),
    "frames of videos": ModelConfig(**SHRUNK | {"context": 64}, **ROPE, vision=VIDEO),
}
"""All make 6 embeddings of a picture or a frame."""


def weights(config: ModelConfig):
    return jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))


def pictures_of(*shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (*shape, *SIZE, 3), dtype=np.uint8)


TASK = VisualAnswers(SIZE, tokens=6, images=4)
TASKS = {
    **dict.fromkeys(SEEING, TASK),
    "frames of videos": VideoAnswers(SIZE, tokens=6, images=4, frames=2),
}


def media_of(name: str, count: int) -> list[np.ndarray]:
    """Pictures, or videos of five frames."""
    shape = (count, 5) if isinstance(TASKS[name], VideoAnswers) else (count,)
    return list(pictures_of(*shape))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records about one or two pictures, and a held-out file about others."""
    path = tmp_path_factory.mktemp("media")
    for n in range(6):
        save_png(path / f"{n}.png", pictures_of(seed=n))
        np.save(path / f"{n}.npy", pictures_of(5, seed=n))
    for kind in ("png", "npy"):
        records = [
            {
                "image": [f"{n % 4}.{kind}"] * (1 + n % 2),
                "prompt": "what" + "?" * (n % 3),
                "answer": a,
            }
            for n, a in enumerate(["ab", "b", "abc", "ba", "a", "cab", "cc", "ca"])
        ]
        tests = [{"image": f"{n}.{kind}", "prompt": "what", "answer": "b"} for n in (4, 5)]
        for name, some in ((f"{kind}.jsonl", records), (f"{kind}_test.jsonl", tests)):
            (path / name).write_text("\n".join(map(json.dumps, some)))
    return path


def source_of(folder, kind="png") -> Media:
    return Media(str(folder / f"{kind}.jsonl"), held_out=str(folder / f"{kind}_test.jsonl"))


@pytest.fixture(scope="module")
def stores(folder, tmp_path_factory):
    """The stores of each row of `SEEING`."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def made(task):
        source = source_of(folder, "npy" if isinstance(task, VideoAnswers) else "png")
        return prepare(DataConfig(source, Characters(), validation=0.0, task=task, cache=cache))

    kinds = {task.kind: made(task) for task in TASKS.values()}
    return {name: kinds[task.kind] for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def data(stores):
    return stores["encoder and projector"]


def batch_of(data, task=TASK, rows=4, number=0, seed=0, length=40):
    plan = batches.plan(data.train, length=length, rows=rows, seed=seed, task=task)
    return batches.batch(data.train, plan, number)


# --- files and stores ---


def test_a_store_holds_each_picture_once_and_a_batch_shows_those_of_its_rows(data):
    frames = data.train.frames
    assert frames.counts.tolist() == [1, 2, 1, 2, 1, 2, 1, 2]
    assert (frames.path / "values.bin").stat().st_size == 4 * 8 * 12 * 3
    batch = batch_of(data)
    picture = data.tokenizer.vocab_size + 1
    for row, (ids, places) in enumerate(zip(batch.tokens, batch.columns["places"], strict=True)):
        found = np.flatnonzero(ids == picture)
        assert places[: len(found)].tolist() == found.tolist() and (places[len(found) :] < 0).all()
        shown = batch.columns["pixels"][row, : len(found) // 6]
        known = [pictures_of(seed=n) for n in range(4)]
        assert all(any((one == other).all() for other in known) for one in shown)
        assert not batch.columns["pixels"][row, len(found) // 6 :].any()
    assert batch.weights[batch.tokens == picture].max() == 0


def test_a_batch_is_a_function_of_the_step_with_augmentation_too(data):
    task = dataclasses.replace(TASK, shift=2, flip=True)
    first, again, later = (batch_of(data, task, number=n) for n in (0, 0, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    plain, same = batch_of(data), batch_of(data, task, seed=None)
    assert (plain.tokens == first.tokens).all()
    assert (plain.columns["pixels"] != first.columns["pixels"]).any()
    assert (first.columns["pixels"] != later.columns["pixels"]).any()
    unchanged = batch_of(data, seed=None).columns["pixels"]
    np.testing.assert_array_equal(same.columns["pixels"], unchanged)
    halves = [batch_of(data, task, rows=2, number=n).columns["pixels"] for n in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), first.columns["pixels"])


def test_damaged_pictures_of_a_store_are_refused(data, tmp_path):
    import shutil

    from gptjax.data.store import open_store

    shutil.copytree(data.train.path, tmp_path / "a" / "train")
    pixels = tmp_path / "a/train/frames/values.bin"
    content = bytearray(pixels.read_bytes())
    content[5] ^= 1
    pixels.write_bytes(content)
    with pytest.raises(ConfigError, match=r"frames holds other files than .* delete the folder"):
        open_store(tmp_path / "a/train")


def test_records_without_pictures_or_answers_are_refused_by_place(tmp_path):
    save_png(tmp_path / "a.png", pictures_of())
    lines = {
        "not json": "is not JSON",
        "[1]": "is not an object",
        '{"answer": "a"}': "has no picture in 'image'",
        '{"image": "b.png", "answer": "a"}': r"names .*b\.png, which is not there",
        '{"image": "a.png", "answer": " "}': "has no text in",
    }
    for line, why in lines.items():
        (tmp_path / "x.jsonl").write_text(line)
        with pytest.raises(ConfigError, match=rf"x\.jsonl:1 {why}"):
            list(read_media(Media(str(tmp_path / "x.jsonl"))))
    (tmp_path / "a.txt").write_text("a caption")
    (document,) = read_media(Media(str(tmp_path)))
    assert Pictured.load(document.text)[:2] == ("", "a caption")


def test_a_model_that_reads_other_pictures_is_refused():
    data = DataConfig(Shapes(), Characters(), task=VisualAnswers((8, 12), tokens=6))
    config = SEEING["encoder and projector"]
    Experiment(model=config, data=data)
    for change, why in (
        ({"vision": None}, "reads no pictures"),
        ({"vision": Vision((16, 12), patch=4)}, r"data\.task\.size"),
        ({"vision": Vision(SIZE, patch=2)}, r"--data\.task\.tokens 24"),
    ):
        with pytest.raises(ConfigError, match=why):
            Experiment(model=dataclasses.replace(config, **change), data=data)


# --- laws of the model ---


def see(config, pixels, params=None):
    return model.see(config, weights(config) if params is None else params, pixels)


@pytest.mark.parametrize("name", SEEING)
def test_embeddings_of_ids_in_their_places_are_the_ids(name):
    config = SEEING[name]
    params, tokens = weights(config), jnp.arange(20)[None] % 60
    wanted = model.forward(config, params, tokens).hidden
    index = jnp.asarray([[3, 9, -1]])
    rows = model.embed_tokens(config, params, tokens)[:, [3, 9, 0]]
    soft = model.Soft(rows, index)
    other = tokens.at[0, 3].set(61).at[0, 9].set(62)
    np.testing.assert_array_equal(model.forward(config, params, other, soft=soft).hidden, wanted)


@pytest.mark.parametrize("name", SEEING)
def test_each_picture_is_read_alone_and_every_pixel_counts(name):
    config = SEEING[name]
    each = config.vision.frames
    params, pixels = weights(config), pictures_of(2, 3 * each).astype(np.float32)
    found = see(config, pixels, params)
    assert found.shape == (2, 18 * each, 32)
    parts = [pixels[:, n * each : (n + 1) * each] for n in range(3)]
    alone = jnp.concatenate([see(config, part, params) for part in parts], 1)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    slopes = jax.grad(lambda x: jnp.square(see(config, x, params)).sum())(jnp.asarray(pixels))
    assert jnp.abs(slopes).max(-1).min() > 0


def test_patches_are_the_windows_of_a_convolution():
    pixels = jnp.asarray(pictures_of(2))
    vision = dataclasses.replace(ENCODED, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    from gptjax.model.inputs.vision import cut_patches

    kernel = jax.random.normal(jax.random.key(1), (3, 4, 4, 5))
    ours = jnp.einsum("npchw,chwd->npd", cut_patches(vision, pixels), kernel)
    x = (np.asarray(pixels) / 255 - np.asarray(vision.mean)) / np.asarray(vision.std)
    x = jnp.asarray(x.astype(np.float32))
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "IHWO", "NHWC")
    )
    np.testing.assert_allclose(ours, theirs.reshape(2, 24, 5), atol=1e-4)


@pytest.mark.parametrize("name", SEEING)
def test_padding_pictures_and_those_of_other_pieces_change_nothing(name, stores):
    """Packed = alone; what stands where there is no picture is not seen."""
    config, task = SEEING[name], TASKS[name]
    shown = 4 * task.frames_each
    params, batch = weights(config), batch_of(stores[name], task, length=config.context)
    loss = jax.jit(lambda params, batch: forward_batch(config, params, batch, None).hidden)
    whole = loss(params, batch)
    unused = batch.columns["places"].reshape(-1, shown, 6)[:, :, 0] < 0
    other = batch.columns["pixels"].copy()
    other[unused] = 99
    changed = batch._replace(columns={**batch.columns, "pixels": other})
    assert unused.any()
    np.testing.assert_array_equal(loss(params, changed), whole)
    assert batch.segments.max() == 2, "two pieces share a row"
    row = int(np.argmax(batch.segments.max(1)))
    for segment in (1, 2):
        where = np.flatnonzero(batch.segments[row] == segment)
        first, last = where[0], where[-1] + 1
        places = batch.columns["places"][row]
        own = (places >= first) & (places < last)
        pixels = batch.columns["pixels"][row][own.reshape(shown, 6)[:, 0]]
        soft = model.look(
            config, params, {"pixels": pixels[None], "places": places[own][None] - first}
        )
        alone = model.forward(
            config,
            params,
            batch.tokens[row : row + 1, first:last],
            soft=soft,
            prefix=batch.prefix[row : row + 1, first:last],
        ).hidden
        np.testing.assert_allclose(whole[row, first:last], alone[0], atol=2e-5)


@pytest.mark.parametrize("name", SEEING)
def test_an_answer_is_not_seen_before_it_is_written(name, stores):
    """No leak: token k of an answer changes nothing before it."""
    config, length = SEEING[name], SEEING[name].context
    params, batch = weights(config), batch_of(stores[name], TASKS[name], rows=1, length=length)
    run = jax.jit(lambda batch: forward_batch(config, params, batch, None).hidden)
    whole = run(batch)
    for k in np.flatnonzero(batch.weights[0] > 0)[1:]:
        tokens = batch.tokens.copy()
        tokens[0, k] = (tokens[0, k] + 1) % 20
        changed = run(batch._replace(tokens=tokens))
        np.testing.assert_array_equal(changed[:, :k], whole[:, :k])
        assert (changed[:, k] != whole[:, k]).any()


def opened(config: ModelConfig, data, task=TASK) -> api.Model:
    return api.Model(config, weights(config), data.tokenizer, task=task)


def test_a_model_whose_files_give_no_form_of_prompts_is_not_asked(data):
    """PaliGemma and SmolVLM surround a picture with marks that their config.json does not hold."""
    name = next(iter(SEEING))
    asked = opened(SEEING[name], data)._replace(task=dataclasses.replace(TASK, begin=-1))
    with pytest.raises(ConfigError, match="how its prompts surround a picture") as error:
        asked.answer(list(pictures_of(1)), "what")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SEEING)
def test_writing_behind_a_cache_is_reading_as_a_whole(name, stores):
    config, data, task = SEEING[name], stores[name], TASKS[name]
    opened_model, shown = opened(config, data, task), media_of(name, 2)
    done = opened_model.answer(shown, "what", new_tokens=4, temperature=0.0)
    ids = task.asked_about(data.tokenizer.encode("what").tolist(), data.tokenizer, 2)
    whole = np.asarray([*ids, *done.ids])[None]
    places = task.places(whole, data.tokenizer.vocab_size)[:, : 12 * task.frames_each]
    chosen = [video[[0, 4]] for video in shown] if task.frames_each == 2 else [shown]
    columns = {"pixels": np.concatenate(chosen)[None], "places": places}
    out = model.forward(
        config,
        opened_model.params,
        whole,
        soft=model.look(config, opened_model.params, columns),
        prefix=jnp.full(whole.shape, len(ids) - 1),
    )
    logits = model.unembed(config, opened_model.params, out.hidden)[0, len(ids) - 1 :]
    logits = logits[:, : data.tokenizer.vocab_size]
    logp = jax.nn.log_softmax(logits, axis=-1)
    wanted = [float(logp[n, one]) for n, one in enumerate(done.ids)]
    assert len(done.ids) > 0
    np.testing.assert_allclose(done.logprobs, wanted, atol=2e-5)
    assert logits.argmax(-1)[: len(done.ids)].tolist() == done.ids


@pytest.mark.parametrize("name", ["encoder and projector", "frames of videos"])
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2}, {"tensor": 2, "fsdp": 2}])
def test_a_loss_of_pictures_is_the_same_on_a_mesh(axes, name, stores):
    config, task = SEEING[name], TASKS[name]
    params, batch = weights(config), batch_of(stores[name], task, rows=4, length=config.context)
    loss = CrossEntropy().build(config)
    value, slopes = jax.jit(jax.value_and_grad(lambda p, b: loss(p, {}, b, None)[0]))(params, batch)
    mesh = make_mesh(MeshConfig(**axes), devices=jax.devices()[:4])
    with use_mesh(mesh):
        placed = jax.device_put(params, replicated(mesh))
        there, others = jax.jit(jax.value_and_grad(lambda p, b: loss(p, {}, b, None)[0]))(
            placed, place_batch(batch, mesh, 4)
        )
    assert abs(float(there) - float(value)) < 1e-4
    far = jax.tree.map(lambda a, b: float(jnp.abs(jax.device_get(a) - b).max()), others, slopes)
    assert max(jax.tree.leaves(far)) < 1e-4


# --- training ---


def test_a_run_learns_what_a_picture_shows_and_trains_by_part(tmp_path, capsys):
    """Two pictures, one question, two answers: only who looks can tell."""
    for name, level in (("dark", 20), ("light", 230)):
        save_png(tmp_path / f"{name}.png", np.full((8, 12, 3), level, np.uint8))
    lines = [
        json.dumps({"image": f"{name}.png", "prompt": "which", "answer": name})
        for name in ("dark", "light") * 8
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    task = VisualAnswers(SIZE, tokens=6)
    settings = DataConfig(
        Media(str(tmp_path / "x.jsonl")),
        Characters(),
        validation=0.0,
        task=task,
        cache=str(tmp_path / "cache"),
    )
    config = dataclasses.replace(SEEING["encoder and projector"], vocab_size=None, context=24)
    experiment = Experiment(
        model=config,
        data=settings,
        optim=AdamW(peak=5e-3),
        schedule=Schedule(warmup=5),
        steps=80,
        batch=8,
        freeze=("vision/encoder/*",),
    )
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    train(experiment, tmp_path / "run")
    found = api.load(tmp_path / "run")
    begun = model.init(found.config, jax.random.key(0))["vision"]
    far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), begun, found.params["vision"])
    assert max(jax.tree.leaves(far["encoder"])) < 1e-6 < 1e-3 < min(jax.tree.leaves(far["patches"]))
    assert min(jax.tree.leaves(far["projector"])) > 1e-3
    for name in ("dark", "light"):
        assert found.answer([tmp_path / f"{name}.png"], "which").text == name
    from gptjax.cli import main as cli

    capsys.readouterr()
    shown = ["--image", str(tmp_path / "dark.png"), "--prompt", "which"]
    cli.main(["sample", str(tmp_path / "run"), *shown])
    assert capsys.readouterr().out == "dark\n"


def test_chat_answers_about_the_picture_that_was_shown_last(monkeypatch, capsys, data, tmp_path):
    from gptjax.cli.pictures import ask_about, print_about
    from gptjax.cli.sample import SampleOptions

    class Told:
        task = TASK

        def answer(self, pictures, prompt, settings):
            text = f"{pictures} {prompt}"
            return generate.Completion(prompt, text, [], [], "stop")

    lines = iter(["first", "/image", '/image "a b.png"', "second"])

    def line_of():
        for line in lines:
            return line
        raise EOFError

    ask_about(Told(), (), generate.GenerateConfig(), line_of)
    out, err = capsys.readouterr()
    assert out == "['a b.png'] second\n"
    assert err.splitlines() == [
        "error: there is no picture yet; show one with /image FILE.",
        "error: /image needs a file; write /image FILE.",
    ]
    with pytest.raises(ConfigError, match="is not a file"):
        ask_about(Told(), ("nothing.png",), generate.GenerateConfig(), line_of)
    options = SampleOptions(image=("a.png",))
    with pytest.raises(ConfigError, match="omit --interactive"):
        print_about(Told(), dataclasses.replace(options, interactive=True), [])
    with pytest.raises(ConfigError, match="has one answer"):
        two = generate.GenerateConfig(num_samples=2)
        print_about(Told(), options, [("what", two)])


# --- shapes ---


def test_held_out_shapes_are_combinations_that_training_never_shows(tmp_path):
    for kind in ("captions", "questions"):
        shown: dict[bool, set] = {False: set(), True: set()}
        names: dict[bool, set] = {False: set(), True: set()}
        for one in read_shapes(Shapes(kind, count=200, held_out_count=40)):
            things = [Thing(*fields) for fields in json.loads(one.source[6:])]
            new = [thing.words for thing in things if thing.held_out]
            assert bool(new) == one.held_out
            shown[one.held_out] |= {thing.words for thing in things}
            names[one.held_out].add(one.source)
        assert not names[False] & names[True]
        assert len(shown[True] - shown[False]) == 5
    source, cache = Shapes(count=8, held_out_count=3), str(tmp_path)
    made = prepare(DataConfig(source, Characters(), validation=0.0, task=TASK, cache=cache))
    assert made.train.header.num_examples == 8 and made.validation.header.num_examples == 3
    picture = draw_scene('scene:[["square", "red", 0.5, 0.5, 0.2]]', (20, 40))
    assert picture[10, 20].tolist() == list(COLOURS["red"]) and picture[0, 0].tolist() == [240] * 3


# --- pictures and texts in one space ---

JOINT = ModelConfig(
    **SHRUNK,
    vision=Vision(
        SIZE,
        patch=4,
        num_layers=1,
        width=16,
        num_heads=2,
        class_token=True,
        pool="first",
        projector="linear",
        joint=Joint(8),
    ),
)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_contrastive_loss_is_its_formula_and_padding_rows_change_nothing(kind, tmp_path):
    vision = dataclasses.replace(JOINT.vision, joint=Joint(8, kind))
    config = dataclasses.replace(JOINT, vision=vision)
    task = PictureTexts(SIZE)
    data = prepare(
        DataConfig(
            Shapes(count=6, held_out_count=2),
            Bytes(),
            task=task,
            validation=0.0,
            cache=str(tmp_path),
        )
    )
    config = dataclasses.replace(config, vocab_size=task.vocabulary(data.tokenizer))
    params, loss = weights(config), Contrastive().build(config)
    plan = batches.plan(data.train, length=40, rows=6, seed=None, task=task)
    batch = batches.batch(data.train, plan, 0)
    total, weight, sums = loss(params, {}, batch, None)
    texts = model.embed_captions(config, params, batch.tokens, batch.positions)
    images = model.embed_pictures(config, params, batch.columns["pixels"][:, 0])
    logits = np.asarray(model.similarities(params, texts, images), np.float64)
    if kind == "softmax":
        both = [logits - np.log(np.exp(logits).sum(axis, keepdims=True)) for axis in (0, 1)]
        wanted = -sum(np.trace(one) for one in both) / 2
    else:
        signs = 2 * np.eye(6) - 1
        wanted = np.log1p(np.exp(-signs * logits)).sum()
    assert weight == 6 and float(total) == pytest.approx(wanted, rel=1e-5)
    assert float(sums["text_accuracy"]) == (logits.argmax(1) == np.arange(6)).sum()
    wide = batches.batch(data.train, plan._replace(rows=8), 0)
    more = loss(params, {}, wide, None)
    assert more[1] == 6 and float(more[0]) == pytest.approx(float(total), rel=1e-5)


def test_labels_of_a_picture_are_those_that_lie_closest():
    task, tokenizer = PictureTexts(SIZE), prepare
    from gptjax.data.tokenizers.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(Bytes(), [])
    config = dataclasses.replace(JOINT, vocab_size=tokenizer.vocab_size)
    found = api.Model(config, weights(config), tokenizer, task=task)
    labels = ["a", "a longer label", "b"]
    several = found.label(list(pictures_of(2)), labels)
    assert several.shape == (2, 3) and np.allclose(several.sum(1), 1)
    alone = found.label(list(pictures_of(2))[1:], labels[::-1])[:, ::-1]
    np.testing.assert_allclose(alone[0], several[1], atol=1e-5)
    with pytest.raises(ConfigError, match="one label"):
        found.label(list(pictures_of(1)), ["a"])
    with pytest.raises(ConfigError, match="not trained to answer questions about pictures"):
        found.answer(list(pictures_of(1)), "a")
