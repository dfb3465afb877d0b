"""The search for the lowest loss at a budget."""

import pytest

from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.laws.published import surface
from chinchilla_jax.scaling.read.runs import FitRefused

UNROUNDED = surface("hoffmann2022_unrounded")


def test_the_search_finds_the_closed_form_optimum():
    found = allocate(UNROUNDED.loss, 5.76e23)
    params, tokens, loss = UNROUNDED.optimum(5.76e23)
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=1e-6)
    assert found.loss == pytest.approx(loss, rel=1e-14)
    with pytest.raises(FitRefused, match="falls to the end"):
        allocate(lambda n, d: 2.0 + n**-0.3, 1e20)
