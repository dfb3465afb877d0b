"""The laws of Kaplan et al. 2020, and the step from their parameter count to that of Hoffmann et al.

Kaplan et al. (arXiv 2001.08361) count N without embeddings and stop early on D tokens seen many times. Their exponents
belong to those variables: Pearce and Song 2024 (arXiv 2406.12907) derive N ~ C^0.74 in Kaplan's variables from the law
of Hoffmann et al. by N_total = N + 47491 N^(1/3), so most of the disagreement is the count.
"""

from __future__ import annotations

import numpy as np

from chinchilla_jax.scaling.laws.form import Form, amplitude, positive

NON_EMBEDDING = ("params", "parameters N without embeddings")
EMBEDDING_COEFFICIENT = 47491.0  # arXiv 2406.12907; parameters^(2/3)


def total_params(non_embedding: np.ndarray | float) -> np.ndarray:
    """Parameters with embeddings, from those without, by the fit of Pearce and Song 2024; [...] -> [...]."""
    non_embedding = np.asarray(non_embedding, np.float64)
    return non_embedding + EMBEDDING_COEFFICIENT * np.cbrt(non_embedding)


def non_embedding_params(total: np.ndarray | float) -> np.ndarray:
    """The inverse of `total_params`: the real root t = N^(1/3) of t^3 + 47491 t = total; [...] -> [...]."""
    # Hyperbolic form of Cardano's solution: no difference of large numbers, so small models keep their digits.
    third = EMBEDDING_COEFFICIENT / 3.0
    root = 2.0 * np.sqrt(third) * np.sinh(np.arcsinh(np.asarray(total, np.float64) / (2.0 * third**1.5)) / 3.0)
    return root**3


FORMS = (
    Form(
        "kaplan",
        "L = [(Nc/N)^(aN/aD) + Dc/D]^aD",
        "arXiv 2001.08361 eq. 1.5",
        (NON_EMBEDDING, ("tokens", "tokens D of the data set, trained on until early stopping")),
        (
            positive("aN", 0.02, 0.5),
            positive("aD", 0.02, 0.5),
            amplitude("Nc", lambda c, x, xp: x.params**-c.aN, low=0.3, high=1.2, power="aN"),
            amplitude("Dc", lambda c, x, xp: x.tokens**-c.aD, low=0.3, high=1.2, power="aD"),
        ),
        lambda c, x, xp: ((c.Nc / x.params) ** (c.aN / c.aD) + c.Dc / x.tokens) ** c.aD,
    ),
    Form(
        "kaplan_steps",
        "L = (Nc/N)^aN + (Sc/S)^aS",
        "arXiv 2001.08361 eq. 1.6",
        (NON_EMBEDDING, ("steps", "least number of steps S_min: at a batch far above the critical one")),
        (
            positive("aN", 0.02, 0.5),
            positive("aS", 0.1, 2.0),
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
        (
            positive("aB", 0.05, 1.0),
            amplitude("B_star", lambda c, x, xp: x.loss ** (-1.0 / c.aB), low=0.3, high=3.0),
        ),
        lambda c, x, xp: c.B_star * x.loss ** (-1.0 / c.aB),
        "critical batch, tokens",
    ),
    Form(
        "embedding_count",
        "N_total = N + omega N^(1/3)",
        "arXiv 2406.12907",
        (NON_EMBEDDING,),
        (positive("omega", 1e2, 1e7),),
        lambda c, x, xp: x.params + c.omega * x.params ** (1.0 / 3.0),
        "parameters with embeddings",
    ),
)
