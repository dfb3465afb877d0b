"""What other sizes cost follows the law that is recommended, approach 2 included."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.recommended import other_sizes, recommended_law
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.runs import Run

TRUTH = Surface(1.8, 400.0, 500.0, 0.33, 0.32)
BUDGETS, TARGET = (1e18, 4e18, 1.6e19, 6.4e19), 2.56e20


@pytest.fixture(scope="module")
def prediction():
    """Runs of a planted law without noise, and the prediction from them."""
    plan = [(c, n) for c in BUDGETS for n in float(TRUTH.optimum(c)[0]) * 1.6 ** np.arange(-3.0, 4.0)]
    runs = [Run(f"{c:g}-{n:g}", n, c / 6 / n, c, float(TRUTH.loss(n, c / 6 / n)), c) for c, n in plan]
    return predict(analyse(runs, replicates=0), TARGET)


def following(prediction, approach):
    return dataclasses.replace(prediction, recommended=approach)


@pytest.mark.parametrize("approach", ["isoflop", "parametric"])
def test_the_law_says_what_the_recommendation_says(prediction, approach):
    found = following(prediction, approach)
    size, loss = recommended_law(found).best(TARGET)
    assert (size, loss) == pytest.approx((found.best.params, found.best.loss))
    assert recommended_law(found).loss(size, TARGET) == pytest.approx(loss)
    assert recommended_law(found).tokens(size, TARGET) == pytest.approx(TARGET / 6 / size)


@pytest.mark.parametrize("approach", ["isoflop", "parametric"])
def test_the_tables_follow_the_recommended_law_and_say_so(prediction, approach):
    found = following(prediction, approach)
    smaller, near = other_sizes(found)
    first = smaller.rows[0]
    assert (first["N"], first["loss"]) == pytest.approx((found.best.params, found.best.loss))
    assert first["extra FLOPs"] == pytest.approx(0)
    number = {"isoflop": "approach 2", "parametric": "approach 3"}[approach]
    assert smaller.notes[0].startswith(f"Follows {number}, the recommended law") and "C = 2.56e+20" in smaller.notes[0]
    assert near.rows and min(row["loss"] for row in near.rows) >= found.best.loss


def test_approach_2_prices_other_sizes_as_the_planted_law_does(prediction):
    own = other_sizes(following(prediction, "isoflop"))[0].rows
    true = answers.smaller(answers.Law("truth", TRUTH), TARGET).rows
    for mine, theirs in zip(own, true, strict=True):
        assert mine["above optimum"] == pytest.approx(theirs["above optimum"], rel=0.15, abs=1e-6)
        assert 1 + mine["extra FLOPs"] == pytest.approx(1 + theirs["extra FLOPs"], rel=0.15)
        assert mine["D"] == pytest.approx(theirs["D"], rel=0.05)


def test_flops_wasted_is_what_an_optimal_model_would_not_need(prediction):
    found = following(prediction, "isoflop")
    for row in other_sizes(found)[1].rows:
        assert recommended_law(found).best(TARGET * (1 - row["FLOPs wasted"]))[1] == pytest.approx(
            row["loss"], rel=1e-6
        )


def test_a_size_that_never_gets_there_is_told(prediction):
    profiles = tuple(
        dataclasses.replace(p, params=dataclasses.replace(p.params, curvature=20 * p.params.curvature))
        for p in prediction.fits.isoflop.profiles
    )
    fits = dataclasses.replace(prediction.fits, isoflop=dataclasses.replace(prediction.fits.isoflop, profiles=profiles))
    rows = other_sizes(dataclasses.replace(following(prediction, "isoflop"), fits=fits))[0].rows
    assert rows[-1]["extra FLOPs"] == np.inf == rows[-1]["D for the loss of N*"]
