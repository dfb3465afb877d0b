"""Weights, the products with them, norms, and feed-forward layers.

Weights and activations name their logical axes. `parallel/rules.py` decides which mesh axes those are split over.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.parts import Axes, Part, Weight

# Logical axes of the residual stream, and of what a layer reads of it and adds to it.
RESIDUAL = ("batch", "residual_length", "activation_embed")
WHOLE_ROWS = ("batch", "length", "activation_embed")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def reshard(x: jax.Array, axes: Axes, gradient_axes: Axes) -> jax.Array:
    """x itself, laid out as `axes` say; its gradient is laid out as `gradient_axes` say.

    What is gathered in the forward pass has to be reduced and scattered in the backward pass, and the other way round:
    a constraint alone would lay out both in the same way, and whole arrays would move in both directions.
    """
    return nn.with_logical_constraint(x, axes)


reshard.defvjp(
    lambda x, axes, gradient_axes: (nn.with_logical_constraint(x, axes), None),
    lambda axes, gradient_axes, _, dx: (nn.with_logical_constraint(dx, gradient_axes),),
)


def create(module: nn.Module, weights: Mapping[str, Weight]) -> dict[str, jax.Array]:
    """The float32 arrays of a module's weights, as they are stored. Random numbers are drawn in their order."""
    arrays = {}
    for name, weight in weights.items():
        constant = nn.initializers.constant(weight.mean)
        init = nn.initializers.normal(weight.deviation) if weight.deviation else constant
        arrays[name] = module.param(name, nn.with_logical_partitioning(init, weight.axes), weight.shape, jnp.float32)
    return arrays


class Layer(nn.Module):
    """A norm or a feed-forward layer, with its weights. `more` is what its function is given besides."""

    part: Part
    config: ModelConfig
    dtype: jnp.dtype
    more: tuple = ()

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> Any:
        weights = create(self, self.part.weights(self.config))
        return self.part.compute(x_BxSxD, weights, self.config, self.dtype, *self.more)


def gathered(weight: jax.Array, axes: Axes, dtype: jnp.dtype) -> jax.Array:
    """A weight to compute with: in the compute type, and whole along the model width, which is split for storage.

    It is cast before it is gathered, and its gradient is scattered before it is cast back: half the bytes move.
    """
    whole = tuple("activation_embed" if axis == "embed" else axis for axis in axes)
    return reshard(weight.astype(dtype), whole, axes)


@jax.custom_vjp
def dense(x: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """`x @ w` over the last axis of x, `[..., D] -> [..., F]`. F may stand for several axes.

    The backward products are written out. By its own rules the CPU backend first copies every activation into a
    transposed buffer, which costs more than the product. A product over tokens has to transpose one operand in any
    case: here it is the narrower one, and the barrier keeps the compiler from swapping them back.
    """
    return _product(x, w_DxF)


def _product(x: jax.Array, w_DxF: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, w_DxF, (((x.ndim - 1,), (0,)), ((), ())))


def _dense_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w_DxF = saved
    outputs = tuple(range(1, w_DxF.ndim))
    dx = jax.lax.dot_general(dy, w_DxF, ((tuple(x.ndim - 2 + axis for axis in outputs), outputs), ((), ())))
    return dx, sum_of_outer_products(x, dy)


# A call of `dense` in the forward pass would hide the product from the policies of remat.
dense.defvjp(lambda x, w_DxF: (_product(x, w_DxF), (x, w_DxF)), _dense_backward)


def sum_of_outer_products(x: jax.Array, y: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x^T y over the leading axes of x: `[..., D], [..., F] -> [D, F]`, as `dtype`. F may stand for several axes."""
    tokens = tuple(range(x.ndim - 1))
    outputs = y.shape[len(tokens) :]
    if len(outputs) > 1 or x.shape[-1] < outputs[0]:
        return jax.lax.dot_general(x, y, ((tokens, tokens), ((), ())), preferred_element_type=dtype)
    product = jax.lax.dot_general(y, x, ((tokens, tokens), ((), ())), preferred_element_type=dtype)
    return jax.lax.optimization_barrier(product).T


@jax.custom_vjp
def dense_transposed(x: jax.Array, w_FxD: jax.Array) -> jax.Array:
    """`x @ w.T`, `[..., D] -> [..., F]`: the output product of a tied embedding. See `dense`.

    Of a few rows, as in decoding, it is computed the other way round: the CPU backend would copy w first.
    """
    rows = math.prod(x.shape[:-1])
    if rows <= 16:
        product_FxN = jax.lax.dot_general(w_FxD, x.reshape(rows, -1), (((1,), (1,)), ((), ())))
        return product_FxN.T.reshape(*x.shape[:-1], -1)
    return jax.lax.dot_general(x, w_FxD, (((x.ndim - 1,), (1,)), ((), ())))


dense_transposed.defvjp(
    lambda x, w_FxD: (dense_transposed(x, w_FxD), (x, w_FxD)),
    lambda saved, dy: (dy @ saved[1], sum_of_outer_products(dy, saved[0])),
)


def rmsnorm(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """x over its root mean square, times a gain (Zhang and Sennrich 2019). In float32."""
    return _scaled(x.astype(jnp.float32), w, c).astype(dtype)


def layernorm(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """x less its mean, over its standard deviation, times a gain, plus a bias (Ba et al. 2016). In float32."""
    x = x.astype(jnp.float32)
    return (_scaled(x - jnp.mean(x, axis=-1, keepdims=True), w, c) + w["bias"]).astype(dtype)


def _scaled(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + c.norm_eps) * w["gain"]


def gelu(x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> tuple[jax.Array, dict]:
    """down(gelu(up(x))), GELU in its tanh form."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    h_BxSxF = dense(x_BxSxD, gathered(w["up"], ("embed", "mlp"), dtype))
    if "up_bias" in w:
        h_BxSxF += w["up_bias"].astype(dtype)
    return down(nn.gelu(h_BxSxF, approximate=True), w, dtype), {}


def swiglu(x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> tuple[jax.Array, dict]:
    """down(silu(gate(x)) * up(x))."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    if x_BxSxD.shape[1] == 1:  # of a single token, to join the weights takes longer than the product
        gate_BxSxF, up_BxSxF = (dense(x_BxSxD, gathered(w[name], ("embed", "mlp"), dtype)) for name in ("gate", "up"))
        if "up_bias" in w:
            gate_BxSxF, up_BxSxF = gate_BxSxF + w["gate_bias"].astype(dtype), up_BxSxF + w["up_bias"].astype(dtype)
        return down(nn.silu(gate_BxSxF) * up_BxSxF, w, dtype), {}
    # One product with both, so that what it takes from its input is added up over devices once.
    both_Dx2xF = gathered(jnp.stack([w["gate"], w["up"]], axis=1), ("embed", None, "mlp"), dtype)
    h_BxSx2xF = dense(x_BxSxD, both_Dx2xF)
    if "up_bias" in w:
        h_BxSx2xF += jnp.stack([w["gate_bias"].astype(dtype), w["up_bias"].astype(dtype)])
    return down(nn.silu(h_BxSx2xF[..., 0, :]) * h_BxSx2xF[..., 1, :], w, dtype), {}


def down(h_BxSxF: jax.Array, w: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """The product of inner units with `down`, laid out as the residual stream, with its bias if it has one."""
    h_BxSxF = nn.with_logical_constraint(h_BxSxF, ("batch", "length", "mlp"))
    y_BxSxD = reshard(dense(h_BxSxF, gathered(w["down"], ("mlp", "embed"), dtype)), RESIDUAL, WHOLE_ROWS)
    return y_BxSxD + w["down_bias"].astype(dtype) if "down_bias" in w else y_BxSxD
