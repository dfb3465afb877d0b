"""The plans of the kernel calls that one call of attention makes."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.kernels import fused
from chinchilla_jax.kernels.fused import fused_attention
from tests.kernels.cases import with_arguments


def plans_of(S, T, *, relative=False, dtype="float32", size=128, documents=False, traced=None, tiles=None,
             backward_tiles=None, **settings):  # fmt: skip
    """The plans that a call of one head makes, and its gradient: of the forward passes, of the backward passes."""
    plans = {"forward": [], "backward": []}

    def forward(plan, tables, arrays):
        plans["forward"].append(plan)
        return arrays["q"], jnp.zeros((1, 1, 1, plan.grid.padded_queries))

    def backward(plan, tables, arrays):
        plans["backward"].append(plan)
        shapes = {"e": (1, plan.head_dim, plan.distances), "u": (1, 1, plan.head_dim), "w": (1, 1, plan.head_dim)}
        found = {f"d{name}": arrays[name] for name in "qkv"}
        return found | {f"d{name}": jnp.zeros(shape) for name, shape in shapes.items() if plan.relative}

    keys = jax.ShapeDtypeStruct((1, T, 1, size), dtype)
    arrays = [jax.ShapeDtypeStruct((1, S, 1, size), dtype), keys, keys]
    if relative:
        offset = settings.get("q_offset", T - S) if traced is None else 0
        rows = jax.ShapeDtypeStruct((max(1, T, offset + S), 1, size), dtype)
        arrays += [rows, *2 * [jax.ShapeDtypeStruct((1, size), jnp.float32)]]
    if documents:
        settings |= {"segment_ids_BxT": np.zeros((1, T), np.int32), "q_segment_ids_BxS": np.zeros((1, S), np.int32)}

    def loss(arrays, offset):
        names = dict(zip(("r_NxHxK", "content_bias_HxK", "position_bias_HxK"), arrays[3:], strict=relative))
        given = names | settings | ({} if traced is None else {"q_offset": offset})
        attend = with_arguments(fused_attention, tiles=tiles, backward_tiles=backward_tiles)
        return attend(*arrays[:3], **given).astype(jnp.float32).sum()

    with mock.patch.object(fused, "forward_call", forward), mock.patch.object(fused, "backward_call", backward):
        jax.eval_shape(jax.grad(loss), arrays, jax.ShapeDtypeStruct((), jnp.int32))
    return plans
