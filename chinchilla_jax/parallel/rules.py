"""The one table that says which mesh axis each logical array axis is split over.

Model code names logical axes; meshes have `data`, `fsdp`, `context` and `tensor`, and if asked for `expert`. To shard a
model otherwise change this table and nothing else; a config does so for its run by `mesh.rules`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from chinchilla_jax.config import ConfigError, MeshConfig, did_you_mean

MESH_AXES = ("data", "fsdp", "context", "tensor")
_ORDER = ("data", "fsdp", "expert", "context", "tensor")  # where a config asks for an `expert` axis

Rule = str | tuple[str, ...] | None
RULES: dict[str, Rule] = {
    # activations
    "microbatch": None,
    "batch": ("data", "fsdp"),
    "length": "context",
    "residual_length": ("context", "tensor"),  # between the blocks nothing needs whole rows
    "activation_embed": None,
    # weights: the model width is split for storage (gathered per layer), the inner widths for tensor parallelism
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": None,
    "router": None,
    "vocab": "tensor",
    "norm": None,
    "layers": None,
}

# On a mesh with an `expert` axis: for everything but experts it is one more axis of data.
EXPERT_RULES: dict[str, Rule] = {"batch": ("data", "fsdp", "expert"), "experts": "expert"}

_IN_FORCE = contextvars.ContextVar("rules", default=RULES)


class ShardingError(ValueError):
    """Logical axes that cannot be laid out on the mesh."""


@contextlib.contextmanager
def rules_of(config: MeshConfig) -> Iterator[None]:
    """Within it the table is that of a config: with its `expert` axis, and with what `mesh.rules` overrides.

    A `ConfigError` names a rule for no logical axis; a `ShardingError` within becomes one if the config has rules.
    """
    table = RULES | EXPERT_RULES if config.expert > 1 else dict(RULES) if config.rules else RULES
    for rule in config.rules:
        logical, _, axes = rule.partition("=")
        if logical not in RULES:
            hint = did_you_mean(logical, RULES)
            raise ConfigError("mesh.rules", f"unknown logical axis {logical!r}{hint}; one of {', '.join(RULES)}")
        table[logical] = tuple(axes.split("+")) if "+" in axes else axes or None
    token = _IN_FORCE.set(table)
    try:
        with nn.logical_axis_rules(list(table.items())):
            yield
    except ShardingError as error:
        if config.rules:
            raise ConfigError("mesh.rules", str(error)) from error
        raise
    finally:
        _IN_FORCE.reset(token)


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names.

    Raises:
      ShardingError: a name is not in the table, or two axes of the array want the same mesh axis.
    """
    rules = _IN_FORCE.get()
    taken: dict[str, str] = {}
    spec: list[Rule] = []
    for name in axes:
        if name is None:
            spec.append(None)
            continue
        if name not in rules:
            raise ShardingError(f"logical axis {name!r} has no rule; known: {', '.join(rules)}")
        for axis in each_axis(rules[name]):
            if axis in taken:
                raise ShardingError(f"axes {axes}: {taken[axis]!r} and {name!r} both map to mesh axis {axis!r}")
            taken[axis] = name
        spec.append(rules[name])
    return PartitionSpec(*spec)


def each_axis(rule: Rule) -> tuple[str, ...]:
    """The mesh axes that an entry of the table, or of a `PartitionSpec`, names."""
    return (rule,) if isinstance(rule, str) else rule or ()


def mesh_axes(*names: str) -> tuple[str, ...]:
    """The mesh axes over which any of these logical axes is split, in the order of the mesh."""
    split = {axis for entry in partition_spec(names) for axis in each_axis(entry)}
    return tuple(axis for axis in _ORDER if axis in split)


def shardings(abstract_state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A `NamedSharding` for every leaf of a state that still carries `nn.LogicallyPartitioned` boxes.

    Leaves without logical axes (scalars, counters) are replicated. Raises a `ShardingError` as `partition_spec` does.
    """
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, partition_spec(tuple(spec))),
        nn.get_partition_spec(abstract_state),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def check_split(abstract_state: Any, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a state of `ShapeDtypeStruct`s with a large array that several of the devices that share it hold whole.

    Raises:
      ShardingError: a leaf of over 1% of all bytes, and a MiB, is not split over all of `fsdp`, `context` and `tensor`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state)
    total = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    devices = math.prod(mesh.shape[axis] for axis in mesh_axes("embed", "heads"))
    for path, leaf in leaves:
        size, held = leaf.size * leaf.dtype.itemsize, math.prod(leaf.sharding.shard_shape(leaf.shape))
        copies = devices * held // max(leaf.size, 1)
        if copies > 1 and size > max(total / 100, 2**20):
            raise ShardingError(
                f"{jax.tree_util.keystr(path)}: {size / 2**20:.0f} MiB, {size / total:.0%} of the state, would be held "
                f"by {copies} devices each; name its axes so that they are split (parallel/rules.py)"
            )
