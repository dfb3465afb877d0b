"""Narrow proxies predict wide models."""

import csv
import pathlib

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.widths import fit_widths


def test_seven_narrow_proxies_predict_three_wide_models():
    rows = list(csv.DictReader((pathlib.Path(__file__).parents[1] / "data" / "flm_widths.csv").open()))
    sizes, losses = (np.array([float(row[k]) for row in rows]) for k in ("params_millions", "loss_at_step_20000"))
    fit = fit_widths(sizes[:7], losses[:7])
    assert [fit.constants[k] for k in "abc"] == pytest.approx([2.469, -0.423, 2.923], abs=6e-4)
    predicted = fit.predict(params=sizes[7:])
    assert predicted == pytest.approx([3.189, 3.080, 3.037], abs=6e-4)
    assert 100 * (predicted / losses[7:] - 1) == pytest.approx([0.29, -0.18, -0.19], abs=0.01)
