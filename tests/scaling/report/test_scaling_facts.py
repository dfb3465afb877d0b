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
