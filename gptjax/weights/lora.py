"""Settings of low-rank adapters: which weights have one, of which rank, and what trains besides.

Read `LoRA`, then `DoRA`; `adapt` makes of a parameter tree the two that a run has.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Key, Node, Params
from gptjax.core.config import nearest, require
from gptjax.core.trees import leaf_at, partition, path_matches, paths
from gptjax.weights.adapters import Adapter, Adapters, attach, is_adapted, role_at, tree_by_path
from gptjax.weights.storage import store
from gptjax.weights.weight import Adapted, Role, Weight

Base = Literal["float32", "bfloat16", "int8", "int4", "nf4"]
"""Types in which the kernels under an adapter are kept."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank products beside frozen kernels. Source: Hu et al. 2021, arXiv:2106.09685."""

    rank: int = 16
    """Columns of the first factor of each product."""
    alpha: float = 32.0
    """Each product is multiplied by alpha / rank."""
    rs: bool = False
    """Multiply by alpha / √rank instead. Source: Kalajdzievski 2023, rsLoRA, arXiv:2312.03732."""
    dropout: float = 0.0
    """Share of the activations that a product does not see in training."""
    targets: tuple[str, ...] = ("*layers",)
    """Patterns of the weights to adapt, such as `layers/attention/*` or `head`; `gptjax inspect`
    lists the paths. Routers are left out."""
    rank_patterns: tuple[str, ...] = ()
    """PATTERN=RANK of weights with another rank; the last that matches counts."""
    modules_to_save: tuple[str, ...] = ()
    """Patterns of weights that train whole, such as `norm`, and are saved with the adapter; an
    output over classes always does."""
    untie: bool = False
    """Give a model whose output is its embedding an output of its own, so that one of the two can
    be adapted or trained."""
    base: Base = "float32"
    """Type in which the kernels of the layers are kept while the adapter trains and when it is
    opened. Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314."""

    def __post_init__(self) -> None:
        require(
            self.rank >= 1, f"adapter.rank is {self.rank}; it needs 1 or more (--adapter.rank)."
        )
        require(
            0 <= self.dropout < 1,
            f"adapter.dropout is {self.dropout}; it needs a share in [0, 1) (--adapter.dropout).",
        )
        require(
            math.isfinite(self.alpha) and self.alpha != 0,
            f"adapter.alpha is {self.alpha}; it needs another number, or nothing would train.",
        )
        require(
            bool(self.targets or self.modules_to_save),
            "adapter.targets is empty, so nothing would train; name some (--adapter.targets).",
        )
        for pattern in self.rank_patterns:
            name, _, rank = pattern.rpartition("=")
            require(
                bool(name) and rank.isdigit() and int(rank) >= 1,
                f"adapter.rank_patterns has {pattern!r}; it needs PATTERN=RANK, such as"
                " 'layers/mlp=4' (--adapter.rank-patterns).",
            )

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{type(self).__name__} of rank {self.rank}, alpha {self.alpha:g}"

    @property
    def magnitudes(self) -> bool:
        """Whether the lengths of columns train apart."""
        return False

    def scale(self, rank: int) -> float:
        """What multiplies a product of this rank."""
        return self.alpha / (math.sqrt(rank) if self.rs else rank)

    def rank_of(self, path: str) -> int:
        """The rank of the adapter at a path."""
        ranks = [p.rpartition("=") for p in self.rank_patterns]
        return [self.rank, *(int(r) for name, _, r in ranks if path_matches(path, name))][-1]

    def init(self, params: Params, roles: Any, key: Key) -> Adapters:
        """Initial adapters, whose products are zero: `a` is uniform in ± 1/√inputs and `b` zero; of
        a table `a` is zero and `b` normal, so that only rows that are read change.

        Args:
          roles: `model.roles(config)`.

        Raises:
          ConfigError: a pattern meets no weight that can have an adapter.
        """
        able = adaptable(params, roles)
        chosen = _met("targets", self.targets, able)
        _met("rank_patterns", [p.rpartition("=")[0] for p in self.rank_patterns], chosen)
        keys = dict(zip(able, jax.random.split(key, len(able)), strict=True))
        return tree_by_path(
            {path: self._one(path, able[path], role_at(roles, path), keys[path]) for path in chosen}
        )

    def _one(self, path: str, weight: Weight, role: Role, key: Key) -> Adapter:
        rank, table = self.rank_of(path), role.inputs == 0
        border = role.stacked + (role.inputs or 1)
        lead, outputs = weight.shape[: role.stacked], weight.shape[border:]
        of_a, of_b = (*weight.shape[:border], rank), (*lead, rank, *outputs)
        if table:
            a, b = jnp.zeros(of_a), jax.random.normal(key, of_b)
        else:
            bound = math.prod(weight.shape[role.stacked : border]) ** -0.5
            a = jax.random.uniform(key, of_a, minval=-bound, maxval=bound)
            b = jnp.zeros(of_b)
        if not self.magnitudes or table:
            return Adapter(a, b, self.scale(rank))
        lengths = jnp.zeros((*lead, *outputs))  # `attach` needs its shape alone
        squares = attach(weight, Adapter(a, b, magnitude=lengths)).squares
        return Adapter(a, b, self.scale(rank), jnp.sqrt(squares))


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA that trains the lengths of columns apart. Source: Liu et al. 2024, arXiv:2402.09353."""

    @property
    def magnitudes(self) -> bool:
        """Whether the lengths of columns train apart."""
        return True


def adaptable(params: Node, roles: Any) -> dict[str, Weight]:
    """The weights that can have an adapter, by path: kernels other than routers', and tables that
    tokens are looked up in."""
    if isinstance(roles, Role):
        return {"": params} if roles.inputs and not roles.exact else {}
    found: dict[str, Weight] = {}
    for name, tree in params.items():
        if name == "embedding" and roles.get(name) == Role(decays=True):
            found[name] = tree
        for path, weight in adaptable(tree, roles[name]).items():
            found[f"{name}/{path}".rstrip("/")] = weight
    return found


def _met(setting: str, patterns: Any, known: Any) -> list[str]:
    """The paths that patterns match; each has to match one."""
    for pattern in patterns:
        require(
            any(path_matches(path, pattern) for path in known),
            f"adapter.{setting} names {pattern!r}, which meets no weight that can have one; use a"
            f" path such as {next(iter(known), 'layers')!r}"
            f" (--adapter.{setting.replace('_', '-')}).{nearest(pattern, known)}",
        )
    return [path for path in known if any(path_matches(path, pattern) for pattern in patterns)]


def adapt(settings: LoRA, params: Params, roles: Any, key: Key) -> tuple[Params, Params]:
    """What trains of a model with an adapter and what is frozen, as `core.trees.partition` gives
    them; the initial model computes what the base does.

    Raises:
      ConfigError: a pattern meets no weight, or the same weight is to be adapted and trained.
    """
    names = paths(params)
    whole = _met("modules_to_save", settings.modules_to_save, names)
    stored = params
    if settings.base != "float32":
        stored = store(params, roles, settings.base, layers_only=True)
        stored = with_leaves(stored, {path: leaf_at(params, path) for path in whole})
    adapters = settings.init(stored, roles, key) if settings.targets else {}
    tree = attach(stored, adapters, dropout=settings.dropout)
    both = [path for path in whole if is_adapted(leaf_at(tree, path))]
    require(
        not both,
        f"adapter.modules_to_save and adapter.targets both name {', '.join(both[:3])}; keep one"
        " (--adapter.targets).",
    )
    return partition(tree, _trains(tree, set(whole)))


def _trains(tree: Any, whole: set[str], where: str = "") -> Any:
    """Booleans like a tree: whether each leaf trains."""
    if isinstance(tree, Adapted):
        flags = jax.tree.map(lambda leaf: False, tree)
        lengths = None if tree.magnitude is None else True
        return dataclasses.replace(flags, a=True, b=True, magnitude=lengths)
    if not isinstance(tree, dict):
        return jax.tree.map(lambda leaf: where in whole, tree)
    return {
        name: _trains(part, whole, f"{where}/{name}".lstrip("/")) for name, part in tree.items()
    }


def with_leaves(tree: Any, leaves: dict[str, Any], where: str = "") -> Any:
    """The tree with these leaves in place of its own."""
    if where in leaves:
        return leaves[where]
    if not isinstance(tree, dict):
        return tree
    return {
        name: with_leaves(part, leaves, f"{where}/{name}".lstrip("/"))
        for name, part in tree.items()
    }
