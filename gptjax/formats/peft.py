"""Adapters of PEFT, read and written: adapter_config.json and adapter_model.safetensors.

Read `read_peft` and `write_peft`; `peft_layout` says how factors lie in their files. Whatever would
change the product and isn't known is refused by name.

Source: the files that PEFT 0.21.2 writes.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.core.config import require
from gptjax.core.trees import leaf_at
from gptjax.formats import layout, safetensors
from gptjax.formats.huggingface_files import read_object
from gptjax.formats.layout import Place
from gptjax.formats.opened import OpenedModel
from gptjax.formats.peft_config import Settings, pattern_value, read_settings, write_settings
from gptjax.formats.peft_layout import (
    Weights,
    conv1d,
    factors,
    shared_part,
    weights_of,
    with_padding,
)
from gptjax.weights import Adapter, Adapters
from gptjax.weights.adapters import by_path, role_at, tree_by_path

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def is_peft(path: Path) -> bool:
    """Whether a path is a directory with an adapter of PEFT."""
    return path.is_dir() and (path / CONFIG).is_file()


def base_named_by(path: Path) -> str:
    """The model that an adapter names as its base: a path, seen from the adapter's directory if it
    leads somewhere from there.

    Raises:
      ConfigError: it names none.
    """
    name = read_object(path, CONFIG).get("base_model_name_or_path")
    require(
        isinstance(name, str) and bool(name),
        f"{path / CONFIG} names no base model; write its path as base_model_name_or_path.",
    )
    return str(path / name) if (path / name).exists() else name


class PeftAdapter(NamedTuple):
    """An adapter as its files describe it."""

    adapters: Adapters
    whole: dict[str, Any]
    """Weights that trained whole, by path (`modules_to_save`)."""
    settings: Settings


# --- reading


def read_peft(path: Path, base: OpenedModel) -> PeftAdapter:
    """Reads an adapter of a model.

    Raises:
      ConfigError: a key or tensor is unknown, a target meets nothing, ranks or shapes disagree, or
        the adapter computes something that ours don't; names it.
    """
    settings = read_settings(path / CONFIG, read_object(path, CONFIG))
    file = safetensors.File(path / TENSORS)
    known = weights_of(base)
    modules: dict[str, dict[str, str]] = collections.defaultdict(dict)
    whole: dict[str, str] = {}
    for name in file.tensors:
        require(
            name.startswith(PREFIX),
            f"{path / TENSORS} has {name}, which is no tensor of an adapter.",
        )
        module, kind = _kind(name.removeprefix(PREFIX))
        if kind:
            modules[module][kind] = name
        else:
            whole[module] = name
    pieces: dict[str, dict[tuple[int, ...], _Piece]] = collections.defaultdict(dict)
    for module, names in modules.items():
        place = known.places.get(module)
        able = place is not None and all(part in known.inputs for part, _ in place.parts)
        require(
            able,
            f"{path / TENSORS} adapts {module}, which is no weight of this model that can have an"
            " adapter; take it out of target_modules.",
        )
        for part, index, piece in _pieces(path, base, known, settings, module, names, file.take):
            pieces[part][index] = piece
    _require_met(path, settings, modules)
    adapters = tree_by_path({part: _stack(base, known, part, own) for part, own in pieces.items()})
    _require_untied(path, base, adapters)
    return PeftAdapter(adapters, _whole(path, base, known, whole, file), settings)


def _kind(name: str) -> tuple[str, str]:
    """The module of a tensor and what of its product it holds; empty for a weight that trained
    whole."""
    match = re.fullmatch(
        r"(.*)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B)|(lora_magnitude_vector)(?:\.weight)?)",
        name,
    )
    if match is None:
        return name, ""
    module, *kinds = match.groups()
    kind = next(filter(None, kinds))
    return module, "magnitude" if kind == "lora_magnitude_vector" else kind


class _Piece(NamedTuple):
    """The factors of one weight of a stack."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None


def _pieces(
    path: Path,
    base: OpenedModel,
    known: Weights,
    settings: Settings,
    module: str,
    names: dict[str, str],
    take: Any,
) -> Iterator[tuple[str, tuple[int, ...], _Piece]]:
    """Yields path, index and factors of each weight that a module of theirs holds."""
    place, padding = known.places[module], base.about.padding
    missing = {"A", "B"} | ({"magnitude"} if settings.dora else set())
    inputs = known.inputs[place.parts[0][0]]
    missing -= {"magnitude"} if inputs == 0 else set()
    require(
        names.keys() == missing,
        f"{path / TENSORS} has {', '.join(sorted(names))} of {module}, and needs"
        f" {', '.join(sorted(missing))} (use_dora is {settings.dora}); get it again.",
    )
    given = {kind: np.asarray(take(name), np.float32) for kind, name in names.items()}
    rank = pattern_value(settings.rank_pattern, module, settings.rank)
    where = factors(place, inputs, (rank,) * len(place.parts))
    require(where is not None, f"{path} adapts {module}, which is several of our weights here.")
    for kind, wanted in (("A", where.a), ("B", where.b), ("magnitude", where.magnitude)):
        shape = layout.their_shape(shared_part(wanted) if kind == "A" else wanted, padding)
        found = given[kind].shape if kind in given else shape
        require(
            found == shape,
            f"{path / TENSORS} has {names.get(kind)} of shape {list(found)}, and rank {rank} of"
            f" {module} needs {list(shape)}; get it again.",
        )
    scale = settings.scale(rank, pattern_value(settings.alpha_pattern, module, settings.alpha))
    for number, (part, index) in enumerate(place.parts):
        a = layout.from_theirs(shared_part(where.a), 0, given["A"])
        b = layout.from_theirs(where.b, number, given["B"])
        lengths = given.get("magnitude")
        if lengths is not None:
            lengths = layout.from_theirs(where.magnitude, number, lengths)
        yield part, index, _Piece(a, b, scale, lengths)


def _stack(
    base: OpenedModel, known: Weights, path: str, pieces: Mapping[tuple[int, ...], _Piece]
) -> Adapter:
    """One of our adapters of the pieces of its stack; the product of a missing piece is zero, and
    smaller ranks are filled with zeros."""
    shape, role = layout.leaf_shapes(base.config)[path].shape, role_at(known.roles, path)
    count = role.inputs or 1
    border, rank = role.stacked + count, max(piece.a.shape[-1] for piece in pieces.values())
    scale = next(iter(pieces.values())).scale
    a = np.zeros((*shape[:border], rank), np.float32)
    b = np.zeros((*shape[: role.stacked], rank, *shape[border:]), np.float32)
    lengths = np.full((*shape[: role.stacked], *shape[border:]), np.nan, np.float32)
    for index, piece in pieces.items():
        own = piece.a.shape[-1]
        a[index][..., :own] = piece.a
        b[index][:own] = piece.b * np.float32(piece.scale / scale)
        if piece.magnitude is not None:
            lengths[index] = piece.magnitude
    dora = any(piece.magnitude is not None for piece in pieces.values())
    return Adapter(jnp.asarray(a), jnp.asarray(b), scale, jnp.asarray(lengths) if dora else None)


def _whole(
    path: Path, base: OpenedModel, known: Weights, names: dict[str, str], file: safetensors.File
) -> dict[str, Any]:
    """Weights that trained whole, as leaves of ours: what the file lacks of one is the base's."""
    leaves: dict[str, np.ndarray] = {}
    for module, name in names.items():
        copy = module.endswith(".base_layer.weight")
        place = known.places.get(module.replace(".base_layer", "").removesuffix(".weight"))
        require(
            place is not None,
            f"{path / TENSORS} has {name}, which is no weight of this model; get another adapter,"
            " or another base.",
        )
        value = np.asarray(file.take(name), np.float32)
        wanted = layout.their_shape(place, base.about.padding)
        require(
            value.shape == wanted,
            f"{path} has {name} of shape {list(value.shape)}, which should be {list(wanted)}.",
        )
        for number, (part, index) in enumerate(place.parts):
            ours = layout.from_theirs(place, number, value) + np.float32(place.entry.plus)
            own = np.asarray(leaf_at(base.params, part))
            require(
                not copy or np.array_equal(own[index], ours),
                f"{path} holds a copy of {module}, and the base has other values there; the adapter"
                " belongs to another model.",
            )
            if not copy:
                leaves.setdefault(part, own.copy())[index] = ours
    return {part: jnp.asarray(leaf) for part, leaf in leaves.items()}


def _require_met(path: Path, settings: Settings, modules: Mapping[str, Any]) -> None:
    """Refuses targets of which the file has no tensor."""
    for target in settings.targets:
        met = any(module == target or module.endswith(f".{target}") for module in modules)
        require(
            met,
            f"{path / CONFIG} targets {target!r}, of which {TENSORS} has nothing; take it out of"
            " target_modules, or get the file again.",
        )


def _require_untied(path: Path, base: OpenedModel, adapters: Adapters) -> None:
    require(
        not (base.config.tied and "embedding" in adapters),
        f"{path} adapts the embedding, which in this model is the output too, and PEFT adapts one"
        " of the two; untie the base first.",
    )


# --- writing


def write_peft(path: Path, base: OpenedModel, adapter: PeftAdapter) -> None:
    """Writes an adapter of a model as PEFT reads it.

    Weights that PEFT's model keeps as one become one product: with one first factor if they share
    it, else with a rank that is the sum of theirs.

    Raises:
      ConfigError: the path holds something, or PEFT can't express the adapter.
    """
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(empty, f"{path} holds something already; give a directory that does not exist yet.")
    known, flat = weights_of(base), by_path(adapter.adapters)
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, tuple[int, float]] = {}
    covered: set[str] = set()
    for module, place in known.places.items():
        if any(part in flat for part, _ in place.parts):
            covered |= {part for part, _ in place.parts}
            made = _theirs(known, flat, place, base.about.padding)
            if made is not None:
                scales[module] = made.a.shape[0], made.scale
                table = known.inputs[place.parts[0][0]] == 0
                names = (
                    ("lora_embedding_A", "lora_embedding_B")
                    if table
                    else ("lora_A.weight", "lora_B.weight")
                )
                tensors[f"{PREFIX}{module}.{names[0]}"] = made.a
                tensors[f"{PREFIX}{module}.{names[1]}"] = made.b
                if made.magnitude is not None:
                    tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = made.magnitude
        if any(part in adapter.whole for part, _ in place.parts):
            parts = [np.asarray(adapter.whole[part][index]) for part, index in place.parts]
            value = layout.to_theirs(place, parts) - np.float32(place.entry.plus)
            tensors[PREFIX + place.name] = with_padding(place, value, base.about.padding)
    lost = flat.keys() - covered
    require(not lost, f"PEFT has no module for {', '.join(sorted(lost))}; merge it (--merge).")
    path.mkdir(parents=True, exist_ok=True)
    whole = sorted(name for name in known.places if f"{PREFIX}{name}.weight" in tensors)
    config = write_settings(adapter.settings, scales, list(known.places), whole, base.config)
    config["fan_in_fan_out"] = conv1d(known, scales)
    shapes = {name: value.shape for name, value in sorted(tensors.items())}
    values = sorted(tensors.items())
    safetensors.write_safetensors(path / TENSORS, shapes, values, "float32", {"format": "pt"})
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _theirs(
    known: Weights, flat: Mapping[str, Adapter], place: Place, padding: int
) -> _Piece | None:
    """The product of one of their modules; `None` if it is zero because nothing was adapted."""
    inputs = known.inputs[place.parts[0][0]]
    pieces = [_own(flat.get(part), index) for part, index in place.parts]
    present = [piece for piece in pieces if piece is not None]
    if not present:
        return None
    scale = present[0].scale
    ranks = tuple(0 if piece is None else piece.a.shape[-1] for piece in pieces)
    same = len(present) == len(pieces) and all(
        piece.scale == scale and np.array_equal(piece.a, present[0].a) for piece in present
    )
    total = ranks[0] if same else sum(ranks)
    where = factors(place, inputs, (total,) * len(pieces))
    require(
        where is not None and (len(pieces) == 1 or all(p.magnitude is None for p in present)),
        f"PEFT has {place.name} as one weight, which can't have this adapter; merge it (--merge).",
    )
    a = present[0].a if same else np.concatenate([piece.a for piece in present], axis=-1)
    parts, begin = [], 0
    for piece, rank, shape in zip(pieces, ranks, where.b.shapes, strict=True):
        b = np.zeros(shape, np.float32)
        if piece is not None:
            at = 0 if same else begin
            b[at : at + rank] = piece.b * np.float32(piece.scale / scale)
        begin += rank
        parts.append(b)
    lengths = None
    if present[0].magnitude is not None:
        lengths = layout.to_theirs(where.magnitude, [piece.magnitude for piece in present])
        lengths = with_padding(where.magnitude, lengths, padding)
    return _Piece(
        with_padding(where.a, layout.to_theirs(shared_part(where.a), [a]), padding),
        with_padding(where.b, layout.to_theirs(where.b, parts), padding),
        scale,
        lengths,
    )


def _own(adapter: Adapter | None, index: tuple[int, ...]) -> _Piece | None:
    """The factors of one weight of a stack, without columns that are zero in both; `None` if that
    leaves none."""
    if adapter is None:
        return None
    a, b = np.asarray(adapter.a)[index], np.asarray(adapter.b)[index]
    used = a.reshape(-1, a.shape[-1]).any(0) | b.reshape(len(b), -1).any(1)
    rank = int(used.nonzero()[0].max(initial=-1)) + 1
    lengths = None if adapter.magnitude is None else np.asarray(adapter.magnitude)[index]
    return _Piece(a[..., :rank], b[:rank], adapter.scale, lengths) if rank else None
