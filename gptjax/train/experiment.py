"""The configuration of a whole run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from gptjax.core.config import formerly, require
from gptjax.data.prepare import DataConfig
from gptjax.data.tasks import Shape, default_task
from gptjax.generate.settings import SampleConfig
from gptjax.losses import CrossEntropy, LossConfig, LossKind, OwnAnswers
from gptjax.model.config import ModelConfig
from gptjax.model.presets import small
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.optim import AdamW, OptimConfig, Schedule
from gptjax.train.rollout import Rollout
from gptjax.train.sparse import Prune
from gptjax.weights import AdapterKind


@dataclass(frozen=True)
class WatchedTasks:
    """Tasks that the model answers while it trains, as `gptjax evaluate --tasks` asks them."""

    files: tuple[str, ...] = ()
    """Files of records, or names of known tasks; none watches nothing."""
    folder: str | None = None
    """Folder with the files of known tasks."""
    every: int | None = None
    """Steps between the answers, a multiple of `evaluation.every`; `None` answers at each
    evaluation. The last step is always answered."""
    limit: int | None = 200
    """Number of items of each task, the same ones at each step; `None` means all."""
    shots: int | None = None
    """Number of examples before each question; `None` is as the task has it."""
    form: Literal["cloze", "letters"] = "cloze"
    """How choices are asked: `cloze` scores their texts, `letters` lists them and scores
    letters."""
    template: str | None = None
    """Write prompts as conversations: `own` is the tokenizer's chat template, or a name, or a
    .jinja file. `None` is plain text."""

    def __post_init__(self) -> None:
        require(
            self.every is None or self.every >= 1,
            f"evaluation.tasks.every is {self.every}; it needs at least 1 step, or None.",
        )
        require(
            self.limit is None or self.limit >= 1,
            f"evaluation.tasks.limit is {self.limit}; it needs at least 1 item, or None for all.",
        )


@formerly(added=("first", "patience", "tasks"))
@dataclass(frozen=True)
class Evaluation:
    """Evaluations during training."""

    every: int = 250
    """Steps between evaluations."""
    rows: int | None = None
    """Rows of held-out text at each evaluation; `None` means all. The last evaluation uses all."""
    first: bool = False
    """Also evaluate before the first step."""
    patience: int | None = None
    """Stop early after this many evaluations in a row that did not lower the validation loss;
    `None` never does."""
    prompt: str = ""
    """Prompt of the sample at each evaluation; an empty one begins a new document."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Sampling settings."""
    tasks: WatchedTasks = field(default_factory=WatchedTasks)
    """Tasks to answer besides."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"evaluation.every is {self.every}; it needs at least 1 step.")
        between = self.tasks.every or self.every
        require(
            between % self.every == 0,
            f"evaluation.tasks.every is {between}, which is no multiple of evaluation.every,"
            f" {self.every}; use one (--evaluation.tasks.every"
            f" {self.every * max(1, round(between / self.every))}).",
        )
        require(
            self.rows is None or self.rows >= 1,
            f"evaluation.rows is {self.rows}; it needs at least 1, or None for all.",
        )
        require(
            self.patience is None or self.patience >= 1,
            f"evaluation.patience is {self.patience}; it needs at least 1 evaluation, or None"
            " (--evaluation.patience 3).",
        )


@dataclass(frozen=True)
class Checkpoints:
    """Which checkpoints are saved and kept."""

    every: int | None = None
    """Steps between checkpoints; `None` saves at each evaluation."""
    keep_newest: int = 2
    """Number of most recent checkpoints to keep."""
    keep_best: int = 1
    """Number of checkpoints with the lowest validation loss to keep besides."""

    def __post_init__(self) -> None:
        require(
            self.every is None or self.every >= 1,
            f"checkpoints.every is {self.every}; it needs at least 1 step, or None.",
        )
        require(
            self.keep_newest >= 1,
            f"checkpoints.keep_newest is {self.keep_newest}; it needs at least 1, or a run could"
            " not resume.",
        )
        require(
            self.keep_best >= 0, f"checkpoints.keep_best is {self.keep_best}; it needs 0 or more."
        )


def _migrate(plain: dict[str, Any]) -> dict[str, Any]:
    """Reads an experiment of an earlier version: one loss with switches was what is now one loss
    inside another."""
    loss = plain.get("loss")
    if not isinstance(loss, dict) or "kind" in loss:
        return plain
    plainest = {k: v for k, v in loss.items() if k not in ("adversarial", "distillation")}
    nested = {"kind": "CrossEntropy", **plainest}
    if loss.get("distillation"):
        nested = {"kind": "Distillation", **loss["distillation"], "inner": nested}
    if loss.get("adversarial"):
        nested = {**loss["adversarial"], "inner": nested}
    return {**plain, "loss": nested}


@formerly(added=("freeze", "adapter", "fp8", "rollout", "prune", "base_width"), migrate=_migrate)
@dataclass(frozen=True)
class Experiment:
    """A whole run: model, data, optimizer, length. A run's `config.json` is this value,
    resolved."""

    start: str | None = None
    """A model to start from: a run, a Hugging Face directory, a .gguf file, or smollm2, which a
    package ships. Its architecture is the model's then. None begins with random weights."""
    model: ModelConfig = field(default_factory=small)
    """The architecture."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    loss: LossKind = field(default_factory=CrossEntropy)
    """The loss that training minimises."""
    freeze: tuple[str, ...] = ()
    """Patterns of weights that do not train, such as `embedding` or `layers/attention/*`; `gptjax
    inspect` lists the paths."""
    adapter: AdapterKind | None = None
    """Train an adapter beside the frozen weights of `start`; `None` trains the weights. Checkpoints
    hold the adapter alone."""
    fp8: tuple[str, ...] = ()
    """Patterns of kernels whose products in training are of 8-bit floats, such as `layers`: e4m3
    forward, e5m2 for gradients. Devices without such products round to the same numbers."""
    rollout: Rollout | None = None
    """How the answers that the losses `Policy` and `GKD` learn from are written and judged; `None`
    in runs that learn from the data itself."""
    optim: OptimConfig = field(default_factory=AdamW)
    """The optimizer."""
    schedule: Schedule = field(default_factory=Schedule)
    """The learning rate over the steps."""
    prune: Prune = field(default_factory=Prune)
    """Weights that become zero, and stay so."""
    base_width: int | None = None
    """Width of the model for which `optim.peak` and `model.init_std` were chosen: a wider one
    starts and learns so that they fit it too (muP). `None` takes them as they are."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How devices share the work."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Evaluations during training."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Which checkpoints are saved and kept."""
    steps: int = 1000
    """Number of training steps."""
    batch: int = 16
    """Rows of one batch, over all devices; each row holds `model.context` tokens."""
    micro_batch: int | None = None
    """Rows read at once; a batch is read in batch / micro_batch parts, with the same result but for
    rounding and, where there is dropout, for its draws. None reads it whole."""
    seed: int = 0
    """Seed of initial weights, data order and dropout."""
    skip_norm: float = 1e4
    """A step whose gradient norm is above this is skipped and counted."""
    spike_score: float = 8.0
    """A step whose loss or gradient norm lies this many robust deviations above the last 64 is a
    spike, and counted."""
    skip_spikes: bool = False
    """Also skip spikes."""
    log_every: int = 10
    """Steps between progress lines."""
    watchdog: float | None = 600.0
    """Seconds without any progress after which the stacks of all threads are written to log.txt;
    after twice that the run ends. `None` disables it."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every"):
            require(
                getattr(self, name) >= 1,
                f"{name} is {getattr(self, name)}; it needs at least 1"
                f" (--{name.replace('_', '-')}).",
            )
        self._require_task()
        require(
            not (self.freeze and self.adapter),
            "freeze and adapter are both set, and an adapter freezes all weights but its own; omit"
            " --freeze, or name what else trains with --adapter.modules-to-save.",
        )
        require(
            self.adapter is None or self.optim.weights == "float32",
            "optim.weights is bfloat16, and what an adapter trains is kept in float32; omit"
            " --optim.weights.",
        )
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it needs a number in [0, 2^31).")
        for name in ("skip_norm", "spike_score"):
            require(
                getattr(self, name) > 0,
                f"{name} is {getattr(self, name)}; it needs a positive number"
                f" (--{name.replace('_', '-')}).",
            )
        require(
            self.watchdog is None or self.watchdog > 0,
            f"watchdog is {self.watchdog}; it needs seconds above 0, or None (--watchdog 600).",
        )
        require(
            self.micro_batch is None
            or (self.micro_batch >= 1 and self.batch % self.micro_batch == 0),
            f"micro_batch is {self.micro_batch}, which does not divide the batch of {self.batch};"
            f" use a divisor (--micro-batch {self.batch}).",
        )
        if self.rollout is not None:
            _require_rollout(self, self.rollout)
        if self.base_width is not None:
            from gptjax.train.transfer import require_transfer  # it reads this class

            require_transfer(self)

    def _require_task(self) -> None:
        """Refuses a task that the model's shape is not for."""
        shapes = {
            "decoder": "a decoder",
            "encoder": "an encoder (--model.causal False)",
            "encoder-decoder": "an encoder and a decoder (--model.encoder-layers)",
        }
        task, shape = self.data.task, shape_of(self.model)
        name = type(task).__name__
        require(
            shape in task.shapes,
            f"data.task is {name}, for {' or '.join(shapes[one] for one in task.shapes)}, and the"
            f" model is {shapes[shape]}; use data.task {type(default_task(shape)).__name__}.",
        )
        needs = "a task that has one, such as PrefixLanguageModel, or --model.prefix-lm False"
        require(
            not self.model.prefix_lm or task.answers,
            f"data.task is {name}, whose texts have no prefix, and model.prefix_lm is true; use"
            f" {needs}.",
        )
        task.require_model(self.model)
        loss = self.loss
        require(
            loss.batches == task.batches,
            f"data.task is {name}, whose batches hold {task.batches}, and loss"
            f" {type(loss).__name__} reads {loss.batches}; use another loss or data.task.",
        )
        require(
            self.model.classes is None or task.classes is not None,
            f"data.task is {name} and model.classes {self.model.classes}; use data.task"
            " Classification, or null.",
        )
        learns = loss.batches == ROLLOUTS
        require(
            learns == (self.rollout is not None),
            f"loss {type(loss).__name__} learns from {loss.batches}, and rollout is"
            f" {'not set' if learns else 'set'}; {'set' if learns else 'leave out'} rollout in the"
            " config file.",
        )

    @property
    def objective(self) -> LossConfig:
        """The loss, in which what the run starts from has its name."""
        kept = self.adapter is not None and not self.adapter.modules_to_save
        return self.loss.started(self.start, adapted=kept)

    @property
    def micro_batches(self) -> int:
        """Parts in which a batch is read."""
        return self.batch // (self.micro_batch or self.batch)

    @property
    def tokens_per_step(self) -> int:
        """Positions of one batch."""
        return self.batch * self.model.context


ROLLOUTS = "rollouts"
"""What batches hold that the model wrote itself."""


def _require_rollout(experiment: Experiment, rollout: Rollout) -> None:
    """Refuses numbers that do not fit the rollouts."""
    loss = cast(OwnAnswers, experiment.loss)
    require(
        bool(rollout.rewards) or not loss.rewarded,
        "rollout.rewards is empty, so no answer is better than another; name a reward in the"
        " config file, such as Exact().",
    )
    batch, answers, updates = experiment.batch, rollout.answers, rollout.updates
    near = answers * max(1, round(batch / answers))
    require(
        batch % answers == 0,
        f"batch is {batch}, which {answers} answers to each prompt do not divide; use a multiple"
        f" (--batch {near}).",
    )
    evaluated = experiment.evaluation.every
    saved = experiment.checkpoints.every or evaluated
    counts = {"steps": experiment.steps, "checkpoints.every": saved, "evaluation.every": evaluated}
    for name, count in counts.items():
        require(
            count % updates == 0,
            f"{name} is {count}, and each rollout serves {updates} steps; use a multiple"
            f" (--{name.replace('_', '-')} {updates * -(-count // updates)}).",
        )
    require(
        not rollout.truncates or loss.any_sampler,
        "rollout.top_k or top_p leaves tokens out, so that answers come from another distribution"
        " than the one that is trained; set a loss.correction (--loss.correction truncated), or"
        " --rollout.top-k 0 --rollout.top-p 1.",
    )
    context = experiment.model.context
    require(
        rollout.new_tokens < context,
        f"rollout.new_tokens is {rollout.new_tokens} and model.context {context}, which leaves no"
        " room for a prompt; use fewer (--rollout.new-tokens), or a longer context"
        " (--model.context).",
    )


def shape_of(model: ModelConfig) -> Shape:
    """Returns the shape of a model, by which tasks say whether they fit."""
    if model.has_encoder:
        return "encoder-decoder"
    return "decoder" if model.causal else "encoder"


def guessed(experiment: Experiment) -> Experiment:
    """The experiment with a guess of what only the data know: a vocabulary of the tokenizer's
    settings, or of bytes; two labels."""
    config = experiment.model
    if config.vocab_size is None:
        config = dataclasses.replace(
            config, vocab_size=getattr(experiment.data.tokenizer, "vocab_size", 257)
        )
    classes = experiment.data.task.classes
    if classes is not None and not config.classes:
        config = dataclasses.replace(config, classes=max(2, classes))
    return dataclasses.replace(experiment, model=config)


FREE = (
    *(
        "steps",
        "evaluation.",
        "checkpoints.",
        "log_every",
        "watchdog",
        "data.cache",
        "data.max_lost",
    ),
    *(
        "mesh.",
        "model.context_order",
        "model.experts.exchange",
        "model.layers",
        "model.remat",
        "model.remat_names",
        "model.stage_parts",
        "loss.vocab_parts",
        "loss.inner.vocab_parts",
        "loss.cached",
        "rollout.log_every",
    ),
)
"""What a resumed run may change: length, observation, and how the same numbers are computed."""


def is_place(name: str) -> bool:
    """Whether a setting says where the text or a model is, rather than what it is."""
    of_text = name.startswith("data.source.") and name.endswith((".path", ".held_out"))
    of_model = name == "start" or (name.startswith("loss.") and name.endswith(".run"))
    return of_text or of_model
