"""Which token comes next? The likeliest, or one drawn from the likely ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from chinchilla_jax.base.config_values import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn: first `temperature`, then `top_k`, then `top_p`, as Hugging Face transformers orders them.

    Attributes:
      temperature: divides the logits; 0 is greedy, always the likeliest token.
      top_k: only of so many likeliest tokens, and those as likely as the last of them; 0: of all.
      top_p: only of the likeliest tokens before which less than this probability lies (nucleus sampling, Holtzman et
        al. 2020); 1: of all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigError("temperature", f"must be finite and not negative (0: greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError("top_k", f"must be a number of tokens, or 0 for all, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError("top_p", f"must lie in (0, 1], got {self.top_p}")


GREEDY = Sampling(temperature=0.0)


def choose(logits_BxV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
    """One token for each row, int32 `[B]`; each row is drawn with its own key."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    likely_BxV = likely(logits_BxV, sampling)
    return jax.vmap(jax.random.categorical)(keys_B, likely_BxV).astype(jnp.int32)


def likely(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits that a token is drawn by, `[B, V]`: over the temperature, and -inf for tokens that are left out."""
    logits_BxV = logits_BxV.astype(jnp.float32) / sampling.temperature
    if 0 < sampling.top_k < logits_BxV.shape[-1]:
        least_Bx1 = jax.lax.top_k(logits_BxV, sampling.top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    if sampling.top_p < 1.0:
        falling_BxV = -jnp.sort(-logits_BxV, axis=-1)
        shares_BxV = jax.nn.softmax(falling_BxV, axis=-1)
        before_BxV = jnp.cumsum(shares_BxV, axis=-1) - shares_BxV
        kept_B = jnp.sum(before_BxV < sampling.top_p, axis=-1)  # the first is always kept: nothing is before it
        least_Bx1 = jnp.take_along_axis(falling_BxV, kept_B[:, None] - 1, axis=-1)
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    return logits_BxV


def keys_of(seed: int | jax.Array, rows: int, step: int | jax.Array) -> jax.Array:
    """The random key of each row, `[B]`: what a row says depends neither on its neighbours nor on their number."""
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), step))(jnp.arange(rows))
