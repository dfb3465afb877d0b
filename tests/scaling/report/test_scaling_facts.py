"""One structure for `fit`, `predict` and `report`: the same keys everywhere, all of them documented."""

import json
import re

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.report import facts
from chinchilla_jax.scaling.report.facts import as_json, facts_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What each verb writes of the same table, by verb."""
    root, law, rng = tmp_path_factory.mktemp("facts"), Surface(1.8, 400.0, 500.0, 0.33, 0.32), np.random.default_rng(0)
    rows = ["params,tokens,loss,budget"]
    for budget in (1e18, 4e18, 1.6e19):
        for params in float(law.optimum(budget)[0]) * 1.6 ** np.arange(-3.0, 4.0):
            tokens = budget / 6 / params
            loss = float(law.loss(params, tokens)) * (1 + 0.001 * rng.standard_normal())
            rows.append(f"{params},{tokens},{loss},{budget}")
    (root / "runs.csv").write_text("\n".join(rows) + "\n")
    found = {}
    for verb in ("fit", "predict", "report"):
        output = root / verb if verb == "report" else root / f"{verb}.json"
        assert cli.main([verb, f"--runs={root / 'runs.csv'}", "--replicates=20", f"--output={output}"]) == 0
        found[verb] = json.loads((output / "report.json" if verb == "report" else output).read_text())
    return found


def test_all_verbs_write_one_shape_and_the_same_fits(written):
    fit, predict, report = written.values()
    assert list(fit) == list(predict) == list(report) == list(facts_of())
    for key in ("runs", "preset", "differences", "refused", "envelope", "parametric"):
        assert fit[key] == predict[key] == report[key], key
    assert fit["isoflop"]["laws"] == predict["isoflop"]["laws"] == report["isoflop"]["laws"]
    assert fit["prediction"] is None and predict["prediction"] == report["prediction"]
    assert set(fit["warnings"]) <= set(predict["warnings"])


def test_every_key_is_documented():
    assert not [key for key in facts_of() if not re.search(rf"\b{key}\b", facts.__doc__)]


def test_values_that_json_lacks_are_text_or_lists():
    value = {"a": np.float64(np.inf), 1: (np.int64(2), np.array([1.5, np.nan])), "b": np.bool_(True), "c": None}
    assert as_json(value) == {"a": "inf", "1": [2, [1.5, "nan"]], "b": True, "c": None}


NARROW = Surface(1.8, 480.0, 2100.0, 0.35, 0.37)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A table of runs with D/N within 10% of 20: which D/N is best they do not say."""
    root, rng = tmp_path_factory.mktemp("narrow"), np.random.default_rng(1)
    rows = ["params,tokens,loss"]
    for i, params in enumerate(np.geomspace(5e7, 5e9, 24)):
        tokens = 20 * params * 1.1 ** (i % 3 - 1.0)
        rows.append(f"{params},{tokens},{float(NARROW.loss(params, tokens)) * (1 + 0.008 * rng.standard_normal())}")
    (root / "runs.csv").write_text("\n".join(rows) + "\n")
    return root


def test_constants_that_the_runs_do_not_determine_are_shown_nowhere(narrow, capsys):
    output, asked = narrow / "fit.json", ["fit", f"--runs={narrow / 'runs.csv'}", "--replicates=20", "--variants"]
    assert cli.main([*asked, f"--output={output}"]) == 0
    text, fit = capsys.readouterr().out, json.loads(output.read_text())
    assert "do not determine E, A, B, alpha and beta" in text and "train some sizes on other token counts" in text
    assert not re.search(r"/ [ND]\^|C\^0", text)
    assert set(fit["parametric"]["values"].values()) == {None}
    assert not fit["parametric"]["intervals"] and not fit["parametric"]["profile_likelihood"]
    assert fit["parametric"]["known"]["condition"] > 1e3
    thirds = [row for row in fit["variants"] if row["variant"].startswith("approach 3")]
    assert thirds and all("alpha" not in row and row["why"] for row in thirds)
    assert any("do not determine" in line for line in fit["warnings"])


def test_then_the_prediction_is_the_loss_along_the_runs_and_no_contours_are_drawn(narrow):
    output, asked = narrow / "page", ["report", f"--runs={narrow / 'runs.csv'}", "--replicates=20", "--budget=1e21"]
    assert cli.main([*asked, f"--output={output}"]) == 0
    page = json.loads((output / "report.json").read_text())
    best = page["prediction"]["estimates"]["parametric"]
    assert best["tokens_per_param"] == pytest.approx(20.0, rel=0.02)
    assert best["loss"] == pytest.approx(float(NARROW.loss(best["params"], best["tokens"])), rel=0.005)
    assert "which these runs do not say" in page["prediction"]["why"]
    assert "Contours" not in page["plots"] and "Held-out budget" not in page["plots"] and not page["answers"]
