"""The one table that says which mesh axis each logical array axis is split over.

Model code names logical axes; meshes have `data`, `fsdp`, `context` and `tensor`. Changing how a model is sharded means
changing this table and nothing else; a config does so for its run by `mesh.rules`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from chinchilla_jax.config import ConfigError, MeshConfig, did_you_mean

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
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
    "vocab": "tensor",
    "norm": None,
    "layers": None,
}


_IN_FORCE = contextvars.ContextVar("rules", default=RULES)


class ShardingError(ValueError):
    """Logical axes that cannot be laid out on the mesh."""


@contextlib.contextmanager
def rules_of(config: MeshConfig) -> Iterator[None]:
    """Within it the table is that of a config: with what `mesh.rules` overrides.

    Raises:
      ConfigError: a rule for no logical axis; or the rules of the config lead to a `ShardingError` within.
    """
    table = dict(RULES)
    for rule in config.rules:
        logical, _, axes = rule.partition("=")
        if logical not in RULES:
            raise ConfigError(
                "mesh.rules",
                f"unknown logical axis {logical!r}{did_you_mean(logical, RULES)}; one of {', '.join(RULES)}",
            )
        table[logical] = tuple(axes.split("+")) if "+" in axes else axes or None
    token = _IN_FORCE.set(table if config.rules else RULES)
    try:
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
    spec = []
    for name in axes:
        if name is not None and name not in rules:
            raise ShardingError(f"logical axis {name!r} has no rule; known: {', '.join(rules)}")
        mesh_axes = None if name is None else rules[name]
        for mesh_axis in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
            if mesh_axis in taken:
                raise ShardingError(
                    f"axes {axes}: {taken[mesh_axis]!r} and {name!r} both map to mesh axis {mesh_axis!r}"
                )
            taken[mesh_axis] = name
        spec.append(mesh_axes)
    return PartitionSpec(*spec)


def mesh_axes(*names: str) -> tuple[str, ...]:
    """The mesh axes over which any of these logical axes is split, in the order of the mesh."""
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in partition_spec(names)]
    return tuple(axis for axis in MESH_AXES if any(axis in entry for entry in entries))


def flax_rules() -> list[tuple[str, str | tuple[str, ...] | None]]:
    """The table in the form `flax.linen.logical_axis_rules` takes."""
    return list(_IN_FORCE.get().items())


def shardings(abstract_state, mesh: Mesh):
    """A `NamedSharding` for every leaf of a state that still carries `nn.LogicallyPartitioned` boxes.

    Leaves without logical axes (scalars, counters) are replicated.

    Raises:
      ShardingError: see `partition_spec`.
    """

    def leaf(spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(tuple(spec)))

    logical = nn.get_partition_spec(abstract_state)
    return jax.tree.map(leaf, logical, is_leaf=lambda x: isinstance(x, PartitionSpec))


def check_split(abstract_state, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a state in which a large array is not split over all devices that share the weights: each would hold it.

    Args:
      abstract_state: `ShapeDtypeStruct`s with shardings.

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
            name = jax.tree_util.keystr(path)
            raise ShardingError(
                f"{name}: {size / 2**20:.0f} MiB, {size / total:.0%} of the state, would be held by "
                f"{copies} devices each; name its axes so that they are split (parallel/rules.py)"
            )
