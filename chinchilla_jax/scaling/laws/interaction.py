"""What if the worth of data depends on the size of the model? Farseer, Li et al. 2025 (arXiv 2506.10972).

The exponent and the coefficient of D are themselves functions of N, so that the optimal tokens per parameter may rise
with compute. The authors' constants were not found; the table has a refit by others.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from chinchilla_jax.scaling.laws.chinchilla import PARAMS, TOKENS
from chinchilla_jax.scaling.laws.form import Form, signed


def _exponent(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    """Exponent of D at each N."""
    return xp.exp(c.a1 * x.params**c.alpha + c.b1)


def _log_data_term(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    return c.a2 * x.params**c.beta - _exponent(c, x, xp) * xp.log(x.tokens)


FORMS = (
    Form(
        "interaction",
        "L = exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^(-exp(a1 N^alpha + b1))",
        "arXiv 2506.10972 eq. 3",
        (PARAMS, TOKENS),
        (
            signed("alpha", -0.4, 0.4),
            signed("beta", -0.4, 0.4),
            signed("gamma", -0.4, 0.4),
            signed("a1", -3.0, 3.0, lambda c, x, xp: x.params**c.alpha),
            signed("b1", -2.5, 0.0, offset=lambda c, x, xp: c.a1 * x.params**c.alpha),
            signed("a2", -10.0, 10.0, lambda c, x, xp: x.params**c.beta),
            signed("b2", -4.0, 1.0, offset=_log_data_term),
            signed("a3", -3.0, 3.0, lambda c, x, xp: x.params**c.gamma),
            signed("b3", -1.5, 1.5, offset=lambda c, x, xp: c.a3 * x.params**c.gamma),
        ),
        lambda c, x, xp: (
            xp.exp(c.a3 * x.params**c.gamma + c.b3) + xp.exp(_log_data_term(c, x, xp) + c.b2)
        ),
    ),
)
