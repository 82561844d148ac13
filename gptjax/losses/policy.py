"""Learning from rewards: each answer that the model wrote becomes more likely, or less, by its
advantage.

One objective with named settings; the algorithms of the literature are presets of it
(`policy_presets.py`). Every normaliser is known from the batch or from a row, so that any split
gives the same loss. Read `Policy` (the settings), then `PolicyLoss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses import surrogates
from gptjax.losses.advantages import Spread
from gptjax.losses.answers import NONE, START, Reference, other_reference, reference_name
from gptjax.losses.cross_entropy import forward_batch
from gptjax.losses.loss import Frozen, Loss, Metrics, Reduction, Sum, Weight, ratio
from gptjax.losses.own_answers import OwnAnswers, column_of, sum_facts
from gptjax.losses.surrogates import KLKind
from gptjax.losses.tokens import losses_in_parts, token_losses
from gptjax.model import ModelConfig

Advantage = Literal["group", "centred", "leave-one-out", "gae", "reward", "right", "best"]

CRITIC = "critic"
"""Subtree of the parameters: the value head, `kernel` [D 1] and `bias` [1]."""


@dataclass(frozen=True)
class Policy(OwnAnswers):
    """A policy gradient over answers that the model wrote itself, without dropout. It needs the
    task `Prompts`, and `rollout`.

    The presets of `losses.policy_presets` are GRPO, Dr.GRPO, DAPO, RLOO, GSPO, CISPO, REINFORCE,
    PPO, rejection sampling and expert iteration.
    """

    advantage: Advantage = "centred"
    """What an answer's reward is compared with: `group`, the mean of the answers to its prompt,
    divided by their spread; `centred`, that mean alone; `leave-one-out`, the mean of the others;
    `gae`, a value head; `reward`, nothing. `right` learns the answers that pass, and `best` the
    best answer to each prompt, all with advantage 1."""
    spread: Spread = "sample"
    """Standard deviation that `group` divides by."""
    normalise: Literal["token", "answer", "constant"] = "token"
    """What the sum over tokens is divided by: the number of all `token`s; the length of the
    `answer`, then the number of answers; or a `constant`, then the number of answers."""
    constant: int | None = None
    """Tokens that `constant` divides by, such as the most that an answer can have."""
    ratio: Literal["token", "sequence", "joint"] = "token"
    """Whose probability is compared with that at the rollout: each `token`'s, the geometric mean
    of the answer's tokens (`sequence`), or the whole answer's (`joint`)."""
    surrogate: Literal["clip", "cispo", "log"] = "clip"
    """What is minimised: PPO's clipped ratio, CISPO's, or −A·ln p (`log`), which takes no account
    of the ratio."""
    clip: tuple[float, float] = (0.2, 0.28)
    """How far below and above 1 a ratio counts (`clip`)."""
    ceiling: float = 5.0
    """Largest ratio that `cispo` weighs a token with."""
    kl: float = 0.0
    """Weight of the divergence from the reference."""
    kl_kind: KLKind = "k3"
    """Its estimator; see `losses.surrogates.kl`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add it to the loss of each token, or subtract it from rewards before advantages."""
    reference: str = START
    """What `kl` is measured from: `start`, the model that the run starts from; `base`, the model
    without its adapters; or the path of another model. Only in memory if `kl` is not 0."""
    entropy: float = 0.0
    """Weight of a bonus for the entropy of each prediction, under the same normaliser."""
    unfinished: Literal["count", "leave-out", "bootstrap"] = "count"
    """Whether answers that were cut short are learned from. They are part of their group anyway.
    With `bootstrap`, for `gae`, the value of their last token stands for their reward."""
    flat: Literal["count", "leave-out"] = "count"
    """Whether answers whose group has only one reward count in the normaliser."""
    correction: Literal["none", "truncated"] = "none"
    """Weigh tokens by p / p of the sampler, which may then draw from truncated distributions."""
    correction_cap: float = 2.0
    """Largest such weight."""
    temperature: float = 1.0
    """What logits are divided by: that of the sampler."""
    value: float = 0.0
    """Weight of the loss of the value head, for `gae`."""
    value_clip: float | None = None
    """How far a value may move from that at the rollout before the loss counts it twice."""
    value_through: bool = True
    """Train the whole model to predict values, not only the head."""
    gamma: float = 1.0
    """Discount of a reward one token later, for `gae`."""
    lam: float = 0.95
    """λ of `gae`: 1 trusts rewards alone, 0 the values."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are computed one after the other."""

    def __post_init__(self) -> None:
        for name in ("constant", "ceiling", "temperature", "correction_cap", "value_clip"):
            number = getattr(self, name)
            require(number is None or number > 0, f"loss.{name} is {number}; it needs more than 0.")
        for name in ("kl", "entropy", "value"):
            number = getattr(self, name)
            require(number >= 0, f"loss.{name} is {number}; it needs 0 or more.")
        for name in ("gamma", "lam"):
            number = getattr(self, name)
            require(0 <= number <= 1, f"loss.{name} is {number}; it needs a number in [0, 1].")
        low, high = self.clip
        require(
            0 < low <= 1 and high > 0,
            f"loss.clip is {low} {high}; it needs how far below 1, at most 1, and how far above.",
        )
        require(
            (self.constant is not None) == (self.normalise == "constant"),
            f"loss.normalise is {self.normalise} and loss.constant {self.constant}; give both"
            " (--loss.normalise constant --loss.constant TOKENS) or neither.",
        )
        require(
            self.kl == 0 or self.reference != NONE,
            "loss.kl is measured from a reference, and loss.reference is none; use start, base or"
            " a model (--loss.reference start), or --loss.kl 0.",
        )
        require(
            (self.value > 0) == (self.advantage == "gae"),
            f"loss.advantage is {self.advantage} and loss.value {self.value}; a value head is for"
            " gae alone (--loss.advantage gae --loss.value 0.1).",
        )
        require(
            self.unfinished != "bootstrap" or self.advantage == "gae",
            f"loss.unfinished is bootstrap, which needs values, and loss.advantage is"
            f" {self.advantage}; use count or leave-out (--loss.unfinished count).",
        )
        require(
            self.entropy == 0 or self.vocab_parts == 1,
            f"loss.entropy needs all logits at once, and loss.vocab_parts is {self.vocab_parts};"
            " use --loss.vocab-parts 1 or --loss.entropy 0.",
        )
        require(
            self.vocab_parts >= 1, f"loss.vocab_parts is {self.vocab_parts}; it needs at least 1."
        )

    @property
    def models(self) -> Mapping[str, str]:
        """The reference, where it is another model."""
        return other_reference(self.reference) if self.kl else {}

    def started(self, start: str | None, adapted: bool) -> Policy:
        """Returns the settings with the reference by name, if it is what the run starts from: the
        base of a run that trains adapters, else the model itself."""
        if self.kl == 0:
            return self
        return dataclasses.replace(self, reference=reference_name(self.reference, start, adapted))

    def heads(self, config: ModelConfig) -> Mapping[str, Params]:
        """Returns the value head of `gae`, which expects 0 at first."""
        if self.advantage != "gae":
            return {}
        return {CRITIC: {"kernel": jnp.zeros((config.width, 1)), "bias": jnp.zeros(1)}}

    @property
    def rewarded(self) -> bool:
        """True."""
        return True

    @property
    def compares(self) -> bool:
        """Whether advantages are differences to the other answers."""
        return self.advantage in ("group", "centred", "leave-one-out")

    @property
    def any_sampler(self) -> bool:
        """Only with a correction."""
        return self.correction != "none"

    @property
    def adds(self) -> tuple[str, ...]:
        """What the value head learns."""
        return ("returns",) if self.value > 0 else ()

    def reads(self, updates: int) -> list[str]:
        """Returns what the weights that wrote answers, or the reference, say of them."""
        in_reward = self.kl > 0 and self.kl_in == "reward"
        wanted = {
            "old": self.needs_old(updates) or self.temperature != 1,
            "reference": self.kl > 0 and (updates > 1 or in_reward),
            "drawn": self.correction != "none",
            "values": self.value > 0,
            "sampled": self.temperature != 1,
        }
        return [name for name, needed in wanted.items() if needed]

    def learned(self, batch: Batch, known: Mapping[str, Any], answers: int) -> Batch:
        """Adds advantages, and takes the weights of what is not learned from."""
        from gptjax.losses.policy_presets import with_advantages  # presets are settings of this

        return with_advantages(self, batch, known, answers)

    def needs_old(self, updates: int) -> bool:
        """Whether batches need the column `old`, with so many updates a rollout."""
        in_reward = self.kl > 0 and self.kl_in == "reward"
        return updates > 1 or in_reward or self.correction != "none"

    def build(self, config: ModelConfig, **models: ModelConfig) -> PolicyLoss:
        """Returns the loss for a model; `frozen["reference"]` holds the reference's weights.

        Raises:
          ConfigError: `start` was not replaced by what the run starts from.
        """
        name = self.reference if self.kl else NONE
        return PolicyLoss(config, Reference.of(name, config, models), self)


class Read(NamedTuple):
    """What a model says of the targets of a batch."""

    log_probs: Float[Array, "B T"]
    """ln p at the temperature of the settings; NaN for a target that is no token."""
    entropy: Float[Array, "B T"] | None
    """Of the whole distribution, in nats; `None` with logits in parts."""
    values: Float[Array, "B T"] | None
    """What the value head expects before each target; `None` without one."""


@dataclass(frozen=True)
class PolicyLoss(Loss):
    """The sum of a surrogate over the counted tokens of answers, one answer a row. The weight is
    the number of tokens, or of answers with any.

    Columns of the batch, of each token (`advantages`, `sampled`, `old`, `reference`, `drawn`,
    `values`, `returns`) and of each answer (`reward`, `passed`, `finished`, `judged`, `flat`): see
    `train.rollout`. Without `old` the policy that learns is the one that wrote the answers.

    Metrics, of judged answers: `reward` and `pass_rate`; of all answers: `unfinished` and
    `flat_groups`, shares; of counted tokens: `ratio`, `clip_share`, `sampler_gap`
    (|ln p of the sampler − ln p of the trainer|), with `kl` that estimate, `entropy`, `value_loss`;
    of counted answers: `answer_length`, `right_length` and `wrong_length` in tokens.
    """

    model: ModelConfig
    reference: Reference
    settings: Policy

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        settings = self.settings
        of_tokens = ["ratio", "clip_share", "sampler_gap"]
        of_tokens += ["kl"] * (settings.kl > 0) + ["entropy"] * (settings.vocab_parts == 1)
        of_tokens += ["value_loss"] * (settings.value > 0)
        return {
            "reward": ratio("reward", "judged"),
            "pass_rate": ratio("passed", "judged"),
            "unfinished": ratio("unfinished", "answers"),
            "flat_groups": ratio("flat", "answers"),
            **{name: ratio(name, "tokens") for name in of_tokens},
            "answer_length": ratio("tokens", "counted"),
            "right_length": ratio("right_tokens", "right"),
            "wrong_length": ratio("wrong_tokens", "wrong"),
        }

    def read(self, params: Params, batch: Batch) -> Read:
        """Reads a batch without dropout. `old` and `values` of a batch are what this returns with
        the weights that wrote its answers."""
        return read_targets(self.model, params, batch, self.settings)

    def reference_log_probs(
        self, params: Params, frozen: Frozen, batch: Batch
    ) -> Float[Array, "B T"]:
        """Returns ln p of the targets under the reference, without gradient."""
        config, weights = self.reference.weights(params, frozen)
        plain = dataclasses.replace(self.settings, value=0.0, advantage="reward")
        return read_targets(config, weights, batch, plain).log_probs

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over tokens. The key is not used: dropout would tell the policy from itself."""
        settings, seen = self.settings, self.read(params, batch)
        counted = jnp.asarray(batch.weights) > 0

        def known(values: Array) -> Float[Array, "B T"]:
            return jnp.where(counted, values, 0.0)

        def column(name: str) -> Float[Array, "B T"]:
            return known(column_of(batch, name))

        logp, columns = known(seen.log_probs), batch.columns or {}
        old = column("old") if "old" in columns else jax.lax.stop_gradient(logp)
        losses, figures = self._surrogate(logp, old, column("advantages"), counted)
        if settings.correction != "none":
            cap = settings.correction_cap
            losses = losses * surrogates.truncated(old, column("drawn"), cap)
        if settings.kl:
            given = "reference" in columns
            other = self.reference_log_probs(params, frozen, batch) if not given else None
            reference = column("reference") if other is None else known(other)
            figures["kl"] = surrogates.kl(logp, reference, settings.kl_kind)
            if settings.kl_in == "loss":
                losses = losses + settings.kl * figures["kl"]
        if seen.entropy is not None:
            figures["entropy"] = known(seen.entropy)
            losses = losses - settings.entropy * figures["entropy"] if settings.entropy else losses
        if seen.values is not None:
            before, returns = column("values"), column("returns")
            error = surrogates.value_losses(
                known(seen.values), before, returns, settings.value_clip
            )
            losses, figures["value_loss"] = losses + settings.value * error, error
        figures["sampler_gap"] = jnp.abs(column("sampled") - old)
        scale, weight = self._normaliser(counted)
        sums = {name: jnp.sum(known(x)) for name, x in figures.items()}
        return jnp.sum(known(losses) * scale), weight, sums | sum_facts(batch)

    def _surrogate(
        self, logp: Array, old: Array, advantages: Array, counted: Array
    ) -> tuple[Float[Array, "B T"], dict[str, Array]]:
        """Returns the loss of each token by its advantage, and figures of each token."""
        settings, log_ratio = self.settings, logp - old
        if settings.ratio != "token":
            joint, counts = settings.ratio == "joint", counted.astype(jnp.float32)
            log_ratio = surrogates.of_answer(log_ratio, counts, joint)
            log_ratio = jnp.broadcast_to(log_ratio, logp.shape)
        ratios = surrogates.ratios(log_ratio)
        if settings.surrogate == "clip":
            losses = surrogates.clipped(log_ratio, advantages, *settings.clip)
            clips = surrogates.is_clipped(log_ratio, advantages, *settings.clip)
        elif settings.surrogate == "cispo":
            losses = surrogates.capped(logp, log_ratio, advantages, settings.ceiling)
            clips = ratios > settings.ceiling
        else:
            losses, clips = -advantages * logp, jnp.zeros(logp.shape)
        return losses, {"ratio": ratios, "clip_share": 1.0 * clips}

    def _normaliser(self, counted: Array) -> tuple[Float[Array, "B 1"], Weight]:
        """Returns what a token of each row counts, and the weight of the batch."""
        lengths = jnp.sum(counted, axis=1, keepdims=True, dtype=jnp.float32)
        if self.settings.normalise == "token":
            return jnp.ones_like(lengths), jnp.sum(lengths)
        most = self.settings.constant or jnp.maximum(lengths, 1.0)
        return jnp.ones_like(lengths) / most, jnp.sum(1.0 * (lengths > 0))


def read_targets(config: ModelConfig, params: Params, batch: Batch, settings: Policy) -> Read:
    """Reads the targets of a batch, in float32; see `Read`."""
    hidden = forward_batch(config, params, batch, None).hidden
    values = value_of(params[CRITIC], hidden, settings.value_through) if settings.value else None
    parts, heat = settings.vocab_parts, settings.temperature
    if parts > 1:
        losses = losses_in_parts(config, params, parts, hidden, batch.targets, temperature=heat)
        return Read(-losses, None, values)
    logits = model.unembed(config, params, hidden)
    logits = logits if heat == 1 else logits / heat
    losses = token_losses(logits, jnp.asarray(batch.targets))
    varied = logits if settings.entropy else jax.lax.stop_gradient(logits)
    return Read(-losses, entropies(varied), values)


def entropies(logits: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    """Returns the entropy of each prediction, in nats."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def value_of(
    head: Params, hidden: Float[Array, "B T D"], through: bool = True
) -> Float[Array, "B T"]:
    """Returns the values of a head, float32.

    Args:
      through: gradients reach the hidden states too.
    """
    hidden = hidden if through else jax.lax.stop_gradient(hidden)
    values: Any = hidden.astype(jnp.float32) @ head["kernel"] + head["bias"].reshape(1, 1, 1)
    return values[..., 0]
