"""Advice from a law: with N or D fixed, for a loss, and what deviating costs."""

import numpy as np
import pytest

from chinchilla_jax.scaling.answers import decide
from chinchilla_jax.scaling.fits.surface import Surface

EPOCH = Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
C = 5.76e23  # Gopher's and Chinchilla's budget


def attention_heavy(params):
    return 6.0 * params + 2e5 * params**0.5


@pytest.fixture(params=[6.0, attention_heavy], ids=["6nd", "function"])
def flops_per(request):
    return request.param


def test_the_optimum_wastes_nothing_and_its_neighbours_do(flops_per):
    best = decide.optimal(EPOCH, C, flops_per)
    assert decide.cost(best.params, best.tokens, flops_per) == pytest.approx(C, rel=1e-6)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = decide.given_params(EPOCH, float(best.params) * factor, C, flops_per)
        assert other.flops == pytest.approx(C) and other.loss > best.loss and other.wasted > 0
    same = decide.given_params(EPOCH, float(best.params), C, flops_per)
    assert same.loss == pytest.approx(best.loss) and same.wasted == pytest.approx(0, abs=1e-6)


def test_wasted_flops_are_those_an_optimal_model_does_without(flops_per):
    choice = decide.trained(EPOCH, 280e9, 300e9, flops_per)
    enough = choice.flops * (1 - choice.wasted)
    assert EPOCH.optimum(enough, flops_per)[2] == pytest.approx(choice.loss, rel=1e-9)


def test_gopher_wasted_half_its_budget_and_chinchilla_next_to_nothing():
    gopher, chinchilla = decide.trained(EPOCH, 280e9, 300e9), decide.trained(EPOCH, 70e9, 1.4e12)
    assert gopher.wasted == pytest.approx(0.503, abs=1e-3) and chinchilla.wasted < 1e-3


def test_a_fixed_size_or_token_count_finds_the_budget_it_is_optimal_for(flops_per):
    by_params = decide.given_params(EPOCH, 70e9, flops_per=flops_per)
    assert by_params.params == pytest.approx(70e9, rel=1e-6)
    by_tokens = decide.given_tokens(EPOCH, float(by_params.tokens), flops_per=flops_per)
    assert by_tokens.flops == pytest.approx(by_params.flops, rel=1e-5)
    assert by_tokens.params == pytest.approx(70e9, rel=1e-5)


def test_fixed_tokens_and_budget_leave_one_size(flops_per):
    choice = decide.given_tokens(EPOCH, 1.4e12, C, flops_per)
    assert decide.cost(choice.params, 1.4e12, flops_per) == pytest.approx(C, rel=1e-9)
    assert choice.wasted >= 0


def test_a_smaller_model_reaches_the_same_loss_for_more_flops_until_it_cannot():
    best = decide.optimal(EPOCH, C)
    previous = C
    for factor in (0.8, 0.5, 0.3):
        params = float(best.params) * factor
        tokens = decide.tokens_reaching(EPOCH, params, best.loss)
        assert EPOCH.loss(params, tokens) == pytest.approx(best.loss, rel=1e-9)
        assert decide.cost(params, tokens, 6.0) > previous
        previous = decide.cost(params, tokens, 6.0)
    assert np.isinf(decide.tokens_reaching(EPOCH, 1e9, best.loss))


def test_no_budget_reaches_the_irreducible_loss():
    assert np.isinf(decide.flops_for_loss(EPOCH, EPOCH.E)) and np.isinf(decide.flops_for_loss(EPOCH, 1.0))


def test_replicates_are_answered_one_by_one(flops_per):
    several = Surface(*(np.array([v, v * 1.02, v * 0.99]) for v in (1.8172, 482.01, 2085.43, 0.3478, 0.3658)))
    for ask in (
        lambda law: decide.given_params(law, 70e9, flops_per=flops_per),
        lambda law: decide.given_tokens(law, 1.4e12, flops_per=flops_per),
        lambda law: decide.trained(law, 40e9, decide.tokens_reaching(law, 40e9, 2.1), flops_per),
    ):
        together = ask(several)
        for i in range(3):
            alone = ask(Surface(*(getattr(several, f)[i] for f in ("E", "A", "B", "alpha", "beta"))))
            for name in ("params", "tokens", "flops", "loss", "wasted"):
                assert getattr(together, name)[i] == pytest.approx(float(getattr(alone, name)), rel=1e-6, abs=1e-9)
