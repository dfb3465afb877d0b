"""Which loss will a wide model reach, going by narrow ones at the same step?

With hyper-parameters that stay right as the width grows (muP), the losses of proxies at one step follow a N^b + c: Yao
and Wang 2023 (arXiv 2304.06875) predict the loss of a large model so, and Li et al. 2023 (FLM-101B, arXiv 2309.03852)
use it before the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_jax.scaling.fits.multistart import SQUARED_RAW
from chinchilla_jax.scaling.laws.fit import FormFit, fit_form
from chinchilla_jax.scaling.laws.form import Form, amplitude, form, signed

FORMS = (
    Form(
        "width",
        "L = a N^b + c",
        "arXiv 2304.06875; used by arXiv 2309.03852",
        (("params", "parameters N of the proxy, in a unit of your choice; a is in that unit"),),
        (
            amplitude("a", lambda c, x, xp: x.params**c.b),
            signed("b", -1.0, -0.05),
            amplitude("c", low=0.1, high=1.0),
        ),
        lambda c, x, xp: c.a * x.params**c.b + c.c,
        "loss at one step, nats per token",
    ),
)


def fit_widths(params: Sequence[float], losses: Sequence[float], *, seed: int = 0) -> FormFit:
    """Least squares on the raw losses of proxies [n], n >= 4; `.predict(params=...)` at the target width.

    Raises:
      FitRefused: as `fit_form`.
    """
    return fit_form(form("width"), {"params": params}, losses, SQUARED_RAW, seed=seed)
