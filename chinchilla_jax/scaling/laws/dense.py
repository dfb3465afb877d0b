"""Laws of dense models: loss against parameters, tokens, steps or compute, and plain power laws.

Kaplan et al. count N without embeddings and stop early on D tokens seen many times. Their exponents belong to those
variables: Pearce and Song 2024 (arXiv 2406.12907) derive N ~ C^0.74 in Kaplan's variables from the law of Hoffmann et
al. by N_total = N + 47491 N^(1/3), so most of the disagreement is the count.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.laws.form import Constant, Form, amplitude, positive, positives, signed

PARAMS = ("params", "parameters N, counted as the constants' source counts them")
TOKENS = ("tokens", "training tokens D")
_NON_EMBEDDING = ("params", "parameters N without embeddings")
_X = ("x", "whatever the entry states, often training FLOPs C")
# The constants of E + A / N^alpha + B / D^beta that are searched as shares of the loss.
SHARES = (
    amplitude("E", low=0.1, high=1.0),
    amplitude("A", lambda c, x, xp: x.params**-c.alpha),
    amplitude("B", lambda c, x, xp: x.tokens**-c.beta),
)

# Hoffmann et al. 2022. The refit of Besiroglu et al. 2024 (arXiv 2404.10102), the four fits of Sardana et al. 2024
# (arXiv 2401.00448, Table 1), the base law of Muennighoff et al. 2023 (arXiv 2305.16264) and the dense law of Krajewski
# et al. 2024 (arXiv 2402.07871) share it. Approach 3 fits it with its own derivatives.
_CHINCHILLA = Form(
    "chinchilla",
    "L = E + A / N^alpha + B / D^beta",
    "arXiv 2203.15556 eq. 2",
    (PARAMS, TOKENS),
    (*SHARES, *positives(alpha=(0.05, 1.0), beta=(0.05, 1.0))),
    lambda c, x, xp: c.E + c.A * x.params**-c.alpha + c.B * x.tokens**-c.beta,
)

_KAPLAN = (
    Form(
        "kaplan",
        "L = [(Nc/N)^(aN/aD) + Dc/D]^aD",
        "arXiv 2001.08361 eq. 1.5",
        (_NON_EMBEDDING, ("tokens", "tokens D of the data set, trained on until early stopping")),
        (
            *positives(aN=(0.02, 0.5), aD=(0.02, 0.5)),
            amplitude("Nc", lambda c, x, xp: x.params**-c.aN, low=0.3, high=1.2, power="aN"),
            amplitude("Dc", lambda c, x, xp: x.tokens**-c.aD, low=0.3, high=1.2, power="aD"),
        ),
        lambda c, x, xp: ((c.Nc / x.params) ** (c.aN / c.aD) + c.Dc / x.tokens) ** c.aD,
    ),
    Form(
        "kaplan_steps",
        "L = (Nc/N)^aN + (Sc/S)^aS",
        "arXiv 2001.08361 eq. 1.6",
        (_NON_EMBEDDING, ("steps", "least number of steps S_min: at a batch far above the critical one")),
        (
            *positives(aN=(0.02, 0.5), aS=(0.1, 2.0)),
            amplitude("Nc", lambda c, x, xp: x.params**-c.aN, low=0.3, high=1.2, power="aN"),
            amplitude("Sc", lambda c, x, xp: x.steps**-c.aS, power="aS"),
        ),
        lambda c, x, xp: (c.Nc / x.params) ** c.aN + (c.Sc / x.steps) ** c.aS,
    ),
    Form(
        "critical_batch",
        "B = B_star / L^(1/aB)",
        "arXiv 2001.08361 eq. 1.4",
        (("loss", "training loss L, nats per token"),),
        (positive("aB", 0.05, 1.0), amplitude("B_star", lambda c, x, xp: x.loss ** (-1.0 / c.aB), low=0.3, high=3.0)),
        lambda c, x, xp: c.B_star * x.loss ** (-1.0 / c.aB),
        "critical batch, tokens",
    ),
    Form(
        "embedding_count",
        "N_total = N + omega N^(1/3)",
        "arXiv 2406.12907",
        (_NON_EMBEDDING,),
        (positive("omega", 1e2, 1e7),),
        lambda c, x, xp: x.params + c.omega * x.params ** (1.0 / 3.0),
        "parameters with embeddings",
    ),
)

# Optimal learning rates, batch sizes and model sizes against compute, and losses against one input at a time.
_POWER = (
    Form(
        "power",
        "y = k x^p",
        "arXiv 2401.02954 eqs. 1 and 4, among many",
        (_X,),
        (amplitude("k", lambda c, x, xp: x.x**c.p, low=0.3, high=3.0), signed("p", -1.5, 1.5)),
        lambda c, x, xp: c.k * x.x**c.p,
        "stated by the entry",
    ),
    Form(
        "power_of_params_and_tokens",
        "y = k N^p D^q",
        "arXiv 2503.04715 (Step Law)",
        (PARAMS, TOKENS),
        (
            amplitude("k", lambda c, x, xp: x.params**c.p * x.tokens**c.q, low=0.3, high=3.0),
            signed("p", -1.5, 1.5),
            signed("q", -1.5, 1.5),
        ),
        lambda c, x, xp: c.k * x.params**c.p * x.tokens**c.q,
        "stated by the entry",
    ),
    Form(
        "offset_power",
        "y = offset + (scale / x)^exponent",
        "arXiv 2001.08361 eqs. 1.1 to 1.3 (no offset); arXiv 2304.03208 eq. 1 (with)",
        (_X,),
        (
            amplitude("offset", low=0.1, high=1.0),
            amplitude("scale", lambda c, x, xp: x.x**-c.exponent, power="exponent"),
            positive("exponent", 0.02, 1.0),
        ),
        lambda c, x, xp: c.offset + (c.scale / x.x) ** c.exponent,
    ),
    # With hyper-parameters that stay right as the width grows (muP), narrow proxies predict wide models: Yao and Wang
    # 2023, and Li et al. 2023 (FLM-101B) before their run.
    Form(
        "width",
        "L = a N^b + c",
        "arXiv 2304.06875; used by arXiv 2309.03852",
        (("params", "parameters N of the proxy, in a unit of your choice; a is in that unit"),),
        (amplitude("a", lambda c, x, xp: x.params**c.b), signed("b", -1.0, -0.05), amplitude("c", low=0.1, high=1.0)),
        lambda c, x, xp: c.a * x.params**c.b + c.c,
        "loss at one step, nats per token",
    ),
)


def _log_data_term(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    """ln of the second term of Farseer's law without its factor exp(b2)."""
    exponent = xp.exp(c.a1 * x.params**c.alpha + c.b1)
    return c.a2 * x.params**c.beta - exponent * xp.log(x.tokens)


# Farseer, Li et al. 2025: exponent and coefficient of D are functions of N, so that the optimal tokens per parameter
# may rise with compute. The authors' constants were not found; the table has a refit by others.
_INTERACTION = Form(
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
    lambda c, x, xp: xp.exp(c.a3 * x.params**c.gamma + c.b3) + xp.exp(_log_data_term(c, x, xp) + c.b2),
)


def effective(used: Any, unique: Any, decay: Any, xp: ModuleType = np) -> Any:
    """What `used` = (1 + R) `unique` of something are worth in fresh ones: unique (1 + R* (1 - exp(-R / R*))).

    `decay` is R*; `used` >= `unique`. All [...]. Muennighoff et al. 2023, arXiv 2305.16264 eqs. 5 and 6.
    """
    return unique * (1.0 - decay * xp.expm1(-(used / unique - 1.0) / decay))


def _data_constrained(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
    unique_tokens = xp.minimum(x.unique_tokens, x.tokens)
    # The compute-optimal N for the unique tokens under the base law: eq. 4 of arXiv 2203.15556 without C.
    g = (c.alpha * c.A / (c.beta * c.B)) ** (1.0 / (c.alpha + c.beta))
    unique_params = xp.minimum(x.params, g * (g * unique_tokens) ** (c.beta / c.alpha))
    params, tokens = effective(x.params, unique_params, c.R_N, xp), effective(x.tokens, unique_tokens, c.R_D, xp)
    return c.E + c.A * params**-c.alpha + c.B * tokens**-c.beta


# Muennighoff et al. 2023 put effective tokens D' and effective parameters N' into the Chinchilla form. A token of epoch
# 1 + R is worth exp(-R / R_D*) of a fresh one; parameters beyond the optimum for the unique tokens lose value in the
# same way, and sooner.
_DATA_CONSTRAINED = Form(
    "data_constrained",
    "L = E + A / N'^alpha + B / D'^beta; D' = U_D (1 + R_D (1 - exp(-(D/U_D - 1)/R_D))), U_D = min(unique, D); "
    "N' likewise with R_N and U_N = min(N, N_opt(U_D))",
    "arXiv 2305.16264 eqs. 5, 6",
    (PARAMS, TOKENS, ("unique_tokens", "tokens of the data set; more than D counts as D")),
    (*SHARES, *positives(alpha=(0.1, 1.0), beta=(0.1, 1.0), R_D=(1.0, 100.0), R_N=(1.0, 100.0))),
    _data_constrained,
)


def _broken_power(breaks: int) -> Form:
    """Straight pieces in log-log with bends at x = d_i of width f_i (in ln x), where the slope changes by -c_i."""

    def shape(c: SimpleNamespace, x: SimpleNamespace, xp: ModuleType) -> Any:
        log_y = -c.c0 * xp.log(x.x)
        for i in range(1, breaks + 1):
            change, place, width = (getattr(c, f"{letter}{i}") for letter in "cdf")
            # (1 + (x/d)^(1/f))^(-c f) through its logarithm: with a sharp break the power overflows.
            log_y = log_y - change * width * xp.logaddexp(0.0, (xp.log(x.x) - xp.log(place)) / width)
        return xp.exp(log_y)

    bends: list[Constant] = []
    for i in range(1, breaks + 1):
        place = positive(f"d{i}", 1e-2, 1e2, lambda c, x, xp: 1.0 / x.x)
        bends += signed(f"c{i}", -1.0, 1.0), place, positive(f"f{i}", 0.1, 1.5)
    return Form(
        f"broken_power_{breaks}",
        "y = a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i)",
        "arXiv 2210.14891 eq. 1",
        (("x", "compute, parameters, tokens or steps"),),
        (amplitude("a", low=0.01, high=1.0), signed("c0", -0.3, 1.0), *bends, amplitude("b", shape)),
        lambda c, x, xp: c.a + c.b * shape(c, x, xp),
        "any metric that falls or rises smoothly",
    )


FORMS = (_CHINCHILLA, *_KAPLAN, *_POWER, _INTERACTION, _DATA_CONSTRAINED, _broken_power(1), _broken_power(2))
