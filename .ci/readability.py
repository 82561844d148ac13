"""Whether the pages of docs/ can be read: sentences of at most 40 words, pages of at most 2,500,
one word for one thing.

    python .ci/readability.py          # the defects, status 1 if there are any
    python .ci/readability.py --long   # also the sentences of pages that are excused

Needs nothing but Python. `tests/test_site.py` runs it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS, PAGE = 40, 2500
EXCUSED: dict[str, int] = {}
"""Pages with longer sentences, and how many. None joins them, and one that was mended leaves."""
VARIANTS = {
    "hyperparameter": ("hyper-parameter", "hyper parameter"),
    "fine-tuning": ("finetuning", "fine tuning"),
    "pre-training": ("pretraining", "pre training"),
    "tokenizer": ("tokeniser",),
    "optimizer": ("optimiser",),
    "checkpoint": ("check-point",),
    "cross-entropy": ("cross entropy",),
    "micro-batch": ("microbatch", "micro batch"),
    "learning rate": ("learning-rate",),
    "KV cache": ("kv-cache", "key-value cache"),
    "quantisation": ("quantization",),
    "top-p": ("top p",),
    "few-shot": ("few shot", "fewshot"),
    "dropout": ("drop-out",),
    "warmup": ("warm-up",),
    "softmax": ("soft-max",),
    "overfitting": ("over-fitting",),
    "mixture of experts": ("mixture-of-experts",),
    "embedding": ("embeding",),
    "backpropagation": ("back-propagation", "back propagation"),
    "byte-pair encoding": ("byte pair encoding",),
    "weight decay": ("weight-decay",),
    "bits per byte": ("bits-per-byte",),
    "held-out text": ("heldout",),
    "LoRA": ("lo-ra",),
}
"""Words that are not written, by the term of the glossary that is."""

CHINESE_VARIANTS = {
    "beam search": ("集束搜索", "定向搜索"),
    "causal mask": ("因果掩膜", "因果遮罩"),
    "checkpoint": ("存档点", "检查站"),
    "dropout": ("丢弃法", "暂退法"),
    "evaluation": ("评估",),
    "fine-tuning": ("精调",),
    "gradient clipping": ("梯度剪裁", "梯度截断"),
    "greedy decoding": ("贪婪",),
    "held-out text": ("保留集",),
    "KV cache": ("KV 缓存", "键值对缓存"),
    "learning rate": ("学习速率", "学习步长"),
    "mixture of experts": ("专家混合",),
    "nat": ("纳特",),
    "overfitting": ("过度拟合",),
    "prompt": ("提示词",),
    "seed": ("随机数种子",),
    "sharding": ("切片",),
    "speculative decoding": ("推测解码", "推测采样"),
    "token": ("词符", "标记化"),
    "tokenizer": ("标记器", "词元化器"),
    "vocabulary": ("词汇表",),
    "warmup": ("热身",),
}
"""The same for Chinese pages."""


def pages() -> list[Path]:
    """Returns the English pages."""
    found = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs/course").glob("*.md"))
    return [page for page in found if not page.name.endswith(".zh.md")]


def chinese_pages() -> list[Path]:
    return [*ROOT.glob("*.zh.md"), *sorted((ROOT / "docs").rglob("*.zh.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """Returns a page without code, formulas, comments and addresses of links."""
    text = re.sub(r"^```.*?^```$|^(?: {4}|\t)[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<[^>]+>|\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "code", text)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def sentences(text: str) -> Iterator[str]:
    """Yields the sentences of a page, English or Chinese; a heading, a cell of a table and an item
    of a list is one or more by itself."""
    text = re.sub(r"^(#+ .*|\s*(?:[-*]|\d+\.) )", r"\n\n\1", prose(text), flags=re.MULTILINE)
    for part in re.split(r"\n\s*\n|\|", re.sub(r"^#+ .*$", "\n\n", text, flags=re.MULTILINE)):
        yield from re.split(r"(?<=[.!?:])[*)\"”]*\s+|(?<=[。！？；])", " ".join(part.split()))


def words(text: str) -> int:
    """Returns the number of words; figures are none, and a list of code is one."""
    return len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(r"\bcode(?:, code)+\b", "code", text)))


def long_sentences(page: Path) -> list[str]:
    return [line for line in sentences(page.read_text(encoding="utf-8")) if words(line) > WORDS]


def glossary() -> dict[str, tuple[str, str]]:
    """Returns the Chinese word and the meaning of each term of docs/glossary.md."""
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[?([^|\]]+?)(?:\]\([^)]*\))? \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE
    )
    return {term: (chinese, meaning) for term, chinese, meaning in rows if term != "term"}


def other_words(text: str, table: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Yields each word of a page that the glossary writes in another way, with its term."""
    for term, variants in table.items():
        for variant in variants:
            border = "" if ord(variant[-1]) > 0x2FFF else r"\b"
            for found in re.finditer(
                border + re.escape(variant) + border, prose(text), re.IGNORECASE
            ):
                yield found[0], term


def defects() -> list[str]:
    """Returns one line for each thing that is wrong."""
    wrong = [
        f"{term}: not in docs/glossary.md"
        for term in [*VARIANTS, *CHINESE_VARIANTS]
        if term not in glossary()
    ]
    for page in pages():
        text = page.read_text(encoding="utf-8")
        long, excused = long_sentences(page), EXCUSED.get(name(page), 0)
        if len(long) > excused:
            wrong += [f"{name(page)}: {words(line)} words in one sentence: {line}" for line in long]
        elif len(long) < excused:
            wrong.append(f"{name(page)}: EXCUSED says {excused} long sentences, now {len(long)}")
        if (count := words(prose(text))) > PAGE:
            wrong.append(f"{name(page)}: {count:,} words, {PAGE:,} are the limit; divide it")
        wrong += [
            f"{name(page)}: {found!r} is written {term!r} (docs/glossary.md)"
            for found, term in other_words(text, VARIANTS)
        ]
    wrong += [
        f"{name(page)}: {found!r} is written {glossary()[term][0]!r} (docs/glossary.md)"
        for page in chinese_pages()
        for found, term in other_words(page.read_text(encoding="utf-8"), CHINESE_VARIANTS)
    ]
    return wrong + [
        f"{page}: not there; EXCUSED names it" for page in EXCUSED if not (ROOT / page).exists()
    ]


if __name__ == "__main__":
    if "--long" in sys.argv:
        for page in pages():
            for line in long_sentences(page):
                print(f"{name(page)}: {words(line)}: {line}")
    found = defects()
    print("\n".join(found) or "nothing found")
    sys.exit(bool(found))
