"""Feed-forward layers: what each token adds to its own row of the residual stream."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, dense, gathered, reshard


def gelu(x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> tuple[jax.Array, dict]:
    """down(gelu(up(x))), GELU in its tanh form."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    h_BxSxF = dense(x_BxSxD, gathered(w["up"], ("embed", "mlp"), dtype))
    if "up_bias" in w:
        h_BxSxF += w["up_bias"].astype(dtype)
    return _down(nn.gelu(h_BxSxF, approximate=True), w, dtype), {}


def swiglu(x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> tuple[jax.Array, dict]:
    """down(silu(gate(x)) * up(x))."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    # One product with both, so that what it takes from its input is added up over devices once.
    both_Dx2xF = gathered(jnp.stack([w["gate"], w["up"]], axis=1), ("embed", None, "mlp"), dtype)
    h_BxSx2xF = dense(x_BxSxD, both_Dx2xF)
    if "up_bias" in w:
        h_BxSx2xF += jnp.stack([w["gate_bias"].astype(dtype), w["up_bias"].astype(dtype)])
    return _down(nn.silu(h_BxSx2xF[..., 0, :]) * h_BxSx2xF[..., 1, :], w, dtype), {}


def _down(h_BxSxF: jax.Array, w: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    h_BxSxF = nn.with_logical_constraint(h_BxSxF, ("batch", "length", "mlp"))
    y_BxSxD = reshard(dense(h_BxSxF, gathered(w["down"], ("mlp", "embed"), dtype)), RESIDUAL, WHOLE_ROWS)
    return y_BxSxD + w["down_bias"].astype(dtype) if "down_bias" in w else y_BxSxD
