"""Which model is best when parameters and tokens share a budget, when data are scarce, or when it is also served?

`allocate` is for laws without a closed form: a grid over ln N, refined around its best point. `Surface.optimum` has the
closed form of the Chinchilla law. `unique_data_optimum` says how often scarce data should be repeated.

`cheapest_for_loss`, Sardana et al. 2024 (arXiv 2401.00448) eq. 3: minimise 6 N D_train + 2 N D_inference subject to
L(N, D_train) = l. At the optimum alpha A N^-alpha / (beta B D^-beta) = 1 + D_inference / (3 D_train): a smaller model,
trained for longer. With s the share of the reducible loss l - E that lack of tokens causes, both N and D follow from s,
and the condition is monotone in ln((1 - s) / s): one root, between that of training alone and a bound in closed form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from chinchilla_jax.scaling.fits.minimise import minimise_on_grid
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws.dense import effective
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.read.runs import FitRefused

_LEAST = 10.0  # parameters, and tokens
_BISECTIONS = 80


@dataclasses.dataclass(frozen=True)
class Allocation:
    """`params` N, `tokens` D with flops = flops_per N D, and the `loss` there."""

    params: float
    tokens: float
    loss: float


def allocate(loss: Callable[[np.ndarray, np.ndarray], np.ndarray], flops: float, flops_per: float = 6.0) -> Allocation:
    """The lowest `loss(N [G], D [G])` with flops_per * N * D = flops; FitRefused `no_optimum`, when the loss still
    falls at the end of the range (N or D of 10)."""
    ends = np.log(_LEAST), np.log(flops / flops_per / _LEAST)

    def at(log_params: np.ndarray) -> np.ndarray:
        return np.asarray(loss(np.exp(log_params), flops / (flops_per * np.exp(log_params))))

    point = minimise_on_grid(at, np.linspace(*ends, 800), rounds=9, points=21)
    if min(point - ends[0], ends[1] - point) < 1e-3:
        why = f"the law falls to the end of the range of sizes, N = {np.exp(point):.3g}"
        raise FitRefused("no_optimum", f"at {flops:.3g} FLOPs {why}")
    params = float(np.exp(point))
    return Allocation(params, flops / (flops_per * params), float(at(point)))


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


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that reaches `loss` and is then served: `params` N; `tokens` D_train; costs in FLOPs, `training`
    6 N D_train; `inference` 2 N D_inference x price; `total` of both; `saving` the share of the total saved against the
    model that is cheapest to train to that loss. Fields [...] as the arguments."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    training: np.ndarray
    inference: np.ndarray
    total: np.ndarray
    saving: np.ndarray


def cheapest_for_loss(
    surface: Surface, loss: np.ndarray | float, inference_tokens: np.ndarray | float, price: float = 1.0
) -> ServedModel:
    """The model of the given `loss` with the least cost of training and inference together.

    `inference_tokens` are those to be read and written over the model's life; `price` is the cost of a FLOP of
    inference in FLOPs of training, such as the ratio of the utilisations (eq. 6). FitRefused `loss` (not above the
    surface's E) or `inference_tokens` (negative).
    """
    loss, served = np.asarray(loss, np.float64), np.asarray(inference_tokens, np.float64)
    if not (loss > surface.E).all():
        raise FitRefused("loss", f"loss {np.min(loss):.4g} is not above the irreducible loss {np.max(surface.E):.4g}")
    if not ((served >= 0).all() and price >= 0):
        raise FitRefused("inference_tokens", "inference tokens and their price must not be negative")
    reducible, charged = loss - surface.E, served * price

    def sizes(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N and D at t = ln((1 - s) / s)."""
        share = 1.0 / (1.0 + np.exp(t))
        tokens = (surface.B / (share * reducible)) ** (1.0 / surface.beta)
        return (surface.A * (1.0 + np.exp(-t)) / reducible) ** (1.0 / surface.alpha), tokens

    trained_only = np.log(surface.beta / surface.alpha) + 0.0 * (reducible + charged)
    low = trained_only
    high = trained_only + np.log1p(charged / (3.0 * sizes(trained_only)[1]))
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = middle - trained_only > np.log1p(charged / (3.0 * sizes(middle)[1]))
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    params, tokens = sizes(0.5 * (low + high))
    usual_params, usual_tokens = sizes(trained_only)
    training, inference = 6.0 * params * tokens, 2.0 * params * charged
    total, usual_total = training + inference, 6.0 * usual_params * usual_tokens + 2.0 * usual_params * charged
    return ServedModel(params, tokens, loss, training, inference, total, 1.0 - total / usual_total)
