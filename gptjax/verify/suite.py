"""All proofs in one table, and the run that times them, prints a line for each, and reports."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gptjax.core import config
from gptjax.core.config import nearest, require
from gptjax.data import prepare
from gptjax.train import start as starts
from gptjax.train.experiment import Experiment
from gptjax.train.facts import processor
from gptjax.train.identity import versions
from gptjax.train.metrics import duration
from gptjax.verify import reading, text, training, writing
from gptjax.verify.setting import Figure, Setting, Skipped, make


class Proof(NamedTuple):
    """A sentence and what finds out whether it is true."""

    name: str
    claim: str
    prove: Callable[[Setting], Figure | Skipped]


PROOFS = (
    Proof("tokenizer", "text survives the tokenizer", text.tokenizer),
    Proof(
        "data",
        "a batch is a function of the step, and every pair of tokens comes once an epoch",
        text.data,
    ),
    Proof("checkpoints", "every step that the run has saved is whole", training.checkpoints),
    Proof(
        "attention",
        "the attention in use is softmax attention, forward and backward",
        reading.attention,
    ),
    Proof("causal", "no token sees a later one", reading.causal),
    Proof("packed", "texts that share a row do not see each other", reading.packed),
    Proof("labels", "the loss is −ln p of the next token", reading.labels),
    Proof("initial-loss", "before the first step the loss is ln V", reading.initial_loss),
    Proof("cache", "reading with a cache is reading without", writing.cache),
    Proof(
        "decoding", "what is written has the probability that reading gives it", writing.decoding
    ),
    Proof("neighbours", "a row is written the same alone and beside others", writing.neighbours),
    Proof(
        "randomness",
        "every draw has its own random numbers, and the seed decides them",
        training.randomness,
    ),
    Proof("gradients", "the gradient is the slope of the loss", reading.gradients),
    Proof("bfloat16", "bfloat16 compute is float32 to within its rounding", reading.bfloat16),
    Proof("micro-batches", "a batch in parts is the batch", training.micro_batches),
    Proof("devices", "many devices compute what one does", training.devices),
    Proof("overfit", "a batch can be learned by heart", training.overfit),
    Proof("resume", "save, restore, continue is not having stopped, bit for bit", training.resume),
)


def choose(only: Iterable[str]) -> tuple[Proof, ...]:
    """Gives the proofs of these names, or all.

    Raises:
      ConfigError: a name is not a proof's.
    """
    known, wanted = [proof.name for proof in PROOFS], set(only)
    for name in sorted(wanted):
        require(
            name in known,
            f"{name!r} is not a proof.{nearest(name, known)} --only takes {', '.join(known)}.",
        )
    return tuple(proof for proof in PROOFS if not wanted or proof.name in wanted)


def prove(proof: Proof, setting: Setting) -> dict[str, Any]:
    """Gives what a proof found, as plain values; a proof that raises has failed. `value` is null
    where it is not finite."""
    begun = time.monotonic()
    try:
        found = proof.prove(setting)
    except Exception as error:  # whatever goes wrong, the other proofs still say something
        found = Figure(
            math.inf, 0, f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    facts = {
        "name": proof.name,
        "claim": proof.claim,
        "seconds": round(time.monotonic() - begun, 2),
    }
    if isinstance(found, Skipped):
        return facts | {"status": "skipped", "words": found.reason}
    value = float(found.value)
    status = "pass" if value <= found.limit else "fail"
    return facts | {
        "status": status,
        "value": value if math.isfinite(value) else None,
        "limit": float(found.limit),
        "words": found.words,
    }


def verify(
    experiment: Experiment,
    *,
    run: Path | None = None,
    only: Iterable[str] = (),
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Runs the proofs over an experiment, says a line for each as it goes, and gives the whole
    report as plain values.

    Args:
      run: the run directory that the experiment was read from; its record of data and tokenizer is
        then compared too.
      only: names of proofs; none runs all.

    Raises:
      ConfigError: a name is not a proof's, or the experiment can't be trained.
    """
    begun, chosen = time.monotonic(), choose(only)
    task = experiment.data.task
    plain = experiment.model.continues and task.writes and not task.answers
    require(
        plain,
        "verify proves models that go on with a text, and this one does not or has an encoder; the"
        " laws of the tests hold for it.",
    )
    start = starts.of(
        experiment, run or Path(), resuming=run is not None and (run / "identity.json").is_file()
    )
    experiment, _ = starts.adopted(experiment, start)
    setting = make(experiment, prepare(experiment.data, say, start.tokenizer), run)
    machine = {
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "processor": processor(),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }
    environment = versions() | machine
    say(
        f"devices  {environment['devices']}, jax {environment['jax']}, Python"
        f" {environment['python']}"
    )
    say(f"smaller  {', '.join(setting.changes) or 'nothing, the config is small enough'}")
    say("exactly  float32 and no dropout, wherever two ways of computing must agree\n")
    results = []
    for number, proof in enumerate(chosen, start=1):
        results.append(prove(proof, setting))
        say(f"{number:2}/{len(chosen)}  {line(results[-1])}")
    return {
        "passed": all(result["status"] != "fail" for result in results),
        "seconds": round(time.monotonic() - begun, 2),
        "proofs": results,
        "smaller": list(setting.changes),
        "environment": environment,
        "config": config.to_dict(setting.experiment),
    }


def line(result: dict[str, Any]) -> str:
    """One proof's result, to read."""
    if result["status"] == "skipped":
        return f"skipped  {result['name']:13}  {result['words']}"
    value = math.inf if result["value"] is None else result["value"]
    sign = "≤" if result["status"] == "pass" else ">"
    figure = f"{value:.3g} {sign} {result['limit']:.3g}  {result['words']}"
    return (
        f"{result['status'].replace('fail', 'FAIL'):7}  {result['name']:13}  {figure} "
        f" ({result['seconds']:.1f} s)"
    )


def verdict(report: dict[str, Any], path: Path) -> str:
    """The last line: how it went, and what to do."""
    of = {
        status: [result["name"] for result in report["proofs"] if result["status"] == status]
        for status in ("pass", "fail", "skipped")
    }
    if report["passed"]:
        skipped = f", {len(of['skipped'])} skipped" if of["skipped"] else ""
        return (
            f"all {len(of['pass'])} proofs pass{skipped}, in {duration(report['seconds'])}; report:"
            f" {path}"
        )
    return (
        f"FAILED: {', '.join(of['fail'])}. Do not trust a run of this config here. `gptjax doctor`"
        f" names versions known to be wrong; run it again with --only {of['fail'][0]}, and beside"
        " it --model.compute float32, --model.attention reference or --model.layers unroll, to see"
        f" where the fault is (docs/verify.md says more); to ask for help, send {path}."
    )


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, and beside it as text."""
    lines = [f"{line(result)}\n         {result['claim']}" for result in report["proofs"]]
    smaller = f"smaller: {', '.join(report['smaller']) or 'nothing'}"
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items() if value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    path.with_suffix(".txt").write_text(
        "\n".join([*lines, "", smaller, where, verdict(report, path)]) + "\n", encoding="utf-8"
    )
