"""What is printed about a plan: every run, what it rests on, what it costs."""

import dataclasses

import pytest

from chinchilla_jax.study.cost import describe
from chinchilla_jax.study.execute.pace import estimate
from chinchilla_jax.study.plan import plan


def test_cost_and_time_are_printed_and_every_drop_has_its_line(manifest):
    lines = []
    describe(manifest, 2, lines.append)
    text = "\n".join(lines)
    assert all(run.name in text for run in manifest.runs)
    assert sum(line.startswith("dropped:") for line in lines) == len(manifest.header["dropped"])
    total = sum(run.cost for run in manifest.runs)
    assert f"{len(manifest.runs)} runs, {total:.3g} FLOPs (executed)" in text and "2 workers" in text
    assert "5 tokens per parameter at C = 3e+11" in text and "peak_lr = 1 N^-0.5, batch as in the config" in text
    assert f"3 held-out runs of 3.6e+12 FLOPs: with them {total + 3 * 3.6e12:.3g} in all" in lines[-1]
    one, two = estimate(manifest.runs, 1), estimate(manifest.runs, 2)
    assert one == pytest.approx(sum(run.estimated_seconds for run in manifest.runs)) and one / 2 <= two < one


def test_planned_costs_include_the_seeds(config):
    lines = []
    seeded = plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2,), holdout_seeds=2)))
    describe(seeded, 2, lines.append)
    total = sum(run.cost for run in seeded.runs)
    assert total == pytest.approx(2 * sum(run.cost for run in plan(config).runs))
    assert f"{len(seeded.runs)} runs, {total:.3g} FLOPs (executed)" in "\n".join(lines)
    assert f"4 held-out runs of 3.6e+12 FLOPs: with them {total + 4 * 3.6e12:.3g} in all" in lines[-1]
