"""What if the slope itself changes along the way? Broken power laws, Caballero et al. 2022 (arXiv 2210.14891).

Straight pieces in log-log, joined by bends at x = d_i of width f_i (in ln x) where the slope changes by -c_i. One and
two breaks are registered; `broken_power(n)` makes more. Constants belong to one curve; the table has those of a
published one.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from chinchilla_jax.scaling.laws.form import Form, amplitude, positive, signed


def broken_power(breaks: int) -> Form:
    """The form with so many breaks: 3 + 3 breaks constants."""

    def shape(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
        log_y = -c.c0 * xp.log(x.x)
        for i in range(1, breaks + 1):
            change, place, width = (getattr(c, f"{letter}{i}") for letter in "cdf")
            # (1 + (x/d)^(1/f))^(-c f) through its logarithm: with a sharp break the power overflows.
            log_y = log_y - change * width * xp.logaddexp(0.0, (xp.log(x.x) - xp.log(place)) / width)
        return xp.exp(log_y)

    bends = [
        constant
        for i in range(1, breaks + 1)
        for constant in (
            signed(f"c{i}", -1.0, 1.0),
            positive(f"d{i}", 1e-2, 1e2, lambda c, x, xp: 1.0 / x.x),
            positive(f"f{i}", 0.1, 1.5),
        )
    ]
    return Form(
        f"broken_power_{breaks}",
        "y = a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i)",
        "arXiv 2210.14891 eq. 1",
        (("x", "compute, parameters, tokens or steps"),),
        (amplitude("a", low=0.01, high=1.0), signed("c0", -0.3, 1.0), *bends, amplitude("b", shape)),
        lambda c, x, xp: c.a + c.b * shape(c, x, xp),
        "any metric that falls or rises smoothly",
    )


FORMS = (broken_power(1), broken_power(2))
