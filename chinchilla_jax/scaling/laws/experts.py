"""Laws of mixtures of experts: what are more, smaller or fewer used experts worth?

Clark et al. 2022 (arXiv 2202.01169): bilinear in the logarithms of the dense size N and of the number of experts, which
saturates at both ends (eq. 1). Yun et al. 2024 (arXiv 2404.02852) add the tokens, for a trade-off with the cost of
serving; their constants are not shipped here. Krajewski et al. 2024 (arXiv 2402.07871): the granularity of experts.
Abnar et al. 2025 (arXiv 2501.12370): the share of experts used; the paper reports an R^2 of 99% where it fitted and
68% on the held-out sparsity of 0.98.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from chinchilla_jax.scaling.laws.dense import TOKENS
from chinchilla_jax.scaling.laws.form import Form, Law, amplitude, positives, signed

_DENSE = ("params", "parameters N of the dense model of the same FLOPs per token")
_EXPERTS = ("experts", "experts E of each routed layer; 1 is the dense model")
_ALL_EXPERTS = ("params", "parameters N, all experts")


def _saturated(c: SimpleNamespace, x: SimpleNamespace) -> Any:
    """Ehat of eq. 1 of Clark et al.: E_start at one expert, E itself in between, at most E_max."""
    return 1.0 / (1.0 / (x.experts - 1.0 + 1.0 / (1.0 / c.E_start - 1.0 / c.E_max)) + 1.0 / c.E_max)


def _bilinear(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    """log10 of the loss by Clark et al., less its constant d."""
    n, e = xp.log10(x.params), xp.log10(_saturated(c, x))
    return c.a * n + c.b * e + c.c * n * e


def _interaction(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    return xp.log(x.params) * xp.log(_saturated(c, x))


def _served(term: Any) -> Law:
    """A term of the sum of Yun et al. as it counts in the loss, with the interaction of N and experts."""
    return lambda c, x, xp: term(c, x) * xp.exp(c.d * _interaction(c, x, xp))


FORMS = (
    Form(
        "routed",
        "log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d; "
        "1/Ehat = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max",
        "arXiv 2202.01169 eq. 1",
        (_DENSE, _EXPERTS),
        (
            signed("a", -0.3, 0.0),
            signed("b", -0.2, 0.05, offset=lambda c, x, xp: c.c * xp.log10(x.params)),
            signed("c", -0.03, 0.03),
            signed("d", 0.0, 0.8, offset=_bilinear),
            *positives(E_start=(1.0, 5.0), E_max=(50.0, 2000.0)),
        ),
        lambda c, x, xp: 10.0 ** (_bilinear(c, x, xp) + c.d),
    ),
    Form(
        "routed_served",
        "ln L = ln(A/N^alpha + B/Ehat^beta + C/D^gamma + F) + d ln N ln Ehat, Ehat as in `routed`",
        "arXiv 2404.02852 eq. 4",
        (_DENSE, _EXPERTS, TOKENS),
        (
            *positives(E_start=(1.0, 5.0), E_max=(50.0, 2000.0)),
            signed("d", -0.3, 0.3, term=_interaction),
            *positives(alpha=(0.05, 1.0), beta=(0.05, 1.0), gamma=(0.05, 1.0)),
            amplitude("A", _served(lambda c, x: x.params**-c.alpha)),
            amplitude("B", _served(lambda c, x: _saturated(c, x) ** -c.beta)),
            amplitude("C", _served(lambda c, x: x.tokens**-c.gamma)),
            amplitude("F", _served(lambda c, x: 1.0), low=0.1, high=1.0),
        ),
        _served(
            lambda c, x: c.A * x.params**-c.alpha + c.B * _saturated(c, x) ** -c.beta + c.C * x.tokens**-c.gamma + c.F
        ),
    ),
    Form(
        "granularity",
        "L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
        "arXiv 2402.07871 eq. 9",
        (
            _ALL_EXPERTS,
            TOKENS,
            ("granularity", "granularity G: how many times smaller than the dense feed-forward layer an expert is"),
        ),
        (
            amplitude("c", low=0.05, high=1.0),
            amplitude("g", lambda c, x, xp: x.granularity**-c.gamma * x.params**-c.alpha),
            amplitude("a", lambda c, x, xp: x.params**-c.alpha),
            amplitude("b", lambda c, x, xp: x.tokens**-c.beta),
            *positives(alpha=(0.05, 1.0), beta=(0.05, 1.0), gamma=(0.1, 2.0)),
        ),
        lambda c, x, xp: c.c + (c.g * x.granularity**-c.gamma + c.a) * x.params**-c.alpha + c.b * x.tokens**-c.beta,
    ),
    Form(
        "sparsity",
        "L = a / N^alpha + b / D^beta + c / (1-S)^lam + d / ((1-S)^delta N^gamma) + e",
        "arXiv 2501.12370 eq. 6",
        (_ALL_EXPERTS, TOKENS, ("sparsity", "share S = (E - K) / E of the experts that a token does not use")),
        (
            amplitude("a", lambda c, x, xp: x.params**-c.alpha),
            amplitude("b", lambda c, x, xp: x.tokens**-c.beta),
            amplitude("c", lambda c, x, xp: (1.0 - x.sparsity) ** -c.lam),
            amplitude("d", lambda c, x, xp: (1.0 - x.sparsity) ** -c.delta * x.params**-c.gamma),
            amplitude("e", low=0.05, high=1.0),
            *positives(alpha=(0.05, 1.0), beta=(0.05, 1.0)),
            signed("lam", -0.5, 0.5),
            *positives(delta=(0.02, 0.5), gamma=(0.05, 0.5)),
        ),
        lambda c, x, xp: (
            c.a * x.params**-c.alpha
            + c.b * x.tokens**-c.beta
            + c.c * (1.0 - x.sparsity) ** -c.lam
            + c.d * (1.0 - x.sparsity) ** -c.delta * x.params**-c.gamma
            + c.e
        ),
    ),
)
