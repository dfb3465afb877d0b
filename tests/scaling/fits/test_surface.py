"""The closed form of eq. 4, and the search under other counts of FLOPs."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.surface import Surface

# Constants of eq. 10 before rounding, from the TeX source, as quoted by Besiroglu et al. 2024.
UNROUNDED = Surface(np.exp(0.5267228), np.exp(6.0073404), np.exp(6.0179186), 0.33917084, 0.2849083)


@pytest.mark.parametrize(
    ("surface", "params", "tokens", "loss"),
    [
        (UNROUNDED, 4.0361e10, 2.3785e12, 1.918412),
        (Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658), 7.2249e10, 1.32874e12, 1.974441),
        (Surface(1.69, 406.4, 410.7, 0.34, 0.28), 3.2190e10, 2.98231e12, None),
    ],
)
def test_closed_form_frontier(surface, params, tokens, loss):
    found = surface.optimum(5.76e23)
    assert found[:2] == pytest.approx((params, tokens), rel=2e-5)
    if loss is not None:
        assert found[2] == pytest.approx(loss, abs=1e-6)


def test_optimum_under_a_count_that_is_not_6nd():
    by_search = UNROUNDED.optimum(5.76e23, lambda n: 6.0 * n)
    assert by_search == pytest.approx(UNROUNDED.optimum(5.76e23), rel=1e-6)
    costly = lambda n: 6.0 * n + 3e4 * n**0.6  # noqa: E731
    params, tokens, loss = UNROUNDED.optimum(1e18, costly)
    assert tokens * costly(params) == pytest.approx(1e18)
    for other in (params * 0.97, params * 1.03):
        assert UNROUNDED.loss(other, 1e18 / costly(other)) > loss
    batch = Surface(*(np.full(3, getattr(UNROUNDED, f)) for f in ("E", "A", "B", "alpha", "beta")))
    assert batch.optimum(1e18, costly)[0] == pytest.approx(np.full(3, params))
