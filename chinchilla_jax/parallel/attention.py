"""How does attention run on a mesh? Every device takes its own rows, heads and tokens.

Attention never mixes rows or heads, so these need no communication. Tokens of a row that are split over a mesh axis see
each other by `parallel/context.py`. The partitioner could not do this: it cannot see inside a kernel, and would run it
whole on every device. The keys of relative distances may be computed from a weight that is left in parts (`project`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.kernels.attention import attention, compute
from chinchilla_jax.kernels.call import Shape, check
from chinchilla_jax.kernels.tiles import tpu_generation
from chinchilla_jax.model.layers import dense, gathered, sum_of_outer_products
from chinchilla_jax.parallel.context import exchange_heads, gather_keys
from chinchilla_jax.parallel.rules import Rule, ShardingError, each_axis, partition_spec

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

    Groups of keys are split as heads are. Every device computes all rows where they do not divide over the devices, as
    the single row does that a model is initialised with; and all tokens where queries and keys are not the same tokens,
    as in decoding. The function has the arguments and results of `attention`, on whole arrays, and is `attention`
    itself on one device or no mesh.

    Raises, when it is called:
      ShardingError: heads, groups or tokens do not divide over their devices.
      AttentionError: as `attention`.
    """
    if mesh.size <= 1:
        return attention

    @functools.wraps(attention)
    def attend(*arrays: jax.Array, implementation: str = "auto", **keywords: Any) -> Any:
        call = check(*arrays, **keywords)
        shape = call.shape
        same_tokens = shape.S == shape.T and call.offset_is_static and call.q_offset == 0
        context = _context(mesh) if same_tokens else None
        way = _way(mesh, context, shape)
        specs = _specs(mesh, context, way, shape)

        def on_each_device(arrays: dict[str, jax.Array]) -> Any:
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
    """A function of `parallel/context.py`: the cheaper one, unless it would leave a device or a core without heads."""
    head_axes = partition_spec(("heads",))[0]
    devices, parts = _devices(mesh, head_axes), _devices(mesh, context)
    for what, count in (("heads", shape.H), ("groups of keys", shape.G)):
        if count % devices:
            where = f"the {devices} devices of mesh axis {head_axes!r}"
            raise ShardingError(f"{count} {what} do not divide over {where}: choose a divisor")
    if context is None:
        return None
    divide = shape.H % (devices * parts) == shape.G % (devices * parts) == 0
    chip = CHIPS.get(tpu_generation() or "")
    heads = -(-shape.B // _devices(mesh, partition_spec(("batch",))[0])) * (shape.H // (devices * parts))  # of all rows
    way = exchange_heads if divide and (chip is None or heads >= chip.cores_per_device) else gather_keys
    multiple = parts if way is exchange_heads else 2 * parts
    if shape.S % multiple:
        where = f"the {parts} devices of mesh axis {context!r}" + (", two pieces on each" if multiple > parts else "")
        raise ShardingError(f"rows of {shape.S} tokens do not divide over {where}: choose a multiple of {multiple}")
    return way


def _specs(
    mesh: Mesh | AbstractMesh, context: str | None, way: Callable | None, shape: Shape
) -> dict[str, PartitionSpec]:
    """The mesh axes of every argument and result."""
    rows, heads, whole = (partition_spec((name,))[0] for name in ("batch", "heads", "head_dim"))
    if whole:
        raise ShardingError("logical axis 'head_dim' must not be split: a score is a product of whole heads")
    split: dict[str | None, Rule] = {
        "rows": None if shape.B % _devices(mesh, rows) else rows,
        "heads": heads,
        "tokens": context,
        "computed_tokens": context if way is gather_keys else None,
        "computed_heads": (*each_axis(heads), *each_axis(context)) if way is exchange_heads else heads,
    }
    return {name: PartitionSpec(*(split.get(axis) for axis in axes)) for name, axes in _AXES.items()}


def _devices(mesh: Mesh | AbstractMesh, axes: Rule) -> int:
    return math.prod(mesh.shape[axis] for axis in each_axis(axes))


def project(sinusoids_NxD: jax.Array, w_DxA: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The keys of N distances, `[N, A]`, in the way that sends less.

    In bfloat16 the keys are 20 N bytes to send for a column of the weight, and the weight 6 D.
    """
    n, d = sinusoids_NxD.shape
    if 10 * n < 3 * d:
        return project_in_parts(sinusoids_NxD, w_DxA.astype(dtype))
    return dense(sinusoids_NxD, gathered(w_DxA, ("embed", "heads"), dtype))


@jax.custom_vjp
def project_in_parts(sinusoids_NxD: jax.Array, w_DxA: jax.Array) -> jax.Array:
    """The keys of all distances, `[N, A]`, which are the same for all rows.

    Each device multiplies its part of the model width, and the products are added up over devices, in float32. The
    gradient of the weight then needs no communication.
    """
    return _project_forward(sinusoids_NxD, w_DxA)[0]


def _project_forward(sinusoids_NxD: jax.Array, w_DxA: jax.Array) -> tuple[jax.Array, jax.Array]:
    sinusoids_NxD = nn.with_logical_constraint(sinusoids_NxD, (None, "embed"))
    r_NxA = jax.lax.dot(sinusoids_NxD, w_DxA, preferred_element_type=jnp.float32)
    return nn.with_logical_constraint(r_NxA, (None, "heads")).astype(w_DxA.dtype), sinusoids_NxD


def _project_backward(sinusoids_NxD: jax.Array, dr_NxA: jax.Array) -> tuple[None, jax.Array]:
    dr_NxA = nn.with_logical_constraint(dr_NxA, (None, "heads"))
    return None, nn.with_logical_constraint(sum_of_outer_products(sinusoids_NxD, dr_NxA), ("embed", "heads"))


project_in_parts.defvjp(_project_forward, _project_backward)
