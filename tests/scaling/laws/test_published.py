"""The table of published constants: complete, sourced, right where it can be checked, and cheap to read."""

import math
import subprocess
import sys

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.form import forms
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.laws.published import law, published, surface
from chinchilla_jax.scaling.read.runs import FitRefused

UNPUBLISHED = {"minicpm2024", "yun2024", "farseer2025", "videau2026", "bryant2026", "bryant2026_saturating"}


@pytest.mark.parametrize("name", published())
def test_every_entry_fits_its_form_and_says_where_it_is_from(name):
    entry = law(name)
    assert entry.source and entry.gives and entry.counts
    assert (not entry.constants) == (name in UNPUBLISHED)
    if entry.constants:
        assert set(entry.constants) == set(entry.form.constant_names)
        assert set(entry.standard_errors) <= set(entry.constants)
    else:
        with pytest.raises(FitRefused, match="not found"):
            entry.value()


def test_every_law_with_a_paper_has_an_entry():
    without = set(forms()) - {entry.form_name for entry in published().values()}
    assert without == {"broken_power_2", "width"}, "a second break and the proxies' law have no constants of their own"


def test_surfaces_are_those_of_the_papers():
    unrounded = surface("hoffmann2022_unrounded")
    logs = [math.log(constant) for constant in (unrounded.E, unrounded.A, unrounded.B)]
    assert logs == pytest.approx([0.5267228, 6.0073404, 6.0179186], abs=1e-12)
    params, tokens, loss = surface("besiroglu2024").optimum(5.76e23)
    assert (params, tokens, loss) == pytest.approx((7.2249e10, 1.32874e12, 1.974441), rel=2e-5)
    assert surface("hoffmann2022_rounded").optimum(5.76e23)[:2] == pytest.approx((3.2190e10, 2.98231e12), rel=2e-5)
    base = surface("muennighoff2023_base")
    assert (base.E, base.A, base.B) == pytest.approx((1.87, 521, 1488), rel=1e-3), "as the paper prints them"
    with pytest.raises(FitRefused, match="surfaces are hoffmann2022_rounded"):
        surface("kaplan2020")
    for name, words in (("chinchilla", "no published law"), ("minicpm2024", "were not found")):
        with pytest.raises(FitRefused, match=words):
            surface(name)


def test_the_fits_of_sardana_move_the_exponents_with_the_runs_they_see():
    fits = [surface(f"sardana2024_{key}") for key in ("100", "250", "500", "all")]
    assert [(fit.alpha, fit.beta) for fit in fits] == [(0.08, 0.13), (0.13, 0.16), (0.13, 0.16), (0.18, 0.24)]
    # The irreducible losses differ 8 times and more, the losses at a usual point by less than 7%.
    assert max(fit.E for fit in fits) > 8 * min(fit.E for fit in fits)
    losses = [float(fit.loss(1e9, 2e10)) for fit in fits]
    assert max(losses) / min(losses) < 1.07


def test_llama_3_tokens_at_its_budget():
    assert law("llama3_2024_figure").value(x=3.8e25) == pytest.approx(16.55e12, rel=0.02)
    assert law("llama3_2024").value(x=3.8e25) == pytest.approx(0.29 * 10 ** (0.53 * math.log10(3.8e25)), rel=1e-12)
    assert law("llama3_2024").value(x=3.8e25) < 0.7 * 16.55e12, "two digits of the exponent are not enough"


def test_minicpm_ratio_is_the_printed_one_in_billions():
    assert 1 / law("minicpm2024_ratio").value(x=4.1e21 / 6e18) == pytest.approx(192, rel=0.01)


def test_the_broken_power_law_of_addition_runs_through_the_measured_points():
    # Test cross-entropy after so many training examples, from the script for figure 4, left. The last are held out.
    examples = np.array([160, 256, 384, 512, 544, 576, 608, 640, 672, 736, 800, 864, 928])
    measured = np.array(
        [
            2.13809046,
            2.08955508,
            2.05404987,
            2.00496872,
            1.95576149,
            1.86313841,
            1.70891537,
            1.50637664,
            1.29754721,
            0.96559684,
            0.75856477,
            0.64768338,
            0.55695445,
        ]
    )
    miss = np.abs(law("caballero2022_addition").value(x=examples) / measured - 1)
    assert miss[:10].max() < 0.0011 and miss[10:].max() < 0.016


@pytest.mark.parametrize(
    ("flops", "ratio"),
    [
        (1e19, 32.292098),
        (1e20, 25.219001),
        (1e21, 28.295696),
        (1e22, 42.699263),
        (1e23, 82.390434),
    ],
)
def test_the_refit_of_farseer_gives_the_optimal_ratios_printed_with_it(flops, ratio):
    # m3_wedge_rival_Mstar_curves.csv of the same repository. The search stays near the sizes that were trained.
    at_ratio = np.exp(np.linspace(np.log(ratio / 2), np.log(2 * ratio), 20001))
    params = np.sqrt(flops / (6 * at_ratio))
    losses = law("farseer2025_refit").value(params=params, tokens=at_ratio * params)
    assert at_ratio[np.argmin(losses)] == pytest.approx(ratio, rel=1e-4)


def test_embeddings_are_added():
    assert law("pearce2024").value(params=1e9) == pytest.approx(1e9 + 47491e3)
    assert law("pearce2024").constants["omega"] == pytest.approx((39.2 / 12) ** (1 / 3) * 32000, rel=1e-3)


@pytest.mark.parametrize(("name", "slope"), [("hoffmann2022_unrounded", 0.7395), ("besiroglu2024", 0.7751)])
def test_chinchilla_looks_like_kaplan_in_his_variables(name, slope):
    budgets = np.logspace(12.95, 20.7, 100)
    total = law("pearce2024").value
    best = [allocate(lambda n, d: surface(name).loss(total(params=n), d), budget).params for budget in budgets]
    found = np.polyfit(np.log(budgets), np.log(best), 1)[0]
    assert found == pytest.approx(slope, abs=1e-4), "Pearce and Song: 0.74 to 0.78, where Kaplan has 0.73"


def test_kaplan_allocation_grows_with_the_published_exponent():
    values = law("kaplan2020_allocation").value(x=np.array([1.0, 10.0]))
    assert values == pytest.approx([1.3e9, 1.3e9 * 10**0.73], rel=1e-12)


def test_deepseek_learning_rate_batch_and_allocation():
    # At 1e20 FLOPs: 0.3118 * 10^-2.5 and 0.2920 * 10^6.542.
    assert law("deepseek2024_learning_rate").value(x=1e20) == pytest.approx(0.3118 * 10**-2.5, rel=1e-12)
    assert law("deepseek2024_batch").value(x=1e20) == pytest.approx(0.2920 * 10**6.542, rel=1e-12)
    model, tokens = law("deepseek2024_model").value(x=1e20), law("deepseek2024_tokens").value(x=1e20)
    assert model * tokens == pytest.approx(1e20, rel=2e-3), "M D = C up to the rounding of the four constants"


def test_step_law_learning_rate_and_batch():
    # N = 1e9, D = 1e11, by logarithms.
    rate = 10 ** (math.log10(1.79) - 0.713 * 9 + 0.307 * 11)
    assert law("steplaw2025_learning_rate").value(params=1e9, tokens=1e11) == pytest.approx(rate, rel=1e-12)
    batch = 10 ** (math.log10(0.58) + 0.571 * 11)
    assert law("steplaw2025_batch").value(x=1e11) == pytest.approx(batch, rel=1e-12)


def test_kaplan_critical_batch_grows_as_the_loss_falls():
    value = law("kaplan2020_critical_batch").value
    assert value(loss=1.0) == pytest.approx(2.1e8)
    assert value(loss=3.0) == pytest.approx(2.1e8 * math.exp(-math.log(3) / 0.21), rel=1e-12)


def test_an_entry_says_what_it_rests_on():
    entry = law("steplaw2025_learning_rate")
    for part in ("peak learning rate", "2503.04715", "without the vocabulary"):
        assert part in f"{entry.gives} {entry.source} {entry.counts} {entry.notes}"


def test_reading_constants_loads_neither_jax_nor_scipy():
    code = (
        "import sys; from chinchilla_jax.scaling.laws.published import law, surface; "
        "from chinchilla_jax.scaling.laws.optimum import cheapest_for_loss; "
        "law('kaplan2020').value(params=1e9, tokens=1e10); cheapest_for_loss(surface('besiroglu2024'), 2.2, 1e12); "
        "sys.exit(any(name in sys.modules for name in ('jax', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
