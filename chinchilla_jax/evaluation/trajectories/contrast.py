"""What text does one size of model like better than another?

    for text in contrast(small, large, ["The"], factors=(1.0, -1.0), new_tokens=50):
        print(text.text, text.nats)

Xia et al. 2023 (arXiv 2212.09803, section 4.2, equations 2 and 3): the next token is drawn by
`factor_s p_small + factor_l p_large`, without what is negative, over its sum. With 1 and -1 it is what the small model
favours, and the large one does not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import ConfigError
from chinchilla_jax.generation.decode import Reading, next_tokens
from chinchilla_jax.generation.sampling import GREEDY, Sampling
from chinchilla_jax.generation.text import prompt_ids, texts_of
from chinchilla_jax.interop.trained import Trained

FACTORS = (1.0, -1.0)


class Contrasted(NamedTuple):
    """What follows a prompt, and the mean loss of the tokens decoded, in nats, under the small and the large model."""

    text: str
    nats: tuple[float, float]


def mixed_log_p(logits_s_BxV: jax.Array, logits_l_BxV: jax.Array, factors: tuple[float, float]) -> jax.Array:
    """ln p of equation 3, float32 `[B, V]`; -inf where the mixture is not positive.

    Where it is so nowhere, as of two models that are the same, the large model alone decides.
    """
    p_s, p_l = (jax.nn.softmax(x.astype(jnp.float32)) for x in (logits_s_BxV, logits_l_BxV))
    mixed_BxV = jnp.maximum(factors[0] * p_s + factors[1] * p_l, 0.0)
    sum_Bx1 = mixed_BxV.sum(-1, keepdims=True)
    return jnp.log(jnp.where(sum_Bx1 > 0, mixed_BxV / jnp.where(sum_Bx1 > 0, sum_Bx1, 1.0), p_l))


def contrast_tokens(
    small: Trained,
    large: Trained,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    factors: tuple[float, float] = FACTORS,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The next tokens of all prompts, int32 `[B]`, and their losses under both models, float32 `[2, B]`.

    Raises ConfigError as `generate` does.
    """
    readings, rows = [Reading(model, prompts, new_tokens) for model in (small, large)], len(prompts)
    allowed = min((r.allowed for r in readings if r.allowed is not None), default=None)
    for step in range(new_tokens):
        both = (reading.logits_BxV for reading in readings)
        tokens_B, nats_2xB = _next(*both, factors, sampling, jnp.uint32(seed), jnp.int32(step), allowed)
        for reading in readings if step + 1 < new_tokens else ():
            reading.extend(tokens_B)
        yield np.asarray(tokens_B)[:rows], np.asarray(nats_2xB)[:, :rows]


@functools.partial(jax.jit, static_argnums=(2, 3, 6))
def _next(
    logits_s_BxV: jax.Array,
    logits_l_BxV: jax.Array,
    factors: tuple[float, float],
    sampling: Sampling,
    seed: jax.Array,
    step: jax.Array,
    allowed: int | None,
) -> tuple[jax.Array, jax.Array]:
    width = min(logits_s_BxV.shape[1], logits_l_BxV.shape[1])
    both = [x[:, :width].astype(jnp.float32) for x in (logits_s_BxV, logits_l_BxV)]
    tokens_B = next_tokens(mixed_log_p(both[0], both[1], factors), sampling, seed, step, allowed)
    log_p = jnp.stack([jax.nn.log_softmax(x) for x in both])
    return tokens_B, -jnp.take_along_axis(log_p, tokens_B[None, :, None], axis=2)[..., 0]


def contrast(
    small: Trained,
    large: Trained,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    factors: tuple[float, float] = FACTORS,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[Contrasted]:
    """What follows each prompt by both models' mixture; the other arguments are those of `continue_texts`.

    Raises:
      ConfigError: the models have different tokenizers, or as `continue_texts`.
    """
    if small.need_tokenizer().fingerprint() != large.need_tokenizer().fingerprint():
        raise ConfigError("tokenizer", f"{small.source} and {large.source} have different ones: their tokens differ")
    ids, sums, counts = [prompt_ids(large, prompt) for prompt in prompts], np.zeros((2, len(prompts))), 0

    def tokens() -> Iterator[np.ndarray]:
        nonlocal sums, counts
        for tokens_B, nats_2xB in contrast_tokens(small, large, ids, new_tokens, factors, sampling, seed):
            sums, counts = sums + nats_2xB, counts + 1
            yield tokens_B

    texts = texts_of(large, ids, tokens(), stop)
    means = sums / max(counts, 1)
    return [Contrasted(text, (float(means[0, i]), float(means[1, i]))) for i, text in enumerate(texts)]
