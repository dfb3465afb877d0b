"""What is a token worth the second time, and how often should scarce data be repeated?

Muennighoff et al. 2023 (arXiv 2305.16264) put effective tokens D' and effective parameters N' into the Chinchilla form
(eqs. 5 and 6). A token of epoch 1 + R is worth exp(-R / R_D*) of a fresh one; parameters beyond the optimum for the
unique tokens lose value in the same way, and sooner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.laws.dense import PARAMS, TOKENS
from chinchilla_jax.scaling.laws.form import Form, amplitude, form, positives
from chinchilla_jax.scaling.laws.optimum import Allocation, allocate


def effective(used: Any, unique: Any, decay: Any, xp: ModuleType = np) -> Any:
    """What `used` = (1 + R) `unique` of something are worth in fresh ones: unique (1 + R* (1 - exp(-R / R*))), eqs. 5
    and 6; `decay` is R*; `used` >= `unique`. All [...]."""
    return unique * (1.0 - decay * xp.expm1(-(used / unique - 1.0) / decay))


def _law(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    unique_tokens = xp.minimum(x.unique_tokens, x.tokens)
    # The compute-optimal N for the unique tokens under the base law: eq. 4 of arXiv 2203.15556 without C.
    g = (c.alpha * c.A / (c.beta * c.B)) ** (1.0 / (c.alpha + c.beta))
    unique_params = xp.minimum(x.params, g * (g * unique_tokens) ** (c.beta / c.alpha))
    params, tokens = effective(x.params, unique_params, c.R_N, xp), effective(x.tokens, unique_tokens, c.R_D, xp)
    return c.E + c.A * params**-c.alpha + c.B * tokens**-c.beta


FORMS = (
    Form(
        "data_constrained",
        "L = E + A / N'^alpha + B / D'^beta; D' = U_D (1 + R_D (1 - exp(-(D/U_D - 1)/R_D))), U_D = min(unique, D); "
        "N' likewise with R_N and U_N = min(N, N_opt(U_D))",
        "arXiv 2305.16264 eqs. 5, 6",
        (PARAMS, TOKENS, ("unique_tokens", "tokens of the data set; more than D counts as D")),
        (
            amplitude("E", low=0.1, high=1.0),
            amplitude("A", lambda c, x, xp: x.params**-c.alpha),
            amplitude("B", lambda c, x, xp: x.tokens**-c.beta),
            *positives(alpha=(0.1, 1.0), beta=(0.1, 1.0), R_D=(1.0, 100.0), R_N=(1.0, 100.0)),
        ),
        _law,
    ),
)


@dataclasses.dataclass(frozen=True)
class UniqueDataOptimum(Allocation):
    """The best use of a budget on unique tokens; `tokens` D are all passes together; `epochs` D / unique tokens;
    `mean_value`, what a token trained on was worth on average, D'/D; `next_value`, what one more repeated token would
    be worth, in fresh tokens; `unlimited` the loss with fresh tokens only at the same budget."""

    epochs: float
    mean_value: float
    next_value: float
    unlimited: float


def unique_data_optimum(constants: Mapping[str, float], unique_tokens: float, flops: float) -> UniqueDataOptimum:
    """The lowest loss for `flops` = 6 N D training FLOPs and `unique_tokens`, and how often the tokens are then seen;
    `constants` are of the form `data_constrained`, e.g. `published()["muennighoff2023"].constants`. FitRefused
    `no_optimum`."""

    def loss(unique: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda n, d: form("data_constrained").value(constants, params=n, tokens=d, unique_tokens=unique)

    best = allocate(loss(unique_tokens), flops)
    distinct, decay = min(unique_tokens, best.tokens), constants["R_D"]
    epochs = best.tokens / distinct
    mean_value, next_value = effective(best.tokens, distinct, decay) / best.tokens, np.exp(-(epochs - 1.0) / decay)
    unlimited = allocate(loss(np.inf), flops).loss
    values = epochs, float(mean_value), float(next_value), unlimited
    return UniqueDataOptimum(best.params, best.tokens, best.loss, *values)
