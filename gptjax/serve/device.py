"""The rows of a server on their device: the state that the programs of `slots` change, beside the
prefix cache and the tables of constraints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import hash_tokenizer
from gptjax.generate.batch import Job as Row
from gptjax.generate.batch import columns
from gptjax.generate.constraints import Place, TokenAutomaton, insert
from gptjax.generate.engine import Slots, with_constraint
from gptjax.generate.follow import Answer, answers_of
from gptjax.model import Soft
from gptjax.serve import slots
from gptjax.serve.jobs import Job, spare_job
from gptjax.serve.prefixes import Prefixes, block_keys
from gptjax.serve.slots import (
    PART,
    padded_ids,
    reach_of,
    reaches,
    reading_reaches,
    room_of,
    width_of,
)
from gptjax.sharding.constrain import use_mesh
from gptjax.weights import choose_adapter

if TYPE_CHECKING:
    from gptjax.api import Model
    from gptjax.serve.engine_config import EngineConfig


class Device:
    """Rows, and what the programs need beside them. Only the engine's thread may call it."""

    def __init__(self, model: Model, settings: EngineConfig) -> None:
        _require_served(model)
        self.model, self.settings = model, settings
        self.config, self.params = model.config, model.params
        self.room = room_of(settings.context, bool(model.adapters), settings.kv_cache)
        self.vocabulary = np.int32(model.tokenizer.vocab_size)
        self.fingerprint = _fingerprint(model, settings)
        self.prefixes = Prefixes(int(settings.cache_gib * 2**30))
        self.reopen()
        cache = self.slots.decoding.cache
        rings = any(group.at_once is not None for group in cache.groups)
        self.keeps_prefixes = settings.cache_gib > 0 and not rings and cache.states is None
        """Layers with a window keep only the last tokens, and recurrent ones only a state, of which
        no beginning can be made."""

    def reopen(self) -> None:
        """Empties all rows."""
        with use_mesh(self.model.mesh):
            self.slots = slots.open_slots(
                self.config, self.model.tokenizer, self.settings.slots, self.room
            )
        self.places: list[Place | None] = [None] * self.settings.slots
        self.lengths = [0] * self.settings.slots
        """Tokens of each row that writes."""
        self.slot_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.slots.decoding.cache))

    # --- one request

    def require_room(self, automaton: TokenAutomaton | None) -> None:
        """Refuses a constraint that is larger than the tables for all of them.

        Raises:
          ConfigError: it is.
        """
        if automaton is None:
            return
        states, masks = len(automaton.table), len(automaton.masks)
        require(
            states < slots.STATES and masks < slots.MASKS,
            f"the constraint has {states} states and {masks} sets of tokens, and the server keeps"
            f" {slots.STATES} and {slots.MASKS}; use a smaller schema or expression.",
        )

    def place(self, row: int, job: Job) -> int:
        """Makes a row ready, and restores what the prefix cache has; returns how many tokens."""
        self.clear(row)
        shown = job.ask.shown
        job.seen = None if shown is None else self._seen(shown.pixels)
        if self.keeps_prefixes:
            request, ids = job.ask.request, job.ids[: job.to_read]
            job.keys = block_keys(
                ids,
                model=self.fingerprint,
                adapter=request.adapter,
                salt=job.ask.salt,
                shown=b"" if shown is None else shown.digest,
            )
        # scores and embeddings need the hidden states of all tokens
        known = [] if job.embeds or job.scores else self.prefixes.longest(job.keys)
        for number, block in enumerate(known):
            with use_mesh(self.model.mesh):
                start = _int(PART * number)
                self._decoding(slots.put_block(self.slots.decoding, _int(row), start, block))
        return PART * len(known)

    def read(self, row: int, job: Job, start: int, count: int) -> None:
        """Reads a part of its prompt."""
        ids, width = job.ids[start : start + count], width_of(count)
        adapter = None if job.ask.request.adapter is None else _int(job.ask.request.adapter)
        with use_mesh(self.model.mesh):
            decoding, hidden = slots.read_part(
                self.config,
                self.params,
                self.slots.decoding,
                _int(row),
                padded_ids(ids, width),
                _int(start),
                _int(count),
                adapter,
                self._soft(job, start, width),
                reach=reach_of(start + width, reading_reaches(width, self.settings.context)),
            )
            self._decoding(decoding)
            if job.embeds:
                job.pooled = job.pooled + np.asarray(hidden[:count], np.float32).sum(axis=0)
            if job.scores:
                following = padded_ids(job.ids[start + 1 : start + 1 + count], width)
                found = slots.score_part(
                    self.config, self._of(adapter), hidden, following, self.vocabulary
                )
                job.scored.append(tuple(np.array(leaf)[:count] for leaf in found))
            if count == PART and job.keys and job.keys[start // PART] not in self.prefixes:
                block = slots.block_of(self.slots.decoding.cache, _int(row), _int(start))
                self.prefixes.add(job.keys[start // PART], block)

    @property
    def _sees(self) -> bool:
        return self.config.vision is not None and self.config.vision.frames == 1

    def _seen(self, pixels: np.ndarray) -> np.ndarray:
        """The embeddings of pictures, each read by itself [I·Q D]."""
        with use_mesh(self.model.mesh):
            each = [slots.see(self.config, self.params, one[None, None])[0] for one in pixels]
        return np.concatenate([np.asarray(one, np.float32) for one in each])

    def _soft(self, job: Job | None, start: int, width: int) -> Soft | None:
        """The embeddings of pictures that stand in a part, and where; of models that read none
        nothing, of others always as many, so that all parts have one program."""
        if not self._sees:
            return None
        index = np.full((1, width), -1, np.int32)
        values = np.zeros((1, width, self.config.entrance_dim), np.float32)
        if job is not None and job.seen is not None and job.ask.shown is not None:
            places = job.ask.shown.places - start
            inside = (places >= 0) & (places < width)
            index[0, : inside.sum()] = places[inside]
            values[0, : inside.sum()] = job.seen[inside]
        return Soft(values, index)

    def _of(self, adapter: np.int32 | None) -> Any:
        return self.params if adapter is None else choose_adapter(self.params, int(adapter))

    def begin(self, row: int, job: Job) -> bool:
        """Lets a row write whose prompt was read; false if the tables of constraints are full."""
        columns_of, tokenizer = self.slots.columns, self.model.tokenizer
        shaping = columns_of.sampling.shaping
        assert shaping is not None and shaping.constraint is not None
        with use_mesh(self.model.mesh):
            constraint, places = insert(
                shaping.constraint, row, job.automaton, job.limit, self.places
            )
            if constraint.table.shape != shaping.constraint.table.shape or (
                constraint.masks.shape != shaping.constraint.masks.shape
            ):
                return False
            self.places = places
            request = job.ask.request
            one = columns(self.config, tokenizer, [Row(request, job.ask.sample)], self.room)
            decoding, whole = slots.begin(
                self.slots.decoding,
                with_constraint(columns_of, constraint),
                _int(row),
                padded_ids(job.ids, self.room.slots),
                _int(len(job.ids)),
                _int(job.limit),
                one,
            )
        self.slots = Slots(decoding, whole)
        self.lengths[row] = len(job.ids)
        return True

    def write(self, jobs: Mapping[int, Job], steps: int) -> dict[int, Answer]:
        """Writes up to `steps` tokens in every row that writes; gives what these have written."""
        reach = reach_of(max(self.lengths) + steps, reaches(self.settings.context))
        with use_mesh(self.model.mesh):
            decoding, whole = self.slots
            self._decoding(
                slots.write_tokens(
                    self.config,
                    self.params,
                    decoding,
                    whole,
                    _int(steps),
                    self.vocabulary,
                    reach=reach,
                )
            )
        asked = {row: job.ask.request for row, job in jobs.items()}
        found = answers_of(self.slots.text, self.model.tokenizer, asked)
        for row, one in found.items():
            self.lengths[row] = len(jobs[row].ids) + len(one.ids)
        return found

    def clear(self, row: int) -> None:
        """Empties a row."""
        with use_mesh(self.model.mesh):
            self._decoding(slots.clear(self.slots.decoding, _int(row)))
        self.places[row], self.lengths[row] = None, 0

    def _decoding(self, decoding: Any) -> None:
        self.slots = self.slots._replace(decoding=decoding)

    # --- before requests come

    def warm_up(self) -> Iterator[None]:
        """Compiles every program that a request may need, one at a time, the most common first.
        All rows must be free, and are so afterwards."""
        widths = sorted(slots.TAILS, key=lambda width: (width not in (16, PART), width))
        spare = spare_job(-1 if self.model.adapters else None)
        context, scored = self.settings.context, set[int]()
        reading = {width: reading_reaches(width, context) for width in widths}
        if self._sees:
            self._seen(np.zeros((1, *self.config.vision.size, 3), np.uint8))
            yield
        for reach in reaches(context):
            self.begin(0, spare)
            self._warm_write(reach)
            yield
            for width in [w for w in widths if w < 2 * reach and reach in reading[w]]:
                hidden = self._warm_read(width, reach)
                yield
                if width not in scored:
                    none = np.zeros(width, np.int32)
                    slots.score_part(self.config, self.params, hidden, none, self.vocabulary)
                    scored.add(width)
                    yield
        if self.keeps_prefixes and self.settings.context >= PART:
            block = slots.block_of(self.slots.decoding.cache, _int(0), _int(0))
            self._decoding(slots.put_block(self.slots.decoding, _int(0), _int(0), block))
            self.clear(0)
            yield
        yield from self._warm_tables()

    def _warm_read(self, width: int, reach: int) -> Any:
        """Reads no token."""
        adapter = _int(-1) if self.model.adapters else None
        with use_mesh(self.model.mesh):
            decoding, hidden = slots.read_part(
                self.config,
                self.params,
                self.slots.decoding,
                _int(0),
                padded_ids([], width),
                _int(0),
                _int(0),
                adapter,
                self._soft(None, 0, width),
                reach=reach,
            )
        self._decoding(decoding)
        return hidden

    def _warm_write(self, reach: int) -> None:
        """Writes no token."""
        decoding, whole = self.slots
        with use_mesh(self.model.mesh):
            decoding = slots.write_tokens(
                self.config,
                self.params,
                decoding,
                whole,
                _int(0),
                self.vocabulary,
                reach=reach,
            )
        self._decoding(decoding)

    def _warm_tables(self) -> Iterator[None]:
        """Inserts automata of every size that is padded to, and forgets them."""
        size = 64
        while size < slots.STATES:
            constraint = self.slots.columns.sampling.shaping.constraint
            masks = np.zeros((min(size, slots.MASKS - 1), constraint.masks.shape[1]), np.int32)
            states, table = np.zeros(size, np.int32), np.full((size, 256), -1, np.int32)
            made = TokenAutomaton(masks, masks, states, states, table, 0)
            insert(constraint, 0, made, 0, self.places)
            size *= 4
            yield


def _require_served(model: Model) -> None:
    """Refuses models that don't write one token after another."""
    config = model.config
    require(
        config.causal and not config.classes and not config.prefix_lm and not config.has_encoder,
        "serve needs a model that reads and writes one token after another: no encoder, no prefix"
        " LM and no classifier; use gptjax sample.",
    )


def _fingerprint(model: Model, settings: EngineConfig) -> str:
    """A short name of everything that an answer depends on beside its request."""
    told = repr((model.config, settings.slots, settings.kv_cache, slots.PART, slots.TAILS))
    whole = hashlib.sha256(told.encode())
    whole.update(hash_tokenizer(model.tokenizer).encode())
    whole.update(f"{jax.__version__} {jax.default_backend()} {model.adapters}".encode())
    for leaf in jax.tree.leaves(model.params):
        whole.update(f"{leaf.shape} {leaf.dtype}".encode())
        whole.update(np.asarray(leaf.reshape(-1)[:64]).tobytes())
    return whole.hexdigest()[:16]


def _int(value: int) -> np.int32:
    return np.int32(value)


_COMPILED = [0]


def _count(event: str, *_: Any, **__: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED[0] += 1


def compiles() -> int:
    """The number of programs that this process has compiled since this module was loaded."""
    return _COMPILED[0]


jax.monitoring.register_event_duration_secs_listener(_count)
