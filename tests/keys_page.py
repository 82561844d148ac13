"""Writes docs/keys.md: what becomes of every key of a config.json and of GGUF metadata. `page`
makes it of the code itself: families are asked to read a model, and what they ask for is noted.

    python tests/keys_page.py
"""

from __future__ import annotations

import collections
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from test_interop import MODELS

from gptjax.formats import gguf_keys, keys
from gptjax.formats.huggingface_families import FAMILIES

PAGE = Path(__file__).parents[1] / "docs/keys.md"
HEAD = """\
# Keys of published models

What becomes of every key of a config.json and of a GGUF file's metadata: it is *computed*, known to
be *harmless*, or the model is *refused* by the key's name. `python tests/keys_page.py` writes this
page from the code; a test fails when it is out of date, and when a new version of the package
`gguf` names a key that is in none of the lists.

A key that is refused and that you know to change nothing is left out of a copy:
`gptjax convert SRC DST --ignore-keys KEY …`.
"""


class Asked(keys.Keys):
    """Keys that note what a family asks for."""

    def __init__(self, data: dict[str, Any], where: str):
        super().__init__(data, where)
        self.computed: set[str] = set()
        self.fixed: dict[str, tuple[Any, ...]] = {}

    def take(self, key: str, *default: Any) -> Any:
        self.computed.add(key)
        return super().take(key, *default)

    def same(self, key: str, *allowed: Any) -> None:
        self.fixed[key] = allowed
        super().same(key, *allowed)


def asked(name: str) -> Asked:
    """What the family of a model of `MODELS` asks of its config.json."""
    family, config = MODELS[name]
    data = json.loads(json.dumps(FAMILIES[family].write(config)))
    noted = Asked({"model_type": family, **data}, "config.json")
    FAMILIES[family].read(noted)
    return noted


def page() -> str:
    """The text of the page."""
    computed: dict[str, set[str]] = collections.defaultdict(set)
    fixed: dict[str, set[tuple[Any, ...]]] = collections.defaultdict(set)
    for name, (family, _) in MODELS.items():
        noted = asked(name)
        computed[family] |= noted.computed - noted.fixed.keys()
        for key, allowed in noted.fixed.items():
            fixed[key].add(allowed)
    shared = set.intersection(*(some for some in computed.values() if "rms_norm_eps" in some))
    rows = [
        f"| `{family}` | {_listed(computed[family] - shared)} |"
        for family in FAMILIES
        if family in computed
    ]
    pinned = [
        f"| `{key}` | {'; or '.join(sorted({_values(some) for some in fixed[key]}))} |"
        for key in sorted(fixed)
    ]
    neutral = [
        f"| `{key}` | {_values(gguf_keys.NEUTRAL[key])} |" for key in sorted(gguf_keys.NEUTRAL)
    ]
    parts = [
        HEAD,
        "## config.json",
        f"Computed in Llama and all that came of it: {_listed(shared)}.",
        "\n".join(["| `model_type` | computed too |", "|---|---|", *rows]),
        "Read at these values only, which depend on the family; others are refused:",
        "\n".join(["| key | values |", "|---|---|", *pinned]),
        f"Harmless, whatever they say: {_listed(keys.HARMLESS)}.",
        f"Harmless prefixes: {_listed(keys.HARMLESS_PREFIXES)}.",
        f"Harmless while false: {_listed(keys.OFF)}.",
        "Also harmless is any key whose value is `null`, `[]` or `{}`.",
        (
            "Refused by name: everything else, `pruned_heads` among it. The settings within"
            " `quantization_config` are read as strictly: [quantised checkpoints]"
            "(interop.md#quantised-checkpoints)."
        ),
        "## GGUF",
        "Keys below the name of the architecture. (Others describe the file and the tokenizer.)",
        f"Computed, in the architectures that have them: {_listed(gguf_keys.COMPUTED)}.",
        f"Harmless: {_listed(gguf_keys.HARMLESS)}.",
        "Harmless at these values, computed or refused at others:",
        "\n".join(["| key | values |", "|---|---|", *neutral]),
        f"Refused by name: {_listed(gguf_keys.REFUSED)}; and every key that is in no list.",
    ]
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _values(values: Iterable[Any]) -> str:
    return " or ".join(f"`{json.dumps(value)}`" for value in values)


def _wrapped(part: str) -> str:
    if part.startswith(("|", "#")):
        return part.rstrip()
    return textwrap.fill(part, 100, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
