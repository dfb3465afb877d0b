"""A branch that leaves a trunk is, to the bit, the run that does the whole way by itself."""

import json

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.training.loop import Fork, Preempted, train
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.schedule import cooldown_start, steps_of

STEP = 8 * 32  # tokens
HORIZONS = {"short": 12, "long": 24}
FORKS = {"short": 9, "long": 19}


def quiet(line):
    """An `echo` that says nothing."""


@pytest.fixture(scope="module")
def branches(small, changed):
    """Two horizons with a cooldown over their last fifth. Evaluations every 6 steps, checkpoints every 5."""
    made = {
        name: changed(
            small,
            train={"double_batch_at": 0.0, "train_tokens": steps * STEP},
            optimizer={"schedule": "cooldown_sqrt", "cooldown_fraction": 0.2},
        )
        for name, steps in HORIZONS.items()
    }
    assert {name: cooldown_start(c.optimizer, steps_of(c)) for name, c in made.items()} == FORKS
    return made


@pytest.fixture(scope="module")
def trunk_config(branches, changed):
    """The constant-rate run to the last fork."""
    return changed(branches["long"], train={"train_tokens": FORKS["long"] * STEP}, optimizer={"schedule": "constant"})


@pytest.fixture(scope="module")
def trunk(trunk_config, tmp_path_factory):
    """Its directory, trained."""
    workdir = tmp_path_factory.mktemp("trunk")
    train(trunk_config, workdir, keep=FORKS.values(), echo=quiet)
    return workdir


@pytest.fixture(scope="module")
def direct(branches, tmp_path_factory):
    """The directories of the runs that went the whole way by themselves."""
    folders = {name: tmp_path_factory.mktemp(name) for name in branches}
    for name, config in branches.items():
        train(config, folders[name], echo=quiet)
    return folders


def assert_same(config, saved, workdir, other):
    """Metrics byte for byte, the final state bit for bit, the same result."""
    assert (workdir / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    (state, position), (expected, expected_position) = saved(config, workdir), saved(config, other)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert (position.step, position.next_sequence) == (expected_position.step, expected_position.next_sequence)
    ours, theirs = (json.loads((d / "result.json").read_text()) for d in (workdir, other))
    for fact in ("validation", "tokens", "flops_by_convention", "params", "config_hash"):
        assert ours[fact] == theirs[fact]


def test_a_trunk_keeps_exactly_the_checkpoints_its_branches_need(trunk):
    assert {path.name for path in (trunk / "checkpoints").iterdir()} == {"step_9", "step_19"}


@pytest.mark.parametrize("name", FORKS)
def test_a_branch_equals_the_run_that_went_the_whole_way(name, branches, trunk, direct, saved, said, tmp_path):
    train(branches[name], tmp_path, fork=Fork(trunk, FORKS[name]), echo=said)
    assert f"branching off {trunk.name} at step {FORKS[name]}" in said.text
    assert_same(branches[name], saved, tmp_path, direct[name])
    stamps = map(json.loads, (tmp_path / "timing.jsonl").read_text().splitlines())
    trained = [r["step"] for r in stamps if "tokens_per_second" in r]
    assert trained and min(trained) > FORKS[name], "steps of the trunk were trained again"


@pytest.mark.parametrize("name", FORKS)
def test_up_to_the_fork_a_branch_has_the_metrics_of_its_trunk(name, branches, trunk, tmp_path):
    train(branches[name], tmp_path, fork=Fork(trunk, FORKS[name]), echo=quiet)
    before = [r for r in read_metrics(trunk) if r["step"] <= FORKS[name] and (r["step"] < 19 or "loss" in r)]
    assert [r for r in read_metrics(tmp_path) if r["step"] <= FORKS[name]] == before
    assert [r["step"] for r in before] == {"short": [4, 6, 8], "long": [4, 6, 8, 12, 12, 16, 18]}[name]


@pytest.mark.parametrize("stop", [7, 9, 19])
def test_an_interrupted_trunk_serves_the_same_branches(stop, stop_at, trunk_config, branches, direct, saved, tmp_path):
    """Stopped between forks, at a fork, and at its end with the last evaluation still owed."""
    stop_at(stop)
    with pytest.raises(Preempted, match=f"saved step {stop} of 19"):
        train(trunk_config, tmp_path / "trunk", keep=FORKS.values(), echo=quiet)
    train(trunk_config, tmp_path / "trunk", keep=FORKS.values(), echo=quiet)
    assert {p.name for p in (tmp_path / "trunk" / "checkpoints").iterdir()} == {"step_9", "step_19"}
    for name, config in branches.items():
        train(config, tmp_path / name, fork=Fork(tmp_path / "trunk", FORKS[name]), echo=quiet)
        assert_same(config, saved, tmp_path / name, direct[name])


def test_an_interrupted_branch_goes_on_from_its_own_checkpoint(stop_at, branches, trunk, direct, saved, said, tmp_path):
    fork = Fork(trunk, FORKS["long"])
    stop_at(22)
    with pytest.raises(Preempted, match="saved step 22 of 24"):
        train(branches["long"], tmp_path, fork=fork, echo=said)
    train(branches["long"], tmp_path, fork=fork, echo=said)
    assert "resuming at step 22 of 24" in said.text
    assert_same(branches["long"], saved, tmp_path, direct["long"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax abandons
def test_a_damaged_checkpoint_of_the_trunk_costs_time_only(trunk_config, branches, direct, saved, said, tmp_path):
    trunk = tmp_path / "trunk"
    train(trunk_config, trunk, keep=FORKS.values(), echo=quiet)
    (trunk / "checkpoints" / "step_19" / "state" / "manifest.ocdbt").unlink()
    train(branches["long"], tmp_path / "long", fork=Fork(trunk, 19), echo=said)
    assert "checkpoint of step 19 cannot be read" in said.text and "at step 9" in said.text
    assert (trunk / "checkpoints" / "step_19").is_dir(), "a branch changes nothing in its trunk"
    assert_same(branches["long"], saved, tmp_path / "long", direct["long"])
    for step in FORKS.values():
        for path in (trunk / "checkpoints" / f"step_{step}" / "position").iterdir():
            path.write_bytes(b"")
    train(branches["short"], tmp_path / "short", fork=Fork(trunk, 9), echo=said)
    assert "starting at step 0" in said.text
    assert_same(branches["short"], saved, tmp_path / "short", direct["short"])


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("optimizer", {"peak_lr": 2e-2}, "optimizer.peak_lr: 0.01 there, 0.02 here"),
        ("optimizer", {"warmup_steps": 4}, "optimizer.warmup_steps: 3 there, 4 here"),
        ("train", {"seed": 1}, "train.seed: 0 there, 1 here"),
        ("optimizer", {"cooldown_fraction": 0.5}, "part at step 12, before the fork at 19"),
    ],
)
def test_a_trunk_that_is_another_run_is_refused(section, values, told, branches, trunk, changed, tmp_path):
    config = changed(branches["long"], **{section: values})
    with pytest.raises(ConfigError, match=told):
        train(config, tmp_path / "run", fork=Fork(trunk, 19), echo=quiet)
    assert not (tmp_path / "run" / "config.json").exists()


def test_without_its_trunk_a_branch_says_so(branches, tmp_path):
    with pytest.raises(ConfigError, match="train the trunk first"):
        train(branches["long"], tmp_path / "run", fork=Fork(tmp_path / "none", 19), echo=quiet)
