"""The one table that says which mesh axis each logical array axis is split over.

Model code names logical axes; meshes have `data`, `fsdp`, `context` and `tensor`. Changing how a model is sharded means
changing this table and nothing else.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


class ShardingError(ValueError):
    """Logical axes that cannot be laid out on the mesh."""


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names.

    Raises:
      ShardingError: a name is not in the table, or two axes of the array want the same mesh axis.
    """
    taken: dict[str, str] = {}
    spec = []
    for name in axes:
        if name is not None and name not in RULES:
            raise ShardingError(f"logical axis {name!r} has no rule; known: {', '.join(RULES)}")
        mesh_axes = None if name is None else RULES[name]
        for mesh_axis in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
            if mesh_axis in taken:
                raise ShardingError(f"axes {axes}: {taken[mesh_axis]!r} and {name!r} both map to mesh axis "
                                    f"{mesh_axis!r}")  # fmt: skip
            taken[mesh_axis] = name
        spec.append(mesh_axes)
    return PartitionSpec(*spec)


def mesh_axes(*names: str) -> tuple[str, ...]:
    """The mesh axes over which any of these logical axes is split, in the order of the mesh."""
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in partition_spec(names)]
    return tuple(axis for axis in MESH_AXES if any(axis in entry for entry in entries))


def flax_rules() -> list[tuple[str, str | tuple[str, ...] | None]]:
    """The table in the form `flax.linen.logical_axis_rules` takes."""
    return list(RULES.items())


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
