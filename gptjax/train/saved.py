"""What a run keeps of its training state, and how it begins or resumes from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.trees import combine
from gptjax.losses import Frozen
from gptjax.observe.goodput import Clock
from gptjax.observe.log import Log
from gptjax.observe.watch import Watch
from gptjax.runs import Run, frozen
from gptjax.train import identity
from gptjax.train.program import Program
from gptjax.train.step import TrainState
from gptjax.train.updates import averaged


def trees(state: TrainState) -> dict[str, Any]:
    """Returns what a checkpoint holds: all of the state but the step, which names the checkpoint,
    and the averaged weights once more by themselves."""
    average = averaged(state.opt_state)
    return {"params": state.trainable, "opt_state": state.opt_state} | (
        {} if average is None else {"ema": average}
    )


def weights(state: TrainState, frozen: Frozen) -> Params:
    """Returns all parameters for evaluation and sampling, averaged where there is an average."""
    average = averaged(state.opt_state)
    return combine(frozen, state.trainable if average is None else average)


def restore_or_init(
    path: Path,
    run: Run,
    built: Program,
    cast: bool = False,
    fall_back: bool = True,
    params: Params | None = None,
    keep: bool = True,
) -> tuple[TrainState, Frozen, int | None]:
    """Returns state, frozen weights and step of the newest intact checkpoint; or the initial state
    and `None`.

    Args:
      params: initial parameters, or those under the adapter of a run; `None` means random ones.
      keep: save the frozen weights with the run: they can't be opened from elsewhere.

    Raises:
      ConfigError: a checkpoint does not fit, or the run's frozen weights were replaced.
    """
    restored = run.restore(
        {"params": built.state.trainable, "opt_state": built.state.opt_state},
        cast=cast,
        fall_back=fall_back,
    )
    host = params and jax.tree.map(np.asarray, params)  # it may lie on other devices
    if restored is None:
        state, rest = jax.block_until_ready(built.init(host))
        if "params" in rest and keep:
            frozen.save_frozen(path, rest["params"])
        return state, rest, None
    step, trees = restored
    number = jax.device_put(np.int32(step), built.state.step.sharding)
    state = TrainState(number, trees["params"], trees["opt_state"])
    if "params" not in built.frozen:
        return state, built.models, step
    if host is not None:
        return state, jax.block_until_ready(built.init(host)[1]), step
    identity.require_frozen(path)
    own = frozen.restore(path, built.frozen["params"])
    return state, {**built.models, "params": own}, step


class Saver:
    """Saves states; the files are written while the next steps run.

    Args:
      step: of the checkpoint that the run resumes from.
    """

    def __init__(self, run: Run, log: Log, clock: Clock, step: int | None):
        self._run, self._log, self._clock, self._step = run, log, clock, step

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
            self._run.save(done, trees(state), figures)
        self._step = done
