"""Noise: a study's cells under seeds and rates, trained like its runs, told apart from them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import prepare
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.study.beside.noise import (
    Spread,
    behind,
    chosen,
    factors,
    facts,
    findings,
    measure,
    noise_of,
    noise_plan,
    rates,
    spreads,
    table,
)
from chinchilla_jax.study.execute.backend import BACKENDS, Backend, reuse
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.execute.worker import work_alone
from chinchilla_jax.study.folder import (
    MANIFEST,
    NOISE,
    NOISE_RESULT,
    StudyError,
    read_manifest,
    read_result,
    run_folder,
    write_manifest,
)
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny
from tests.study.cases import quiet


def test_by_default_the_size_nearest_the_optimum_of_three_budgets_is_taken(small_plan):
    optima = dict(small_plan.header["guess"]["params"])
    cells = chosen(small_plan, None)
    assert [cell.budget for cell in cells] == sorted(optima), "two budgets have no middle one"
    for cell in cells:
        sizes = [run.params for run in small_plan.runs if run.budget == cell.budget]
        assert cell.params == min(sizes, key=lambda n: abs(math.log(n / optima[cell.budget])))
    four = plan(tiny())
    assert [cell.budget for cell in chosen(four, None)] == [5e9, 7e9, 1.4e10]


def test_cells_are_named_or_the_nearest_of_a_budget(small_plan):
    names = [small_plan.runs[i].name for i in (3, 0)]
    assert [cell.name for cell in chosen(small_plan, f"{names[0]}, {names[1]}, {names[0]}")] == names
    (nearest,) = chosen(small_plan, "6e11:nearest")
    assert nearest == chosen(small_plan, None)[-1]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("c2.0e11-n", "plans no run 'c2.0e11-n'"),
        ("7e11:nearest", "budgets are 2e[+]11, 6e[+]11 FLOPs"),
        ("x:nearest", "budgets are"),
        (" ,", "no cell named"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(small_plan, cells, words):
    with pytest.raises(StudyError, match=words) as refusal:
        chosen(small_plan, cells)
    assert refusal.value.exit_code == 2


def test_rates_are_positive_factors():
    assert factors("1.4,0.7, 1,1") == [0.7, 1.0, 1.4]
    assert factors("1,1.0000001,0.69999999") == [0.7, 1.0], "runs of both would have one name"
    for text in ("", "0", "-1,1", "fast", "inf"):
        with pytest.raises(StudyError, match="give positive factors"):
            factors(text)


def test_the_plan_is_every_cell_at_every_rate_with_every_seed(small_plan):
    cells = chosen(small_plan, None)
    made = noise_plan(small_plan, cells, 3, [0.7, 1.0])
    assert [run.name for run in made.runs] == [
        f"{cell.name}-x{rate}-s{seed}" for cell in cells for rate in ("0.7", "1") for seed in range(3)
    ]
    assert {run.role for run in made.runs} == {"noise"} and len({run.config_hash for run in made.runs}) == 12
    for run in made.runs:
        cell = next(cell for cell in cells if run.name.startswith(cell.name))
        factor, seed = run.name.removeprefix(f"{cell.name}-x").split("-s")
        lr = cell.config["optimizer"]["peak_lr"]
        assert run.config["optimizer"]["peak_lr"] == pytest.approx(float(factor) * lr, rel=1e-3)
        assert run.config["train"]["seed"] == int(seed)
        assert run.run_config().content_hash() == run.config_hash
        assert (run.params, run.tokens, run.budget) == (cell.params, cell.tokens, cell.budget)
        assert (run.config_hash == cell.config_hash) == (factor == "1" and seed == "0")
    assert noise_plan(small_plan, cells, 3, [0.7, 1.0]) == made


def test_a_branch_is_trained_on_its_own():
    config = tiny()
    trunks = plan(
        dataclasses.replace(
            config,
            optimizer=dataclasses.replace(config.optimizer, schedule="cooldown_sqrt"),
            study=dataclasses.replace(config.study, schedule="trunk"),
        )
    )
    (cell,) = chosen(trunks, "1e10:nearest")
    run, _ = noise_plan(trunks, [cell], 2, [1.0]).runs
    assert cell.trunk and not run.trunk and run.spent() == run.cost and run.config_hash == cell.config_hash
    assert run.estimated_seconds == pytest.approx(run.flops["executed"] / config.study.flops_per_second)


@pytest.fixture
def measured(study, small_plan, finish, monkeypatch):
    """`measure` with a `train` that pretends; `lines` is what it printed, `order` what was trained."""
    lines, order = [], []

    def train(config, folder, facts, echo=print):
        order.append(facts["name"])
        return finish(config, folder, facts, loss=3.0 + 0.01 * config.train.seed * config.optimizer.peak_lr**0.5)

    def work(where, manifest, workers, echo, ready):
        work_alone(where, manifest, 0, quiet, train)

    monkeypatch.setitem(BACKENDS, "pretended", Backend(work))
    monkeypatch.setattr("chinchilla_jax.data.prepare", quiet_prepare)

    def run(seeds=3, rates="0.7,1", cells=None, **more):
        lines.clear()
        order.clear()
        measure(None, study, cells, seeds, rates, 2, lines.append, backend="pretended", **more)
        return lines, order

    return run


def quiet_prepare(data, echo):
    """Data that need no preparing."""


def test_what_was_measured_is_printed_and_written_once(study, measured):
    before = (study / MANIFEST).read_bytes()
    lines, order = measured()
    assert len(order) == 12 and (study / MANIFEST).read_bytes() == before
    found = json.loads((study / NOISE_RESULT).read_text())
    assert found["freedom"] == 4 and found["factor"] == 1.0 and len(found["cells"]) == 4
    assert any(line.startswith("noise from run to run at the recipe's rate") for line in lines)
    header = next(i for i, line in enumerate(lines) if line.startswith("cell "))
    assert [line.split()[1] for line in lines[header + 1 : header + 5]] == ["0.7", "1", "0.7", "1"]
    written = (study / NOISE).read_bytes()
    again, order = measured()
    assert not order and (study / NOISE).read_bytes() == written
    assert "noise from run to run" in "\n".join(again)
    assert {row.role for row in status(study, quiet)} == {"isoflop", "noise"}


def test_a_dry_run_says_the_cost_and_leaves_nothing(study, measured):
    there = sorted(study.rglob("*"))
    lines, order = measured(dry_run=True)
    assert not order and sorted(study.rglob("*")) == there
    assert any(line.startswith("12 runs, ") and "2 workers" in line for line in lines)


def test_another_noise_plan_in_the_same_folder_is_refused_and_keeps_what_is_trained(study, measured):
    measured()
    with pytest.raises(StudyError, match="plans other cells, seeds or rates; delete that file"):
        measured(seeds=4)
    (study / NOISE).unlink()
    _, order = measured(seeds=4)
    assert sorted(name[-3:] for name in order) == ["-s3"] * 4


def test_fits_pass_over_noise_runs_and_do_not_list_them_as_bad(study, measured, small_plan, finish):
    measured()
    for run in small_plan.runs:
        finish(None, run_folder(study, run.name), run.facts(), loss=3.0 + 1e-7 * run.params)
    loaded = load_runs(study)
    assert {run.name for run in loaded.runs} == {run.name for run in small_plan.runs} and not loaded.bad
    alone = load_runs(study / "runs")
    assert {run.name for run in alone.runs} == {run.name for run in small_plan.runs}
    assert any("12 passed over" in note for note in alone.notes)


def test_a_finished_run_of_the_study_is_not_trained_again(study, measured, small_plan, finish):
    cells = chosen(small_plan, None)
    for cell in cells:
        finish(None, run_folder(study, cell.name), cell.facts(), loss=2.5)
        (run_folder(study, cell.name) / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0}\n')
    assert any(line.startswith("2 of them are finished in the study") for line in measured(dry_run=True)[0])
    lines, order = measured()
    used = [f"{cell.name}-x1-s0" for cell in cells]
    assert len(order) == 10 and not set(order) & set(used)
    for cell, name in zip(cells, used, strict=True):
        result = read_result(study, name)
        assert (result["loss"], result["reused"], result["role"], result["name"]) == (2.5, cell.name, "noise", name)
        assert "time" not in result and result["reused_seconds"] == 2.0
        assert (run_folder(study, name) / "metrics.jsonl").read_text().startswith('{"step": 1')
        assert any(line.startswith(f"{name}: the result of {cell.name}") for line in lines)


def test_the_study_takes_the_noise_runs_that_are_its_own(study, measured, small_plan):
    measured()
    runs = read_manifest(study / NOISE).runs
    reuse(study, small_plan.runs, runs, quiet)
    done = [run for run in small_plan.runs if read_result(study, run.name) is not None]
    assert done == chosen(small_plan, None)
    assert all(read_result(study, run.name)["role"] == "isoflop" for run in done)
    assert not list(study.glob("runs/*/lease.json"))


def test_a_study_can_be_measured_before_it_is_planned(tmp_path, measured, finish):
    with pytest.raises(StudyError, match="no such manifest"):
        measure(None, tmp_path / "other", None, 2, "1", 1, quiet)
    lines = []
    measure(tiny(), None, None, 2, "1", 1, lines.append, dry_run=True)
    assert any(line.startswith("6 runs, ") for line in lines)
    with pytest.raises(ConfigError, match="no study section"):
        measure(dataclasses.replace(tiny(), study=None), None, None, 2, "1", 1, quiet, dry_run=True)


def test_cells_of_another_config_are_refused_where_a_study_is_planned(study, measured, small_plan):
    config = small_plan.template()
    calmer = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip_norm=0.5))
    with pytest.raises(StudyError, match="plans no run like .* leave --config out") as refusal:
        measure(calmer, study, None, 2, "1", 1, quiet)
    assert refusal.value.exit_code == 2 and not (study / NOISE).exists()
    twice = dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2,)))
    measure(twice, study, None, 2, "1", 1, quiet, backend="pretended")
    assert (study / NOISE).exists(), "the same runs, of which each is planned twice"


def test_replicates_of_a_study_are_no_cells_of_their_own(small_plan):
    config = small_plan.template()
    twice = plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2,))))
    assert chosen(twice, None) == chosen(small_plan, None)
    with pytest.raises(StudyError, match="plans no run"):
        chosen(twice, f"{small_plan.runs[0].name}-s1")


def test_really_trained_seeds_differ_and_the_studys_own_run_agrees_to_the_bit(tmp_path):
    from chinchilla_jax.training import loop

    config = tiny()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, n_layers=1),
        data=dataclasses.replace(config.data, data_dir=str(tmp_path / "data"), seq_len=32),
        study=dataclasses.replace(config.study, budgets=(2e9, 4e9), ladder="width"),
    )
    prepare(config.data, quiet)
    planned = plan(config)
    (cell,) = chosen(planned, "2e9:nearest")
    made = noise_plan(planned, [cell], 2, [1.0])
    write_manifest(tmp_path / NOISE, made)
    work_alone(tmp_path, NOISE, 0, quiet)
    own = loop.train(cell.run_config(), run_folder(tmp_path, cell.name), facts=cell.facts(), echo=quiet)
    (found,) = spreads(tmp_path, made)
    assert found.losses[0] == own["loss"] != found.losses[1]
    assert 0 < found.deviation < 0.1 and found.seconds > 0


# --- In figures ---


def group(factor, losses, cell="a", **more):
    """The runs of one cell at one rate."""
    return Spread(cell, 1e12, 10**6, 10**7, factor, 1e-3 * factor, tuple(losses), **more)


def test_the_noise_is_pooled_over_cells_and_is_that_of_the_recipes_rate():
    rng = np.random.default_rng(0)
    found = [
        group(f, level * (1 + sd * rng.standard_normal(400)), cell)
        for cell, level in (("a", 3.0), ("b", 2.0))
        for f, sd in ((0.5, 0.01), (1.0, 0.005))
    ]
    assert noise_of(found) == (pytest.approx(0.005, rel=0.1), 798, 1.0)
    assert noise_of(found[:1]) == (pytest.approx(found[0].deviation), 399, 0.5)
    assert math.isnan(noise_of([group(1.0, [3.0])])[0])
    assert facts([group(1.0, [3.0])])["noise"] is None


def test_a_lower_rate_that_is_as_good_and_calmer_is_recommended():
    found = [group(0.7, [3.001, 3.002, 3.0, 3.001]), group(1.0, [2.98, 3.02, 2.99, 3.01]), group(1.4, [3.1] * 4)]
    lines = findings(found)
    assert "best on the mean: rate 1 (standard error 0.30%)" in lines
    assert "rate 0.7 is as good within the error" in lines[-1] and "scatters less, 0.03% against" in lines[-1]
    calm_best = [group(0.7, [2.99, 3.02]), group(1.0, [3.0, 3.001])]
    assert "best on the mean: rate 1" in findings(calm_best)[-2] and "scatters no less" in findings(calm_best)[-1]


def test_luck_that_seeds_share_does_not_hide_which_rate_is_better():
    luck = np.array([0.0, 0.05, -0.04, 0.02])
    found = [group(0.7, 3.02 + luck), group(1.0, 3.0 + luck)]
    loss, error = behind(found, 0.7, 1.0)
    assert loss == pytest.approx(0.02 / 3.01, rel=0.01) and error < 1e-9
    assert "no lower rate is as good within the error: 0.7 loses 0.66%" in findings(found)[-1]
    assert "the highest tried: --rates may go further" in findings(found)[-2]


def test_a_rate_at_which_a_run_diverged_is_never_the_best():
    found = [group(0.7, [3.1, 3.11]), group(1.0, [2.9], diverged=1)]
    lines = findings(found)
    assert "rate 1: a run diverged" in lines and any("best on the mean: rate 0.7" in line for line in lines)
    assert rates(found)[1].excess == math.inf and facts(found)["rates"][1]["excess"] is None
    assert json.dumps(facts(found), allow_nan=False)
    assert "1 diverged" in table(found)[2] and table([group(1.0, [], diverged=2)])[1].endswith("2 diverged")


def test_the_table_has_a_line_for_each_cell_and_rate():
    lines = table([group(0.7, [3.0, 3.03], seconds=150.0), group(1.0, [3.0])])
    assert lines[1].split() == ["a", "0.7", "0.0007", "2", "3.0150", "0.70%", "3.0000", "3.0300", "+0.50%", "2", "min"]
    assert lines[2].split() == ["a", "1", "0.001", "1", "3.0000", "-", "3.0000", "3.0000", "+0.00%"]
