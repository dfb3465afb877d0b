"""Runs with a method: they stop and go on anywhere, cost what the ledger says, and leave an ordinary model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import count_parameters, count_run, flops_at, train_flops_per_token
from chinchilla_jax.method import Growth, GrowthStage, Patch, legs_of
from chinchilla_jax.methods.patch import NextPatch
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.schedule import learning_rate, steps_of
from chinchilla_jax.training.stages import course_of

STEPS = 12
GROWTH = Growth(stages=(GrowthStage(share=0.5, n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, d_ff=16),), ramp=0.5)
METHODS = {"patch": Patch(size=4, share=0.5), "growth": GROWTH}


def quiet(line):
    """An `echo` that says nothing."""


@pytest.fixture(scope="module")
def plain(small, changed):
    """Twelve steps, a checkpoint every four, evaluations every three."""
    steps = {"train_tokens": STEPS * 8 * 32, "double_batch_at": 0.0, "log_every": 1, "eval_every": 3}
    return changed(small, train=steps | {"checkpoint_every": 4})


@pytest.fixture(scope="module", params=METHODS)
def run(request, plain, tmp_path_factory):
    """A config with a method, and the directory of its run that nothing stopped."""
    config = dataclasses.replace(plain, method=METHODS[request.param])
    workdir = tmp_path_factory.mktemp(request.param)
    train(config, workdir, echo=quiet)
    return config, workdir


def test_a_run_says_what_it_was_and_what_it_cost(run):
    config, workdir = run
    result, record = (json.loads((workdir / f"{name}.json").read_text()) for name in ("result", "config"))
    assert RunConfig.from_dict(record["config"]) == config and record["hash"] == config.content_hash()
    assert (result["tokens"], result["steps"]) == (config.train.train_tokens, STEPS)
    counted, course = count_run(config), course_of(config).ledger()
    for name, flops in result["flops_by_convention"].items():
        assert flops == pytest.approx(counted.flops[name], rel=1e-12) == course.flops[name]
    assert result["params"] == count_parameters(config.model).total
    assert sum(stage["steps"] for stage in result["stages"]) == STEPS
    records = read_metrics(workdir)
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6, 9, 12]


@pytest.mark.parametrize("stop", [2, *(pytest.param(step, marks=pytest.mark.long) for step in (7, 10)), 6, 9])
def test_stopped_inside_a_stage_and_at_its_borders(run, stop, stop_after, saved, said, tmp_path):
    config, workdir = run
    stop_after(stop)
    with pytest.raises(Preempted, match=f"saved step {stop} of {STEPS}"):
        train(config, tmp_path, echo=said)
    train(config, tmp_path, echo=said)
    assert f"resuming at step {stop} of {STEPS}" in said.text
    assert (tmp_path / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, saved(config, tmp_path)[0], saved(config, workdir)[0])


def test_at_the_end_the_state_is_that_of_an_ordinary_run(run, plain, saved):
    """`saved` reads it as a state of the plain config, without the method."""
    config, workdir = run
    state, position = saved(plain, workdir)
    assert (int(state.step), position.step) == (STEPS, STEPS) and state.extra == {}


def test_a_directory_belongs_to_its_method(run, plain):
    config, workdir = run
    with pytest.raises(ConfigError, match="another config .*method"):
        train(plain, workdir, echo=quiet)


def test_growing_leaves_the_validation_loss_where_it_was(plain, tmp_path, changed):
    """Evaluated before and after a step with a rate of nearly nothing, which begins with the grown model."""
    config = changed(dataclasses.replace(plain, method=GROWTH), train={"eval_every": 1}, optimizer={"peak_lr": 1e-9})
    train(config, tmp_path, echo=quiet)
    losses = {r["step"]: r["validation_loss"] for r in read_metrics(tmp_path) if "validation_loss" in r}
    first = next(r["loss"] for r in read_metrics(tmp_path) if r["step"] == 7 and "loss" in r)
    assert losses[6] == pytest.approx(losses[5], rel=1e-5)
    assert first == pytest.approx(losses[6], rel=0.01)
    assert abs(losses[12] - losses[6]) > 1e-4, "later new units speak"


def test_rates_fall_along_one_curve_or_rewind(plain, changed):
    config = changed(plain, optimizer={"warmup_steps": 2, "peak_lr": 1.0, "final_lr_fraction": 0.0})

    def rates(method):
        course = course_of(dataclasses.replace(config, method=method))
        stages = [(course.at(step + 1), step) for step in range(STEPS)]
        return [s.warmed(step - s.first_step) * learning_rate(*s.schedule(step - s.first_step)) for s, step in stages]

    one_curve = rates(dataclasses.replace(GROWTH, stages=(dataclasses.replace(GROWTH.stages[0], share=0.999 / 2),)))
    assert one_curve == [learning_rate(config.optimizer, steps_of(config), step) for step in range(STEPS)]
    warmed = rates(dataclasses.replace(GROWTH, warmup_steps=3))
    shares = [1.0] * 6 + [1 / 4, 2 / 4, 3 / 4, 1.0, 1.0, 1.0]
    assert warmed == pytest.approx([share * rate for share, rate in zip(shares, one_curve, strict=True)])
    again = rates(dataclasses.replace(GROWTH, rewind=True, warmup_steps=1))
    assert again[5] == 0.0 and again[6:8] == [0.5, 1.0] and again[-1] == 0.0 and again[8:] == sorted(again[8:])[::-1]


@pytest.mark.parametrize("ramp", [0.01, 0.5, 1.0])
def test_whatever_the_ramp_the_last_step_is_one_of_the_ordinary_model(plain, ramp):
    stages = course_of(dataclasses.replace(plain, method=dataclasses.replace(GROWTH, ramp=ramp))).stages
    rising = {0.01: 1, 0.5: 3, 1.0: 5}[ramp]
    assert [stage.steps.total_steps for stage in stages] == [6, rising, 6 - rising]
    assert str(stages[-1].objective) == "next_token"


def test_flops_on_the_way_end_with_those_of_the_run(plain):
    for method in METHODS.values():
        config = dataclasses.replace(plain, method=method)
        way = [flops_at(config, tokens, "executed") for tokens in range(0, config.train.train_tokens + 1, 256)]
        assert way == sorted(way) and way[0] == 0.0
        assert way[-1] == pytest.approx(count_run(config).flops["executed"], rel=1e-12)


def test_no_logged_loss_averages_over_a_border(plain, tmp_path, changed):
    config = changed(dataclasses.replace(plain, method=METHODS["patch"]), train={"log_every": 4, "eval_every": 0})
    train(config, tmp_path / "run", echo=quiet)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "loss" in r] == [4, 6, 8, 12]


def test_a_patch_run_begins_its_second_half_with_a_fresh_optimizer(plain):
    course = course_of(dataclasses.replace(plain, method=METHODS["patch"]))
    first, second = course.stages
    assert (str(first.objective), str(second.objective)) == ("NextPatch(size=4)", "next_token")
    assert second.enter.__name__ == "fresh_optimizer" and second.schedule(0)[2] == 0


def test_prices(plain):
    """Lambda / K + 1 - lambda, a little less where attention squares the length; and N of each stage."""
    seq_len, rows = 32, 4
    patch = count_run(dataclasses.replace(plain, method=Patch(size=4, share=0.5)))
    whole = count_run(plain)
    assert patch.flops["6nd"] / whole.flops["6nd"] == pytest.approx(0.5 / 4 + 0.5)
    for name in ("executed", "table_a4", "appendix_f"):
        parts = [train_flops_per_token(plain.model, length, name, rows) for length in (seq_len // 4, seq_len)]
        assert patch.flops[name] == pytest.approx(whole.tokens * (parts[0] / 4 + parts[1]) / 2, rel=1e-12)
        assert patch.flops[name] < whole.flops[name] * (0.5 / 4 + 0.5)
    grown = dataclasses.replace(plain, method=GROWTH)
    legs = [(count_parameters(leg.config.model).total, leg.config.train.train_tokens) for leg in legs_of(grown)]
    assert count_run(grown).flops["6nd"] == pytest.approx(sum(6.0 * n * d for n, d in legs), rel=1e-12)
    assert [d // 256 for _, d in legs] == [6, 3, 3]


@pytest.mark.parametrize("values, told", [
    ({"name": "patch", "size": 3}, "method.size: 3 does not divide data.seq_len=32"),
    ({"name": "patch", "share": 1.5}, "method.share: must lie in"),
    ({"name": "pach"}, "method.name: unknown value 'pach' .did you mean 'patch'"),
    ({"name": "growth"}, "method.stages: needs at least one smaller shape"),
    ({"name": "growth", "stages": [{"d_model": 64}]}, r"method.stages\[0\].d_model: 64 does not grow into 16"),
    ({"name": "growth", "stages": [{"d_model": 10}]}, "16 is no whole multiple of 10"),
    ({"name": "growth", "stages": [{"share": 0.6}, {"share": 0.6}]}, "method.stages: their shares leave no tokens"),
    ({"name": "growth", "stages": [{"share": 0.01}]}, "method.stages: 12 steps .* leave a stage with too few of them"),
    ({"name": "patch", "share": 1.0}, "method.share: must lie in"),
    ({"name": "patch", "share": 0.01}, "method.share: 12 steps .* leave a stage with too few"),
    ({"name": "growth", "stages": [{}]}, r"method.stages\[0\].d_model: and all other dimensions .* nothing grows"),
    ({"name": "growth", "stages": [{"d_ff": 16, "peak_lr": 0.1}]}, r"method.stages\[0\].peak_lr: .* needs rewind"),
    ({"name": "growth", "warmup_steps": 6, "stages": [{"d_ff": 16}]}, "method.warmup_steps: 6 steps of warm-up do not"),
    ({"name": "growth", "stages": [{"width": 8}]}, r"method.stages\[0\].width: unknown key"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(plain, values, told):
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_dict(plain.to_dict() | {"method": values})


def test_a_method_keeps_its_batch_and_has_its_own_objective(plain, changed, tmp_path):
    with pytest.raises(ConfigError, match="train.double_batch_at"):
        changed(dataclasses.replace(plain, method=METHODS["patch"]), train={"double_batch_at": 0.5})
    with pytest.raises(ConfigError, match="method: patch has objectives and stages of its own"):
        train(dataclasses.replace(plain, method=METHODS["patch"]), tmp_path, objective=NextPatch(2), echo=quiet)
