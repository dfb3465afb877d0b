"""Compute-equivalent gains: planted ones are recovered, what arms share sharpens them, unlike arms are refused."""

import csv
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.answers.compare.compare import compare
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

LAW = Surface(1.7, 60.0, 300.0, 0.32, 0.36)
BUDGETS = (1e11, 2e11, 4e11, 8e11)
TARGET = 3.2e12
COLUMNS = {"params": "N", "tokens": "D", "loss": "loss", "flops": "C"}


def world(gain, noise=0.004, shared=0.0, seed=0, sizes=6):
    """Two arms on the same cells: the second reaches with C what the first needs `gain` times C for. Errors of the runs
    have a standard deviation `noise`, and a correlation `shared`."""
    rng = np.random.default_rng(seed)
    arms = {"plain": [], "better": []}
    for budget in BUDGETS:
        for i in range(sizes):
            params = float(LAW.optimum(budget)[0]) * 1.5 ** (i - (sizes - 1) / 2)
            common = math.sqrt(shared) * rng.standard_normal()
            for name, factor in (("plain", 1.0), ("better", gain)):
                error = noise * (common + math.sqrt(1 - shared) * rng.standard_normal())
                tokens = budget / 6 / params
                loss = float(LAW.loss(params * factor**0.5, tokens * factor**0.5)) * math.exp(error)
                arms[name].append(Run(f"{budget:g}-{i}", params, tokens, budget, loss, budget))
    return {name: loaded(runs) for name, runs in arms.items()}


def loaded(runs, **more):
    return LoadedRuns("table", tuple(runs), (), COLUMNS, "6nd", **more)


def gain_of(arms, **options):
    return compare(arms, budget=TARGET, **options).arms[1]


@pytest.mark.parametrize("gain", [1.0, 1.05, 1.2, 2.0])
def test_a_planted_gain_is_recovered_at_every_budget_and_at_the_target(gain):
    arm = gain_of(world(gain, noise=1e-5))
    for measured in (*arm.budgets, arm.target):
        assert measured.factor == pytest.approx(gain, rel=0.06)
    assert [measured.basis for measured in arm.budgets] == ["minima"] * 4


def test_intervals_hold_the_planted_gain_in_most_worlds_and_a_gain_of_one_is_seldom_seen():
    held = {1.0: 0, 1.2: 0}
    for gain in held:
        for seed in range(30):
            low, high = gain_of(world(gain, shared=0.5, seed=seed), draws=400).target.factor_95
            held[gain] += low <= gain <= high
    assert min(held.values()) >= 26  # of 30: 95% less three standard deviations


def test_what_runs_of_one_cell_share_makes_the_gain_sharp():
    def half(shared):
        low, high = gain_of(world(1.1, shared=shared, seed=3)).target.factor_95
        return math.log(high / low)

    assert half(0.95) < 0.6 * half(0.0)
    arm = gain_of(world(1.1, shared=0.95, seed=3))
    assert math.log(arm.target.factor_95[1] / arm.target.factor_95[0]) < 0.3 * math.log(
        arm.unpaired_95[1] / arm.unpaired_95[0]
    )


def test_an_arm_is_worth_exactly_as_much_as_itself():
    arms = world(1.0)
    same = gain_of({"one": arms["plain"], "two": arms["plain"]})
    assert same.target.factor == pytest.approx(1.0, abs=1e-6)
    assert same.target.better == pytest.approx(0.5, abs=0.05)
    assert same.costs["tokens"].factor == pytest.approx(1.0, abs=1e-6)


def test_to_turn_the_reference_round_turns_the_gain_round():
    arms = world(1.3, seed=1)
    there, back = gain_of(arms), gain_of(arms, reference="better")
    assert there.target.factor * back.target.factor == pytest.approx(1.0, rel=0.02)
    assert there.target.better + back.target.better == pytest.approx(1.0, abs=0.03)
    assert there.target.better > 0.9


def test_arms_without_profiles_are_compared_by_their_surfaces():
    arms = world(1.3, noise=0.001)
    scattered = {
        name: dataclasses.replace(arm, runs=tuple(dataclasses.replace(run, budget=None) for run in arm.runs))
        for name, arm in arms.items()
    }
    comparison = compare(scattered, budget=TARGET, draws=100)
    assert comparison.arms[1].target.factor == pytest.approx(1.3, rel=0.1)
    assert any("surfaces (approach 3) are compared, resampled the same cells" in note for note in comparison.notes)
    assert comparison.arms[1].budgets == ()


def test_costs_are_told_apart_by_name():
    arms = world(1.0, noise=1e-4)

    def timed(arm, seconds):
        return dataclasses.replace(
            arm, details={run.name: {"chip_hours": seconds * run.tokens * run.params} for run in arm.runs}
        )

    comparison = compare({"slow": timed(arms["plain"], 2e-15), "fast": timed(arms["better"], 1e-15)}, budget=TARGET)
    gains = comparison.arms[1].costs
    assert gains["FLOPs"].factor == pytest.approx(1.0, rel=0.01)
    assert gains["chip-hours"].factor == pytest.approx(2.0, rel=0.02)
    assert any("2.000 times the tokens a second and chip" in note for note in comparison.notes)
    assert compare(arms, budget=TARGET).arms[1].costs["chip-hours"] is None


def test_an_arm_beyond_the_irreducible_loss_of_the_reference_has_no_upper_end():
    arms = {
        name: dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(run, budget=None, loss=run.loss * factor) for run in arm.runs)
        )
        for factor, (name, arm) in zip((1.0, 0.3), world(1.0, noise=0.001).items(), strict=True)
    }
    comparison = compare(arms, budget=TARGET, draws=100)
    assert comparison.arms[1].target.factor_95[1] == math.inf
    assert any("no upper end" in warning for warning in comparison.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_unit": "bits per byte"}, "not comparable"),
        ({"convention": "executed"}, "counts FLOPs as"),
        ({"validation": {"data.mixture": "web"}}, "data.mixture is 'prose' in plain, 'web' in better"),
    ],
)
def test_arms_whose_losses_are_of_another_kind_are_refused_by_name(change, message):
    arms = world(1.0)
    plain = dataclasses.replace(arms["plain"], validation={"data.mixture": "prose"})
    with pytest.raises(FitRefused, match=message):
        compare({"plain": plain, "better": dataclasses.replace(arms["better"], **change)}, budget=TARGET)


def test_one_arm_and_an_unknown_reference_are_refused():
    arms = world(1.0)
    with pytest.raises(FitRefused, match="give two or more"):
        compare({"plain": arms["plain"]}, budget=TARGET)
    with pytest.raises(FitRefused, match="the arms are plain, better"):
        compare(arms, "other", TARGET)


def write(path, arms):
    with path.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "params", "tokens", "loss", "flops", "budget"])
        for name, arm in arms.items():
            rows.writerows([name, run.params, run.tokens, run.loss, run.flops, run.budget] for run in arm.runs)
    return path


def test_the_values_of_a_column_are_compared_from_the_command_line(tmp_path, capsys):
    table, output = write(tmp_path / "t.csv", world(1.2, noise=0.001)), tmp_path / "out.json"
    words = [f"--runs={table}", "--by=arm", "--reference=plain", f"--budget={TARGET}", f"--output={output}"]
    assert cli.main(["compare", *words]) == 0
    assert re.search(r"compute-equivalent gain over plain: better 1\.[12]", capsys.readouterr().out)
    facts = json.loads(output.read_text())["comparison"]
    assert facts["arms"][1]["target"]["factor"] == pytest.approx(1.2, rel=0.05)
    assert facts["reference"] == "plain"


def test_tables_are_compared_by_name_and_drawn(tmp_path, capsys):
    arms = world(1.2, noise=0.001)
    paths = [write(tmp_path / f"{name}.csv", {name: arm}) for name, arm in arms.items()]
    assert cli.main(["compare", str(paths[0]), f"new={paths[1]}", f"--budget={TARGET}", f"--output={tmp_path}/c"]) == 0
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert re.search(r"compute-equivalent gain over plain: new 1\.[12]", page)
    assert page.count("data:image/png") == 1
    assert cli.main(["compare", str(paths[0]), str(paths[0])]) == 2
    assert "two arms are called plain" in capsys.readouterr().err
    assert cli.main(["compare"]) == 2
    assert "give the arms" in capsys.readouterr().err


def test_tables_are_loaded_with_what_their_rows_say_besides(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("params,tokens,loss,chip_hours\n" + "".join(f"{n},1e9,3.{n},2\n" for n in (1000, 2000, 3000)))
    assert {row["chip_hours"] for row in load_runs(table).details.values()} == {"2"}


@pytest.mark.parametrize(
    ("options", "message"), [({"draws": 1}, "1 draws"), ({"budget": math.nan}, "no number of FLOPs")]
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(FitRefused, match=message):
        compare(world(1.0), **{"budget": TARGET} | options)


def test_conventions_and_units_are_compared_by_what_they_are():
    arms = world(1.0)
    spelt = {"convention": "6nd, computed", "loss_unit": "taken as nats per token: the numbers cannot tell"}
    comparison = compare(arms | {"better": dataclasses.replace(arms["better"], **spelt)}, budget=TARGET)
    assert any("in one unit is not stated" in warning for warning in comparison.warnings)


def test_a_target_far_beyond_one_arm_is_warned_about_and_the_lead_counts_from_it():
    arms = world(1.0)
    short = dataclasses.replace(arms["better"], runs=tuple(run for run in arms["better"].runs if run.budget < 5e11))
    comparison = compare(arms | {"better": short}, budget=40 * 4e11)
    assert comparison.largest == 4e11
    assert any("40 times the largest budget of better" in warning for warning in comparison.warnings)
