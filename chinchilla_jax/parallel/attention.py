"""How does attention run on a mesh? Every device takes its own rows and heads, and knows nothing of the others.

Attention never mixes rows or heads, so `shard_map` needs no communication in it: each device calls the op on its part.
Left to the partitioner a kernel would run whole on every device, since the compiler cannot see inside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from chinchilla_jax.kernels.arguments import check
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.parallel.rules import ShardingError, partition_spec

_AXES = {
    "q_BxSxHxK": ("batch", None, "heads", "head_dim"),
    "k_BxTxGxK": ("batch", None, "heads", "head_dim"),
    "v_BxTxGxK": ("batch", None, "heads", "head_dim"),
    "r_NxHxK": (None, "heads", "head_dim"),
    "u_HxK": ("heads", "head_dim"),
    "w_HxK": ("heads", "head_dim"),
    "q_turn_2xSxK": (None, None, "head_dim"),
    "k_turn_2xTxK": (None, None, "head_dim"),
    "segment_ids_BxT": ("batch", None),
    "q_segment_ids_BxS": ("batch", None),
    "q_offset": (),
    "lse_BxHxS": ("batch", "heads", None),
}


def sharded_attention(mesh: Mesh | AbstractMesh, op: Callable = attention) -> Callable:
    """`op` with rows split over the mesh axes of `batch` and heads over those of `heads`, as the rules say.

    Groups of keys are split as heads are. Rows that do not divide over the devices are not split: every device then
    computes all of them, which is right, and meant for the single row a model is initialised with.

    Args:
      mesh: where it will run. One device, or none, as of a mesh that is not set: `op` itself is returned.
      op: a function with the arguments of `kernels.attention.attention`.

    Returns:
      A function with the same arguments and results, on whole arrays. It raises `ShardingError` where heads or groups
      do not divide over their devices, and `AttentionError` as `op` does.
    """
    if mesh.size <= 1:
        return op

    @functools.wraps(op)
    def attend(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, *, return_lse=False, **keywords):
        named = {"q_BxSxHxK": q_BxSxHxK, "k_BxTxGxK": k_BxTxGxK, "v_BxTxGxK": v_BxTxGxK, **keywords}
        arrays = {name: x for name, x in named.items() if isinstance(x, jax.Array | np.ndarray)}
        settings = {name: x for name, x in keywords.items() if name not in arrays}
        tested = {name: x for name, x in settings.items() if name != "implementation"}
        check(**arrays, **tested, float64=True)
        specs = _specs(mesh, arrays, rows=q_BxSxHxK.shape[0], heads=q_BxSxHxK.shape[2], groups=k_BxTxGxK.shape[2])
        out = specs["q_BxSxHxK"]

        def on_each_device(arrays):
            return op(**arrays, **settings, return_lse=return_lse)

        # Replication is not tracked (check_vma): kernels do not say what varies over the mesh. What is split over no
        # axis, as r is over rows, has its gradients added up over that axis all the same.
        mapped = jax.shard_map(on_each_device, mesh=mesh, check_vma=False,
                               in_specs=({name: specs[name] for name in arrays},),
                               out_specs=(out, specs["lse_BxHxS"]) if return_lse else out)  # fmt: skip
        return mapped(arrays)

    return attend


def _specs(mesh: Mesh | AbstractMesh, arrays: dict, rows: int, heads: int, groups: int) -> dict[str, PartitionSpec]:
    """The mesh axes of every argument and result."""
    row_axes, head_axes, whole = (partition_spec((name,))[0] for name in ("batch", "heads", "head_dim"))
    if whole:
        raise ShardingError("logical axis 'head_dim' must not be split: a score is a product of whole heads")
    devices = _devices(mesh, head_axes)
    for what, count in (("heads", heads), ("groups of keys", groups)):
        if count % devices:
            raise ShardingError(f"{count} {what} do not divide over the {devices} devices of mesh axis {head_axes!r}: "
                                "choose a divisor")  # fmt: skip
    split_rows = rows % _devices(mesh, row_axes) == 0
    return {name: partition_spec(tuple(None if axis == "batch" and not split_rows else axis for axis in axes))
            for name, axes in _AXES.items()}  # fmt: skip


def _devices(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
