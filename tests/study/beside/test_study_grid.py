"""A grid of hyper-parameters on a proxy: what it trains, what it recommends, what it refuses."""

import dataclasses
import json
import math

import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.study.beside.grid import Setting, Tried, findings, table, tune
from chinchilla_jax.study.cell import matched
from chinchilla_jax.study.execute.backend import BACKENDS, Backend
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.execute.worker import work_alone
from chinchilla_jax.study.folder import (
    MANIFEST,
    TUNE,
    TUNE_RESULT,
    StudyError,
    read_manifest,
    run_folder,
    write_manifest,
)
from chinchilla_jax.study.plan import plan
from chinchilla_jax.study.recipe import read_recipe
from tests.study.cases import quiet, width_config

RECIPE = "mup lr = 0.01 (D/1e6)^-0.25, base = 32, temperature = 2"


@pytest.fixture
def config():
    """A study of two budgets whose widths share a recipe."""
    return width_config(recipe=RECIPE)


@pytest.fixture
def tuned(config, tmp_path, finish, monkeypatch):
    """`tune` with a `train` whose loss is least at twice the rate, half the deviation, and the temperature as it is."""
    lines, order = [], []

    def train(run, folder, facts, echo=print):
        order.append(facts["name"])
        rate = run.optimizer.peak_lr / (0.01 * (facts["tokens"] / 1e6) ** -0.25)
        off = math.log(rate / 2.0), math.log(run.model.init_scale / 0.5), math.log(run.model.output_scale / 0.5)
        return finish(run, folder, facts, loss=3.0 + 0.1 * sum(x * x for x in off), diverged=rate > 7.0)

    monkeypatch.setitem(
        BACKENDS, "pretended", Backend(lambda where, name, *_, ready: work_alone(where, name, 0, quiet, train))
    )
    monkeypatch.setattr("chinchilla_jax.data.prepare", lambda data, echo: None)

    def run(given=config, **more):
        lines.clear()
        order.clear()
        return tune(given, tmp_path, workers=1, echo=lines.append, backend="pretended", **more), lines, order

    return run


@pytest.mark.long
def test_the_recipe_of_the_best_setting_is_told_and_can_be_planned(config, tuned, tmp_path):
    write_manifest(tmp_path / MANIFEST, plan(config))
    best, lines, order = tuned(rates="1,2,4,8", inits="0.25,0.5,1", temperatures="0.5,1,2")
    assert len(order) == 4 * 3 * 3
    assert best.lr.at(D=1e6) == pytest.approx(0.02) and best.mup == {"base": 32, "init": 0.5, "temperature": 2}
    (told,) = [line for line in lines if line.startswith("recipe: --config")]
    again = read_recipe(told.split("'")[1])
    assert again.text == best.text and again.lr.at(D=3e6) == pytest.approx(best.lr.at(D=3e6), rel=1e-5)
    assert json.loads((tmp_path / TUNE_RESULT).read_text())["recipe"] == best.text
    model = config.model
    small = matched(width_config(recipe=best.text), model, 1e12, "isoflop").run_config()
    assert (small.model.init_scale, small.model.output_scale) == (0.5, 0.5)
    assert not tuned(rates="1,2,4,8", inits="0.25,0.5,1", temperatures="0.5,1,2")[2], "nothing is trained twice"


def test_the_proxy_is_a_run_of_the_study_and_each_setting_changes_what_it_names(config, tuned, tmp_path):
    tuned(rates="1,3", inits="1,2", temperatures="1,4", seeds=2)
    manifest = read_manifest(tmp_path / TUNE)
    (cell,) = [run for run in plan(config).runs if run.name == manifest.header["cells"][0]]
    optimum = dict(plan(config).header["guess"]["params"])[cell.budget]
    sizes = [run.params for run in plan(config).runs if run.budget == cell.budget]
    assert cell.budget == min(config.study.budgets) and cell.params == min(
        sizes, key=lambda n: abs(math.log(n / optimum))
    )
    start = cell.run_config()
    for run in manifest.runs:
        _, rate, init, temperature, seed = run.name.removeprefix(cell.name).split("-")
        made = run.run_config()
        model = dataclasses.replace(
            start.model, init_scale=float(init[1:]), output_scale=start.model.output_scale / float(temperature[1:])
        )
        assert made.model == model and made.train.seed == int(seed[1:])
        assert made.optimizer.peak_lr == pytest.approx(float(rate[1:]) * start.optimizer.peak_lr, rel=1e-3)
        assert run.config_hash == made.content_hash() and run.params == count_parameters(made.model).total
    assert manifest.runs[0].config_hash == cell.config_hash, "all factors 1: the study's own run"
    assert len({run.config_hash for run in manifest.runs}) == len(manifest.runs) == 16


def test_no_fit_takes_them_and_status_shows_them(config, tuned, tmp_path, finish):
    write_manifest(tmp_path / MANIFEST, plan(config))
    tuned(rates="1,2")
    assert {row.role for row in status(tmp_path, quiet)} == {"isoflop", "noise"}
    for run in plan(config).runs:
        finish(None, run_folder(tmp_path, run.name), run.facts(), loss=3.0 + 1e-7 * run.params)
    held = load_runs(tmp_path)
    assert {run.name for run in held.runs} == {run.name for run in plan(config).runs} and not held.bad


def test_a_grid_that_ends_too_early_says_so(tuned):
    _, lines, _ = tuned(rates="0.5,1", inits="0.25,0.5,1")
    assert "the highest rate tried is the best: --rates should go further" in lines
    assert not any("--inits should" in line for line in lines)


def test_a_setting_that_diverges_is_the_last_and_never_the_best():
    good, bad = Tried(Setting(1.0), 0.01, (3.0,)), Tried(Setting(2.0), math.inf, (math.inf,), diverged=1)
    assert table([bad, good])[1].split()[:4] == ["1", "1", "1", "+1.00%"] and "1 diverged" in table([bad, good])[2]
    assert findings([bad, good])[0] == "best: rate 1, init 1, temperature 1"
    assert findings([bad]) == ["every setting diverged somewhere: lower --rates"]


def test_all_diverged_is_no_recipe(tuned, tmp_path):
    best, lines, _ = tuned(rates="8,16")
    assert best is None and "lower --rates" in lines[-1] and not (tmp_path / TUNE_RESULT).exists()


def test_what_cannot_be_carried_over_is_refused_before_anything_is_trained(tuned, tmp_path):
    plain = width_config(recipe="lr = 0.01 N^-0.1")
    with pytest.raises(ConfigError, match="only a recipe by muP has an init") as refused:
        tuned(plain, inits="1,2")
    assert refused.value.key == "study.recipe" and not any(tmp_path.iterdir())
    best, _, _ = tuned(plain, rates="0.5,1")
    assert best.text in ("lr = 0.01 N^-0.1", "lr = 0.005 N^-0.1")
    with pytest.raises(StudyError, match="plans other cells, seeds or settings"):
        tuned(plain, rates="0.5,1,2")


def test_a_dry_run_says_the_cost_and_leaves_nothing(tuned, tmp_path):
    best, lines, order = tuned(dry_run=True)
    assert best is None and not order and not any(tmp_path.iterdir())
    assert any(line.startswith("5 runs, ") for line in lines)
