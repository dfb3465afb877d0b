"""The script that sbatch is given, run by bash with imitations of what Slurm brings."""

import dataclasses
import os
import pathlib
import subprocess

import pytest

import chinchilla_jax
from chinchilla_jax.launch.command import LaunchError
from chinchilla_jax.launch.slurm import Slurm
from chinchilla_jax.parallel.job.hosts import host_settings

ROOT = pathlib.Path(chinchilla_jax.__file__).resolve().parent.parent
PROGRAMS = {
    "scontrol": 'printf "n3\\nn4\\n"',
    # Two tasks, one after the other; the highest code, as srun has it.
    "srun": 'shift; code=0; for i in 0 1; do SLURM_PROCID=$i "$@"; e=$?; [ $e -gt $code ] && code=$e; done; exit $code',
    "sbatch": 'cat >"$SLURM/script"; echo "$@" >"$SLURM/options"; [ ! -e "$SLURM/refuse" ] || { echo "sbatch: error: '
    'invalid partition specified: gpu" >&2; exit 1; }; echo 77',
    "squeue": 'echo "77_0 RUNNING"',
    "scancel": 'echo "$@" >"$SLURM/cancelled"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    (folder := tmp_path / "slurm").mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def run(slurm, script, worker):
    """(exit code, stderr) of the script as task 3 of an array; `worker` is the shell of a worker."""
    python = slurm / "tree" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\ncd {slurm}\n{worker}\n")
    python.chmod(0o755)
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[3-4]"}
    text = script.replace(f"cd {ROOT} ", f"cd {slurm / 'tree'} ")
    done = subprocess.run(["bash"], input=text, env=os.environ | task, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_tasks_find_each_other(slurm, job):
    note = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*" >>started'
    assert run(slurm, Slurm(2).script(job), note) == (0, "")
    lines = (slurm / "started").read_text().splitlines()
    words = f"-m chinchilla_jax work --study={job.study} --manifest=manifest.jsonl --worker=3"
    assert lines == [f"n3:8479 2 {i} {words}" for i in range(2)]
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for line in lines:
        assert host_settings(environment=dict(zip(names, line.split()[:3], strict=True))).processes == 2


@pytest.mark.parametrize(("code", "starts", "end"), [(0, 1, 0), (1, 1, 1), (2, 1, 2), (42, 3, 1), (137, 3, 1)])
def test_what_starts_again(slurm, job, code, starts, end):
    ended, said = run(slurm, Slurm(2).script(job), f"echo x >>started; exit {code}")
    assert ended == end and len((slurm / "started").read_text().split()) == 2 * starts
    assert ("started 3 times without a new checkpoint" in said) == (starts == 3)


def test_a_checkpoint_is_headway(slurm, job):
    folder = pathlib.Path(job.study) / "runs" / "r" / "checkpoints"
    worker = (
        f"echo x >>started; n=$(wc -l <started); mkdir -p {folder}/step_$((n / 4)); [ $n -lt 12 ] || exit 0; exit 42"
    )
    assert run(slurm, Slurm(2).script(job), worker)[0] == 0
    assert len((slurm / "started").read_text().split()) == 14


def test_the_array_is_handed_over_and_ended(slurm, job, tools, said):
    backend = Slurm(2, ("--partition=gpu",))
    backend.launch(job, tools)
    assert (slurm / "options").read_text() == "--parsable --partition=gpu\n" and said[-1].startswith("submitted as 77")
    lines = (slurm / "script").read_text().splitlines()
    assert "#SBATCH --array=0-1" in lines and "#SBATCH --nodes=2" in lines and lines[0] == "#!/bin/bash"
    backend.status(job, tools)
    assert said[-1] == "77_0 RUNNING"
    backend.stop(job, tools)
    assert (slurm / "cancelled").read_text() == "--me --name=cj-test\n"
    (slurm / "refuse").touch()
    with pytest.raises(LaunchError, match="invalid partition specified: gpu"):
        backend.launch(job, tools)


def test_a_bucket_is_refused(job, tools):
    with pytest.raises(LaunchError, match="folder that all nodes share"):
        Slurm().launch(dataclasses.replace(job, study="gs://bucket/study"), tools)


def test_paths_with_spaces_stay_one_word(slurm, job, tmp_path):
    spaced = dataclasses.replace(job, study=str(tmp_path / "a study; touch hacked"))
    assert run(slurm, Slurm(2).script(spaced), 'echo "$#" >>started') == (0, "")
    assert (slurm / "started").read_text().split() == ["6", "6"] and not list(tmp_path.rglob("hacked"))
