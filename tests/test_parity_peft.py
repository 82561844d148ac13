"""PEFT opens what is written here. Needs torch and peft, the extra test-posttrain; skipped without
them."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
torch = pytest.importorskip("torch")
peft_package = pytest.importorskip("peft")

from gptjax import model, weights  # noqa: E402
from gptjax.formats import load_model, peft, peft_virtual  # noqa: E402
from gptjax.formats.peft_config import Settings  # noqa: E402
from gptjax.model.virtual import initial_virtual  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import make_peft as golden  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", weights.LoRA(rank=3, alpha=5.0, rank_patterns=("layers/mlp=2",))),
        ("llama", weights.LoRA(rank=3, alpha=5.0, rs=True, targets=("embedding", "head"))),
        ("llama", weights.DoRA(rank=2, alpha=3.0, targets=("layers/attention",))),
        ("gpt2", weights.LoRA(rank=2, alpha=3.0)),
    ],
    ids=["ranks", "tables", "dora", "fused"],
)
def test_peft_computes_what_ours_does_with_an_adapter_of_ours(kind, settings, tmp_path):
    opened = load_model(golden.HERE / kind)
    config, roles = opened.config, model.roles(opened.config)
    made = settings.init(opened.params, roles, jax.random.key(0))
    adapters = jax.tree.map(
        lambda x: x + 0.2 * jnp.cos(1.0 + jnp.arange(x.size)).reshape(x.shape), made
    )
    described = Settings(rs=settings.rs, dora=settings.magnitudes, base=str(golden.HERE / kind))
    peft.write_peft(tmp_path / "out", opened, peft.PeftAdapter(adapters, {}, described))
    theirs = peft_package.PeftModel.from_pretrained(golden.base(kind), tmp_path / "out").eval()
    wanted = theirs(golden.IDS).logits.detach().numpy()
    whole = weights.attach(opened.params, adapters)
    hidden = model.forward(config, whole, jnp.asarray(golden.IDS.numpy(), jnp.int32)).hidden
    found = model.unembed(config, whole, hidden)
    assert float(np.abs(wanted - golden.base(kind)(golden.IDS).logits.detach().numpy()).max()) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("settings", [weights.PromptTuning(4), weights.PrefixTuning(4)])
def test_peft_computes_what_ours_does_with_virtual_tokens_of_ours(settings, tmp_path):
    opened = load_model(golden.HERE / "llama")
    virtual = initial_virtual(opened.config, settings, opened.params, jax.random.key(0))
    peft_virtual.write_peft_virtual(tmp_path / "out", opened, virtual, str(golden.HERE / "llama"))
    theirs = peft_package.PeftModel.from_pretrained(golden.base("llama"), tmp_path / "out").eval()
    wanted = theirs(golden.IDS).logits[:, -golden.IDS.shape[1] :].detach().numpy()
    whole = {**opened.params, weights.VIRTUAL: virtual}
    ids = jnp.asarray(golden.IDS.numpy(), jnp.int32)
    found = model.unembed(opened.config, whole, model.forward(opened.config, whole, ids).hidden)
    assert (
        float(np.abs(wanted - golden.base("llama")(golden.IDS).logits.detach().numpy()).max()) > 1
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
