"""Which number of experts is best when the mixture is also served: at a bounded loss, and at a bounded cost?

Yun et al. 2024 (arXiv 2404.02852). A training budget C has a loss-optimal dense size N_E for each number of experts E.
More experts lower the loss and make each served token dearer, since all of them lie in memory. But a mixture smaller
than N_E, trained for longer on the same C, is cheaper to serve, and its loss rises slowly. So:

  bounded loss (algorithm 1)    the smallest N' up to N_E whose loss on C is no higher than the bound: then its cost
  bounded cost (algorithm 2)    the largest N' up to N_E that costs no more than the bound: then its loss

Both by bisection in ln N. Up to N_E the loss on a fixed budget falls with N, and the cost rises with N always.

N is the size of the dense model that has one feed-forward layer in place of each routed one (`params` of the law). The
paper writes C = 6 N D; here it is 6 N_active D, since with more than one expert a token the products are more than
those of N, and the paper does not say which it means.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from chinchilla_jax.presets import presets
from chinchilla_jax.scaling.answers.serving.cost import Served, Server, Serving, Traffic, cheapest
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.read.runs import FitRefused

# Loss [...] of a dense size N [...] and tokens D [...] with E experts.
Loss = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

_LEAST = 10.0  # parameters of the smallest model looked at
_HALVINGS = 80
_DECADE, _DECADES = 10.0, 8  # budgets are sought so many decades below and above the one given


@functools.cache
def width_times_layers() -> float:
    """mu of width x layers = mu N^(2/3), the geometric mean over the four shapes of LLaMA."""
    llamas = [preset for name, preset in presets().items() if name.startswith("llama-")]
    ratios = [p.model.d_model * p.model.n_layers / p.params_exact ** (2.0 / 3.0) for p in llamas]
    return float(np.exp(np.mean(np.log(ratios))))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How a dense size N and E experts become a model.

    `top_k`: experts a token uses, K. `routed_share`: of the N parameters, those of the layers that experts replace, c;
    1/3 where every second feed-forward layer is one of them and these hold two thirds of N, as in the paper.
    `expert_size`: of an expert, in such layers; 1 / K where K experts have the products of one. `kv_share`: of the
    heads, those with keys and values of their own. `weight_bytes`, `value_bytes`: of one weight when served, of one
    cached key or value and of one activation.

    FitRefused `question`: a number out of range.
    """

    top_k: int = 2
    routed_share: float = 1.0 / 3.0
    expert_size: float = 1.0
    kv_share: float = 1.0
    weight_bytes: float = 2.0
    value_bytes: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 1.0 if name.endswith("share") else np.inf
            if not (0 < value <= most) or value == np.inf or (name == "top_k" and value != int(value)):
                whole = "a whole number" if name == "top_k" else "a number"
                limit = " and at most 1" if most == 1.0 else ""
                raise FitRefused("question", f"--serve={name}:{value:g} must be {whole} above 0{limit}")

    def check(self, experts: float) -> None:
        """FitRefused `question` for a number of experts that is no whole number, or below `top_k` and not 1."""
        if experts < 1 or experts != int(experts):
            raise FitRefused("question", f"--experts={experts:g}: experts are counted in whole numbers from 1")
        if 1 < experts < self.top_k:
            why = f"a token uses {self.top_k:g}; give --serve=top_k:{experts:g}, or leave it out"
            raise FitRefused("question", f"--experts={experts:g}: {why}")

    def total(self, params: np.ndarray | float, experts: float) -> np.ndarray:
        """All parameters [...]; with one expert N itself, the dense model."""
        return np.asarray(params) * (1.0 + self.routed_share * (self._layers(experts, experts) - 1.0))

    def active(self, params: np.ndarray | float, experts: float) -> np.ndarray:
        """Parameters that one token uses [...]."""
        return np.asarray(params) * (1.0 + self.routed_share * (self._layers(experts, self.top_k) - 1.0))

    def _layers(self, experts: float, counted: float) -> float:
        """How many feed-forward layers `counted` experts of a routed layer weigh."""
        return 1.0 if experts == 1 else counted * self.expert_size

    def served(self, params: np.ndarray | float, experts: float) -> Served:
        """Bytes and products of the model [...]."""
        params = np.asarray(params, np.float64)
        values = width_times_layers() * params ** (2.0 / 3.0) * self.value_bytes  # bytes of one value in every layer
        return Served(
            always=params * (1.0 - self.routed_share) * self.weight_bytes,
            routed=(self.total(params, experts) - params * (1.0 - self.routed_share)) * self.weight_bytes,
            used=np.full(params.shape, 1.0 if experts == 1 else self.top_k / experts),
            active=self.active(params, experts),
            cache=2.0 * values * self.kv_share,
            exchanged=2.0 * values,
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mixture and what it comes to: `experts` E; `params` the dense size N; `total` and `active` parameters; `tokens`
    D that spend `flops` C = 6 N_active D; `loss`; and how it is served."""

    experts: int
    params: float
    total: float
    active: float
    tokens: float
    flops: float
    loss: float
    serving: Serving

    @property
    def cost(self) -> float:
        """Of a million output tokens, in the unit of the price; infinite where no server holds the model."""
        return float(self.serving.cost)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stays the same while N and E change: the law, what a mixture is made of, the traffic and the server."""

    law: Loss
    mixture: Mixture
    traffic: Traffic
    server: Server

    def serving(self, params: np.ndarray | float, experts: float) -> Serving:
        """How the mixture is served most cheaply [...]."""
        return cheapest(self.mixture.served(params, experts), self.traffic, self.server)

    def loss(self, params: np.ndarray | float, experts: float, flops: float) -> np.ndarray:
        """The loss of a dense size N [...] on which all of C is spent."""
        tokens = flops / (6.0 * self.mixture.active(params, experts))
        return self.law(np.asarray(params), tokens, experts)

    def choice(self, params: float, experts: int, flops: float) -> Choice:
        """The mixture of this size, trained for `flops`."""
        total, active = (float(count(params, experts)) for count in (self.mixture.total, self.mixture.active))
        counts = params, total, active, flops / (6.0 * active), flops
        loss = float(self.loss(params, experts, flops))
        return Choice(experts, *counts, loss, self.serving(params, experts))


def loss_optimal(setting: Setting, experts: int, flops: float) -> Choice:
    """The mixture of the lowest loss for training FLOPs C; FitRefused `no_optimum`."""
    per = 6.0 * float(setting.mixture.active(1.0, experts))
    try:
        best = allocate(lambda params, tokens: setting.law(params, tokens, experts), flops, per)
    except FitRefused as refused:
        raise FitRefused(refused.reason, f"with {experts} experts: {refused}") from None
    return setting.choice(best.params, experts, flops)


def bounded_loss(setting: Setting, experts: int, flops: float, most: float) -> Choice | None:
    """Algorithm 1: the mixture that is cheapest to serve among those that C trains to a loss of at most `most`; None
    where C does not reach it. FitRefused `no_optimum`, also where the law holds the bound at any size."""
    best = loss_optimal(setting, experts, flops)
    if best.loss > most:
        return None
    if setting.loss(_LEAST, experts, flops) <= most:
        why = f"a loss of {most:.4g} at {flops:.3g} FLOPs is reached even by {_LEAST:g} parameters under this law"
        raise FitRefused("no_optimum", f"with {experts} experts: {why}")
    params = _last(lambda n: bool(setting.loss(n, experts, flops) <= most), best.params, _LEAST)
    return setting.choice(params, experts, flops)


def bounded_cost(setting: Setting, experts: int, flops: float, most: float) -> Choice | None:
    """Algorithm 2: the mixture of the lowest loss among those trained with C that cost at most `most` to serve; the
    loss-optimal one where that is as cheap; None where nothing is."""
    best = loss_optimal(setting, experts, flops)
    if best.cost <= most:
        return best
    if setting.serving(_LEAST, experts).cost > most:
        return None
    params = _last(lambda n: bool(setting.serving(n, experts).cost <= most), _LEAST, best.params)
    return setting.choice(params, experts, flops)


def optimal_for_loss(setting: Setting, experts: int, loss: float, flops: float) -> Choice | None:
    """The loss-optimal mixture of the least budget that reaches `loss`, or None; budgets are sought within 1e8 times
    `flops` on either side."""
    return _at_last_budget(setting, experts, flops, lambda choice: choice.loss <= loss, 1.0 / _DECADE)


def optimal_for_cost(setting: Setting, experts: int, cost: float, flops: float) -> Choice | None:
    """The largest loss-optimal mixture that costs at most `cost` to serve, or None; budgets are sought within 1e8 times
    `flops` on either side."""
    return _at_last_budget(setting, experts, flops, lambda choice: choice.cost <= cost, _DECADE)


def _at_last_budget(
    setting: Setting, experts: int, flops: float, suits: Callable[[Choice], bool], outward: float
) -> Choice | None:
    """The loss-optimal mixture of the last budget that suits, or None. A factor of `outward`, ten or a tenth, leads
    from budgets that suit to those that do not."""

    def holds(budget: float) -> bool:
        try:
            return suits(loss_optimal(setting, experts, budget))
        except FitRefused:  # so small a budget has no optimum
            return False

    budgets = [flops * outward**step for step in range(-_DECADES, _DECADES + 1)]
    suitable = [step for step, budget in enumerate(budgets) if holds(budget)]
    if not suitable:
        return None
    inside, *beyond = budgets[suitable[-1] :]
    return loss_optimal(setting, experts, _last(holds, inside, beyond[0]) if beyond else inside)


def _last(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The point between `inside`, where a condition holds, and `outside`, where it does not, up to which it holds; by
    halving in the logarithm. It holds at the point returned."""
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(inside * outside))
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside
