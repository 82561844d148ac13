"""What a run keeps of its training state, and how it begins or resumes from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.trees import combine
from gptjax.losses import Frozen
from gptjax.observe.goodput import Clock
from gptjax.observe.log import Log
from gptjax.observe.watch import Watch
from gptjax.runs import Run, frozen
from gptjax.runs.manifest import Leaf
from gptjax.train import carry, identity, placement
from gptjax.train.experiment import Experiment
from gptjax.train.program import Program
from gptjax.train.sources import Read
from gptjax.train.step import TrainState
from gptjax.train.updates import averaged

HEADS = "heads"
"""Tree of a checkpoint: weights that the loss reads beside the model's own."""


def trees(state: TrainState, heads: Collection[str] = ()) -> dict[str, Any]:
    """Returns what a checkpoint holds: all of the state but the step, which names the checkpoint,
    and the averaged weights once more by themselves.

    Args:
      heads: subtrees that are not of the model, which are in `heads` instead.
    """
    average = averaged(state.opt_state)
    params, others = split_heads(state.trainable, heads)
    return (
        {"params": params, "opt_state": state.opt_state}
        | ({} if average is None else {"ema": split_heads(average, heads)[0]})
        | ({HEADS: others} if others else {})
    )


def split_heads(params: Params, heads: Collection[str]) -> tuple[Params, Params]:
    """Returns a model's parameters, and what the loss has beside them."""
    own = {name: tree for name, tree in params.items() if name not in heads}
    return own, {name: tree for name, tree in params.items() if name in heads}


def weights(state: TrainState, frozen: Frozen) -> Params:
    """Returns all parameters for evaluation and sampling, averaged where there is an average."""
    average = averaged(state.opt_state)
    return combine(frozen, state.trainable if average is None else average)


def live_weights(state: TrainState, frozen: Frozen) -> Params | None:
    """Returns the latest parameters where `weights` are averaged ones."""
    return None if averaged(state.opt_state) is None else combine(frozen, state.trainable)


class Begun(NamedTuple):
    """What a run begins or resumes with."""

    state: TrainState
    frozen: Frozen
    step: int | None
    """Of the checkpoint; `None` at the beginning."""
    read: Read
    notes: tuple[str, ...] = ()
    """Lines for the banner."""


def restore_or_init(
    run: Run,
    built: Program,
    experiment: Experiment,
    old: Experiment | None,
    cast: bool = False,
    fall_back: bool = True,
    params: Params | None = None,
    step: int | None = None,
) -> Begun:
    """Returns the newest intact checkpoint, or the initial state. Of an optimizer that is not the
    one that was saved, see `carry`. Frozen weights are saved with the run, unless they are those
    under an adapter, which are opened from elsewhere.

    Args:
      old: the experiment of the last start, which made the checkpoint; `None` for a new run.
      params: initial parameters, or those under the adapter of a run; `None` means random ones.
      step: the checkpoint to restore; `None` means the newest.

    Raises:
      ConfigError: a checkpoint is absent or does not fit, or frozen weights were replaced.
    """
    wanted = built.state.opt_state
    own, heads = split_heads(built.state.trainable, experiment.objective.heads(experiment.model))

    def readable(saved: tuple[Leaf, ...]) -> Any:
        if carry.same(saved, wanted):
            return wanted
        return carry.as_saved(saved, built.state.trainable, built.state.step.sharding)

    if step is not None:
        run.require_intact(step)
    restored = run.restore(
        {"params": own, "opt_state": readable} | ({HEADS: heads} if heads else {}),
        step=step,
        cast=cast,
        fall_back=fall_back,
    )
    host = params and jax.tree.map(np.asarray, params)  # it may lie on other devices
    if restored is None:
        state, rest = jax.block_until_ready(built.init(host))
        if "params" in rest and experiment.adapter is None:
            frozen.save_frozen(run.path, rest["params"])
        return Begun(state, rest, None, Read(0, 0, 0))
    step, trees = restored
    trees["params"] = {**trees["params"], **trees.get(HEADS, {})}
    rest = built.models
    if "params" in built.frozen and host is not None:
        rest = jax.block_until_ready(built.init(host)[1])
    elif "params" in built.frozen:
        identity.require_frozen(run.path)
        rest = {**rest, "params": frozen.restore(run.path, built.frozen["params"])}
    opt_state, notes = _carried(trees, built, experiment)
    number = jax.device_put(np.int32(step), built.state.step.sharding)
    state = TrainState(number, trees["params"], opt_state)
    return Begun(state, rest, step, read_until(run, step, experiment, old or experiment), notes)


def _carried(trees: dict, built: Program, experiment: Experiment) -> tuple[Any, tuple[str, ...]]:
    """The optimizer state of restored trees as the run needs it, and notes for the banner."""
    if not isinstance(trees["opt_state"], dict):
        return trees["opt_state"], ()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.state.opt_state)
    begin = jax.jit(placement.optimizer(experiment).init, out_shardings=shardings)
    fresh = begin(trees["params"])
    opt_state, note = carry.carried(trees["opt_state"], fresh, built.state.trainable)
    return opt_state, (note,)


def read_until(run: Run, step: int, experiment: Experiment, old: Experiment) -> Read:
    """Returns what a run had read when it saved a step.

    Runs of earlier versions did not save that; their batches never changed in size. Under another
    context rows are others, so it is as many as hold the same number of tokens.
    """
    known = run.metrics(step)
    tokens = int(known.get("tokens") or step * old.tokens_per_step)
    rows = int(known.get("rows") or step * old.batch)
    context = int(known.get("context") or old.model.context)
    if context != experiment.model.context:
        rows = tokens // experiment.model.context
    return Read(step, rows, tokens)


class Saver:
    """Saves states; the files are written while the next steps run.

    Args:
      begun: what the run resumes from.
    """

    def __init__(self, run: Run, log: Log, clock: Clock, experiment: Experiment, begun: Begun):
        self._run, self._log, self._clock, self._step = run, log, clock, begun.step
        self._experiment, self._read = experiment, begun.read

    def due(self, done: int) -> bool:
        """Whether a step is saved."""
        experiment = self._experiment
        every = experiment.checkpoints.every or experiment.evaluation.every
        return done == experiment.steps or done % every == 0

    def prepare(self) -> None:
        """Imports what saving needs, in the background."""
        self._run.prepare()

    def save(self, state: TrainState, figures: dict[str, float], watch: Watch) -> None:
        """Begins to save a state, unless it is saved already.

        Args:
          figures: of its evaluation.
        """
        done = int(state.step)
        if done == self._step:
            return
        with watch.pause("checkpoint", f"saving step {done}"):
            self._clock.saving()
            self._log.flush()
            read = self._read.until(done, self._experiment)
            context = self._experiment.model.context
            counts = {"rows": read.rows, "tokens": read.tokens, "context": context}
            heads = self._experiment.objective.heads(self._experiment.model)
            self._run.save(done, trees(state, heads), {**figures, **counts})
        self._step = done
