"""`gptjax convert … --push-ready`: the model card that a hub of models shows beside the weights.
Nothing is uploaded.

Read `write_model_card`, then `published_card`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gptjax import formats
from gptjax.core.config import require
from gptjax.formats import OpenedModel
from gptjax.model import ModelConfig

GENERATE = "print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))"
USES = {
    "text-generation": ("AutoModelForCausalLM", '"The cat"', GENERATE),
    "text2text-generation": ("AutoModelForSeq2SeqLM", '"The cat sat."', GENERATE),
    "fill-mask": (
        "AutoModelForMaskedLM",
        'f"The cat {tokenizer.mask_token}."',
        "print(tokenizer.decode(model(ids).logits[0].argmax(-1)))",
    ),
    "feature-extraction": (
        "AutoModel",
        '"The cat"',
        "print(model(ids).last_hidden_state.mean(1))",
    ),
}
"""What a hub calls the use of a model: the class of `transformers`, a text, and a line of code that
uses its ids."""


def require_license(kind: str, push_ready: bool, licence: str | None) -> None:
    """Refuses a directory that is to be published without a licence, and a licence for none.

    Raises:
      ConfigError: names the flag.
    """
    require(
        push_ready or licence is None,
        f"license is {licence!r}, and only the card of --push-ready names it; add --push-ready.",
    )
    if not push_ready:
        return
    require(
        kind == "huggingface",
        f"push_ready is for a Hugging Face directory, and this is to be {kind}; omit --push-ready.",
    )
    require(
        licence is not None,
        "push_ready needs the licence under which you publish the model, which nobody else can"
        " choose: --license apache-2.0, for example.",
    )
    require(
        bool(re.fullmatch(r"[a-z0-9][a-z0-9.+\-]{0,60}", str(licence))),
        f"license is {licence!r}; it needs a short name in small letters, such as apache-2.0, mit,"
        " cc-by-4.0 or other (--license).",
    )


def write_model_card(
    target: Path, source: Path, model: OpenedModel, facts: Mapping[str, str], licence: str
) -> None:
    """Writes README.md beside the weights of a Hugging Face directory.

    Args:
      source: the model that was converted; of a run the card tells what it wrote down.
      facts: what the conversion measured.
    """
    card = published_card(target, source, model, facts, licence)
    (target / "README.md").write_text(card, encoding="utf-8")


def published_card(
    target: Path, source: Path, model: OpenedModel, facts: Mapping[str, str], licence: str
) -> str:
    """Returns the card: its metadata, what the model is, how it is used, and where it comes
    from."""
    from gptjax.evaluate.card import model_sections, run_sections  # a client room

    data = json.loads((target / "config.json").read_text("utf-8"))
    (architecture, *_), family = data["architectures"], data["model_type"]
    use = use_of(model.config)
    head = {"license": licence, "library_name": "transformers", "pipeline_tag": use}
    metadata = [f"{name}: {value}" for name, value in head.items()]
    metadata += ["tags:", "- gptjax", f"- {family}"]
    is_run = formats.kind(source) is None and (source / "config.json").is_file()
    sections = run_sections(source) if is_run else model_sections(source)
    loader, text, last = USES[use]
    code = f"from transformers import AutoTokenizer, {loader}\n\n"
    code += f'tokenizer = AutoTokenizer.from_pretrained("{target.name}")\n'
    code += f'model = {loader}.from_pretrained("{target.name}")\n'
    code += f'ids = tokenizer({text}, return_tensors="pt").input_ids\n{last}\n'
    parts = {
        "Model": _bullets({"architecture": f"`{architecture}`", **_shape(model)} | _files(target)),
        "Use": f"```python\n{code}```\n\nOr `gptjax sample {target.name}`.",
        **sections,
        "Conversion": _bullets({**facts, "converted from": f"`{source.name}`"}),
        "License": f"{licence}, named by who converted the model.",
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items())
    return "\n".join(["---", *metadata, "---", "", f"# {target.name}", "", body, ""])


def use_of(config: ModelConfig) -> str:
    """Returns what a hub calls the use of a model, a key of `USES`."""
    if config.encoder_layers:
        return "text2text-generation"
    if config.causal:
        return "text-generation"
    return "fill-mask" if config.head_transform else "feature-extraction"


def _shape(model: OpenedModel) -> dict[str, Any]:
    c = model.config
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
    encoder = f" and {c.encoder_layers} of the encoder" if c.encoder_layers else ""
    return {
        "parameters": f"{parameters:,}",
        "layers": f"{c.num_layers}{encoder}",
        "width": c.width,
        "heads": c.num_heads,
        "context": f"{c.context:,} tokens",
        "vocabulary": f"{c.vocabulary:,} tokens",
    }


def _files(target: Path) -> dict[str, str]:
    """The files of weights, with their hashes."""
    found = {}
    for path in sorted(target.glob("*.safetensors")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[f"`{path.name}`"] = f"{path.stat().st_size:,} bytes, SHA-256 `{digest}`"
    return found


def _bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
