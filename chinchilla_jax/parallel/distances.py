"""How do devices get the keys of relative distances, when each of them holds a part of the weight they come from?"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.model.layers import dense, gathered, sum_of_outer_products


def project(sinusoids_NxD: jax.Array, w_DxA: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The keys of N distances, `[N, A]`, in the way that sends less.

    Where N is small for the width, the keys are less to send than the weight: 20 N bytes a column of the weight in the
    compute type bfloat16, against 6 D.
    """
    n, d = sinusoids_NxD.shape
    if 10 * n < 3 * d:
        return project_in_parts(sinusoids_NxD, w_DxA.astype(dtype))
    return dense(sinusoids_NxD, gathered(w_DxA, ("embed", "heads"), dtype))


@jax.custom_vjp
def project_in_parts(sinusoids_NxD: jax.Array, w_DxA: jax.Array) -> jax.Array:
    """The keys of all distances, `[N, A]`, from a weight that is left in parts.

    All rows have the same distances. So each device can multiply its part of the model width, and the products are
    added up over devices, in float32. The gradient of the weight then needs no communication.
    """
    return _forward(sinusoids_NxD, w_DxA)[0]


def _forward(sinusoids_NxD, w_DxA):
    sinusoids_NxD = nn.with_logical_constraint(sinusoids_NxD, (None, "embed"))
    r_NxA = jax.lax.dot(sinusoids_NxD, w_DxA, preferred_element_type=jnp.float32)
    return nn.with_logical_constraint(r_NxA, (None, "heads")).astype(w_DxA.dtype), sinusoids_NxD


def _backward(sinusoids_NxD, dr_NxA):
    dr_NxA = nn.with_logical_constraint(dr_NxA, (None, "heads"))
    return None, nn.with_logical_constraint(sum_of_outer_products(sinusoids_NxD, dr_NxA), ("embed", "heads"))


project_in_parts.defvjp(_forward, _backward)
