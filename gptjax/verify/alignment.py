"""Proofs about learning from conversations and preferences: what counts, what shares a row, what a
loss is before the first step, and that adapters and cached references change nothing.
(Setting) → Figure or Skipped.

Read `prompts` and `counted` (text), `rows` (packing), then the losses, then `adapter`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model, weights
from gptjax.core.trees import combine
from gptjax.data import Batch, batches
from gptjax.data.documents.conversations import Record
from gptjax.data.documents.sources import read_documents
from gptjax.data.store import Store
from gptjax.data.tasks.chat import Chat, Rendered, Writer, render_record
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message
from gptjax.losses import KTO, LossConfig, Preference
from gptjax.losses.answers import NONE, PAIRS, REFERENCE, Compared
from gptjax.losses.pairwise import PAIR_LOSSES, Pair, PairSettings
from gptjax.sharding.mesh import make_mesh
from gptjax.train import optim, references, step
from gptjax.train.optim import Schedule
from gptjax.train.sources import row_plan
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import (
    Figure,
    Functions,
    Setting,
    Skipped,
    apart,
    difference,
    precise,
    sharp,
)
from gptjax.verify.training import LONG, descent, slopes_from

RECORDS = 200
"""Number of records that are read."""
EXAMPLES = 64
"""Number of examples of a store whose reference is computed."""
CACHED = 1e-6
"""Allowed difference of a loss, of 1 or more nats relative to it."""
NO_REFERENCE = Skipped("the loss compares with no reference")


def _records(setting: Setting) -> Iterator[tuple[Record, Writer, Chat]]:
    """The first records of the text, of judged ones each answer with its prompt."""
    task = cast(Chat, setting.experiment.data.task)
    writer = Writer.of(setting.data.tokenizer)
    for document in itertools.islice(read_documents(setting.experiment.data.source), RECORDS):
        for record in task.records_of(document):
            yield record, writer, task


def _written(record: Record, writer: Writer, task: Chat) -> Rendered:
    return render_record(record, writer, task.loss_on)


def _spans(made: Rendered) -> list[tuple[int, int]]:
    """Where counting begins and ends."""
    edges = np.flatnonzero(np.diff(made.counts.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def prompts(setting: Setting) -> Figure | Skipped:
    """Writes the prompt of every answer that counts as `gptjax chat` would: its ids must be those
    with which the whole record begins, up to where counting begins."""
    wrong = answers = 0
    for record, writer, task in _records(setting):
        made, template = _written(record, writer, task), writer.template
        for begin, _ in _spans(made):
            answers += 1
            if not record.messages or template is None:
                bos = writer.tokenizer.begin_of_document
                asked = [] if bos is None else [bos]
                asked += writer.tokenizer.encode(record.prompt).tolist() if record.prompt else []
                wrong += made.ids[: len(asked)].tolist() != asked or begin != max(1, len(asked))
                continue
            starts = {
                tuple(chat.render(template, before, writer.tokenizer, tools=record.tools))
                for before in _befores(record)
            }
            wrong += tuple(made.ids[:begin].tolist()) not in starts
    return Figure(wrong, 0, f"of {answers:,} answers begin elsewhere than their prompt ends")


def _befores(record: Record) -> Iterator[list[Message]]:
    """The messages before each answer of a record."""
    messages = [Message(m["role"], m["content"]) for m in record.messages]
    for n, message in enumerate(messages):
        if message.role == "assistant":
            yield messages[:n]


def counted(setting: Setting) -> Figure | Skipped:
    """What counts must end with an id that ends an answer, and must stay the same whatever the user
    says."""
    wrong = records = 0
    for record, writer, task in _records(setting):
        made = _written(record, writer, task)
        records += 1
        ended = {writer.tokenizer.end_of_document, writer.closing, *writer.ends}
        wrong += sum(int(made.ids[end - 1]) not in ended for _, end in _spans(made))
        if record.messages:
            other = _written(_said_otherwise(record), writer, task)
            wrong += made.ids[made.counts].tolist() != other.ids[other.counts].tolist()
    return Figure(wrong, 0, f"of {records:,} records count something else than answers and ends")


def _said_otherwise(record: Record) -> Record:
    """The record in which the user says more, control tokens among it."""
    messages = tuple(
        {**m, "content": f"{m['content']} <|im_end|></s>?"} if m["role"] == "user" else m
        for m in record.messages
    )
    return record._replace(messages=messages)


def rows(setting: Setting) -> Figure:
    """Reads the examples of a batch in the rows in which training has them, and each alone: their
    losses must agree."""
    batch, f = setting.batch, setting.functions
    assert batch.segments is not None and batch.positions is not None

    def losses(one: Batch) -> np.ndarray:
        return np.asarray(_nats(f, setting.params, one))

    together, far, examples = losses(batch), 0.0, 0
    for row, where, alone in _alone(batch):
        wanted = together[row, where].sum()
        far = max(far, abs(losses(alone)[0].sum() - wanted) / max(1.0, wanted))
        examples += 1
    return Figure(far, ROUNDING, f"relative difference of the loss of {examples} examples alone")


def _nats(f: Functions, params: Any, batch: Batch) -> Any:
    """−ln p of each counted token, 0 elsewhere: [B T]."""
    hidden = f.hidden(params, batch.tokens, batch.positions, batch.segments)
    nats = -jax.nn.log_softmax(f.logits(params, hidden))
    of_targets = jnp.take_along_axis(nats, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
    return of_targets * batch.weights


def _alone(batch: Batch) -> Iterator[tuple[int, np.ndarray, Batch]]:
    """Each example of a batch: its row, its places there, and a batch that holds it alone, at the
    beginning of its first row."""
    assert batch.segments is not None
    for row, segments in enumerate(batch.segments):
        for segment in range(1, int(segments.max()) + 1):
            where = np.flatnonzero(segments == segment)
            alone = jax.tree.map(np.zeros_like, batch)
            assert alone.segments is not None and alone.positions is not None
            alone.positions[:] = -1
            for mine, theirs in zip(alone[:5], batch[:5], strict=True):
                mine[0, : len(where)] = theirs[row, where]
            yield row, where, alone


# --- losses


def _loss(setting: Setting, **changes: Any) -> LossConfig:
    """The loss of the config with another model as its reference, where it has one."""
    loss = setting.small.loss
    if isinstance(loss, Compared) and loss.reference != NONE:
        changes = {"reference": "other", "cached": False} | changes
    return dataclasses.replace(loss, **changes) if changes else loss


def _frozen(loss: LossConfig, params: Any) -> dict[str, Any]:
    return dict.fromkeys(loss.models, params)


def start(setting: Setting) -> Figure | Skipped:
    """Takes the loss of a batch where the policy is its own reference: it is known by hand."""
    loss = _loss(setting)
    if not isinstance(loss, Compared) or loss.reference == NONE:
        return NO_REFERENCE
    if isinstance(loss, Preference) and loss.nll:
        return Skipped("the loss has a further term, nll")
    built = loss.build(setting.exact, reference=setting.exact)
    frozen, params = _frozen(loss, setting.params), setting.params

    @jax.jit
    @precise
    def first(batch: Batch) -> Any:
        return built(params, frozen, built.foresee(params, frozen, batch), None)[:2]

    total, weight = first(setting.batch)
    wanted = _known_start(loss, setting.batch)
    return Figure(
        abs(float(total / weight) / wanted - 1),
        CACHED,
        f"relative difference of the first loss from {wanted:.6f}",
    )


def _known_start(loss: Compared, batch: Batch) -> float:
    """The loss of pairs, or of judged answers, whose gains are all 0."""
    beta = getattr(loss, "beta", 1.0)
    if isinstance(loss, KTO):
        assert batch.columns is not None
        real, good = batch.columns["pairs"], batch.columns["good"]
        shares = np.where(good > 0, loss.good, loss.bad) * real
        return float(0.5 * shares.sum() / real.sum())
    assert isinstance(loss, Preference)
    known = {
        **dict.fromkeys(("sigmoid", "robust"), math.log(2)),
        **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
        **dict.fromkeys(("nca", "bco"), 2 * math.log(2)),
        "ipo": 0.25 / beta**2,
        "sppo": 0.5 / beta**2,
    }
    if loss.loss in known:
        return known[loss.loss]
    zero, one = Pair(jnp.zeros(1), jnp.zeros(1)), Pair(jnp.ones(1), jnp.ones(1))
    settings = PairSettings(beta, loss.smoothing, loss.gamma)
    return float(PAIR_LOSSES[loss.loss](zero, one, settings)[0])


def slope(setting: Setting) -> Figure | Skipped:
    """Takes the gradient of DPO where the policy is its own reference: it is −β/2 of the lead in
    ln p of each chosen answer, here read alone, over the rejected one."""
    loss, f, params = _loss(setting), setting.functions, setting.params
    plain = isinstance(loss, Preference) and loss.loss == "sigmoid" and not loss.smoothing
    if not plain or loss.nll or loss.reference == NONE:
        return Skipped("the loss is not DPO's, without smoothing and further terms")
    built = loss.build(setting.exact, reference=setting.exact)
    frozen = _frozen(loss, params)

    @jax.jit
    @precise
    def gradient(batch: Batch) -> Any:
        def mean(params: Any) -> Any:
            total, weight, _ = built(params, frozen, built.foresee(params, frozen, batch), None)
            return total / weight

        return jax.grad(mean)(params)

    rises = jax.grad(lambda params, alone: -_nats(f, params, alone).sum())
    leads, answers = jax.tree.map(np.zeros_like, params), 0
    for _, where, alone in _alone(setting.batch):
        if len(where):
            sign = 1 if answers % 2 == 0 else -1  # the chosen answer of a pair comes first
            leads = jax.tree.map(lambda x, g, s=sign: x + s * g, leads, rises(params, alone))
            answers += 1
    wanted = jax.tree.map(lambda x: -loss.beta / answers * x, leads)
    far = apart(gradient(setting.batch), wanted)
    return Figure(far, ROUNDING, f"relative difference of the gradient of {answers // 2} pairs")


def split(setting: Setting) -> Figure:
    """Takes a step of the config's loss on a batch whose first row has a pair less, whole and in
    parts."""
    loss, batch, parts = _loss(setting), _uneven(setting.batch), len(setting.batch.tokens)
    built = loss.build(setting.exact, **dict.fromkeys(loss.models, setting.exact))
    frozen = _frozen(loss, sharp(setting.exact, seed=1))
    rate = optim.learning_rate(Schedule("constant", warmup=0), LONG, 10)
    optimizer = optim.build_optimizer(descent(), rate)

    def take(micro_batches: int) -> tuple[step.TrainState, dict[str, Any]]:
        one = functools.partial(
            step.train_step,
            loss=built,
            optimizer=optimizer,
            rate=rate,
            seed=0,
            micro_batches=micro_batches,
            dropout=False,
        )
        begun = step.init(setting.params, optimizer)
        return jax.jit(precise(one))(begun, frozen, batch)

    (whole, metrics), (torn, others) = take(1), take(parts)
    slopes = [slopes_from(setting.params, one.trainable) for one in (whole, torn)]
    far = max(difference(others["loss"], metrics["loss"]), apart(slopes[1], slopes[0]))
    return Figure(far, ROUNDING, f"relative difference of loss and gradient in {parts} parts")


def _uneven(batch: Batch) -> Batch:
    """The batch without the last pair of its first row, so that the mean of the rows' means is
    another than the batch's."""
    if batch.columns is None or PAIRS not in batch.columns:
        return batch  # rows of plain text count unequally many tokens by themselves
    pairs, weights = batch.columns[PAIRS].copy(), batch.weights.copy()
    last = int(np.flatnonzero(pairs[0])[-1])
    pairs[0, last] = 0
    assert batch.segments is not None
    weights[0, np.isin(batch.segments[0], (2 * last + 1, 2 * last + 2))] = 0
    return batch._replace(columns={**batch.columns, PAIRS: pairs}, weights=weights)


def cached(setting: Setting) -> Figure | Skipped:
    """Computes the reference of the first examples once, as `loss.cached` does, and compares the
    loss with that of a reference that is computed with the batch."""
    loss = _loss(setting)
    if not isinstance(loss, Compared) or loss.reference == NONE:
        return NO_REFERENCE
    twin = dataclasses.replace(setting.small, model=setting.exact, loss=loss)
    built = loss.build(setting.exact, reference=setting.exact)
    frozen = _frozen(loss, sharp(setting.exact, seed=1))

    @jax.jit
    @precise
    def measure(batch: Batch) -> Any:
        return jnp.stack(built.reference.sums({}, frozen, batch), axis=-1)

    store = _beginning(setting.data.train)
    known = references.compute(twin, store, make_mesh(twin.mesh), measure, lambda line: None)
    plan = row_plan(twin, store, seed=twin.seed)
    plain = batches.batch(store, plan, 0)
    stored = batches.batch(store._replace(columns={REFERENCE: known}), plan, 0)

    def of(settings: Compared, frozen: dict[str, Any], batch: Batch) -> float:
        made = settings.build(setting.exact, **dict.fromkeys(settings.resident, setting.exact))

        @jax.jit
        @precise
        def total(params: Any, batch: Batch) -> Any:
            sums = made(params, frozen, made.foresee(params, frozen, batch), None)
            return sums[0] / sums[1]

        return float(total(setting.params, batch))

    now, before = of(loss, frozen, plain), of(dataclasses.replace(loss, cached=True), {}, stored)
    return Figure(
        abs(before - now) / max(1.0, abs(now)),
        CACHED,
        f"difference of the loss, {now:.4f}, with a reference of {len(known)} examples kept",
    )


def _beginning(store: Store) -> Store:
    """The first examples of a store."""
    ends = store.offsets[: EXAMPLES + 1]
    header = dataclasses.replace(store.header, num_tokens=int(ends[-1]), num_examples=len(ends) - 1)
    return Store(header, store.ids[: ends[-1]], ends)


def adapter(setting: Setting) -> Figure | Skipped:
    """Puts the config's adapter beside sharp weights: before it is trained it must change no bit,
    and a trained one must be the same merged."""
    settings = setting.experiment.adapter
    if not isinstance(settings, weights.LoRA):
        return Skipped("the config trains no low-rank adapter")
    c, batch = setting.exact, setting.batch
    roles, f = model.roles(c), setting.functions
    trainable, rest = weights.adapt(settings, setting.params, roles, jax.random.key(0))
    begun = combine({"params": rest}, trainable)
    draw = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.1 * draw.standard_normal(leaf.shape), leaf.dtype),
        trainable,
    )
    trained = combine({"params": rest}, moved)

    def read(params: Any) -> np.ndarray:
        return np.asarray(f.hidden(params, batch.tokens, batch.positions, batch.segments))

    if (read(begun) != read(weights.detach(begun)[0])).any():
        return Figure(math.inf, ROUNDING, "an untrained adapter changes the model")
    far = difference(read(weights.merge(trained)), read(trained))
    return Figure(far, ROUNDING, "relative difference of the model with its adapter merged")
