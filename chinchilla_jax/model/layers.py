"""Weights, the products with them, and norms.

Each weight and each activation names its logical axes; which mesh axes those map to, if any, is decided elsewhere
(`parallel/rules.py`).
"""

from __future__ import annotations

import functools
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

    A constraint alone would lay out the gradient as it does the value. What is gathered going forward has to be
    reduced and scattered going back, and the other way round, else both directions move whole arrays.
    """
    return nn.with_logical_constraint(x, axes)


def _reshard_forward(x, axes, gradient_axes):
    return nn.with_logical_constraint(x, axes), None


def _reshard_backward(axes, gradient_axes, _, dx):
    return (nn.with_logical_constraint(dx, gradient_axes),)


reshard.defvjp(_reshard_forward, _reshard_backward)


def create(module: nn.Module, weights: Mapping[str, Weight]) -> dict[str, jax.Array]:
    """The float32 arrays of a module's weights, as they are stored. Random numbers are drawn in their order."""

    def array(name: str, weight: Weight) -> jax.Array:
        constant = nn.initializers.constant(weight.mean)
        init = nn.initializers.normal(weight.deviation) if weight.deviation else constant
        return module.param(name, nn.with_logical_partitioning(init, weight.axes), weight.shape, jnp.float32)

    return {name: array(name, weight) for name, weight in weights.items()}


class Layer(nn.Module):
    """A norm or a feed-forward layer, with its weights."""

    part: Part
    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> Any:
        weights = create(self, self.part.weights(self.config))
        return self.part.compute(x_BxSxD, weights, self.config, self.dtype)


def gathered(weight: jax.Array, axes: Axes, dtype: jnp.dtype) -> jax.Array:
    """A weight to compute with: in the compute type, and whole along the model width, which is split for storage.

    It is cast before it is gathered, and its gradient is scattered before it is cast back: half the bytes move.
    """
    whole = tuple("activation_embed" if axis == "embed" else axis for axis in axes)
    return reshard(weight.astype(dtype), whole, axes)


@jax.custom_vjp
def dense(x: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """`x @ w` over the last axis of x, `[..., D] -> [..., F]`. F may stand for several axes.

    The backward products are spelled out. Left to transposition rules, the CPU backend first copies every activation
    into a transposed buffer, which costs more than the product. A product over tokens has to transpose one operand in
    any case: here it is the narrower one, and the barrier keeps the compiler from swapping them back.
    """
    return _product(x, w_DxF)


def _product(x, w_DxF):
    return jax.lax.dot_general(x, w_DxF, (((x.ndim - 1,), (0,)), ((), ())))


def _dense_forward(x, w_DxF):
    return _product(x, w_DxF), (x, w_DxF)  # a call of `dense` would hide the product from policies of remat


def _dense_backward(saved, dy):
    x, w_DxF = saved
    outputs = tuple(range(1, w_DxF.ndim))
    dx = jax.lax.dot_general(dy, w_DxF, ((tuple(x.ndim - 2 + axis for axis in outputs), outputs), ((), ())))
    return dx, sum_of_outer_products(x, dy)


dense.defvjp(_dense_forward, _dense_backward)


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
    """`x @ w.T`, `[..., D] -> [..., F]`: the output product of a tied embedding. See `dense`."""
    return jax.lax.dot_general(x, w_FxD, (((x.ndim - 1,), (1,)), ((), ())))


def _dense_transposed_forward(x, w_FxD):
    return dense_transposed(x, w_FxD), (x, w_FxD)


def _dense_transposed_backward(saved, dy):
    x, w_FxD = saved
    return dy @ w_FxD, sum_of_outer_products(dy, x)


dense_transposed.defvjp(_dense_transposed_forward, _dense_transposed_backward)


def rmsnorm(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """x over its root mean square, times a gain (Zhang and Sennrich 2019). In float32."""
    return _scaled(x.astype(jnp.float32), w, c).astype(dtype)


def layernorm(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """x less its mean, over its standard deviation, times a gain, plus a bias (Ba et al. 2016). In float32."""
    x = x.astype(jnp.float32)
    return (_scaled(x - jnp.mean(x, axis=-1, keepdims=True), w, c) + w["bias"]).astype(dtype)


def _scaled(x: jax.Array, w: dict[str, jax.Array], c: ModelConfig) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + c.norm_eps) * w["gain"]
