"""Shared data: the digitised Figure 4 of Hoffmann et al. 2022, and studies written from a planted law."""

import csv
import json
import pathlib

import numpy as np
import pytest

import chinchilla_jax
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.load import load_runs

# Digitised from Figure 4 (left) of arXiv 2203.15556: see `tables/SOURCE.md`.
FIGURE_4 = pathlib.Path(chinchilla_jax.__file__).parent / "tables" / "chinchilla_fig4_points.csv"
PLANTED = Surface(2.2, 60.0, 300.0, 0.32, 0.36)
BUDGETS = (1e11, 3e11, 9e11, 2.7e12)


@pytest.fixture(scope="session")
def figure_4():
    """All 245 points."""
    return load_runs(FIGURE_4).runs


@pytest.fixture(scope="session")
def figure_4_trimmed(figure_4):
    """The 240 points left when the five highest losses are dropped."""
    outlier = [row["outlier_top5_loss"] == "1" for row in csv.DictReader(FIGURE_4.open())]
    return tuple(run for run, drop in zip(figure_4, outlier, strict=True) if not drop)


@pytest.fixture(scope="session")
def figure_4_path():
    """The table itself."""
    return FIGURE_4


@pytest.fixture(scope="session")
def planted_flops_per_token():
    """The count of the planted studies: a function of N."""
    return _flops_per_token


@pytest.fixture(scope="session")
def write_study():
    """A function that writes a study directory from the planted law; see `_write_study`."""
    return _write_study


def _flops_per_token(params):
    """A count in which small models cost far more than 6 N, as with attention and logits."""
    return 6.0 * params * (1.0 + 0.9 * (params / 5e4) ** -0.35)


def _write_study(root, *, held_out=True, noise=0.002, seed=0, surface=PLANTED, shift=1.0):
    """A study directory of 4 budgets x 7 sizes and 3 held-out runs; returns the planted optimum (N, D, loss).

    `shift` multiplies all sizes; held-out runs are only planned, not finished, unless `held_out`.
    """
    rng = np.random.default_rng(seed)
    plan = [
        (budget, surface.optimum(budget, _flops_per_token)[0] * shift * 1.6 ** (i - 3), "isoflop")
        for budget in BUDGETS
        for i in range(7)
    ]
    target = 4 * BUDGETS[-1]
    best = surface.optimum(target, _flops_per_token)
    plan += [(target, best[0] * factor, role) for factor, role in ((1, "predicted"), (0.5, "half"), (2, "double"))]
    lines = []
    for index, (budget, params, role) in enumerate(plan):
        tokens = budget / _flops_per_token(params)
        row = {"name": f"{role}-{index:02d}", "role": role, "budget": budget, "params": params, "tokens": tokens}
        lines.append(json.dumps(row))
        loss = float(surface.loss(params, tokens) * (1 + noise * rng.standard_normal()))
        if role == "isoflop" or held_out:
            folder = root / "runs" / row["name"]
            folder.mkdir(parents=True)
            result = row | {"flops": budget, "convention": "executed", "loss": loss, "seconds": 12.5, "diverged": False}
            (folder / "result.json").write_text(json.dumps(result | {"bits_per_byte": loss / 2.5}))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return best
