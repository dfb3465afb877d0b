"""One run on four hosts, then on two, then on one, is the run that one host makes, whatever happens in between."""

import hashlib
import json

import numpy as np
import pytest

from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record.metrics import read_metrics
from tests.distributed.conftest import on

# Sums over devices are taken in another order, one float32 rounding a step; 100 steps of training carry it along.
TOLERANCE = 2e-5


def steps_in(workdir):
    """Whole checkpoints; a host that is killed may leave a part of one."""
    names = [path.name.removeprefix("step_") for path in (workdir / "checkpoints").glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def assert_same_metrics(found, expected):
    assert [list(record) for record in found] == [list(record) for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=TOLERANCE)


def batches_of(hosts):
    """The global batches as the hosts put them together: hashes of rows, by first sequence."""
    found = {}
    for host in hosts:
        for line in host.record.read_text().splitlines():
            part = json.loads(line)
            rows = found.setdefault((part["first"], part["n"]), {})
            for row, digest in part["rows"].items():
                assert rows.setdefault(int(row), digest) == digest, "two hosts built a row differently"
    return found


def assert_same_batches(config, hosts):
    """Each host built its rows, not all; together they are those of one host."""
    store = TokenStore(store_path(config.data))
    batches = Batches(store, config.data.mixture, config.train.seed)
    for (first, n), rows in batches_of(hosts).items():
        expected = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in batches.batch(first, n)["inputs"]]
        assert [rows.get(row) for row in range(n)] == expected


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """The directory of the run on one device, which nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    train(on(run, 1, 1, 1), workdir, echo=lambda line: None)
    return workdir


def test_four_hosts_then_two_then_one(run, straight, launch, said, tmp_path):
    workdir = tmp_path / "run"
    expected = read_metrics(straight)

    # Four hosts, parameters sharded over them; SIGTERM reaches one.
    four = launch(run, workdir, 4, {2: "terminated 6"})
    assert [host.code for host in four] == [42] * 4, four[2].errors
    stopped = steps_in(workdir)[-1]
    assert stopped > 6
    for process, host in enumerate(four):
        assert f"process {process}: stopped: saved step {stopped} of 100" in host.errors
    assert_same_metrics(read_metrics(workdir), expected[: stopped // 2])
    assert_same_batches(run, four)
    assert all(len(json.loads(four[3].record.read_text().splitlines()[0])["rows"]) == 2 for host in four)

    # Two hosts, tensors split over them; one cannot read its part of the newest checkpoint, and later it is killed.
    older = steps_in(workdir)[-2]
    two = launch(on(run, 1, 1, 2), workdir, 2, {1: f"blind {stopped},killed {older + 14}"})
    assert [host.code for host in two] == [42, -9], two[0].errors + two[1].errors
    assert "process 1 stopped answering; stopped without saving. Start again" in two[0].errors
    assert "***" not in two[0].errors and "WARNING" not in two[0].errors, "that is not for users"
    assert (workdir / "checkpoints" / f"unreadable_step_{stopped}").is_dir()
    assert min(first for first, _ in batches_of(two)) == older * 8
    assert_same_batches(run, two)
    resumed = steps_in(workdir)[-1]
    assert older < resumed <= older + 14

    # One host.
    train(on(run, 1, 1, 1), workdir, echo=said)
    assert f"resuming at step {resumed} of 100" in said.text
    assert_same_metrics(read_metrics(workdir), expected)
    results = [json.loads((folder / "result.json").read_text()) for folder in (workdir, straight)]
    np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=TOLERANCE)
    assert not list(workdir.rglob("*tmp*")) and not list(workdir.glob(".*"))


def test_hosts_that_differ_in_a_setting_all_say_so(run, launch, tmp_path):
    hosts = launch(on(run, 1, 2, 1), tmp_path / "run", 2, flags={1: ["--config.train.seed=7"]})
    for host in hosts:
        assert host.code == 2
        assert "config.train.seed: process 1 has 7, process 0 has 0; give every process the same" in host.errors
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there(run, launch, tmp_path):
    (alone,) = launch(on(run, 1, 1, 1), tmp_path / "run", 1,
                      flags={0: ["--processes=2", "--process=1", "--join_timeout=2"]})  # fmt: skip
    assert alone.code == 2
    assert "--coordinator (JAX_COORDINATOR_ADDRESS): localhost:" in alone.errors
    assert "could not join the others within 2 s" in alone.errors and "***" not in alone.errors
