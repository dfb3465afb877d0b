"""Verdicts on held-out trainings: their thresholds, and what lies within them."""

from chinchilla_jax.scaling.predict import verdicts
from chinchilla_jax.scaling.read.runs import Run


def test_size_verdict_allows_a_tie_within_its_tolerance():
    for excess, expected in ((0.002, "pass"), (0.004, "fail"), (-0.01, "pass")):
        losses = {"predicted": 3.0 * (1 + excess), "half": 3.0, "double": 3.2}
        held = [Run(role, 1e6, 2e7, 1.2e14, loss, 1.2e14, role) for role, loss in losses.items()]
        assert {v.name: v.status for v in verdicts.judge(None, held, 1.2e14)}["size"] == expected
    assert {v.name: v.status for v in verdicts.judge(None, held[:2], 1.2e14)}["size"] == "pending"


def test_verdict_thresholds_are_the_stated_ones():
    assert (verdicts.LOSS_TOLERANCE, verdicts.SIZE_TOLERANCE) == (0.015, 0.003)
