"""The questions of `predict` answered from published laws: Chinchilla's and Gopher's budgets as worked examples."""

import json

import numpy as np
import pytest

from chinchilla_jax.base.words import cell, count, table
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused

C = 5.76e23
LAWS = answers.published_laws()
PAPER, REFIT = LAWS


def by(section, column):
    return {row[next(iter(row))]: row[column] for row in section.rows}


def test_the_two_laws_disagree_on_tokens_per_parameter_at_chinchillas_budget():
    found = by(answers.optimum(LAWS, C), "D/N")
    assert found["hoffmann2022_unrounded"] == pytest.approx(58.9, abs=0.05)
    assert found["besiroglu2024"] == pytest.approx(18.4, abs=0.05)


def test_approaches_1_and_2_as_printed_give_about_20_tokens_per_parameter():
    found = by(answers.printed_allocations(C), "D/N")
    assert 19 < found["hoffmann2022 approach 1"] < 22 and 22 < found["hoffmann2022 approach 2"] < 25
    llama = answers.printed_allocations(3.8e25).rows[-1]
    assert (llama["N"], llama["D"]) == pytest.approx((402e9, 16.55e12), rel=0.04)  # as Llama 3 states


def test_gopher_lost_half_of_its_flops_and_chinchilla_almost_none():
    gopher = answers.fixed(LAWS, None, 280e9, 300e9)
    assert by(gopher, "FLOPs wasted")["besiroglu2024"] == pytest.approx(0.503, abs=1e-3)
    chinchilla = answers.fixed([REFIT], None, 70e9, 1.4e12).rows[0]
    assert chinchilla["FLOPs wasted"] < 0.001 and chinchilla["D/N"] == 20


def test_fixed_values_stay_fixed():
    assert answers.fixed([REFIT], C, 70e9, None).rows[0]["D"] == pytest.approx(C / 6 / 70e9)
    assert answers.fixed([REFIT], C, None, 1e12).rows[0]["N"] == pytest.approx(C / 6 / 1e12)
    free = answers.fixed([REFIT], None, 70e9, None).rows[0]
    assert free["N"] == pytest.approx(70e9, rel=1e-6) and free["FLOPs wasted"] == pytest.approx(0, abs=1e-9)


def test_the_nearest_shape_is_chinchilla_itself_and_tiny_budgets_have_none():
    near = answers.nearest_presets(REFIT, C)
    assert [row["preset"] for row in near.rows] == ["chinchilla-70b", "llama-65b"]
    assert near.rows[0]["FLOPs wasted"] < near.rows[1]["FLOPs wasted"] < 0.01
    assert answers.nearest_presets(REFIT, 1e13).rows == ()


def test_smaller_models_cost_more_the_smaller_they_are():
    rows = answers.smaller(REFIT, C).rows
    extra = [row["extra FLOPs"] for row in rows]
    assert extra[0] == pytest.approx(0, abs=1e-6) and (np.diff(extra) > 0).all()
    assert (np.diff([row["above optimum"] for row in rows]) > 0).all()


def test_scarce_data_is_repeated_and_plenty_is_not():
    scarce = answers.with_unique_tokens([REFIT], C, 3e11).rows[0]
    assert 4 < scarce["epochs"] < 7 and scarce["loss"] > scarce["loss, fresh data"] and scarce["next token worth"] < 1
    plenty = answers.with_unique_tokens([REFIT], C, 1e14).rows[0]
    assert plenty["epochs"] == 1 and plenty["loss"] == pytest.approx(plenty["loss, fresh data"], rel=1e-6)


def test_serving_makes_the_model_smaller_and_none_leaves_it_optimal():
    none = answers.with_inference([REFIT], C, 0.0).rows[0]
    assert none["N"] == pytest.approx(REFIT.surface.optimum(C)[0], rel=1e-6)
    assert none["saved"] == pytest.approx(0, abs=1e-9)
    much = answers.with_inference([REFIT], C, 5e12).rows[0]
    assert much["N"] < 0.6 * none["N"] and much["D"] > none["D"] and 0.1 < much["saved"] < 0.3


def test_replicates_become_intervals_around_the_answer():
    rng = np.random.default_rng(0)
    boot = Surface(*(v * (1 + 0.01 * rng.standard_normal(200)) for v in (1.8172, 482.01, 2085.43, 0.3478, 0.3658)))
    law = answers.Law("fit", REFIT.surface, "", boot)
    asked = answers.optimum([law], C), answers.fixed([law], C, 70e9, None), answers.fixed([law], None, None, 1e12)
    for section in asked:
        (row,) = section.rows
        low, high = row["loss, 95%"]
        assert low < row["loss"] < high
    assert "N, 95%" not in answers.fixed([law], C, 70e9, None).rows[0]  # N was given


def test_laws_of_other_forms_and_unknown_ones_are_refused():
    reasons = {"nobody2020": "unknown_law", "kaplan2020": "not_a_surface", "minicpm2024": "no_constants"}
    for name, reason in reasons.items():
        with pytest.raises(FitRefused) as caught:
            answers.published_laws([name])
        assert caught.value.reason == reason


def test_questions_that_need_6nd_are_refused_under_another_count():
    law = answers.Law("fit", REFIT.surface, "", flops_per=lambda n: 6.5 * n)
    for ask in (answers.with_unique_tokens, answers.with_inference):
        with pytest.raises(FitRefused, match="--law"):
            ask([law], C, 1e12)


def test_every_answer_prints_and_is_json():
    for section in (answers.optimum(LAWS, C), answers.smaller(PAPER, C), answers.fixed(LAWS, C, 1e9, None)):
        lines = table(section.rows)
        assert len(lines) == len(section.rows) + 1 and section.notes
        json.dumps([dict(row) for row in section.rows])


def test_numbers_are_written_as_the_field_does():
    assert [count(v) for v in (999, 1234567, 7e10, 1.4e12, 3e16)] == ["999", "1.23M", "70B", "1.4T", "3e+16"]
    assert cell("C", 5.76e23) == "5.76e23" and cell("loss", (1.9, 2.0)) == "1.9000 to 2.0000"
    assert cell("D", float("inf")) == "never" and cell("extra FLOPs", float("inf")) == "never"
    assert cell("N", None) == "-"
