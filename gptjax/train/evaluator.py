"""What a run does at each evaluation: the held-out figures, and a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptjax import generate
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.layouts import Batch
from gptjax.data.prepare import Prepared
from gptjax.losses import Frozen
from gptjax.observe.goodput import Clock
from gptjax.observe.log import Log
from gptjax.observe.watch import Watch
from gptjax.observe.watchdog import unless
from gptjax.sharding.mesh import writing_mesh
from gptjax.train import saved, watched
from gptjax.train.evaluate import evaluate
from gptjax.train.experiment import Experiment
from gptjax.train.program import Program
from gptjax.train.step import TrainState


class Evaluator:
    """Evaluates a state on the held-out text and writes a sample. Both are printed and logged.

    Args:
      interrupted: whether the run was asked to stop; an evaluation then ends early.
      losses: validation losses of earlier evaluations of the run.
      tasks: to answer besides.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Prepared,
        program: Program,
        frozen: Frozen,
        log: Log,
        clock: Clock,
        interrupted: Callable[[], bool],
        losses: Sequence[float] = (),
        tasks: watched.Tasks | None = None,
    ):
        self._experiment, self._data, self._program = experiment, data, program
        self._frozen, self._log, self._clock = frozen, log, clock
        self._interrupted = interrupted
        self._prompt = prompt_of(experiment, data)
        self._losses, self._tasks = list(losses), tasks

    def due(self, done: int) -> bool:
        """Whether a step is followed by an evaluation."""
        return done == self._experiment.steps or done % self._experiment.evaluation.every == 0

    def waited_enough(self) -> bool:
        """Whether `evaluation.patience` is at its end: so many evaluations lowered nothing."""
        patience, losses = self._experiment.evaluation.patience, self._losses
        if patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= patience

    def evaluate(self, state: TrainState, watch: Watch) -> dict[str, float]:
        """Returns the held-out figures with the prefix `validation_`, and those of tasks with the
        prefix `tasks/`; nothing if there is nothing to measure, or if the run is interrupted
        meanwhile."""
        done, params = int(state.step), saved.weights(state, self._frozen)
        live = saved.live_weights(state, self._frozen)
        rows = None if done == self._experiment.steps else self._experiment.evaluation.rows
        with watch.pause("evaluation", f"evaluating step {done}"):
            figures = unless(self._interrupted, lambda: self._held_out(params, rows)) or {}
            if figures and live is not None:
                latest = unless(self._interrupted, lambda: self._held_out(live, rows)) or {}
                figures |= {"validation_live_loss": latest["validation_loss"]} if latest else {}
            figures = self._with_tasks(done, params, figures)
            self._show(done, figures)
            if self._prompt is not None and not self._interrupted():
                self._sample(done, params, self._prompt)
        self._losses += [figures["validation_loss"]] if "validation_loss" in figures else []
        return figures

    def make_up(self, state: TrainState, watch: Watch, *, evaluated: bool) -> bool:
        """Evaluates a restored step, if an interruption left that out, and with `evaluation.first`
        the initial state; false if it is interrupted once more.

        Args:
          evaluated: the log has figures of this step.
        """
        done = int(state.step)
        wanted = self.due(done) if done else self._experiment.evaluation.first
        if evaluated or not wanted or not self._measures(done):
            return True
        figures = self.evaluate(state, watch)
        if figures:
            self._log.record(done, figures)
        return bool(figures)

    def _measures(self, done: int) -> bool:
        """Whether the evaluation after a step has anything to measure."""
        asked = self._tasks is not None and watched.due(self._experiment, done)
        return asked or self._data.validation is not None

    def _with_tasks(self, done: int, params: Params, held_out: dict[str, float]) -> dict:
        """The figures with those of tasks; none at all if the run is interrupted meanwhile, so that
        a resumed run makes up for both. What goes wrong costs those of tasks, not the run."""
        tasks = self._tasks
        missed = not held_out and self._data.validation is not None
        if tasks is None or missed or not watched.due(self._experiment, done):
            return held_out
        try:
            figures = unless(self._interrupted, lambda: tasks.figures(params, self._stop))
        except ConfigError as error:
            self._log.say(f"tasks are not answered: {error}")
            return held_out
        return {} if figures is None else held_out | figures

    def _stop(self) -> bool:
        self._clock.beat()
        return self._interrupted()

    def _held_out(self, params: Params, rows: int | None) -> dict[str, float]:
        if self._data.validation is None:
            return {}
        experiment, store, mesh = self._experiment, self._data.validation, self._program.mesh
        if experiment.rollout is not None:
            from gptjax.train.rollout_figures import held_out  # other runs write nothing

            tokenizer = self._data.tokenizer

            def measure(batch: Batch) -> Mapping[str, Any]:
                return self._program.evaluate(params, self._frozen, batch)

            figures = held_out(
                experiment, tokenizer, store, params, mesh, rows, self._stop, measure
            )
        else:
            measure = self._program.evaluate
            given = (mesh, experiment, store, params, self._frozen, rows)
            figures = evaluate(measure, *given, self._stop)
        return {f"validation_{name}": value for name, value in (figures or {}).items()}

    def _show(self, done: int, figures: dict[str, float]) -> None:
        asked = {name: value for name, value in figures.items() if name.startswith("tasks/")}
        for line in watched.lines(asked):
            self._log.progress(f"step {done}: {line}", keep=True)
        if figures.keys() - asked.keys():
            named = {
                name.removeprefix("validation_"): value
                for name, value in figures.items()
                if name not in asked
            }
            first = "loss"
            if named.get("reward") == -named["loss"]:
                del named["loss"]
                first = "reward"
            shown = f"validation {first} {named.pop(first):.4f}"
            others = [f"{value:.3f} {name.replace('_', ' ')}" for name, value in named.items()]
            self._log.progress(f"step {done}: {', '.join([shown, *others])}", keep=True)
        elif self._measures(done) and not asked:
            self._log.say("this evaluation is left out; the same command makes up for it")

    def _sample(self, done: int, params: Params, prompt: str) -> None:
        """Writes a sample. A prompt that the model cannot take costs the sample, not the run."""
        try:
            text = unless(self._interrupted, lambda: self._continuation(params, prompt))
        except ConfigError as error:
            self._log.say(f"no sample: {error}")
            return
        if text is None:
            return
        self._log.sample(done, prompt, text)
        task = self._experiment.data.task
        answered = " → " if task.answers or task.conversations else ""
        lines = (prompt + answered + text).splitlines()
        self._log.say("\n".join(f"  │ {line}" for line in lines))

    def _continuation(self, params: Params, prompt: str) -> str:
        """Of several processes all generate, in step."""
        completions = generate.complete(
            self._experiment.model,
            params,
            self._data.tokenizer,
            [self._experiment.data.task.asked(prompt, self._data.tokenizer)],
            self._experiment.evaluation.sample,
            task=self._experiment.data.task,
            mesh=writing_mesh(self._program.mesh),
        )
        return completions[0].text


def prompt_of(experiment: Experiment, data: Prepared) -> str | None:
    """Returns the prompt of samples; `None` if the task writes no text, or has nothing to answer.

    An empty prompt begins a document. Where the tokenizer has no token for that, a newline takes
    its place, or the first token of the training text if that has no newline.

    Raises:
      ConfigError: the tokenizer cannot encode the prompt.
    """
    prompt, task, tokenizer = experiment.evaluation.prompt, experiment.data.task, data.tokenizer
    if not task.writes or ((task.answers or task.conversations) and not prompt):
        return None
    if not prompt and tokenizer.end_of_document is None:
        return "\n" if _encodable(tokenizer, "\n") else tokenizer.decode(data.train.ids[:1])
    require(
        _encodable(tokenizer, prompt),
        f"evaluation.prompt is {prompt!r}, which has characters that are not in the training text;"
        " use others (--evaluation.prompt).",
    )
    return prompt


def _encodable(tokenizer: object, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except ConfigError:
        return False
    return True
