"""What is luck of the training and what of the evaluation is told apart where it is known."""

import numpy as np
import pytest

from chinchilla_jax.scaling.predict.noise import noise_parts
from chinchilla_jax.scaling.read.runs import Run


def runs(seeds, noise=0.003):
    rng = np.random.default_rng(0)
    return [
        Run(f"{cell}-{seed}", 1e6 * (cell + 1), 1e8, 6e14, 3.0 * (1 + noise * rng.standard_normal()), 6e14)
        for cell in range(20)
        for seed in range(seeds)
    ]


def test_repeated_seeds_give_the_luck_of_training():
    parts = noise_parts(runs(3), {}, 0.005)
    assert (parts.freedom, parts.evaluation) == (40, None)
    assert parts.seeds == pytest.approx(0.003, rel=0.3)
    assert "runs that differ in their seed" in parts.describe()


def test_stated_errors_give_that_of_the_evaluation():
    alone = runs(1)
    stated = {run.name: {"validation": {"validation_standard_error": 0.006}} for run in alone}
    from_column = {run.name: {"loss_se": "0.006"} for run in alone}
    for details in (stated, from_column):
        parts = noise_parts(alone, details, 0.005)
        assert parts.evaluation == pytest.approx(0.002, rel=0.01) and parts.seeds is None
        assert "on other text of the same kind a loss would move by 0.20%" in parts.describe()


def test_with_neither_the_scatter_stands_for_both():
    assert "stands for both" in noise_parts(runs(1), {}, 0.005).describe()
