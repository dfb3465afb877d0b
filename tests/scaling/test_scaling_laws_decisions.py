"""What to do by a law: repeat data or not, over-train, serve cheaply, route, and predict a wide model."""

import csv
import math
import pathlib

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.data_constrained import effective, unique_data_optimum
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.inference import cheapest_for_loss
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.laws.overtraining import fit_over_training
from chinchilla_jax.scaling.laws.published import law, surface
from chinchilla_jax.scaling.laws.widths import fit_widths
from chinchilla_jax.scaling.read.runs import FitRefused, Run

REPEATED = law("muennighoff2023").constants
UNROUNDED = surface("hoffmann2022_unrounded")


def test_the_search_finds_the_closed_form_optimum():
    found = allocate(UNROUNDED.loss, 5.76e23)
    params, tokens, loss = UNROUNDED.optimum(5.76e23)
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=1e-6)
    assert found.loss == pytest.approx(loss, rel=1e-14)
    with pytest.raises(FitRefused, match="falls to the end"):
        allocate(lambda n, d: 2.0 + n**-0.3, 1e20)


# Repeating data.


def test_four_epochs_are_nearly_as_good_as_fresh_data():
    worth = effective(4.0, 1.0, REPEATED["R_D"])
    assert worth == pytest.approx(1 + 15.387756 * (1 - math.exp(-3 / 15.387756)), rel=1e-12)
    assert worth / 4 == pytest.approx(0.931, abs=5e-4), "a token of four epochs is worth 93% of a fresh one"
    # In loss: 2.8B parameters on 55B tokens, fresh or 4 times 13.75B.
    value = law("muennighoff2023").value
    fresh, four, forty = (float(value(params=2.8e9, tokens=55e9, unique_tokens=55e9 / k)) for k in (1, 4, 40))
    assert 0 < four / fresh - 1 < 0.01
    assert forty / fresh - 1 > 5 * (four / fresh - 1)


def test_repeated_tokens_lose_their_value():
    assert effective(1.0, 1.0, 15.4) == 1.0
    worth = effective(np.array([1.0, 2, 4, 16, 64, 1e9]), 1.0, 15.387756)
    assert (np.diff(worth) > 0).all() and worth[-1] == pytest.approx(16.387756)
    # Few repetitions count in full.
    assert effective(1.001, 1.0, 15.387756) == pytest.approx(1.001, rel=1e-6)


def test_the_best_use_of_25_billion_unique_tokens_is_that_of_the_authors():
    best = unique_data_optimum(REPEATED, 25e9, 6 * 8.67e9 * 178e9)
    assert best.tokens == pytest.approx(227e9, abs=1e9) and best.epochs == pytest.approx(9.1, abs=0.05)
    assert best.params == pytest.approx(6.8e9, abs=0.05e9), "the grid search of the authors' repository"
    assert best.next_value == pytest.approx(math.exp(-(best.epochs - 1) / 15.387756), rel=1e-9)
    assert best.unlimited < best.loss
    assert best.next_value < best.mean_value < 1


def test_with_more_compute_the_same_data_is_repeated_more():
    plans = [unique_data_optimum(REPEATED, 1e9, flops) for flops in (1e19, 1e20, 1e21)]
    assert plans[0].epochs < plans[1].epochs < plans[2].epochs
    assert plans[0].next_value > plans[1].next_value > plans[2].next_value


def test_with_data_to_spare_nothing_is_repeated():
    plan = unique_data_optimum(REPEATED, 1e15, 1e21)
    assert (plan.epochs, plan.next_value) == (1.0, 1.0) and plan.loss == pytest.approx(plan.unlimited, rel=1e-12)
    base = surface("muennighoff2023_base").optimum(1e21)
    assert (plan.params, plan.tokens, plan.loss) == pytest.approx(base, rel=1e-6)


# Over-training and downstream error.

TIED = {"E": 1.8, "a": 450.0 * 6**0.14, "b": 900.0 * 6**0.14, "eta": 0.14}
ERROR = {"epsilon": 0.85, "k": 2.0, "gamma": 0.75}


def tied_run(params, multiplier):
    tokens, flops = params * multiplier, 6 * params**2 * multiplier
    return Run(f"{params}-{multiplier}", params, tokens, flops,
               float(form("overtraining").value(TIED, flops=flops, multiplier=multiplier)))  # fmt: skip


def test_five_and_six_small_runs_predict_an_over_trained_model():
    # The least recipe of Gadre et al.; the models predicted are the two of their abstract.
    runs = [tied_run(n, 20.0) for n in (0.011e9, 0.079e9, 0.154e9, 0.411e9)] + [tied_run(0.011e9, 320.0)]
    error_runs = [*runs, tied_run(1.4e9, 20.0)]
    errors = [float(form("downstream_error").value(ERROR, loss=run.loss)) for run in error_runs]
    fitted = fit_over_training(runs, error_runs, errors)
    for params, tokens in ((1.4e9, 900e9), (6.9e9, 138e9)):
        expected = tied_run(params, tokens / params).loss
        assert fitted.predict_loss(params, tokens) == pytest.approx(expected, rel=1e-4)
        by_hand = 0.85 - 2.0 * math.exp(-0.75 * expected)
        assert fitted.predict_error(params, tokens) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(FitRefused, match="4 free constants"):
        fit_over_training(runs[:4], error_runs, errors)


# Inference.


def test_without_inference_the_cheapest_model_is_the_compute_optimal_one():
    params, tokens, loss = UNROUNDED.optimum(5.76e23)
    plan = cheapest_for_loss(UNROUNDED, loss, 0.0)
    assert (plan.params, plan.tokens, plan.total) == pytest.approx((params, tokens, 5.76e23), rel=1e-9)
    assert plan.saving == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["hoffmann2022_unrounded", "besiroglu2024", "sardana2024_all"])
def test_the_first_order_condition_holds_and_the_loss_is_reached(name):
    s = surface(name)
    served = np.array([1e9, 1e11, 1e13, 1e15])
    plan = cheapest_for_loss(s, s.E + 0.4, served)
    ratio = (s.alpha * s.A * plan.params**-s.alpha) / (s.beta * s.B * plan.tokens**-s.beta)
    assert ratio == pytest.approx(1 + served / (3 * plan.tokens), rel=1e-8)
    assert s.loss(plan.params, plan.tokens) == pytest.approx(np.full(4, s.E + 0.4), rel=1e-12)


def test_more_inference_means_smaller_models_longer_training_and_lower_total_cost():
    loss = UNROUNDED.optimum(1e23)[2]
    served = np.geomspace(1e9, 1e15, 25)
    plan = cheapest_for_loss(UNROUNDED, loss, served)
    assert (np.diff(plan.params) < 0).all() and (np.diff(plan.tokens) > 0).all() and (np.diff(plan.saving) > 0).all()
    params, tokens, _ = UNROUNDED.optimum(1e23)
    assert (plan.total < 6 * params * tokens + 2 * params * served).all()
    assert plan.total == pytest.approx(plan.training + plan.inference)


def test_neighbours_on_the_same_loss_cost_more():
    loss, served = 2.1, 1e12
    plan = cheapest_for_loss(UNROUNDED, loss, served)
    for factor in (0.97, 1.03):
        params = plan.params * factor
        tokens = (UNROUNDED.B / (loss - UNROUNDED.E - UNROUNDED.A * params**-UNROUNDED.alpha)) ** (1 / UNROUNDED.beta)
        assert 6 * params * tokens + 2 * params * served > plan.total


def test_a_7b_chinchilla_that_serves_1e11_tokens_becomes_a_6b_model():
    # The example of Sardana et al.: 6B parameters on 1.18 times the data.
    flops = 6 * (7e9 / UNROUNDED.optimum(6.0)[0]) ** (1 / UNROUNDED.a)
    params, tokens, loss = UNROUNDED.optimum(flops)
    assert params == pytest.approx(7e9)
    plan = cheapest_for_loss(UNROUNDED, loss, 1e11)
    assert plan.params == pytest.approx(6e9, rel=0.02)
    assert plan.tokens / tokens == pytest.approx(1.18, abs=0.02)


def test_dearer_inference_counts_as_more_of_it():
    twice, dear = cheapest_for_loss(UNROUNDED, 2.1, 2e12), cheapest_for_loss(UNROUNDED, 2.1, 1e12, price=2.0)
    assert (dear.params, dear.tokens, dear.total) == pytest.approx((twice.params, twice.tokens, twice.total), rel=1e-12)


def test_a_loss_below_the_irreducible_one_is_refused():
    with pytest.raises(FitRefused, match="irreducible"):
        cheapest_for_loss(UNROUNDED, 1.5, 1e12)
    with pytest.raises(FitRefused, match="negative"):
        cheapest_for_loss(UNROUNDED, 2.5, -1.0)


# Experts.


def dense_equivalent(c, params, experts):
    """Effective parameter count (eq. 11 of Clark et al.): the dense N of the same loss."""
    hat = 1 / (1 / (experts - 1 + 1 / (1 / c["E_start"] - 1 / c["E_max"])) + 1 / c["E_max"])
    e, start, n = np.log10(hat), np.log10(c["E_start"]), np.log10(params)
    return 10 ** (((c["a"] + c["c"] * e) * n + c["b"] * (e - start)) / (c["a"] + c["c"] * start))


def cutoff_params(c):
    """The dense N above which more experts no longer help."""
    return 10 ** (-c["b"] / c["c"])


@pytest.mark.parametrize("name", ["s_base", "rl_r", "hash"])
def test_the_dense_equivalent_has_the_same_loss(name):
    entry = law(f"clark2022_{name}")
    sizes, experts = np.array([5e6, 1e8, 1.3e9]), np.array([128.0, 8.0, 512.0])
    equal = dense_equivalent(entry.constants, sizes, experts)
    assert (equal > sizes).all()
    assert entry.value(params=equal, experts=1) == pytest.approx(entry.value(params=sizes, experts=experts), rel=1e-12)
    assert dense_equivalent(entry.constants, sizes, 1.0) == pytest.approx(sizes, rel=1e-9)


def test_5m_parameters_with_128_experts_are_worth_about_55m():
    worth = dense_equivalent(law("clark2022_s_base").constants, 5e6, 128)
    assert worth == pytest.approx(55e6, rel=0.1), "the paper's example; the rounded constants give 52M"


@pytest.mark.parametrize(("name", "printed"), [("s_base", 937e9), ("rl_r", 85e9), ("hash", 83e9)])
def test_rounded_constants_do_not_give_the_printed_cutoff_but_allow_it(name, printed):
    c = law(f"clark2022_{name}").constants
    assert cutoff_params(c) != pytest.approx(printed, rel=0.05)
    corners = [cutoff_params({"b": c["b"] + i, "c": c["c"] + j}) for i in (-5e-4, 5e-4) for j in (-5e-4, 5e-4)]
    assert min(corners) < printed < max(corners)


def test_at_the_cutoff_more_experts_change_nothing():
    entry = law("clark2022_rl_r")
    losses = entry.value(params=cutoff_params(entry.constants), experts=np.array([1.0, 8.0, 512.0]))
    assert losses == pytest.approx(np.full(3, losses[0]), rel=1e-12)


# Interaction of model and data.


def test_under_the_interaction_law_the_best_tokens_per_parameter_rise_with_compute():
    planted = {"alpha": 0.1, "a1": -0.1, "b1": -0.45, "beta": -0.1, "a2": 40.0, "b2": 0.4, "gamma": -0.1, "a3": 12.0,
               "b3": -1.2}  # fmt: skip
    value = form("interaction").value
    ratios = []
    for flops in (1e20, 1e21, 1e22, 1e23):
        best = allocate(lambda n, d: value(planted, params=n, tokens=d), flops)
        ratios.append(best.tokens / best.params)
    assert (np.diff(ratios) > 0).all()


# Widths.


# `data/flm_widths.csv`: ten proxies of growing width and their losses at step 20,000, as listed in the fitting script
# of cofe-ai/Mu-scaling (arXiv 2304.06875).


def test_seven_narrow_proxies_predict_three_wide_models():
    rows = list(csv.DictReader((pathlib.Path(__file__).parent / "data" / "flm_widths.csv").open()))
    sizes, losses = (np.array([float(row[k]) for row in rows]) for k in ("params_millions", "loss_at_step_20000"))
    fit = fit_widths(sizes[:7], losses[:7])
    assert [fit.constants[k] for k in "abc"] == pytest.approx([2.469, -0.423, 2.923], abs=6e-4)
    predicted = fit.predict(params=sizes[7:])
    assert predicted == pytest.approx([3.189, 3.080, 3.037], abs=6e-4)
    assert 100 * (predicted / losses[7:] - 1) == pytest.approx([0.29, -0.18, -0.19], abs=0.01)
