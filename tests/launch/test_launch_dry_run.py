"""A dry run prints every command of a launch in which all goes well, and calls none."""

import dataclasses
import shlex

import pytest

from chinchilla_jax import cli
from chinchilla_jax.base import files
from chinchilla_jax.launch.command import LaunchError, Tools
from chinchilla_jax.launch.gke import Gke
from chinchilla_jax.launch.slurm import Slurm
from chinchilla_jax.launch.ssh import Ssh
from chinchilla_jax.launch.tpu_vm import TpuVm
from chinchilla_jax.preflight.slices import parse_slice

BACKENDS = {
    "tpu_vm": TpuVm("us-west4-a", spot=True),
    "gke": Gke("image:1", queue="team"),
    "ssh": Ssh(("a", "b")),
    "slurm": Slurm(2, ("--partition=gpu",)),
}


@pytest.fixture
def dry(job, said, monkeypatch):
    """Prints what a back-end would do; there is no program that could be called."""
    monkeypatch.setenv("PATH", "")

    def dry(backend, what="launch", job=job):
        getattr(backend, what)(job, Tools(said.append, dry=True))
        return list(said)

    return dry


@pytest.mark.parametrize("what", ["launch", "status", "stop"])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_back_end_prints_what_it_would_do_and_does_nothing(dry, name, what, study):
    before = sorted(study.rglob("*"))
    lines = dry(BACKENDS[name], what)
    programs = {"tpu_vm": "gcloud", "gke": "kubectl", "ssh": "ssh", "slurm": ("sbatch", "squeue", "scancel")}[name]
    assert any(line.removeprefix("# reads: ").startswith(programs) for line in lines)
    assert sorted(study.rglob("*")) == before


def test_a_queued_resource_is_asked_for_and_filled(dry):
    calls = [shlex.split(line) for line in dry(BACKENDS["tpu_vm"]) if line.startswith("gcloud")]
    assert {call[3] for call in calls} == {"queued-resources"} and all("--zone=us-west4-a" in call for call in calls)
    create = next(call for call in calls if "create" in call)
    assert create[5] == "cj-test-0-1" and "--node-id=cj-test-0-1" in create and "--spot" in create
    assert "--accelerator-type=v5litepod-16" in create and "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "--labels=launched-by=chinchilla_jax,job=cj-test,worker=0" in create
    # What is done to the first slice, in its order.
    assert [call[4] for call in calls if "cj-test-0" in " ".join(call)] == [
        "create", "scp", "ssh", "ssh", "ssh", "delete",
    ]  # fmt: skip
    start = next(word for call in calls for word in call if "host.py start" in word)
    assert "JAX_COORDINATOR_PORT=8476" in start and start.endswith("--worker=0")


def test_slices_that_train_one_run_together_are_nodes_of_one_request(dry, job):
    two = dataclasses.replace(job, slice=parse_slice("2xv5e-16"), slices=1)
    create = next(shlex.split(line) for line in dry(BACKENDS["tpu_vm"], job=two) if " create " in line)
    assert "--node-count=2" in create and "--node-prefix=cj-test-0-1" in create
    assert not any(word.startswith("--node-id") for word in create)


@pytest.mark.parametrize(
    ("name", "words"), [("v5p:4x4x16", "not by a grid: --backend=gke"), ("", "--slice=NAME is missing")]
)
def test_what_tpu_vms_cannot_be_asked_for_is_refused(job, tools, name, words):
    other = dataclasses.replace(job, slice=parse_slice(name) if name else None)
    with pytest.raises(LaunchError, match=words):
        BACKENDS["tpu_vm"].launch(other, tools)


@pytest.mark.parametrize("name", ["tpu_vm", "gke", "ssh"])
def test_a_study_that_only_this_machine_finds_is_refused(job, tools, name):
    with pytest.raises(LaunchError, match="absolute"):
        BACKENDS[name].launch(dataclasses.replace(job, study="studies/mine"), tools)


def test_the_verb_prints_cost_and_commands(capsys, study):
    flags = [f"--study={study}", "--backend=tpu_vm", "--zone=z", "--slice=v5e-16", "--slices=2", "--dry_run"]
    assert cli.main(["launch", *flags, "--nopreflight", "--price=1.2"]) == 0
    out = capsys.readouterr().out
    assert "3 runs on 2 x 16 chips" in out and "40% of the peak assumed" in out and "$" in out
    assert out.count(" create ") == 2


def test_a_budget_that_does_not_pay_for_the_runs_is_refused(capsys, study):
    flags = [f"--study={study}", "--backend=tpu_vm", "--zone=z", "--slice=v5e-16", "--nopreflight", "--dry_run"]
    assert cli.main(["launch", *flags, "--price=1e9", "--budget_usd=0.01"]) == 2
    assert "more than --budget_usd=0.01" in capsys.readouterr().err
    assert cli.main(["launch", *flags, "--budget_usd=5"]) == 2
    assert "needs --price" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["tpu_vm", "ssh"])
def test_hosts_of_a_study_in_a_bucket_are_set_up_for_buckets(dry, job, said, bucket_folder, backend):
    study = str(bucket_folder / "study")
    files.write_bytes(f"{study}/{job.manifest}", files.read_bytes(job.folder / job.manifest))
    dry(BACKENDS[backend], job=dataclasses.replace(job, study=study))
    assert any("launch/host.py setup" in line and "gcs" in line for line in said)
    assert any(f"--study={study}" in line for line in said) and not any("mount" in line for line in said)
