"""How does attention run on a mesh? Every device takes its own rows, heads and tokens.

Attention never mixes rows or heads, so that `shard_map` needs no communication for these: each device calls the op on
its part. Tokens of a row that are split over a mesh axis see each other by `parallel/context.py`. Left to the
partitioner a kernel would run whole on every device, since the compiler cannot see inside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.kernels.attention import attention, compute
from chinchilla_jax.kernels.call import Shape, check
from chinchilla_jax.kernels.tiles import tpu_generation
from chinchilla_jax.parallel.context import exchange_heads, gather_keys
from chinchilla_jax.parallel.rules import ShardingError, partition_spec

# What the axes of arguments and results are split over, as `_specs` fills it in. Where heads are exchanged, a device
# computes other heads (`computed_heads`) of more tokens (`computed_tokens`) than it holds.
_AXES = {
    "q_BxSxHxK": ("rows", "tokens", "heads", None),
    "k_BxTxGxK": ("rows", "tokens", "heads", None),
    "v_BxTxGxK": ("rows", "tokens", "heads", None),
    "r_NxHxK": (None, "computed_heads", None),
    "content_bias_HxK": ("computed_heads", None),
    "position_bias_HxK": ("computed_heads", None),
    "q_turn_2xSxK": (None, None, None),
    "k_turn_2xTxK": (None, None, None),
    "segment_ids_BxT": ("rows", None),
    "q_segment_ids_BxS": ("rows", None),
    "q_offset": (),
    "out_BxSxHxK": ("rows", "tokens", "heads", None),
    "lse_BxHxS": ("rows", "computed_heads", "computed_tokens"),
}


def sharded_attention(mesh: Mesh | AbstractMesh) -> Callable:
    """`attention` with rows, tokens and heads split over the mesh axes of `batch`, `length` and `heads`.

    Groups of keys are split as heads are. Rows that do not divide over the devices are not split: every device then
    computes all of them, which is right, and meant for the single row a model is initialised with. The same is done
    with tokens where queries and keys are not the same tokens, as in decoding.

    Args:
      mesh: where it will run. One device, or none, as of a mesh that is not set: `attention` itself is returned.

    Returns:
      A function with the same arguments and results, on whole arrays. It raises `ShardingError` where heads, groups or
      tokens do not divide over their devices, and `AttentionError` as `attention` does.
    """
    if mesh.size <= 1:
        return attention

    @functools.wraps(attention)
    def attend(*arrays, implementation: str = "auto", **keywords):
        call = check(*arrays, **keywords)
        shape = call.shape
        same_tokens = shape.S == shape.T and call.offset_is_static and call.q_offset == 0
        context = _context(mesh) if same_tokens else None
        way = _way(mesh, context, shape)
        specs = _specs(mesh, context, way, shape)

        def on_each_device(arrays):
            part = call.replace(**arrays)
            op = functools.partial(compute, implementation=implementation)
            return way(op, part, context) if way else op(part)

        # Replication is not tracked (check_vma): kernels do not say what varies over the mesh. What is split over no
        # axis, as r is over rows, has its gradients added up over that axis all the same.
        out, lse = specs["out_BxSxHxK"], specs["lse_BxHxS"]
        mapped = jax.shard_map(
            on_each_device,
            mesh=mesh,
            check_vma=False,
            in_specs=({name: specs[name] for name in call.arrays},),
            out_specs=(out, lse) if call.return_lse else out,
        )
        return mapped(call.arrays)

    return attend


def _context(mesh: Mesh | AbstractMesh) -> str | None:
    """The mesh axis that the tokens of a row are split over, if there is more than one device along it."""
    axis = partition_spec(("length",))[0]
    return axis if _devices(mesh, axis) > 1 else None


def _way(mesh: Mesh | AbstractMesh, context: str | None, shape: Shape) -> Callable | None:
    """Of `parallel/context.py`: heads are exchanged, the cheaper way, unless a device or a core of it would have none.

    Raises:
      ShardingError: heads, groups or tokens do not divide.
    """
    head_axes = partition_spec(("heads",))[0]
    devices, parts = _devices(mesh, head_axes), _devices(mesh, context)
    for what, count in (("heads", shape.H), ("groups of keys", shape.G)):
        if count % devices:
            raise ShardingError(
                f"{count} {what} do not divide over the {devices} devices of mesh axis {head_axes!r}: choose a divisor"
            )
    if context is None:
        return None
    divide = shape.H % (devices * parts) == shape.G % (devices * parts) == 0
    chip = CHIPS.get(tpu_generation())
    heads = -(-shape.B // _devices(mesh, partition_spec(("batch",))[0])) * (shape.H // (devices * parts))  # of all rows
    way = exchange_heads if divide and (chip is None or heads >= chip.cores_per_device) else gather_keys
    multiple = parts if way is exchange_heads else 2 * parts
    if shape.S % multiple:
        pieces = "" if way is exchange_heads else ", two pieces on each"
        raise ShardingError(
            f"rows of {shape.S} tokens do not divide over the {parts} devices of mesh axis {context!r}"
            f"{pieces}: choose a multiple of {multiple}"
        )
    return way


def _specs(mesh: Mesh | AbstractMesh, context: str | None, way: Callable | None, shape: Shape):
    """The mesh axes of every argument and result."""
    rows, heads, whole = (partition_spec((name,))[0] for name in ("batch", "heads", "head_dim"))
    if whole:
        raise ShardingError("logical axis 'head_dim' must not be split: a score is a product of whole heads")
    split = {
        "rows": None if shape.B % _devices(mesh, rows) else rows,
        "heads": heads,
        "tokens": context,
        "computed_tokens": context if way is gather_keys else None,
        "computed_heads": (*_axes(heads), *_axes(context)) if way is exchange_heads else heads,
    }
    return {name: PartitionSpec(*(split.get(axis) for axis in axes)) for name, axes in _AXES.items()}


def _axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _devices(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(axes))
