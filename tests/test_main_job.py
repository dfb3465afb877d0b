"""The main job, from text to report, as a user runs it: a study small enough for a test, stopped once in the middle."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from chinchilla_jax.base import files

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _command(study, data):
    return [sys.executable, "-m", "chinchilla_jax", "study", "--config=configs/isoflop.py:tiny", f"--study={study}",
            "--config.study.budgets=(2e9,3e9,4e9)", f"--config.data.data_dir={data}"]  # fmt: skip


def _start():
    """One device, as on a machine like any other, and optimised machine code, by the older generator (see conftest)."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    return {"cwd": ROOT, "env": environment, "text": True}


@pytest.mark.parametrize("storage", ["tmp_path", pytest.param("bucket_folder", marks=pytest.mark.long)])
def test_a_study_goes_from_text_to_report_and_survives_a_stop(storage, request, tmp_path):
    study = request.getfixturevalue(storage) / "tiny"
    command = _command(study, tmp_path / "data")
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **_start())
    end = time.monotonic() + 300
    while len(files.glob(study, "runs/*/result.json")) < 3:
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < end, "no run was finished in 5 minutes"
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 42, output
    before = {path: files.stamp(path) for path in files.glob(study, "runs/*/result.json")}
    manifest = files.read_bytes(study / "manifest.jsonl")

    second = subprocess.run(command, capture_output=True, timeout=900, **_start())
    assert second.returncode == 0, second.stdout + second.stderr
    assert files.read_bytes(study / "manifest.jsonl") == manifest
    assert all(files.stamp(path) == when for path, when in before.items()), "a finished run was trained again"

    planned = [json.loads(line) for name in ("manifest", "verification")
               for line in files.read_text(study / f"{name}.jsonl").splitlines()[1:]]  # fmt: skip
    assert len(planned) == 21
    for run in planned:
        result = files.read_json(study / "runs" / run["name"] / "result.json")
        assert result["params"] == run["params"] and result["tokens"] == run["tokens"]
        assert 0.0 < result["loss"] < 7.0 and result["role"] == run["role"]
        assert abs(result["flops"] / run["budget"] - 1) <= 0.01
    assert {run["role"] for run in planned} == {"isoflop", "predicted", "half", "double"}
    assert "training took" in second.stdout and "report:" in second.stdout
    assert files.stamp(study / "report.html")[0] > 10_000
    report = files.read_json(study / "report.json")
    assert {run["role"] for run in report["runs"]} == {"isoflop", "predicted", "half", "double"}

    # Again: nothing is left to do, and it says so.
    third = subprocess.run(command, capture_output=True, timeout=120, **_start())
    assert third.returncode == 0 and "all 18 runs are finished" in third.stdout
