"""The main job, from text to report, as a user runs it: a study small enough for a test, stopped once in the middle."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _command(study):
    return [sys.executable, "-m", "chinchilla_jax", "study", "--config=configs/isoflop.py:tiny", f"--study={study}",
            "--config.study.budgets=(2e9,3e9,4e9)", f"--config.data.data_dir={study.parent / 'data'}"]  # fmt: skip


# One device, as on a machine like any other, and optimised machine code, if by the older generator (see conftest).
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
START = {"cwd": ROOT, "env": ENVIRONMENT, "text": True}


def test_a_study_goes_from_text_to_report_and_survives_a_stop(tmp_path):
    study = tmp_path / "tiny"
    first = subprocess.Popen(_command(study), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **START)
    end = time.monotonic() + 300
    while len(list(study.glob("runs/*/result.json"))) < 3:
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < end, "no run was finished in 5 minutes"
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 42, output
    before = {path: path.stat().st_mtime_ns for path in study.glob("runs/*/result.json")}
    manifest = (study / "manifest.jsonl").read_bytes()

    second = subprocess.run(_command(study), capture_output=True, timeout=900, **START)
    assert second.returncode == 0, second.stdout + second.stderr
    assert (study / "manifest.jsonl").read_bytes() == manifest
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "a finished run was trained again"

    planned = [json.loads(line) for name in ("manifest", "verification")
               for line in (study / f"{name}.jsonl").read_text().splitlines()[1:]]  # fmt: skip
    assert len(planned) == 21
    for run in planned:
        result = json.loads((study / "runs" / run["name"] / "result.json").read_text())
        assert result["params"] == run["params"] and result["tokens"] == run["tokens"]
        assert 0.0 < result["loss"] < 7.0 and result["role"] == run["role"]
        assert abs(result["flops"] / run["budget"] - 1) <= 0.01
    assert {run["role"] for run in planned} == {"isoflop", "predicted", "half", "double"}
    assert "training took" in second.stdout and "report:" in second.stdout
    assert (study / "report.html").stat().st_size > 10_000
    report = json.loads((study / "report.json").read_text())
    assert {run["role"] for run in report["runs"]} == {"isoflop", "predicted", "half", "double"}

    # Again: nothing is left to do, and it says so.
    third = subprocess.run(_command(study), capture_output=True, timeout=120, **START)
    assert third.returncode == 0 and "all 18 runs are finished" in third.stdout
