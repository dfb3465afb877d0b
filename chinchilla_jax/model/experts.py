"""How do experts share a layer? DS-MoE, which trains all of them, and the sparse top-k layer it is compared with.

    ds_moe  Pan et al. 2024 (arXiv 2404.05567), sections 3.1 and 3.2. The shares S of a router, a softmax over N
            experts, weigh the experts' outputs. That is a dense layer whose inner units are weighed, a block of them by
            one share: y = (gelu(x up) * N S) down. Shares begin near 1/N, with which the layer would write N times less
            than a dense one; the paper does not say how it makes up for that, so here the factor N does, which the
            weights could absorb. The loss of the router is -H(mean of S) + mean of H(S), in nats: the less, the more
            evenly experts are used and the surer a token is of its own. It is 0 where all shares are equal and where
            one expert has all tokens, -ln N where every token has one expert and all experts as many tokens.
            In attention (section 3.1) the experts have query heads of their own and share the keys: of the query heads
            of a group of keys, the i-th is expert i's.
    top_k   Shazeer et al. 2017, as in Mixtral (Jiang et al. 2024): of the softmax over all experts the largest k
            shares, over their sum, weigh those k experts, and the others are not computed. No expert has a capacity: no
            token is dropped. The loss of the router is that of Fedus et al. 2021, equations 4 to 6, N times the sum of
            an expert's part of the choices times its mean share: 1 where both are even.

Both losses are of the means over all tokens of a microbatch, on all devices, whether or not they count in the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, dense, down, gathered, reshard

# What routers report among auxiliary sums: means over tokens, of all layers added up. The loss, and if not all experts
# are used, the share of them that is, in feed-forward layers and in attention.
MEANS = (ROUTER_LOSS, USED, ATTENTION_USED) = ("router_loss", "experts_used", "attention_experts_used")
INNER = ("batch", "length", "mlp")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which experts of a trained DS-MoE are used: all, unless one of these is set. Shares are not scaled up again.

    `top`: in feed-forward layers so many, those with the largest shares; in attention all. `above`: those whose share
    times the number of experts is above this, in both (0.48 in the paper, section 3.3).
    """

    top: int = 0
    above: float = 0.0

    def __post_init__(self) -> None:
        if self.top < 0 or not 0 <= self.above < math.inf:
            raise ValueError(f"{self}: neither a number of experts nor a threshold may be below 0, or not a number")

    def feed_forward(self, shares: jax.Array) -> jax.Array:
        """The shares `[..., N]` with 0 for experts that are not used."""
        if self.top:
            chosen = jax.lax.top_k(shares, min(self.top, shares.shape[-1]))[1]
            shares = shares * jnp.sum(jax.nn.one_hot(chosen, shares.shape[-1], dtype=shares.dtype), axis=-2)
        return self.attention(shares)

    def attention(self, shares: jax.Array) -> jax.Array:
        """The same for experts in attention."""
        return jnp.where(shares * shares.shape[-1] > self.above, shares, 0) if self.above else shares


def router_shares(x_BxSxD: jax.Array, w: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """The softmax over a layer's experts, `[B, S, N]` in float32."""
    scores_BxSxN = dense(x_BxSxD, gathered(w["router"], ("embed", None), dtype))
    if "router_output" in w:
        scores_BxSxN = dense(nn.gelu(scores_BxSxN, approximate=True), w["router_output"].astype(dtype))
    return jax.nn.softmax(scores_BxSxN.astype(jnp.float32), axis=-1)


def mutual_information_loss(shares_BxSxN: jax.Array) -> jax.Array:
    """-H(mean of S) + mean of H(S), in nats."""

    def entropy(p: jax.Array) -> jax.Array:
        # log(0) would be kept from the value by the factor 0, but not from the gradient.
        return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)

    return jnp.mean(entropy(shares_BxSxN)) - entropy(jnp.mean(shares_BxSxN, axis=(0, 1)))


def balance_loss(shares_BxSxN: jax.Array, chosen_BxSxK: jax.Array) -> jax.Array:
    """N times the sum of an expert's part of all choices times its mean share."""
    experts = shares_BxSxN.shape[-1]
    parts_N = jnp.mean(jax.nn.one_hot(chosen_BxSxK, experts, dtype=jnp.float32), axis=(0, 1, 2))
    return experts * jnp.sum(parts_N * jnp.mean(shares_BxSxN, axis=(0, 1)))


def _auxiliary(shares_BxSxN: jax.Array, used_BxSxN: jax.Array, name: str) -> dict[str, jax.Array]:
    aux = {ROUTER_LOSS: mutual_information_loss(shares_BxSxN)}
    return aux if used_BxSxN is shares_BxSxN else aux | {name: jnp.mean(used_BxSxN > 0, dtype=jnp.float32)}


def ds_moe(
    x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype, select: Selection
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A GELU layer whose inner units are weighed by the shares of their experts."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    shares_BxSxN = router_shares(x_BxSxD, w, dtype)
    used_BxSxN = select.feed_forward(shares_BxSxN)
    h_BxSxF = dense(x_BxSxD, gathered(w["up"], ("embed", "mlp"), dtype))
    if "up_bias" in w:
        h_BxSxF += w["up_bias"].astype(dtype)
    weights_BxSxF = jnp.repeat((c.experts * used_BxSxN).astype(dtype), c.d_ff // c.experts, axis=-1)
    h_BxSxF = nn.gelu(h_BxSxF, approximate=True) * nn.with_logical_constraint(weights_BxSxF, INNER)
    return down(h_BxSxF, w, dtype), _auxiliary(shares_BxSxN, used_BxSxN, USED)


def attention_experts(
    out_BxSxHxK: jax.Array, x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, select: Selection
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the heads found, each weighed by the share of its expert. A head of index h is expert h % N's."""
    shares_BxSxN = router_shares(x_BxSxD, w, out_BxSxHxK.dtype)
    used_BxSxN = select.attention(shares_BxSxN)
    weights_BxSxN = (c.attention_experts * used_BxSxN).astype(out_BxSxHxK.dtype)
    weights_BxSxH = jnp.tile(weights_BxSxN, c.n_heads // c.attention_experts)
    weights_BxSxH = nn.with_logical_constraint(weights_BxSxH, ("batch", "length", "heads"))
    return out_BxSxHxK * weights_BxSxH[..., None], _auxiliary(shares_BxSxN, used_BxSxN, ATTENTION_USED)


def top_k(
    x_BxSxD: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype, mix: Callable
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GELU or SwiGLU layers, of which a token meets the `active_experts` with the largest shares. `mix`: `grouped`."""
    x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
    shares_BxSxN = router_shares(x_BxSxD, w, dtype)
    gates_BxSxK, chosen_BxSxK = jax.lax.top_k(shares_BxSxN, c.active_experts or c.experts)
    gates_BxSxK = (gates_BxSxK / jnp.sum(gates_BxSxK, axis=-1, keepdims=True)).astype(dtype)
    axes = {"up": ("embed", "mlp"), "gate": ("embed", "mlp"), "down": ("mlp", "embed")}
    experts = {name: gathered(w[name], ("experts", *of_one), dtype) for name, of_one in axes.items() if name in w}
    experts |= {name: w[name].astype(dtype) for name in ("up_bias", "gate_bias") if name in w}
    y_BxSxD = reshard(mix(x_BxSxD, gates_BxSxK, chosen_BxSxK, experts), RESIDUAL, WHOLE_ROWS)
    if "down_bias" in w:
        y_BxSxD += w["down_bias"].astype(dtype)
    return y_BxSxD, {ROUTER_LOSS: balance_loss(shares_BxSxN, chosen_BxSxK)}
