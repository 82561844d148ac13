"""Labelled items: read from a file, divided into halves, and shown as examples.

Read `read_labelled`, then `halves_of` and `shots_for`, which decide who sees what. Both go by what
items say, so that the order of a file changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.structured import format_of, read_objects
from gptjax.data.prompt_library import Values
from gptjax.evaluate.records import Choices, read_task_records
from gptjax.evaluate.tables import read_table

LABEL = "label"
"""The field of a record that holds its label."""


class LabelledItem(NamedTuple):
    """An item of a classification."""

    values: Values
    """Of the variables of a template."""
    label: str


def read_labelled(path: Path | str, encoding: str = "utf-8") -> list[LabelledItem]:
    """Returns the items of a file: records with a `label`, whose other fields are values; or
    questions that share their choices, which are the labels, with the value `question`.

    Raises:
      ConfigError: the file cannot be read or has fewer than two labels, or a record has none; names
        the line.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not there; give a file of labelled records (--tasks FILE).")
    first = next(_rows(path, encoding), None)
    if first is not None and LABEL not in first[1]:
        items = _from_choices(path, encoding)
    else:
        items = [
            _item(f"{path}:{n}", fields, broken) for n, fields, broken in _rows(path, encoding)
        ]
    labels = {item.label for item in items}
    require(
        len(labels) >= 2,
        f"{path} has {len(items)} items with {len(labels)} labels; a search needs at least two.",
    )
    return items


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    form = format_of(path, encoding, otherwise="jsonl")
    if form in ("jsonl", "json"):
        return read_objects(path, form, encoding)
    require(
        form in ("csv", "tsv"), f"{path} is not JSON lines, a JSON array or CSV (--tasks FILE)."
    )
    return read_table(path, encoding)


def _item(where: str, fields: Mapping[str, Any], broken: str) -> LabelledItem:
    require(not broken, f"{where} {broken}; fix or remove it.")
    label = fields.get(LABEL)
    usable = isinstance(label, str | int) and str(label)
    require(bool(usable), f"{where} has no {LABEL}; each record needs one: a text or a number.")
    values = {
        name: value
        for name, value in fields.items()
        if name != LABEL
        and (
            (isinstance(value, str | int | float) and not isinstance(value, bool))
            or (isinstance(value, list) and all(isinstance(one, str) for one in value))
        )
    }
    return LabelledItem(values, str(label).lower() if isinstance(label, bool) else str(label))


def _from_choices(path: Path, encoding: str) -> list[LabelledItem]:
    records = read_task_records(path, encoding)
    shared = {frozenset(one.choices) for one in records if isinstance(one, Choices)}
    require(
        isinstance(records[0], Choices) and len(shared) == 1,
        f"{path} has no field {LABEL}, nor questions that all share their choices; a search needs"
        " one of them.",
    )
    return [
        LabelledItem({"question": one.query}, one.choices[one.gold])
        for one in records
        if isinstance(one, Choices)
    ]


def drawn_items(items: Sequence[LabelledItem], limit: int | None, seed: int) -> list[LabelledItem]:
    """Returns some of the items, whichever their order in the file."""
    ordered = sorted(items, key=lambda item: (_key(seed + 2, item.values), item.label))
    return ordered[:limit]


# --- who sees what


def halves_of(
    items: Sequence[LabelledItem], seed: int
) -> tuple[list[LabelledItem], list[LabelledItem]]:
    """Returns the items that select and those that are held out, each in an order of its own.

    Both have equally many of each label, as far as that goes. Items with the same values are in
    the same half, whatever their labels, so that no half has seen an item of the other.

    Raises:
      ConfigError: a half would be empty.
    """
    groups: dict[str, list[LabelledItem]] = {}
    for item in items:
        groups.setdefault(_key(seed, item.values), []).append(item)
    by_label: dict[str, list[str]] = {}
    for key in sorted(groups):
        by_label.setdefault(min(item.label for item in groups[key]), []).append(key)
    halves: tuple[list[str], list[str]] = ([], [])
    for label in sorted(by_label):
        for key in by_label[label]:
            halves[len(halves[1]) < len(halves[0])].append(key)
    require(
        bool(halves[1]), f"there are {len(groups)} different items; a search needs at least two."
    )
    selection, held_out = (
        [item for key in sorted(half) for item in sorted(groups[key], key=lambda i: i.label)]
        for half in halves
    )
    return selection, held_out


def shots_for(
    item: LabelledItem | None, pool: Sequence[LabelledItem], shots: int, seed: int
) -> list[LabelledItem]:
    """Returns examples from the pool for an item, the labels in turn; the item itself is not one.

    All items share their examples, apart from those that are one themselves.

    Raises:
      ConfigError: the pool has too few.
    """
    if not shots:
        return []
    own = None if item is None else _key(seed, item.values)
    by_label: dict[str, list[LabelledItem]] = {}
    for one in sorted(pool, key=lambda one: (_key(seed + 1, one.values), one.label)):
        if _key(seed, one.values) != own:
            by_label.setdefault(one.label, []).append(one)
    longest = max(map(len, by_label.values()), default=0)
    turns = [
        by_label[label][turn]
        for turn in range(longest)
        for label in sorted(by_label)
        if turn < len(by_label[label])
    ]
    require(
        len(turns) >= shots,
        f"there are {len(turns)} items to show as examples, and {shots} are wanted; use fewer"
        " (--shots).",
    )
    return turns[:shots]


def _key(seed: int, values: Values) -> str:
    """A number of an item that depends on nothing but what it says."""
    plain = json.dumps([seed, sorted(values.items())], ensure_ascii=False, default=list)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
