"""How likely are given rows under a model? The log-likelihood of each row, over the tokens of it that count.

Harnesses compare continuations by it, and a perplexity is made of its sums. Logits are made in chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.rules import partition_spec
from chinchilla_jax.training.loss import token_nats
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.step import make_program, model_of, on_mesh


def nats_of_tokens(config: RunConfig, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
    """The loss of every token of a batch of arrays `[M, B/M, S]`, one microbatch after the other, of no weight too.

    Args:
      params: as a `TrainState` has them.
      batch: inputs, targets and, if rows hold documents, segment_ids.

    Returns:
      float32 `[M, B/M, S]`, in nats.
    """

    def microbatch(rows: dict[str, jax.Array]) -> jax.Array:
        read_out = functools.partial(token_nats, targets_BxS=rows["targets"])
        return model_of(config).apply({"params": params}, rows["inputs"], rows.get("segment_ids"), read_out)[0]

    return jax.lax.map(microbatch, batch)


def score_rows(config: RunConfig, params: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The score of each row of a batch, as `nats_of_tokens` takes it.

    Args:
      params: as a `TrainState` has them.
      batch: the same, and weights (1 where a target counts, else 0).

    Returns:
      float32 `[M, B/M]`: log_likelihood (nats, the sum over the targets that count) and tokens (how many those are).
    """
    nats, weights = nats_of_tokens(config, params, batch), batch["weights"]
    return {"log_likelihood": -jnp.sum(nats * weights, axis=-1), "tokens": jnp.sum(weights, axis=-1)}


def make_score(config: RunConfig, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    """`score_rows(params, batch)` jitted for a mesh, its results on every device; equal shapes share compilations."""
    return _jitted(score_rows, shape_key(config), mesh)


def make_nats(config: RunConfig, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    """`nats_of_tokens(params, batch)` jitted for a mesh, likewise."""
    return _jitted(nats_of_tokens, shape_key(config), mesh)


@functools.lru_cache(maxsize=64)
def _jitted(function: Callable, config: RunConfig, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    program = make_program(config, mesh)
    params = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    return jax.jit(
        on_mesh(lambda params, batch: function(config, params, batch), mesh, config.mesh),
        in_shardings=(params, program.batch_sharding),
        out_shardings=NamedSharding(mesh, partition_spec(())),
    )
