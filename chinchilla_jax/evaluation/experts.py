"""What does a trained DS-MoE lose if fewer of its experts are used? Its validation loss, by how they are selected.

    for row in losses(config, mesh, params, batches, [Selection(top=k) for k in (2, 4, 8)]):
        print(row.selection, row.experts, row.record["validation_loss"])

It is trained with all of them (Pan et al. 2024, arXiv 2404.05567, section 3.3).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.data import Batches
from chinchilla_jax.data.batches import Batch
from chinchilla_jax.model.experts import ATTENTION_USED, USED, Selection
from chinchilla_jax.parallel.mesh import make_mesh, place
from chinchilla_jax.parallel.rules import partition_spec
from chinchilla_jax.training.checkpoint import restore_from
from chinchilla_jax.training.evaluate import evaluate
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.objective import next_token_sums
from chinchilla_jax.training.start import open_batches
from chinchilla_jax.training.step import make_program, model_of, on_mesh


class Loss(NamedTuple):
    """The validation record (`training/evaluate.py`) with some of the experts, and the shares of them that were used.

    The shares are means over layers and tokens, `experts` of those in feed-forward layers.
    """

    selection: Selection
    experts: float
    attention_experts: float
    record: dict[str, float]


def losses(
    config: RunConfig, mesh: Mesh, params: dict, batches: Batches, selections: Iterable[Selection]
) -> list[Loss]:
    """The validation losses of a trained model, with `train.eval_sequences` as its training evaluates it.

    Args:
      params: as a `TrainState` of the config has them on the mesh.
      batches: of the config's data (`training.start.open_batches`).

    Raises:
      ConfigError: the model is no DS-MoE.
    """
    model, train = config.model, config.train
    if model.feed_forward != "ds_moe" and model.attention_experts == 1:
        told = f"{model.feed_forward} has no experts that could be left out after training; only a DS-MoE has"
        raise ConfigError("model.feed_forward", told)
    shape = (train.microbatches, train.batch_size // train.microbatches, config.data.seq_len)
    sharding, found = make_program(config, mesh).batch_sharding, []
    for selection in selections:
        score = _make_score(shape_key(config), mesh, selection)
        sums: list[dict[str, jax.Array]] = []

        def run_batch(batch: Batch, score: jax.stages.Wrapped = score, sums: list = sums) -> dict[str, jax.Array]:
            rows = place(lambda numbers=slice(None): {n: x[numbers] for n, x in batch.items()}, shape, sharding)
            sums.append(score(params, rows))
            return sums[-1]

        record = evaluate(batches, run_batch, train.batch_size, train.eval_sequences)
        experts, attention_experts = (_share(sums, name, model.n_layers) for name in (USED, ATTENTION_USED))
        found.append(Loss(selection, experts, attention_experts, record))
    return found


def _share(sums: list[dict[str, jax.Array]], name: str, layers: int) -> float:
    """The mean over tokens and layers of what batches sum up by this name; 1 if they do not: nothing is left out."""
    if name not in sums[0]:
        return 1.0
    total, tokens = (sum(float(of_batch[key].sum()) for of_batch in sums) for key in (name, "weight"))
    return total / tokens / layers


@functools.lru_cache(maxsize=64)
def _make_score(config: RunConfig, mesh: Mesh, selection: Selection) -> jax.stages.Wrapped:
    """Sums of each microbatch of a batch `[M, B/M, S]`, as `training.step.evaluate_step` with a selection."""

    def sums(params: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = model_of(config).clone(select=selection)
        return jax.lax.map(lambda rows: next_token_sums(model, params, rows)[1], batch)

    program = make_program(config, mesh)
    params = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    replicated = NamedSharding(mesh, partition_spec(()))
    shardings = (params, program.batch_sharding)
    return jax.jit(on_mesh(sums, mesh, config.mesh), in_shardings=shardings, out_shardings=replicated)


def losses_of_run(
    config: RunConfig, workdir: Path, tops: Iterable[int], echo: Callable[[str], None] = print
) -> list[Loss]:
    """The same for the newest checkpoint of a run directory, with the best `tops` experts of each token.

    Raises:
      ConfigError: there is no readable checkpoint, or the model is no DS-MoE.
    """
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh)
    newest = restore_from(workdir / "checkpoints", sys.maxsize, lambda step: program.abstract, echo)
    if newest is None:
        raise ConfigError("workdir", f"{workdir} has no readable checkpoint")
    selections = [Selection(top=top) for top in tops]
    return losses(config, mesh, newest[0].params, open_batches(config), selections)
