"""Presets: their golden files, and their numbers of parameters against the published ones. Only
shapes are computed.

python tests/test_presets.py        writes the golden files anew; the diff then shows every effect
of a change
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Side
from gptjax.model import ModelConfig, cost, positions, presets
from gptjax.train.overview import model_facts, model_table

GOLDEN = Path(__file__).parent / "golden"
NAMES = [
    f"{family}-{size}"
    for family, sizes in presets.SHAPES.items()
    for size in sizes
    if family != "small"
]


ONE_EACH = {
    *(
        "gpt2-124m",
        "gpt3-13b",
        "llama-70b",
        "llama-3.2-1b",
        "mistral-7b",
        "mixtral-8x7b",
        "qwen-2.5-7b",
        "qwen-3-30b-a3b",
        "gemma-2-27b",
    ),
    *(
        "gemma-3-1b",
        "olmo-2-13b",
        "smollm-2-360m",
        "deepseek-v3",
        "vaswani-base",
        "bert-base",
        "t5-3b",
        "t5-1.1-xxl",
    ),
}
"""Presets that are held to their numbers by default, one or two of a family; the others with `-m
slow`."""


def few(names) -> list:
    """The names as parameters; those that are not in `ONE_EACH` are slow."""
    return [
        name if name in ONE_EACH else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def golden(name: str) -> str:
    """What a preset amounts to, as text."""
    return f"{name}\n\n{model_table(facts(name))}\n"


@functools.cache
def facts(name: str) -> dict:
    return model_facts(presets.preset(name))


PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen-2.5-0.5b": 494_032_768,
    "qwen-2.5-1.5b": 1_543_714_304,
    "qwen-2.5-3b": 3_085_938_688,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-2.5-14b": 14_770_033_664,
    "qwen-2.5-32b": 32_763_876_352,
    "qwen-2.5-72b": 72_706_203_648,
    "qwen-3-8b": 8_190_735_360,
    "qwen-3-14b": 14_768_307_200,
    "qwen-3-32b": 32_762_123_264,
    "qwen-3-30b-a3b": 30_532_122_624,
    "qwen-3-235b-a22b": 235_093_634_560,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "smollm-2-135m": 134_515_008,
    "smollm-2-360m": 361_821_120,
    "smollm-2-1.7b": 1_711_376_384,
    "deepseek-v2-lite": 15_706_484_224,
    "bert-base": 109_514_298 - 2 * 768,
    "bert-large": 335_174_458 - 2 * 1024,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-1.1-small": 76_961_152,
    "t5-1.1-base": 247_577_856,
    "t5-1.1-large": 783_150_080,
    "t5-1.1-xl": 2_849_757_184,
    "t5-1.1-xxl": 11_135_332_352,
}
"""Parameters of the published weights, where their number is known to the last one; BERT's without
two embeddings of sentences."""

ROUNDED = {
    "gpt3-125m": 125e6,
    "gpt3-350m": 350e6,
    "gpt3-760m": 760e6,
    "gpt3-1.3b": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 175e9,
    "mixtral-8x22b": 141e9,
    "qwen-3-0.6b": 0.6e9,
    "qwen-3-1.7b": 1.7e9,
    "qwen-3-4b": 4.0e9,
    "gemma-3-270m": 268e6,
    "gemma-3-4b": 3.88e9,
    "gemma-3-12b": 11.8e9,
    "gemma-3-27b": 27.0e9,
    "olmo-2-1b": 1.48e9,
    "olmo-2-32b": 32.2e9,
    "deepseek-v3": 671e9,
    "vaswani-base": 65e6,
    "vaswani-big": 213e6,
}
"""As papers and model cards round them."""

ACTIVE = {
    "mixtral-8x7b": 12.9e9,
    "mixtral-8x22b": 39e9,
    "qwen-3-30b-a3b": 3.3e9,
    "qwen-3-235b-a22b": 22e9,
    "deepseek-v2-lite": 2.4e9,
    "deepseek-v3": 37e9,
}
"""Parameters that read a token, as published; some count embeddings and some do not."""


def test_every_preset_is_held_to_a_published_number():
    assert sorted(NAMES) == sorted({*PUBLISHED, *ROUNDED}) and set(NAMES) >= ONE_EACH


@pytest.mark.parametrize("name", few(PUBLISHED))
def test_a_preset_has_the_published_number_of_parameters(name):
    assert facts(name)["parameters"] == PUBLISHED[name]


@pytest.mark.parametrize("name", few(ROUNDED))
def test_a_preset_has_the_published_number_of_parameters_as_it_was_rounded(name):
    assert facts(name)["parameters"] == pytest.approx(ROUNDED[name], rel=0.03)


@pytest.mark.parametrize("name", few(ACTIVE))
def test_a_mixture_has_the_published_number_of_active_parameters(name):
    config = presets.preset(name)
    embedding = config.vocabulary * config.width
    active = facts(name)["active_parameters"]
    assert active >= 0.98 * ACTIVE[name] >= 0.98 * 0.98 * (active - 2 * embedding)


@pytest.mark.parametrize("name", few(NAMES))
def test_a_preset_is_as_its_golden_file_says(name):
    path = GOLDEN / f"{name}.txt"
    assert path.read_text(encoding="utf-8") == golden(name), (
        "python tests/test_presets.py writes the golden files anew; read their diff"
    )


def test_there_is_no_golden_file_too_many():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "near"),
    [("llama-3-8", "llama-3-8b"), ("gpt2_124m", "gpt2-124m"), ("mixtral", "mixtral-8x7b")],
)
def test_an_unknown_preset_is_refused_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match=near):
        presets.preset(name)
    with pytest.raises(ConfigError, match="it can be 124m"):
        presets.gpt2("12m")


def test_a_preset_takes_changes():
    assert presets.preset("llama-3-8b", num_layers=2) == presets.llama("3-8b", num_layers=2)
    assert presets.llama("3-8b", num_layers=2).stack == presets.llama("3-8b").stack[:2]


# --- FLOPs ---


def multiplications(config: ModelConfig, length: int) -> int:
    """Multiplications of the matrix products in the traced forward pass of one row, where every
    token is multiplied with every key."""
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

    def forward(params, tokens):
        memory = model.encode(config, params, Side(tokens) if config.encoder_layers else None)
        return model.unembed(
            config, params, model.forward(config, params, tokens, memory=memory).hidden
        )

    return counted(jax.make_jaxpr(forward)(params, jnp.zeros((1, length), jnp.int32)).jaxpr)


def counted(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inputs = [value.aval.shape for value in equation.invars]
        if equation.primitive.name == "dot_general":
            contracted = math.prod(
                inputs[0][axis] for axis in equation.params["dimension_numbers"][0][0]
            )
            total += math.prod(equation.outvars[0].aval.shape) * contracted
        if equation.primitive.name.startswith("ragged_dot"):
            total += math.prod(inputs[0]) * inputs[1][-1]
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "jaxpr")
        ):
            total += (
                counted(value.jaxpr)
                if hasattr(value, "jaxpr")
                else counted(value)
                if hasattr(value, "eqns")
                else 0
            )
    return total


FAMILIES = (
    "gpt2-124m",
    "llama-3-8b",
    "mixtral-8x7b",
    "gemma-3-1b",
    "olmo-2-7b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "bert-base",
    "t5-small",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_are_those_of_the_products_in_the_traced_program(name, monkeypatch):
    length, first = 64, {"deepseek-v2-lite": 3, "deepseek-v3": 5}
    config = presets.preset(
        name,
        num_layers=first.get(name, 2),
        attention="reference",
        layers="unroll",
        compute="float32",
    )
    monkeypatch.setattr(
        jax, "default_backend", lambda: "tpu"
    )  # where experts multiply their own tokens only
    monkeypatch.setattr(
        positions, "platform", lambda: "cpu"
    )  # a TPU exchanges halves of a head by products that are no arithmetic of the model
    lookings = config.num_layers + (
        config.num_layers + config.encoder_layers if config.encoder_layers else 0
    )
    wanted = cost.products_per_token(config) + lookings * length * cost.products_per_key(config)
    assert multiplications(config, length) == wanted * length


def test_a_token_costs_what_it_sees():
    assert [cost.seen(layer, 8) for layer in presets.mistral().stack[:1]] == [4.5]
    for name in ("mistral-7b", "gemma-2-2b", "gemma-3-27b"):
        whole = presets.preset(name, pattern=(model.Layer(),))
        long, short = presets.preset(name).context, 512
        assert model.flops_per_token(presets.preset(name), short) == model.flops_per_token(
            whole, short
        )
        assert model.flops_per_token(presets.preset(name), long) < model.flops_per_token(
            whole, long
        )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    for name in NAMES:
        (GOLDEN / f"{name}.txt").write_text(golden(name), encoding="utf-8")
