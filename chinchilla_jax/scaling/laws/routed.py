"""What are more experts worth at the same FLOPs per token?

Clark et al. 2022 (arXiv 2202.01169): bilinear in the logarithms of the dense size N and of the number of experts, which
saturates at both ends (eq. 1). Yun et al. 2024 (arXiv 2404.02852) add the tokens, for a trade-off with the cost of
serving; their constants are not shipped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.laws.chinchilla import TOKENS
from chinchilla_jax.scaling.laws.form import Form, amplitude, positive, signed

DENSE = ("params", "parameters N of the dense model of the same FLOPs per token")
EXPERTS = ("experts", "experts E of each routed layer; 1 is the dense model")


def saturated(experts: Any, start: Any, top: Any) -> Any:
    """Ehat of eq. 1: `start` at one expert, E itself in between, at most `top`. All [...]."""
    return 1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / start - 1.0 / top)) + 1.0 / top)


def _logs(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> tuple[Any, Any]:
    """log10 N and log10 Ehat."""
    return xp.log10(x.params), xp.log10(saturated(x.experts, c.E_start, c.E_max))


def _routed(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    n, e = _logs(c, x, xp)
    return 10.0 ** (c.a * n + c.b * e + c.c * n * e + c.d)


def _d_offset(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    n, e = _logs(c, x, xp)
    return c.a * n + c.b * e + c.c * n * e


def _interaction(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    return xp.log(x.params) * xp.log(saturated(x.experts, c.E_start, c.E_max))


def _served(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    experts = saturated(x.experts, c.E_start, c.E_max)
    total = c.A * x.params**-c.alpha + c.B * experts**-c.beta + c.C * x.tokens**-c.gamma + c.F
    return total * xp.exp(c.d * _interaction(c, x, xp))


def _share(term: Any) -> Any:
    """A term of Yun's sum as it counts in the loss, with the interaction."""
    return lambda c, x, xp: term(c, x) * xp.exp(c.d * _interaction(c, x, xp))


FORMS = (
    Form(
        "routed",
        "log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d; "
        "1/Ehat = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max",
        "arXiv 2202.01169 eq. 1",
        (DENSE, EXPERTS),
        (
            signed("a", -0.3, 0.0),
            signed("b", -0.2, 0.05, offset=lambda c, x, xp: c.c * xp.log10(x.params)),
            signed("c", -0.03, 0.03),
            signed("d", 0.0, 0.8, offset=_d_offset),
            positive("E_start", 1.0, 5.0),
            positive("E_max", 50.0, 2000.0),
        ),
        _routed,
    ),
    Form(
        "routed_served",
        "ln L = ln(A/N^alpha + B/Ehat^beta + C/D^gamma + F) + d ln N ln Ehat, Ehat as in `routed`",
        "arXiv 2404.02852 eq. 4",
        (DENSE, EXPERTS, TOKENS),
        (
            positive("E_start", 1.0, 5.0),
            positive("E_max", 50.0, 2000.0),
            signed("d", -0.3, 0.3, term=_interaction),
            positive("alpha", 0.05, 1.0),
            positive("beta", 0.05, 1.0),
            positive("gamma", 0.05, 1.0),
            amplitude("A", _share(lambda c, x: x.params**-c.alpha)),
            amplitude("B", _share(lambda c, x: saturated(x.experts, c.E_start, c.E_max) ** -c.beta)),
            amplitude("C", _share(lambda c, x: x.tokens**-c.gamma)),
            amplitude("F", _share(lambda c, x: 1.0), low=0.1, high=1.0),
        ),
        _served,
    ),
)


def dense_equivalent(
    constants: Mapping[str, float], params: np.ndarray | float, experts: np.ndarray | float
) -> np.ndarray:
    """Effective parameter count: the dense N of the same loss (eq. 11), from the constants of `routed`; [...].

    The dense model is the law at one expert, where Ehat = E_start.
    """
    c = SimpleNamespace(**constants)
    n, e = _logs(c, SimpleNamespace(params=np.asarray(params, np.float64), experts=np.asarray(experts, np.float64)), np)
    start = np.log10(c.E_start)
    return 10.0 ** (((c.a + c.c * e) * n + c.b * (e - start)) / (c.a + c.c * start))


def cutoff_params(constants: Mapping[str, float]) -> float:
    """The dense N above which more experts no longer help, 10^(-b/c).

    From constants rounded to three digits it is a rough figure: 1e12, 3e10 and 2e11 for S-BASE, RL-R and HASH, where
    the paper prints 937B, 85B and 83B. Within the rounding of b and c all three printed values are possible.
    """
    return float(10.0 ** (-constants["b"] / constants["c"]))
