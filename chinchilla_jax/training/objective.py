"""What does a step minimise? An objective makes a summed loss of a batch, and says what training by it costs.

Objectives go by name: `train(..., objective="mine")` after `register("mine", MyObjective())`. They are an argument and
not a setting, which every run directory and manifest would store. The `config.json` of a run names an objective that is
not the first one. Evaluations do not ask it: runs are compared by the loss of the next token, whatever they minimised.
"""

from __future__ import annotations

from typing import Any

import jax

from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean
from chinchilla_jax.ledger import count_run
from chinchilla_jax.model.experts import MEANS, ROUTER_LOSS
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.loss import Sums, output_loss

NEXT_TOKEN = "next_token"
Arrays = dict[str, jax.Array]


class Objective:
    """Next-token prediction. Another objective derives from it and overrides what differs."""

    def sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Sums:
        """What to minimise, summed over the tokens of a microbatch, and `nll` (nats to report) and `weight` (tokens).

        Sums and not means: the step divides by the weight of the whole batch. `extra` is what the state holds for the
        objective. `batch` has arrays `[B, S]`: inputs, targets, weights and, where documents are masked, segment_ids.
        """
        return next_token_sums(model, params, batch, config.optimizer.z_loss, config.optimizer.router_loss)

    def init_extra(self, config: RunConfig, params: dict) -> Any:
        """What the state holds besides weights and moments, such as a teacher: a tree of arrays.

        `params` are the first weights, in boxes that name their logical axes. What `jax.tree.map` makes of them keeps
        the boxes, and is split over the devices in the same way.
        """
        return {}

    def next_extra(self, config: RunConfig, params: dict, extra: Any) -> Any:
        """The same after a step that led to the weights `params`."""
        return extra

    def flops(self, config: RunConfig, tokens: int) -> dict[str, float]:
        """FLOPs of training on so many tokens, by the ledger's conventions."""
        return count_run(config, tokens).flops


def next_token_sums(
    model: Transformer, params: dict, batch: Arrays, z_loss: float = 0.0, router_loss: float = 0.0
) -> Sums:
    """`output_loss` of a model on a batch of arrays `[B, S]`, and what its blocks sum up.

    What routers report are means over tokens. They become sums here, as all else; `router_loss` of their loss is
    minimised, and none of it is in `nll`.
    """

    def read_out(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None) -> Sums:
        return output_loss(x_BxSxD, output_VxD, bias_V, batch["targets"], batch["weights"], z_loss)

    (loss, sums), _, aux = model.apply({"params": params}, batch["inputs"], batch.get("segment_ids"), read_out)
    aux = {name: value * sums["weight"] if name in MEANS else value for name, value in aux.items()}
    if router_loss:
        loss += router_loss * aux[ROUTER_LOSS]
    return loss, {**sums, **aux}


_OBJECTIVES = {NEXT_TOKEN: Objective()}


def register(name: str, objective: Objective) -> None:
    """Makes an objective known; `ValueError` if the name is taken, since compiled programs are kept by name."""
    if _OBJECTIVES.setdefault(name, objective) is not objective:
        raise ValueError(f"there is an objective {name!r} already")


def objective_of(name: str) -> Objective:
    """The objective registered as `name`; `ConfigError` if there is none."""
    if name not in _OBJECTIVES:
        hint = did_you_mean(name, _OBJECTIVES)
        raise ConfigError("objective", f"unknown value {name!r}{hint}; one of {', '.join(_OBJECTIVES)}")
    return _OBJECTIVES[name]
