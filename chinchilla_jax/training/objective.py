"""What does a step minimise? An objective makes a summed loss of a batch, and says what training by it costs.

An objective is a value: equal ones share compiled programs. It is an argument, `train(..., objective=Mine())`, and not
a setting, which every run directory and manifest would store; the `config.json` of a run names one that is not the
first. Runs are compared by the loss of the next token, whatever they minimised: that is what every evaluation measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from chinchilla_jax.config import RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.model.experts import MEANS, ROUTER_LOSS
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.labels import label_sums
from chinchilla_jax.training.loss import Sums, output_loss

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Next-token prediction. Another objective derives from it and overrides what differs.

    It is hashed and compared by its class and its fields, which hold what its programs depend on.
    """

    name: ClassVar[str] = "next_token"  # in records; of a class that has none, that of the class

    def __str__(self) -> str:
        """The name, and the fields if there are any."""
        name = vars(type(self)).get("name", type(self).__name__)
        fields = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self))
        return f"{name}({fields})" if fields else name

    def sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Sums:
        """What to minimise, summed over the tokens of a microbatch, and `nll` (nats to report) and `weight` (tokens).

        Sums and not means: the step divides by the weight of the whole batch. `extra` is what the state holds for the
        objective. `batch` has arrays `[B, S]`: inputs, targets, weights; where documents are masked, segment_ids; where
        some rows are propositions, other_labels (`training/labels.py`).
        """
        return next_token_sums(model, params, batch, config.optimizer.z_loss, config.optimizer.router_loss)

    def next_token_sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Arrays:
        """What an evaluation measures on a microbatch: `nll` of the next token, in nats, and `weight`."""
        return next_token_sums(model, params, batch)[1]

    def init_extra(self, config: RunConfig, params: dict) -> Any:
        """What the state holds besides weights and moments, such as a teacher: a tree of arrays.

        `params` are the first weights, in boxes that name their logical axes. What `jax.tree.map` makes of them keeps
        the boxes, and is split over the devices in the same way.
        """
        return {}

    def next_extra(self, config: RunConfig, params: dict, extra: Any) -> Any:
        """The same after a step that led to the weights `params`."""
        return extra

    def in_blocks(self, config: RunConfig) -> RunConfig:
        """The config of a plain run whose blocks compute on rows of the same length as these."""
        return config

    def flops(self, config: RunConfig, tokens: int) -> dict[str, float]:
        """FLOPs of training on so many tokens, by the ledger's conventions."""
        return count_run(config, tokens).flops


def next_token_sums(
    model: Transformer, params: dict, batch: Arrays, z_loss: float = 0.0, router_loss: float = 0.0
) -> Sums:
    """`output_loss` of a model on a batch of arrays `[B, S]`, what its blocks sum up, and `label_sums`
    where some rows are propositions."""

    def read_out(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None) -> Sums:
        loss, sums = output_loss(x_BxSxD, output_VxD, bias_V, batch["targets"], batch["weights"], z_loss)
        return loss, sums | label_sums(x_BxSxD, output_VxD, bias_V, batch)

    return read_out_sums(model, params, batch["inputs"], batch.get("segment_ids"), read_out, router_loss)


def read_out_sums(
    model: Transformer,
    params: dict,
    tokens_BxS: jax.Array,
    segment_ids: jax.Array | None,
    read_out: Callable[..., Sums],
    router_loss: float,
) -> Sums:
    """The sums that `read_out` makes of the last layer, and what the blocks sum up.

    What routers report are means over tokens. They become sums here, as all else; `router_loss` of their loss is
    minimised, and none of it is in `nll`.
    """
    (loss, sums), _, aux = model.apply({"params": params}, tokens_BxS, segment_ids, read_out)
    aux = {name: value * sums["weight"] if name in MEANS else value for name, value in aux.items()}
    if router_loss:
        loss += router_loss * aux[ROUTER_LOSS]
    return loss, {**sums, **aux}


NEXT_TOKEN = Objective()
