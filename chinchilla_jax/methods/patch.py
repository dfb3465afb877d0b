"""Patch-level training (Shao et al. 2024, arXiv 2407.12665): several tokens share a position, then one has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from chinchilla_jax.config import RunConfig
from chinchilla_jax.ledger import flops_per_token
from chinchilla_jax.method import Leg, legs_of
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.loss import Sums, output_loss
from chinchilla_jax.training.objective import NEXT_TOKEN, Arrays, Objective, read_out_sums
from chinchilla_jax.training.stages import Stage
from chinchilla_jax.training.step import TrainState


def stages(config: RunConfig) -> tuple[Stage, ...]:
    """Patches first, then tokens."""
    return tuple(Stage(leg.config, _objective(leg), fresh_optimizer) for leg in legs_of(config))


def _objective(leg: Leg) -> Objective:
    return NEXT_TOKEN if leg.patch == 1 else NextPatch(leg.patch)


def fresh_optimizer(last: TrainState, fresh: TrainState) -> TrainState:
    """The weights of the stage before, and nothing else of it: moments begin at zero (section 2.2 of the paper)."""
    return fresh.replace(step=last.step, params=last.params)


@dataclasses.dataclass(frozen=True)
class NextPatch(Objective):
    """Prediction of all tokens of the next patch, by the mean of the nats of its tokens (the paper adds them up)."""

    size: int

    def sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Sums:
        def read_out(x_BxTxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None) -> Sums:
            targets_BxTxK, weights_BxTxK = (self.of_next(batch[name]) for name in ("targets", "weights"))
            return output_loss(x_BxTxD, output_VxD, bias_V, targets_BxTxK, weights_BxTxK, config.optimizer.z_loss)

        def lookup(table_VxD: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
            return self.mean(model.lookup(table_VxD, tokens_BxS))

        # A patch belongs to the document of its last token.
        segment_ids_BxT = batch["segment_ids"][:, self.size - 1 :: self.size] if "segment_ids" in batch else None
        by_patch, router_loss = model.clone(lookup=lookup), config.optimizer.router_loss
        return read_out_sums(by_patch, params, batch["inputs"], segment_ids_BxT, read_out, router_loss)

    def mean(self, x_BxSxD: jax.Array) -> jax.Array:
        """The mean of each patch, `[B, S/K, D]`, taken in float32."""
        b, s, d = x_BxSxD.shape
        x_BxTxKxD = x_BxSxD.reshape(b, s // self.size, self.size, d)
        return jnp.mean(x_BxTxKxD, axis=2, dtype=jnp.float32).astype(x_BxSxD.dtype)

    def of_next(self, values_BxS: jax.Array) -> jax.Array:
        """For every patch those of the K tokens after it, `[B, S/K, K]`, from what belongs to the targets of a row.

        A row has one token more than inputs. Of the patch after the last one it knows the first token only: the others
        are zeros, as weights are where nothing is to be predicted. Nothing predicts the first K - 1 targets.
        """
        b, s = values_BxS.shape
        ahead_BxS = jnp.pad(values_BxS[:, self.size - 1 :], [(0, 0), (0, self.size - 1)])
        return ahead_BxS.reshape(b, s // self.size, self.size)

    def in_blocks(self, config: RunConfig) -> RunConfig:
        return dataclasses.replace(
            config, data=dataclasses.replace(config.data, seq_len=config.data.seq_len // self.size)
        )

    def flops(self, config: RunConfig, tokens: int) -> dict[str, float]:
        return {name: tokens * flops_per_token(config, name, self.size) for name in super().flops(config, tokens)}
