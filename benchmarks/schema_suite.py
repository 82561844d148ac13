"""The JSON Schema project's own test cases against our schemas: which groups are supported, and
that no text is accepted which the suite calls invalid.

    pip download --no-deps --no-binary :all: jsonschema==4.23.0  # its source holds the suite
    python benchmarks/schema_suite.py FOLDER/json/tests/draft2020-12

Prints a table in Markdown, one row a file of the suite.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate.constraints import compiled
from gptjax.generate.constraints.tokens import TokenAutomaton, byte_automaton, spell

NUM_ANSWERS = 20


class Row(NamedTuple):
    """What became of one file of the suite."""

    name: str
    groups: int
    supported: int
    """Groups of cases whose schema compiles."""
    valid: int
    """Valid texts of these groups."""
    accepted: int
    """Those that can come as an answer, in the order of the schema."""
    wrong: list[str]
    """Texts that are accepted, or were drawn, and are not valid."""
    reasons: set[str]
    """Why the other groups are refused."""


def texts(value: Any) -> set[str]:
    """A value as JSON, with and without spaces."""
    plain = {"ensure_ascii": False}
    return {json.dumps(value, **plain), json.dumps(value, separators=(",", ":"), **plain)}


def answers(automaton: TokenAutomaton, spelled: Any, end: int, seed: int) -> Iterator[str]:
    """Random answers, each finished within 60 tokens more than the shortest."""
    draw = np.random.default_rng(seed)
    for _ in range(NUM_ANSWERS):
        state, answer, limit = 0, bytearray(), automaton.least + 60
        for written in range(limit):
            enough = limit - written >= automaton.need[state]
            masks = automaton.masks if enough else automaton.shortest
            bits = np.unpackbits(masks[automaton.mask[state]].view(np.uint8), bitorder="little")
            token = int(draw.choice(np.flatnonzero(bits)))
            if token == end or (bits[end] and draw.random() < 0.2):
                break
            for value in spelled[token][spelled[token] >= 0].tolist():
                state = automaton.table[state, value]
                answer.append(value)
        yield answer.decode()


def measured(path: Path) -> Row:
    """Runs one file of the suite."""
    tokenizer = tokenizers.train_tokenizer(Bytes(), [])
    spelled, end = spell(tokenizer), tokenizer.end_of_document
    groups = json.loads(path.read_text(encoding="utf-8"))
    supported = valid = accepted = 0
    wrong, reasons = [], set()
    for group in groups:
        schema = group["schema"]
        try:
            automaton = byte_automaton("schema", schema)
        except ConfigError as error:
            reasons.add(str(error).split("; ")[0])
            continue
        supported += 1
        for case in group["tests"]:
            comes = any(automaton.accepts(text.encode()) for text in texts(case["data"]))
            valid += case["valid"]
            accepted += comes and case["valid"]
            if comes and not case["valid"]:
                wrong.append(f"{group['description']}: {case['description']}")
        judge = jsonschema.Draft202012Validator(schema)
        tokens = compiled("schema", json.dumps(schema), tokenizer)
        wrong += [
            f"{group['description']}: drawn {answer[:60]}"
            for answer in answers(tokens, spelled, end, supported)
            if not judge.is_valid(json.loads(answer))
        ]
    return Row(path.stem, len(groups), supported, valid, accepted, wrong, reasons)


def main(folder: Path) -> None:
    """Prints the table, and what is wrong or refused below it."""
    rows = [measured(path) for path in sorted(folder.glob("*.json"))]
    print("| file | groups | supported | valid texts that can come | invalid texts that can |")
    print("|---|---|---|---|---|")
    for row in rows:
        share = f"{row.accepted} of {row.valid}"
        print(f"| {row.name} | {row.groups} | {row.supported} | {share} | {len(row.wrong)} |")
    total = [sum(row[i] for row in rows) for i in (1, 2, 3, 4)]
    bad = sum(len(row.wrong) for row in rows)
    print(f"| all | {total[0]} | {total[1]} | {total[3]} of {total[2]} | {bad} |")
    for row in rows:
        for text in row.wrong:
            print(f"WRONG {row.name}: {text}")
    for row in rows:
        for reason in sorted(row.reasons):
            print(f"refused {row.name}: {reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
