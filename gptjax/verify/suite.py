"""The table of proofs, and `run_proofs`, which runs them, prints a line for each, and reports."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax

from gptjax.core import config
from gptjax.core.config import nearest, require
from gptjax.data import prepare
from gptjax.data.tasks.diffusion import NOISED
from gptjax.losses import OwnAnswers
from gptjax.observe.progress import duration
from gptjax.train import start as starts
from gptjax.train.experiment import Experiment
from gptjax.train.facts import processor
from gptjax.train.identity import versions
from gptjax.verify import alignment, diffusion, reading, rewards, scores, text, training, writing
from gptjax.verify.setting import Figure, Setting, Skipped, make


class Proof(NamedTuple):
    """A claim and the function that tests it."""

    name: str
    claim: str
    prove: Callable[[Setting], Figure | Skipped]


def _named(among: Iterable[Proof], names: Container[str]) -> tuple[Proof, ...]:
    """Returns the proofs of these names, in their order."""
    return tuple(proof for proof in among if proof.name in names)


PROOFS = (
    Proof("tokenizer", "text survives encoding and decoding", text.tokenizer),
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
    Proof("cache", "a forward pass with a cache equals one without", writing.cache),
    Proof(
        "decoding",
        "generated tokens have the probability that a forward pass gives them",
        writing.decoding,
    ),
    Proof("neighbours", "a row is generated the same alone and in a batch", writing.neighbours),
    Proof(
        "randomness",
        "every draw has its own random numbers, and the seed decides them",
        training.randomness,
    ),
    Proof("gradients", "the gradient is the slope of the loss", reading.gradients),
    Proof("bfloat16", "bfloat16 compute is float32 to within its rounding", reading.bfloat16),
    Proof(
        "micro-batches", "the sums of micro-batches are those of the batch", training.micro_batches
    ),
    Proof("devices", "many devices compute the same as one", training.devices),
    Proof("overfit", "a batch can be learned by heart", training.overfit),
    Proof("resume", "a resumed run is the uninterrupted run, bit for bit", training.resume),
)


OF_THE_MODEL = (
    *("tokenizer", "checkpoints", "attention", "causal", "packed", "cache", "decoding"),
    *("neighbours", "randomness", "gradients", "bfloat16"),
)
"""Names of the proofs that hold whatever a model learns from."""

ALIGNMENT = (
    *_named(PROOFS, OF_THE_MODEL),
    Proof(
        "prompts",
        "an answer follows the very ids with which chat asks for it",
        alignment.prompts,
    ),
    Proof("counted", "what counts is the answers and their ends", alignment.counted),
    Proof("rows", "examples that share a row have the losses that they have alone", alignment.rows),
    Proof(
        "start", "where policy and reference are one, the loss is known by hand", alignment.start
    ),
    Proof(
        "slope", "DPO begins by raising chosen answers as it lowers rejected ones", alignment.slope
    ),
    Proof("split", "the loss of parts of a batch is that of the batch", alignment.split),
    Proof("cached", "a reference that is kept is the reference", alignment.cached),
    Proof(
        "adapter",
        "an untrained adapter changes nothing, and a trained one is the same merged",
        alignment.adapter,
    ),
)
"""The proofs of configs that learn from conversations or preferences, or train an adapter."""

REWARDS = (
    *_named(PROOFS, OF_THE_MODEL),
    Proof("sampler", "the sampler's ln p is the trainer's", rewards.sampler),
    Proof("on-policy", "the weights that wrote an answer learn −A·ln p of it", rewards.on_policy),
    Proof("rollout", "a rollout is a function of step and state", rewards.rollout),
    Proof("groups", "an answer is compared with the others to its prompt", rewards.groups),
    *_named(ALIGNMENT, ("adapter",)),
)
"""The proofs of configs that learn from rewards."""

OF_REWARDS = ("sampler", "on-policy", "rollout", "groups")
"""Those of them that only losses of rewards have."""

SCORES = (
    *_named(PROOFS, ("tokenizer", "checkpoints", "attention", "causal", "packed")),
    *_named(ALIGNMENT, ("prompts", "counted", "split", "adapter")),
    Proof(
        "scores",
        "a text has the score that it has alone, whatever shares its row",
        scores.scores_alone,
    ),
    Proof("leads", "the loss is −ln σ of the preferred answer's lead", scores.leads),
    Proof("gradients", "the gradient is the slope of the loss", scores.loss_gradient),
)
"""The proofs of reward models."""

DIFFUSION = (
    *_named(
        PROOFS,
        ("tokenizer", "checkpoints", "attention", "packed", "gradients", "bfloat16", "resume"),
    ),
    *_named(ALIGNMENT, ("split",)),
    Proof(
        "masks",
        "every token is predicted once an epoch, and its masks are a function of seed and row",
        diffusion.masks,
    ),
    Proof("bound", "the loss is −ln p of what is masked, by its weight", diffusion.masked_loss),
    Proof(
        "unmasking",
        "masks are filled in the same alone and in a batch, with the ln p of a forward pass",
        diffusion.unmasking,
    ),
)
"""The proofs of masked diffusion."""


def proofs_of(experiment: Experiment) -> tuple[Proof, ...]:
    """Returns the proofs that an experiment has."""
    if experiment.rollout is not None:
        rewarded = cast(OwnAnswers, experiment.loss).rewarded
        return REWARDS if rewarded else tuple(one for one in REWARDS if one.name not in OF_REWARDS)
    if experiment.data.task.batches == NOISED:
        return DIFFUSION
    if experiment.data.task.conversations:
        return ALIGNMENT if experiment.data.task.classes is None else SCORES
    if experiment.adapter is not None:
        return _named(ALIGNMENT, (*OF_THE_MODEL, "split", "adapter"))
    return PROOFS


def choose_proofs(only: Iterable[str], among: tuple[Proof, ...] = PROOFS) -> tuple[Proof, ...]:
    """Returns the proofs of these names; all without names.

    Raises:
      ConfigError: there is no proof of a name.
    """
    known, wanted = [proof.name for proof in among], set(only)
    for name in sorted(wanted):
        require(
            name in known,
            f"{name!r} is not a proof.{nearest(name, known)} --only takes {', '.join(known)}.",
        )
    return _named(among, wanted or known)


def prove(proof: Proof, setting: Setting) -> dict[str, Any]:
    """Runs a proof and returns its result as plain values; a proof that raises has failed. `value`
    is null if it is not finite."""
    begun = time.monotonic()
    try:
        result = proof.prove(setting)
    except Exception as error:  # whatever it is, the other proofs are still worth running
        message = " ".join(str(error).split())[:300]
        result = Figure(math.inf, 0, f"raised {type(error).__name__}: {message}")
    facts = {
        "name": proof.name,
        "claim": proof.claim,
        "seconds": round(time.monotonic() - begun, 2),
    }
    if isinstance(result, Skipped):
        return facts | {"status": "skipped", "words": result.reason}
    value = float(result.value)
    status = "pass" if value <= result.limit else "fail"
    return facts | {
        "status": status,
        "value": value if math.isfinite(value) else None,
        "limit": float(result.limit),
        "words": result.words,
    }


def run_proofs(
    experiment: Experiment,
    *,
    run: Path | None = None,
    only: Iterable[str] = (),
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Runs the proofs over an experiment, prints a line for each, and returns the whole report as
    plain values.

    Args:
      run: the run directory that the experiment was read from; its record of data and tokenizer is
        then compared too.
      only: names of proofs; all without names.
      say: prints a line.

    Raises:
      ConfigError: there is no proof of a name, or the experiment can't be trained.
    """
    begun, chosen = time.monotonic(), choose_proofs(only, proofs_of(experiment))
    _require_covered(experiment)
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
    say("exact    float32 and no dropout, wherever two ways of computing must agree\n")
    results = []
    for number, proof in enumerate(chosen, start=1):
        results.append(prove(proof, setting))
        say(f"{number:2}/{len(chosen)}  {format_result(results[-1])}")
    return {
        "passed": all(result["status"] != "fail" for result in results),
        "seconds": round(time.monotonic() - begun, 2),
        "proofs": results,
        "smaller": list(setting.changes),
        "environment": environment,
        "config": config.to_dict(setting.experiment),
    }


def _require_covered(experiment: Experiment) -> None:
    """Refuses what the proofs do not read."""
    task = experiment.data.task
    noised = task.batches == NOISED
    plain = (experiment.model.continues or noised) and task.writes and not task.answers
    require(
        plain,
        "verify covers models that continue a text, and this one does not, or has an encoder; the"
        " laws of the tests cover it.",
    )


def format_result(result: dict[str, Any]) -> str:
    """Formats the result of one proof."""
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
    """Returns the last line: the outcome, and what to do."""
    names = {
        status: [result["name"] for result in report["proofs"] if result["status"] == status]
        for status in ("pass", "fail", "skipped")
    }
    if report["passed"]:
        skipped = f", {len(names['skipped'])} skipped" if names["skipped"] else ""
        seconds = duration(report["seconds"])
        return f"all {len(names['pass'])} proofs pass{skipped}, in {seconds}; report: {path}"
    return (
        f"FAILED: {', '.join(names['fail'])}. Do not trust a run of this config here. `gptjax"
        f" doctor` names versions known to be wrong. Run it again with --only"
        f" {names['fail'][0]} and one of"
        " --model.compute float32, --model.attention reference or --model.layers unroll, to find"
        f" the fault (docs/verify.md has more); to ask for help, send {path}."
    )


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, and beside it as text."""
    lines = [f"{format_result(one)}\n         {one['claim']}" for one in report["proofs"]]
    smaller = f"smaller: {', '.join(report['smaller']) or 'nothing'}"
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items() if value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    path.with_suffix(".txt").write_text(
        "\n".join([*lines, "", smaller, where, verdict(report, path)]) + "\n", encoding="utf-8"
    )
