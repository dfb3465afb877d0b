"""What does a law advise, and what does it cost not to follow it?

Every function takes a `Surface`, whose fields may be bootstrap replicates [B]; the answers then are [B] as well, and
their percentiles are the intervals. `flops_per` is training FLOPs per token: 6 for 6ND, or a function of N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface

_DECADES, _HALVINGS = 40.0, 60  # roots are sought this far on either side, and so often the range is halved


@dataclasses.dataclass(frozen=True)
class Choice:
    """A model and what it comes to; fields are numbers or replicates [B].

    `loss` in nats per token; `optimal_loss` the least that the same FLOPs can reach; `wasted` the share of the FLOPs
    that an optimal model would not need for this loss (0 at the optimum).
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    optimal_loss: np.ndarray
    wasted: np.ndarray


def optimal(law: Surface, flops: float | np.ndarray, flops_per: FlopsPerToken = 6.0) -> Choice:
    """The compute-optimal model of a budget (Hoffmann et al. 2022, eq. 4 where C is proportional to N D)."""
    params, tokens, loss = law.optimum(flops, flops_per)
    return Choice(params, tokens, np.broadcast_to(flops, np.shape(loss)), loss, loss, np.zeros(np.shape(loss)))


def trained(law: Surface, params: float, tokens: float | np.ndarray, flops_per: FlopsPerToken = 6.0) -> Choice:
    """A model of `params` on `tokens`, whatever that costs."""
    flops = cost(params, tokens, flops_per)
    loss = law.loss(params, tokens)
    flops, tokens = (np.broadcast_to(v, np.shape(loss)) for v in (flops, tokens))
    enough = flops_for_loss(law, loss, flops_per)
    best = law.optimum(flops, flops_per)[2]
    return Choice(np.broadcast_to(params, np.shape(loss)), tokens, flops, loss, best, 1 - enough / flops)


def given_params(law: Surface, params: float, flops: float | None = None, flops_per: FlopsPerToken = 6.0) -> Choice:
    """N fixed: all of `flops` spent on tokens, or, without a budget, the one for which N is optimal."""
    if flops is not None:
        return trained(law, params, flops / per_token(params, flops_per), flops_per)
    return optimal(law, _root(lambda c: law.optimum(c, flops_per)[0], params, law), flops_per)


def given_tokens(law: Surface, tokens: float, flops: float | None = None, flops_per: FlopsPerToken = 6.0) -> Choice:
    """D fixed: the largest N that `flops` can train on D, or, without a budget, the N for which D is optimal."""
    if flops is not None:
        params = np.exp(_bisect(lambda x: cost(np.exp(x), tokens, flops_per) - flops, np.log(flops / 6.0 / tokens)))
        return trained(law, float(params), tokens, flops_per)
    return optimal(law, _root(lambda c: law.optimum(c, flops_per)[1], tokens, law), flops_per)


def tokens_reaching(law: Surface, params: float, loss: float | np.ndarray) -> np.ndarray:
    """D with which `params` reach `loss`; infinite where a model that small never gets there."""
    room = np.asarray(loss) - law.E - law.A * params**-law.alpha
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(room > 0, (law.B / np.where(room > 0, room, 1.0)) ** (1.0 / law.beta), np.inf)


def flops_for_loss(law: Surface, loss: float | np.ndarray, flops_per: FlopsPerToken = 6.0) -> np.ndarray:
    """The least FLOPs that reach `loss`; infinite at or below the irreducible loss E."""
    possible = np.asarray(loss) > law.E
    target = np.where(possible, loss, law.E + 1.0)
    return np.where(possible, _root(lambda c: -law.optimum(c, flops_per)[2], -target, law), np.inf)


def per_token(params: float | np.ndarray, flops_per: FlopsPerToken) -> np.ndarray:
    """Training FLOPs of one token."""
    return flops_per(np.asarray(params)) if callable(flops_per) else flops_per * np.asarray(params)


def cost(params: float | np.ndarray, tokens: float | np.ndarray, flops_per: FlopsPerToken) -> np.ndarray:
    """Training FLOPs."""
    return per_token(params, flops_per) * tokens


def _root(rising: Callable[[np.ndarray], np.ndarray], target: float | np.ndarray, law: Surface) -> np.ndarray:
    """The C at which a quantity that rises with C reaches `target`; one for each replicate."""
    start = np.full(np.broadcast_shapes(np.shape(target), np.shape(law.E)), np.log(1e20))
    return np.exp(_bisect(lambda x: rising(np.exp(x)) - target, start))


def _bisect(rising: Callable[[np.ndarray], np.ndarray], start: np.ndarray | float) -> np.ndarray:
    """Root of a rising function of ln C [B], by halving: nothing to tune, and the same work for every replicate."""
    reach = _DECADES * np.log(10)
    low, high = np.asarray(start, np.float64) - reach, np.asarray(start, np.float64) + reach
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = rising(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)
