"""The parts of a block that know nothing of attention: weights, norms, feed-forward.

Each weight and each activation names its logical axes; which mesh axes those map to, if any, is decided elsewhere
(`parallel/rules.py`).
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig

Axes = tuple[str | None, ...]
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


def parameter(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes, fan_in: int,
              scale: float = 1.0) -> jax.Array:  # fmt: skip
    """A float32 weight as it is stored, normal with standard deviation `scale / sqrt(fan_in)`."""
    init = nn.initializers.normal(scale / math.sqrt(fan_in))
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def gathered(weight: jax.Array, axes: Axes, dtype: jnp.dtype) -> jax.Array:
    """A weight to compute with: in the compute type, and whole along the model width, which is split for storage.

    It is cast before it is gathered, and its gradient is scattered before it is cast back: half the bytes move.
    """
    whole = tuple("activation_embed" if axis == "embed" else axis for axis in axes)
    return reshard(weight.astype(dtype), whole, axes)


def vector(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...],
           init=nn.initializers.zeros) -> jax.Array:  # fmt: skip
    """A float32 bias (zeros) or gain (ones)."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


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


def residual_scale(config: ModelConfig) -> float:
    """Initial scale of what a block adds to the residual stream: 1 / sqrt(2 L), two additions a layer (GPT-2)."""
    return 1.0 / math.sqrt(2.0 * config.n_layers)


class Norm(nn.Module):
    """RMSNorm with a gain, or LayerNorm with gain and bias. Statistics in float32."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        gain = vector(self, "gain", (x_BxSxD.shape[-1],), ("norm",), nn.initializers.ones)
        x = x_BxSxD.astype(jnp.float32)
        if self.config.norm == "layernorm":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.config.norm_eps)
        x = x * gain
        if self.config.norm == "layernorm":
            x = x + vector(self, "bias", (x.shape[-1],), ("norm",))
        return x.astype(self.dtype)


class FeedForward(nn.Module):
    """GELU (tanh form) or SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        c, dtype = self.config, self.dtype
        up = parameter(self, "up", (c.d_model, c.d_ff), ("embed", "mlp"), c.d_model)
        down = parameter(self, "down", (c.d_ff, c.d_model), ("mlp", "embed"), c.d_ff, residual_scale(c))
        up_bias = c.biases != "none" and vector(self, "up_bias", (c.d_ff,), ("mlp",)).astype(dtype)
        x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
        if c.feed_forward == "swiglu":
            gate = parameter(self, "gate", (c.d_model, c.d_ff), ("embed", "mlp"), c.d_model)
            # One product with both, so that what it takes from its input is added up over devices once.
            both_Dx2xF = gathered(jnp.stack([gate, up], axis=1), ("embed", None, "mlp"), dtype)
            h_BxSx2xF = dense(x_BxSxD, both_Dx2xF)
            if c.biases != "none":
                h_BxSx2xF += jnp.stack([vector(self, "gate_bias", (c.d_ff,), ("mlp",)).astype(dtype), up_bias])
            h_BxSxF = nn.silu(h_BxSx2xF[..., 0, :]) * h_BxSx2xF[..., 1, :]
        else:
            h_BxSxF = dense(x_BxSxD, gathered(up, ("embed", "mlp"), dtype))
            if c.biases != "none":
                h_BxSxF += up_bias
            h_BxSxF = nn.gelu(h_BxSxF, approximate=True)
        h_BxSxF = nn.with_logical_constraint(h_BxSxF, ("batch", "length", "mlp"))
        y_BxSxD = dense(h_BxSxF, gathered(down, ("mlp", "embed"), dtype))
        y_BxSxD = reshard(y_BxSxD, RESIDUAL, WHOLE_ROWS)
        if c.biases != "none":
            y_BxSxD += vector(self, "down_bias", (c.d_model,), ("norm",)).astype(dtype)
        return y_BxSxD
