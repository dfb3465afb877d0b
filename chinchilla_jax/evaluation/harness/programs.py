"""How likely are tokens after others, on devices? Of whole rows, or of rows whose beginning is in a cache already."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from chinchilla_jax.config import RunConfig
from chinchilla_jax.generation.decode import forward, make_decoder, with_whole_rows
from chinchilla_jax.model.cache import Cache
from chinchilla_jax.parallel.rules import partition_spec
from chinchilla_jax.training.loss import token_scores
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.step import make_program, model_of, on_mesh

Sums = tuple[jax.Array, jax.Array]  # `[B]`: log-likelihood, and of how many of its tokens one is likelier


class Programs(NamedTuple):
    """Compiled functions of one model on one mesh. Weights `[B, S]` are 1 where a token counts, else 0.

    Attributes:
      rows: `(params, inputs_BxS, targets_BxS, weights_BxS)` to sums.
      prefill: `(params, tokens_BxS, length, starts, capacity)` to logits `[B, V]` and cache (`generation/decode.py`).
      first: `(logits_BxV, tokens_B)` to sums: of each context's next token.
      more: `(params, cache, inputs_BxS, targets_BxS, weights_BxS)` to sums: of tokens behind those in the cache, which
        can be asked about others afterwards.
    """

    rows: jax.stages.Wrapped
    prefill: jax.stages.Wrapped
    first: jax.stages.Wrapped
    more: jax.stages.Wrapped
    batch_sharding: NamedSharding  # of arrays `[B, S]`


def make_programs(config: RunConfig, mesh: Mesh | AbstractMesh) -> Programs:
    """The programs of a config on a mesh; equal shapes share compilations."""
    return _make_programs(shape_key(with_whole_rows(config)), mesh)


@functools.lru_cache(maxsize=64)
def _make_programs(config: RunConfig, mesh: Mesh | AbstractMesh) -> Programs:
    params = jax.tree.map(lambda x: x.sharding, make_program(config, mesh).abstract.params)
    decoder = make_decoder(config, mesh)
    batch, everywhere = decoder.batch_sharding, NamedSharding(mesh, partition_spec(()))

    def rows(params: dict, inputs_BxS: jax.Array, targets_BxS: jax.Array, weights_BxS: jax.Array) -> Sums:
        read_out = functools.partial(token_scores, targets_BxS=targets_BxS)
        (nats_BxS, is_top_BxS), *_ = model_of(config).apply({"params": params}, inputs_BxS, None, read_out)
        return _sums(nats_BxS, is_top_BxS, weights_BxS)

    def more(params: dict, cache: Cache, inputs_BxS: jax.Array, targets_BxS: jax.Array, weights_BxS: jax.Array) -> Sums:
        read_out = functools.partial(token_scores, targets_BxS=targets_BxS)
        (nats_BxS, is_top_BxS), _ = forward(config, params, inputs_BxS, cache, read_out)
        return _sums(nats_BxS, is_top_BxS, weights_BxS)

    in_rows = (params, batch, batch, batch)
    return Programs(
        jax.jit(on_mesh(rows, mesh, config.mesh), in_shardings=in_rows, out_shardings=everywhere),
        decoder.prefill,
        jax.jit(_first, out_shardings=everywhere),
        jax.jit(
            on_mesh(more, mesh, config.mesh),
            in_shardings=(params, None, batch, batch, batch),
            out_shardings=everywhere,
        ),
        batch,
    )


def _first(logits_BxV: jax.Array, tokens_B: jax.Array) -> Sums:
    of_token_B = jnp.take_along_axis(logits_BxV, tokens_B[:, None], axis=-1)[:, 0]
    nats_B = jax.nn.logsumexp(logits_BxV, axis=-1) - of_token_B
    return -nats_B, (of_token_B < jnp.max(logits_BxV, axis=-1)).astype(jnp.float32)


def _sums(nats_BxS: jax.Array, is_top_BxS: jax.Array, weights_BxS: jax.Array) -> Sums:
    return -jnp.sum(nats_BxS * weights_BxS, axis=1), jnp.sum(jnp.where(is_top_BxS, 0.0, weights_BxS), axis=1)
