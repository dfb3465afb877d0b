"""Plain power laws: one quantity against one or two others, with or without a floor.

Optimal learning rates and batch sizes, optimal sizes against compute, and losses against one input at a time. The
published entry says which quantity is meant; `hyperparameters.py` puts names to those that set up a training.
"""

from chinchilla_jax.scaling.laws.chinchilla import PARAMS, TOKENS
from chinchilla_jax.scaling.laws.form import Form, amplitude, positive, signed

X = ("x", "whatever the entry states, often training FLOPs C")

FORMS = (
    Form(
        "power",
        "y = k x^p",
        "arXiv 2401.02954 eqs. 1 and 4, among many",
        (X,),
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
        (X,),
        (
            amplitude("offset", low=0.1, high=1.0),
            amplitude("scale", lambda c, x, xp: x.x**-c.exponent, power="exponent"),
            positive("exponent", 0.02, 1.0),
        ),
        lambda c, x, xp: c.offset + (c.scale / x.x) ** c.exponent,
    ),
)
