"""What are more, smaller experts worth? The granularity law of Krajewski et al. 2024 (arXiv 2402.07871)."""

from chinchilla_jax.scaling.laws.chinchilla import TOKENS
from chinchilla_jax.scaling.laws.form import Form, amplitude, positive

FORMS = (
    Form(
        "granularity",
        "L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
        "arXiv 2402.07871 eq. 9",
        (
            ("params", "parameters N, all experts"),
            TOKENS,
            ("granularity", "granularity G: how many times smaller than the dense feed-forward layer an expert is"),
        ),
        (
            amplitude("c", low=0.05, high=1.0),
            amplitude("g", lambda c, x, xp: x.granularity**-c.gamma * x.params**-c.alpha),
            amplitude("a", lambda c, x, xp: x.params**-c.alpha),
            amplitude("b", lambda c, x, xp: x.tokens**-c.beta),
            positive("alpha", 0.05, 1.0),
            positive("beta", 0.05, 1.0),
            positive("gamma", 0.1, 2.0),
        ),
        lambda c, x, xp: (
            c.c + (c.g * x.granularity**-c.gamma + c.a) * x.params**-c.alpha + c.b * x.tokens**-c.beta
        ),
    ),
)
