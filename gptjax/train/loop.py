"""Builds, restores, loops, logs, evaluates, saves. This room touches the world; what it calls is pure.

Read `train` first: it is the whole story of a run. The functions below it stand in the order in which it calls them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import gptjax
from gptjax import config, generate
from gptjax.arrays import Params
from gptjax.checkpoint import Run
from gptjax.config import require
from gptjax.data import tokenizer as tokenizers
from gptjax.data.prepare import Prepared, prepare
from gptjax.model import flops_per_token
from gptjax.model.attention import choose
from gptjax.model.transformer import scanned
from gptjax.train import forecast, optim, program, report
from gptjax.train.experiment import FREE, Experiment
from gptjax.train.metrics import Log, Smoothed, Throughput, duration, human, memory, progress_line, read, smooth
from gptjax.train.step import TrainState

STOP_AFTER = 5
"""Skipped steps in a row after which a run ends."""


class Setting(NamedTuple):
    """What every part of a run needs to know."""

    experiment: Experiment
    path: Path
    data: Prepared
    program: program.Program
    run: Run
    log: Log
    interrupted: Callable[[], bool]
    seconds: dict[str, float]
    """Wall time by what it was spent on; what is in none of them was training."""
    begun: float
    """`time.monotonic()` at the start."""


def train(
    experiment: Experiment, path: Path, *, allow_changes: bool = False, rollback_to: int | None = None, cast: bool = False,
    notes: tuple[str, ...] = (), begun: float | None = None,
) -> Path:  # fmt: skip
    """Trains an experiment in a run directory, or goes on where that run stopped, and gives the path of its report.

    The same experiment, interrupted and resumed any number of times, ends in the same bits.

    Args:
      allow_changes: resume even where the experiment differs from the run's own in a way that changes its course.
      rollback_to: go on from this step; later ones are moved aside first.
      cast: take a checkpoint whose arrays have other dtypes, rounding them.
      notes: lines for the banner.
      begun: `time.monotonic()` at the start of the process.

    Raises:
      ConfigError: something the user chose does not fit.
      FloatingPointError: five steps in a row had no finite loss and gradient.
    """
    begun = begun or time.monotonic()
    seconds = {"start": time.monotonic() - begun}
    run = Run(path, keep_newest=experiment.checkpoints.keep_newest, keep_best=experiment.checkpoints.keep_best)
    with run.lock(), forecast.explained(experiment), _interruptible() as interrupted:
        forecast.require_possible(experiment)
        with _timed(seconds, "data"):
            data = prepare(experiment.data, say=print)
        experiment = resolve(experiment, data)
        changes = _settle(experiment, path, data, resuming=bool(run.steps()), allow=allow_changes)
        built = program.build(experiment, data)
        seconds["compile"] = built.compile_seconds
        forecast.require_fits(experiment, built)
        if rollback_to is not None:
            changes += (f"rolled back to step {rollback_to}; set aside: {', '.join(map(str, run.rollback(rollback_to))) or 'nothing'}",)
        with _timed(seconds, "initialise"):
            state = start(run, built, cast)
        resumed = int(state.step) if run.steps() else None
        with Log(path, resume_step=resumed) as log:
            setting = Setting(experiment, path, data, built, run, log, interrupted, seconds, begun)
            log.say(_banner(setting, state, (*notes, *changes)))
            return _finish(setting, *_loop(setting, state))


# --- before the first step ---------------------------------------------------------------------------------------


def resolve(experiment: Experiment, data: Prepared) -> Experiment:
    """Fills in what only the data knows: the size of the vocabulary.

    Raises:
      ConfigError: the config's vocabulary is smaller than the tokenizer's.
    """
    size = data.tokenizer.vocab_size
    wanted = experiment.model.vocab_size or size
    require(wanted >= size, f"model.vocab_size is {wanted}, the tokenizer has {size} tokens; use at least {size} (--model.vocab-size {size}).")
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab_size=wanted))


def _settle(experiment: Experiment, path: Path, data: Prepared, *, resuming: bool, allow: bool) -> tuple[str, ...]:
    """Makes sure that the directory holds this very run, writes down what it is, and gives notes about harmless changes."""
    identity = {"data": data.fingerprint, "tokenizer": tokenizers.fingerprint(data.tokenizer)}
    notes: list[str] = []
    if resuming:
        old = config.load(Experiment, path / "config.json")
        changed = config.differences(old, experiment)
        bound = {k: v for k, v in changed.items() if not k.startswith(FREE)}
        recorded = json.loads((path / "identity.json").read_text())
        bound |= {f"{k} (its content)": (recorded[k][:12], identity[k][:12]) for k in identity if recorded[k] != identity[k]}
        said = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in list(bound.items())[:5])
        require(allow or not bound, f"{path} holds another run: {said}. Use another --dir, or --allow-changes to go on with the new values.")
        notes += [f"changed since the last start: {k} {a!r} → {b!r}" for k, (a, b) in changed.items()]
        if "steps" in changed and experiment.schedule.kind not in ("constant", "rsqrt"):
            notes.append(f"the {experiment.schedule.kind} schedule now stretches over {experiment.steps} steps: learning rates from here on are those of the new length")
    config.save(path / "config.json", experiment)
    tokenizers.save(path / "tokenizer", data.tokenizer)
    (path / "identity.json").write_text(json.dumps(identity | {"versions": versions()}, indent=2) + "\n")
    return tuple(notes)


def start(run: Run, built: program.Program, cast: bool = False) -> TrainState:
    """The newest whole checkpoint, its arrays rounded to the experiment's types with `cast`, or the initial state."""
    abstract = {"params": built.state.params, "opt_state": built.state.opt_state}
    restored = run.restore(abstract, cast=cast)
    if restored is None:
        return jax.block_until_ready(built.init())
    step, trees = restored
    number = jax.device_put(np.int32(step), built.state.step.sharding)
    return TrainState(number, trees["params"], trees["opt_state"])


def _banner(setting: Setting, state: TrainState, notes: tuple[str, ...]) -> str:
    experiment, built = setting.experiment, setting.program
    implementation, reason = choose(experiment.model, experiment.model.context)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = jax.devices()
    train, held_out = setting.data.train.header, setting.data.validation
    lines = [
        f"gptjax {gptjax.__version__} · {setting.path}",
        f"devices     {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}, Python {platform.python_version()}",
        f"model       {human(parameters)} parameters, {experiment.model.compute} compute, layers {'scanned' if scanned(experiment.model) else 'unrolled'}",
        f"attention   {implementation}: {reason}",
        f"data        {human(train.num_tokens)} tokens to train, {human(held_out.header.num_tokens) if held_out else 'none'} held out; "
        f"{experiment.data.tokenizer.__class__.__name__} of {setting.data.tokenizer.vocab_size}, {train.num_bytes / max(1, train.num_tokens):.2f} bytes a token",
        f"step        {human(experiment.tokens_per_step)} tokens, {human(flops_per_token(experiment.model, experiment.model.context) * experiment.tokens_per_step)}FLOP; "
        f"state {program.state_bytes(built.state) / 2**20:.0f} MiB, temporary {built.temporary_bytes / 2**20:.0f} MiB",
        f"start       {', '.join(f'{what} {duration(s)}' for what, s in setting.seconds.items())}",
        *(f"note        {note}" for note in notes),
    ]
    at = int(state.step)
    if at >= experiment.steps:
        lines.append(f"finished already at step {at}; --steps {2 * at} goes on from there")
        return "\n".join(lines)
    lines.append(f"resuming at step {at} of {experiment.steps}" if at else f"training {experiment.steps} steps; interrupt when you like, the same command goes on")
    return "\n".join(lines)


# --- the loop ----------------------------------------------------------------------------------------------------


def _loop(setting: Setting, state: TrainState) -> tuple[TrainState, int]:
    """Steps until the end or an interruption; gives the last state and the number of skipped steps.

    Metrics of a step are fetched while the next one runs, so that the device never waits for the host.
    """
    experiment, built = setting.experiment, setting.program
    watch = _Watch(setting, int(state.step))
    every = experiment.checkpoints.every or experiment.evaluation.every
    pending: tuple[int, Any] | None = None
    for done in range(int(state.step) + 1, experiment.steps + 1):
        state, metrics = built.step(state, built.batch(done - 1))
        if pending:
            watch.see(*pending)
        pending, end, stopped = (done, metrics), done == experiment.steps, setting.interrupted()
        evaluating, saving = end or done % experiment.evaluation.every == 0, end or stopped or done % every == 0
        if evaluating or saving:
            figures = watch.evaluate(state, done, None if end else experiment.evaluation.rows) if evaluating else {}
            watch.see(*pending, figures)  # before the save: a resumed run does not repeat this step
            pending = None
            if saving:
                watch.save(state, figures)
        if stopped:
            break
    return state, watch.skipped


class _Watch:
    """Looks at the run as it goes: progress, skipped steps, evaluations, checkpoints."""

    def __init__(self, setting: Setting, step: int):
        self.setting, self.skipped, self.in_a_row = setting, 0, 0
        self.smoothed, self.speed = Smoothed(), Throughput()
        self.saved: int | None = step or None

    def see(self, done: int, metrics: dict[str, Any], figures: dict[str, float] | None = None) -> None:
        """Takes in one step's metrics, with what an evaluation after it found; stops a run that only skips."""
        experiment, log = self.setting.experiment, self.setting.log
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        skipped = bool(values.pop("skipped"))
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.smoothed = smooth(self.smoothed, values["loss"], 0.98)
        self.speed = self.speed.at(time.monotonic(), done, done * experiment.tokens_per_step)
        rate = self.speed.tokens_per_second
        tokens = done * experiment.tokens_per_step
        extra = ({"tokens_per_second": rate} if rate else {}) | ({"skipped": 1} if skipped else {}) | (figures or {})
        log.record(done, {"tokens": tokens, **values, **extra})
        if skipped:
            log.say(f"step {done} skipped: loss {values['loss']:.3g}, gradient norm {values['gradient_norm']:.3g}; parameters unchanged")
            _require_progress(self.in_a_row, done, self.setting)
        if done % experiment.log_every == 0 or done == experiment.steps:
            log.progress(self.line(done, values))

    def line(self, done: int, values: dict[str, float]) -> str:
        experiment, rate = self.setting.experiment, self.speed.tokens_per_second
        left = (experiment.steps - done) // experiment.evaluation.every
        return progress_line(
            done, experiment.steps, loss=values["loss"], smoothed=self.smoothed.value, learning_rate=values["learning_rate"],
            gradient_norm=values["gradient_norm"], tokens_per_second=rate, mfu=utilisation(experiment, rate),
            eta=self.speed.eta(experiment.steps - done, evaluation=left, checkpoint=left),
        )  # fmt: skip

    def evaluate(self, state: TrainState, done: int, rows: int | None) -> dict[str, float]:
        """Held-out loss and a sample, both printed."""
        setting, params = self.setting, weights(state)
        with self._pause("evaluation"):
            figures = held_out(setting, params, rows)
            if figures:
                loss, bits = figures["validation_loss"], figures["validation_bits_per_byte"]
                setting.log.progress(f"step {done}: validation loss {loss:.4f}, {bits:.3f} bits per byte", keep=True)
            sample(setting, params, done)
        return figures

    def save(self, state: TrainState, figures: dict[str, float]) -> None:
        """Begins to save the state; writing goes on beside the next steps."""
        done = int(state.step)
        if done == self.saved:
            return
        with self._pause("checkpoint"):
            self.setting.log.flush()
            self.setting.run.save(done, trees(state), figures)
        self.saved = done

    @contextlib.contextmanager
    def _pause(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        with _timed(self.setting.seconds, what):
            yield
        self.speed = self.speed.pause(what, time.monotonic() - begun)


def _require_progress(in_a_row: int, done: int, setting: Setting) -> None:
    if in_a_row >= STOP_AFTER:
        kept = setting.run.wait()
        raise FloatingPointError(
            f"{in_a_row} steps in a row up to step {done} had no finite loss and gradient below {setting.experiment.skip_norm:g}; stopped. "
            f"The last whole checkpoint is {'step ' + str(kept) if kept is not None else 'none'}; try a lower --optim.peak or a higher --skip-norm."
        )


def trees(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state: all of it but the step, which names the checkpoint, and the averaged weights once more by themselves."""
    average = optim.averaged(state.opt_state)
    return {"params": state.params, "opt_state": state.opt_state} | ({} if average is None else {"ema": average})


def weights(state: TrainState) -> Params:
    """What evaluation and sampling use: the averaged weights where there are some."""
    average = optim.averaged(state.opt_state)
    return state.params if average is None else average


def held_out(setting: Setting, params: Params, rows: int | None) -> dict[str, float]:
    """Validation loss in nats per token, and in bits per byte of the text behind the tokens."""
    store = setting.data.validation
    if store is None:
        return {}
    loss = program.evaluate(setting.program, setting.experiment, store, params, rows)
    predicted = store.header.num_tokens - store.header.num_examples
    return {"validation_loss": loss, "validation_bits_per_byte": loss / math.log(2) * predicted / store.header.num_bytes}


def sample(setting: Setting, params: Params, done: int) -> None:
    """Lets the model write, prints and records it."""
    evaluation, tokenizer = setting.experiment.evaluation, setting.data.tokenizer
    prompt = evaluation.prompt if evaluation.prompt or tokenizer.end_of_document is not None else "\n"
    text = generate.complete(setting.experiment.model, params, tokenizer, [prompt], evaluation.sample)[0].text
    setting.log.sample(done, prompt, text)
    setting.log.say("\n".join(f"  │ {line}" for line in (prompt + text).splitlines()))


def utilisation(experiment: Experiment, tokens_per_second: float | None) -> float | None:
    """Model FLOPs utilisation of the devices, none where their peak is not known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is None or tokens_per_second is None:
        return None
    return flops_per_token(experiment.model, experiment.model.context) * tokens_per_second / (peak * jax.device_count())


PEAK_FLOPS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA B200": 2250e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s of one device by its kind, from the makers' data sheets."""


# --- after the last step -----------------------------------------------------------------------------------------


def _finish(setting: Setting, state: TrainState, skipped: int) -> Path:
    """Makes sure that the checkpoint is on disk, writes the report, says what to type next."""
    log, done, path = setting.log, int(state.step), setting.path
    with _timed(setting.seconds, "checkpoint"):
        on_disk = setting.run.wait()
    if on_disk != done:
        raise OSError(f"the checkpoint of step {done} is not on disk; the newest whole one is {on_disk}.")
    facts = _facts(setting, state, skipped)
    page = report.write(path, facts)
    if done < setting.experiment.steps:
        log.say(f"stopped at step {done} and saved it; the same command goes on, or: python train.py {path}/config.json")
    else:
        log.say("\n".join([f"done: {report.headline(facts)}", f"report: {page}", "next:", *(f"  {line}" for line in facts["next"])]))
    return page


def _facts(setting: Setting, state: TrainState, skipped: int) -> dict[str, Any]:
    experiment, path = setting.experiment, setting.path
    total = time.monotonic() - setting.begun
    seconds = {"total": total, "training": total - sum(setting.seconds.values()), **setting.seconds}
    evaluated = [line for line in read(path) if "validation_loss" in line]
    final = {k: v for k, v in evaluated[-1].items() if k.startswith("validation_")} if evaluated else {}
    packers = setting.data.validation.header.facts if setting.data.validation else {}
    return {
        "name": path.name,
        "config": config.to_dict(experiment),
        "environment": versions() | {"devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}", "processor": processor(), "flags": os.environ.get("XLA_FLAGS", "")},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "tokens": int(state.step) * experiment.tokens_per_step,
        "seconds": seconds,
        "final": {"step": int(state.step), **final, "peak_memory_bytes": memory()},
        "baselines": packers,
        "skipped_steps": skipped,
        "next": [
            f"python sample.py {path}" + (f" --prompt {shlex.quote(experiment.evaluation.prompt)}" if experiment.evaluation.prompt.strip() else ""),
            f"python train.py {path}/config.json --steps {2 * experiment.steps}",
            f"tensorboard --logdir {path}",
        ],
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"gptjax": gptjax.__version__, "python": platform.python_version()} | {name: metadata.version(name) for name in names}


def processor() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.monotonic() - begun


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM or Ctrl-C into a request to finish the step and save; the second ends the process at once."""
    asked = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        print("\nfinishing this step and saving; once more ends at once", file=sys.stderr, flush=True)

    old = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

