"""Loss as a sum of what too few parameters cost, what too few tokens cost, and what nothing can remove.

Hoffmann et al. 2022 (arXiv 2203.15556) eq. 2. The refit of Besiroglu et al. 2024 (arXiv 2404.10102), the four fits of
Sardana et al. 2024 (arXiv 2401.00448) Table 1, the base law of Muennighoff et al. 2023 (arXiv 2305.16264) and the dense
law of Krajewski et al. 2024 (arXiv 2402.07871) share it. `fits/approach3/parametric.py` is the dedicated fitter.
"""

from chinchilla_jax.scaling.laws.form import Form, amplitude, positive

PARAMS = ("params", "parameters N, counted as the constants' source counts them")
TOKENS = ("tokens", "training tokens D")

FORMS = (
    Form(
        "chinchilla",
        "L = E + A / N^alpha + B / D^beta",
        "arXiv 2203.15556 eq. 2",
        (PARAMS, TOKENS),
        (
            amplitude("E", low=0.1, high=1.0),
            amplitude("A", lambda c, x, xp: x.params**-c.alpha),
            amplitude("B", lambda c, x, xp: x.tokens**-c.beta),
            positive("alpha", 0.05, 1.0),
            positive("beta", 0.05, 1.0),
        ),
        lambda c, x, xp: c.E + c.A * x.params**-c.alpha + c.B * x.tokens**-c.beta,
    ),
)
