"""Evaluation sets as tables: CSV and columns between tabs, with or without names of columns.

A row becomes an object of fields, as `records` reads those of JSON. Columns named A, B, … are the
choices of a question; a table without names whose last column holds letters or numbers is a
question, its choices and the answer, as MMLU is published.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.opening import bare_name, opened
from gptjax.data.documents.structured import LINE

LETTERS = "ABCDEFGHIJ"


def read_table(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    """Yields line number, fields and defect of each row.

    Answers that are numbers count from 0; from 1 where none is 0 and one is the number of choices.

    Raises:
      ConfigError: the file is not a table, or its answers are both letters and numbers, or reach
        from 0 to the number of choices.
    """
    rows = _cells(path, encoding)
    if not rows:
        return
    first = rows[0][1]
    names = _names(path, first)
    rows = rows[1:] if names == first else rows
    if choices := [name for name in LETTERS if name in names]:
        rows = _answers_from_zero(path, rows, names, len(choices))
    for number, cells in rows:
        short = f"has {len(cells)} columns, and the table has {len(names)}"
        defect = "" if len(cells) == len(names) else short
        fields: dict[str, Any] = dict(zip(names, cells, strict=False))
        if choices and not defect:
            fields["choices"] = [fields.pop(name) for name in choices]
        yield number, fields, defect


def _cells(path: Path, encoding: str) -> list[tuple[int, list[str]]]:
    csv.field_size_limit(LINE)
    tabs = bare_name(path).endswith(".tsv")
    rows: list[tuple[int, list[str]]] = []
    with opened(path, encoding) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter="\t" if tabs else ",", strict=True)
        try:
            rows.extend((reader.line_num, cells) for cells in reader if any(cells))
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8; name its encoding (--encoding).") from None
        except csv.Error as error:
            raise ConfigError(
                f"{path}:{reader.line_num} is not a line of a table ({error}); fix it."
            ) from None
        finally:
            text.detach()  # whoever opened the stream closes it
    return rows


def _names(path: Path, first: Sequence[str]) -> Sequence[str]:
    """The names of the columns: the first line, or those of a question where it has none."""
    count = len(first) - 2
    if count < 2 or not _is_answer(first[-1], count):
        return first
    require(
        count <= len(LETTERS),
        f"{path} has no names of columns, and {len(first)} of them; name them in its first line.",
    )
    return ["question", *LETTERS[:count], "answer"]


def _is_answer(cell: str, count: int) -> bool:
    word = cell.strip()
    return (word.isdigit() and int(word) <= count) or word in (*LETTERS[:count],)


def _answers_from_zero(
    path: Path, rows: list[tuple[int, list[str]]], names: Sequence[str], count: int
) -> list[tuple[int, list[str]]]:
    """The rows with answers that are numbers counted from 0."""
    at = next((at for at, name in enumerate(names) if name.lower() in ("answer", "gold")), None)
    if at is None:
        return rows
    words = {cells[at].strip() for _, cells in rows if len(cells) > at}
    numbers = {int(word) for word in words if word.isdigit()}
    require(
        not numbers or len(numbers) == len(words),
        f"{path} has answers that are letters and others that are numbers; it needs one of both.",
    )
    require(
        not {0, count} <= numbers,
        f"{path} has the answers 0 and {count} of {count} choices; number them from 0 or from 1.",
    )
    if count not in numbers:
        return rows
    return [(number, _one_less(cells, at)) for number, cells in rows]


def _one_less(cells: list[str], at: int) -> list[str]:
    """A row whose answer counts from 0 instead of from 1."""
    if len(cells) <= at:
        return cells
    return [*cells[:at], str(int(cells[at]) - 1), *cells[at + 1 :]]
