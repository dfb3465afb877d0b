"""What befalls one host ends the others within a bounded time, with the reason and an exit code that fits it."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record.metrics import read_metrics
from tests.distributed.conftest import on

pytestmark = pytest.mark.long


def test_the_coordinator_is_killed_and_the_job_resumes(run, launch, said, tmp_path):
    hosts = launch(on(run, 1, 2, 1), tmp_path / "run", 2, {0: "killed 12"})
    assert [host.code for host in hosts] == [-9, 42], hosts[1].errors
    assert "lost contact with process 0" in hosts[1].errors
    train(on(run, 1, 1, 1), tmp_path / "run", echo=said)
    assert "resuming at step" in said.text


def test_an_error_of_one_host_ends_all(run, launch, tmp_path):
    hosts = launch(on(run, 1, 2, 1), tmp_path / "run", 2, {1: "failing"})
    assert [host.code for host in hosts] == [1, 1]
    assert "OSError: the data are gone" in hosts[1].errors
    assert "process 0: stopping, as process 1 failed: the data are gone" in hosts[0].errors


def test_a_divergence_is_seen_by_all(run, launch, tmp_path):
    steep = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, peak_lr=1e30))
    hosts = launch(on(steep, 1, 2, 1), tmp_path / "run", 2)
    assert [host.code for host in hosts] == [1, 1]
    for process, host in enumerate(hosts):
        assert f"process {process}: diverged: loss is" in host.errors


def test_a_directory_that_is_not_shared(run, launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hosts = launch(on(run, 1, 2, 1), "run", 2, {1: "elsewhere"})
    for host in hosts:
        assert host.code == 2
        assert "--workdir: process 1 does not see what process 0 writes to run; it must be a folder" in host.errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 4, 1)], ids=str)
def test_a_mesh_of_another_size_than_there_are_devices(run, launch, tmp_path, mesh):
    hosts = launch(on(run, *mesh), tmp_path / "run", 2, environment={"JAX_NUM_CPU_DEVICES": "1"})
    for host in hosts:
        assert host.code == 2
        assert f"mesh: the mesh needs {mesh[1]} devices, the 2 processes have 2 (1 of them" in host.errors


def test_a_host_that_never_comes(run, launch, tmp_path):
    (alone,) = launch(on(run, 1, 1, 1), tmp_path / "run", 1, flags={0: ["--processes=2", "--join_timeout=3"]})
    assert alone.code == 2 and "process 0 of 2 could not join the others within 3 s" in alone.errors


def test_hosts_that_expect_different_numbers(run, launch, tmp_path):
    hosts = launch(on(run, 1, 2, 1), tmp_path / "run", 2, flags={1: ["--processes=3"], 0: ["--join_timeout=20"]})
    for host in hosts:
        assert host.code == 2 and "--processes: process 1 has 3, process 0 has 2" in host.errors


def test_two_hosts_of_two_devices_in_one_go(run, launch, tmp_path):
    """And a finished run stays as it is, for all."""
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, train_tokens=40 * 8 * 32))
    straight = tmp_path / "straight"
    train(on(run, 1, 4, 1), straight, echo=lambda line: None)
    hosts = launch(run, tmp_path / "run", 2)
    assert [host.code for host in hosts] == [0, 0], hosts[0].errors
    found, expected = read_metrics(tmp_path / "run"), read_metrics(straight)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-5)
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert json.loads(before)["devices"] == 4
    assert [host.code for host in launch(run, tmp_path / "run", 2)] == [0, 0]
    assert (tmp_path / "run" / "result.json").read_bytes() == before
