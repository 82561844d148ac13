"""Writes docs/keys.md and docs/keys.zh.md: what becomes of every key of a config.json and of GGUF
metadata. `page` makes them of the code itself: families are asked to read a model, and what they
ask for is noted.

    python tests/keys_page.py
"""

from __future__ import annotations

import collections
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bilingual import hash_of
from test_interop import MODELS

from gptjax.formats import gguf_keys, keys
from gptjax.formats.huggingface_families import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH = """\
# Keys of published models

English · [简体中文](keys.zh.md)

What becomes of every key of a config.json and of a GGUF file's metadata: it is *computed*, known to
be *harmless*, or the model is *refused* by the key's name. `python tests/keys_page.py` writes this
page from the code; a test fails when it is out of date, and when a new version of the package
`gguf` names a key that is in none of the lists.

A key that is refused and that you know to change nothing is left out of a copy:
`gptjax convert SRC DST --ignore-keys KEY …`.

## config.json

Computed in Llama and all that came of it: {shared}.

| `model_type` | computed too |
|---|---|
{families}

Read at these values only, which depend on the family; others are refused:

| key | values |
|---|---|
{fixed}

Harmless, whatever they say: {harmless}.

Harmless prefixes: {prefixes}.

Harmless while false: {off}.

Also harmless is any key whose value is `null`, `[]` or `{{}}`.

Refused by name: everything else, `pruned_heads` among it. The settings within `quantization_config`
are read as strictly: [quantised checkpoints](interop.md#quantised-checkpoints).

## GGUF

Keys below the name of the architecture. (Others describe the file and the tokenizer.)

Computed, in the architectures that have them: {gguf_computed}.

Harmless: {gguf_harmless}.

Harmless at these values, computed or refused at others:

| key | values |
|---|---|
{gguf_neutral}

Refused by name: {gguf_refused}; and every key that is in no list.
"""
CHINESE = """\
# 已发布模型的配置键
<!-- english: sha256 {hash} -->

[English](keys.md) · 简体中文

config.json 和 GGUF 文件元数据里的每个键会怎样：它*参与计算*，或已知*无害*，\
或者模型会因为它而被*拒绝*，报错里写明键名。`python tests/keys_page.py` 根据代码写出这一页；\
这一页过时，或者新版的 `gguf` 包里有哪个清单都没有的键，测试都会失败。

如果知道某个被拒绝的键不改变任何东西，可以在副本里去掉它：\
`gptjax convert SRC DST --ignore-keys KEY …`。

## config.json

在 Llama 和由它而来的所有模型里都参与计算：{shared}。

| `model_type` | 还参与计算的键 |
|---|---|
{families}

只接受以下取值，取值因家族而异，其余的会被拒绝：

| 键 | 取值 |
|---|---|
{fixed}

不论取什么值都无害：{harmless}。

无害的前缀：{prefixes}。

取 false 时无害：{off}。

值为 `null`、`[]` 或 `{{}}` 的键也都无害。

按名字拒绝：其余的一切，`pruned_heads` 也在其中。`quantization_config` 里的设置同样严格地读取：\
[量化的检查点](interop.zh.md#量化的检查点)。

## GGUF

架构名之下的键。（其他的键描述文件和分词器。）

在有它们的架构里参与计算：{gguf_computed}。

无害：{gguf_harmless}。

取以下值时无害，取其他值时参与计算或被拒绝：

| 键 | 取值 |
|---|---|
{gguf_neutral}

按名字拒绝：{gguf_refused}，以及不在任何清单里的键。
"""
SIGNS = {ENGLISH: (", ", " or ", "; or "), CHINESE: ("、", " 或 ", "；或 ")}
"""What stands between names, between values, and between the values of several families."""


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


def page(text: str = ENGLISH) -> str:
    """The text of the page, in the language of `text`."""
    comma, either, others = SIGNS[text]

    def listed(names: Iterable[str]) -> str:
        return comma.join(f"`{name}`" for name in sorted(names))

    def values(found: Iterable[Any]) -> str:
        return either.join(dict.fromkeys(f"`{json.dumps(value)}`" for value in found))

    computed: dict[str, set[str]] = collections.defaultdict(set)
    fixed: dict[str, set[tuple[Any, ...]]] = collections.defaultdict(set)
    for name, (family, _) in MODELS.items():
        noted = asked(name)
        computed[family] |= noted.computed - noted.fixed.keys()
        for key, allowed in noted.fixed.items():
            fixed[key].add(allowed)
    shared = set.intersection(*(some for some in computed.values() if "rms_norm_eps" in some))
    families = [name for name in FAMILIES if name in computed]
    neutral = sorted(gguf_keys.NEUTRAL.items())
    filled = text.format(
        hash=hash_of(page()) if text == CHINESE else "",
        shared=listed(shared),
        families=_rows((name, listed(computed[name] - shared)) for name in families),
        fixed=_rows(
            (key, others.join(sorted(set(map(values, fixed[key]))))) for key in sorted(fixed)
        ),
        harmless=listed(keys.HARMLESS),
        prefixes=listed(keys.HARMLESS_PREFIXES),
        off=listed(keys.OFF),
        gguf_computed=listed(gguf_keys.COMPUTED),
        gguf_harmless=listed(gguf_keys.HARMLESS),
        gguf_neutral=_rows((key, values(some)) for key, some in neutral),
        gguf_refused=listed(gguf_keys.REFUSED),
    )
    if text == CHINESE:  # no space may come between its lines
        return filled
    return "\n\n".join(_wrapped(part) for part in filled.split("\n\n")).rstrip() + "\n"


def _rows(cells: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| `{name}` | {what} |" for name, what in cells)


def _wrapped(part: str) -> str:
    """The paragraph in lines of at most 100; one that has them, or is a table, is left."""
    if part.startswith(("|", "#")) or max(map(len, part.splitlines())) <= 100:
        return part.rstrip()
    return textwrap.fill(part, 100, break_on_hyphens=False)


PAGES = {DOCS / "keys.md": ENGLISH, DOCS / "keys.zh.md": CHINESE}

if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(page(text), encoding="utf-8")
