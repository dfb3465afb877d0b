"""Worker processes: they share a manifest, are replaced when killed, and stop when asked to."""

import os
import signal
import subprocess
import sys

import pytest

from chinchilla_jax.study.execute import pool
from chinchilla_jax.study.execute.pool import standing_by, work
from chinchilla_jax.study.folder import MANIFEST, StudyError, read_manifest, read_result
from tests.study.cases import quiet, until

FAKE = """
import os, pathlib, sys, time
from chinchilla_jax.base import files
from chinchilla_jax.study.execute import worker
def train(config, folder, facts, echo):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tried", "a") as file: file.write(str(os.getpid()) + "\\n")
    {body}
    files.write_json(folder / "result.json", facts | {{"loss": 3.0, "diverged": False, "seconds": 0.1}})
if sys.argv[-1] == "--standby" and not (sys.stdin.readline() and sys.stdin.readline()):
    sys.exit(42)
try:
    worker.work_alone(pathlib.Path(sys.argv[1]), "manifest.jsonl", int(sys.argv[2]), print, train, int(sys.argv[3]))
except worker.Stopped:
    sys.exit(42)
"""


def fake_workers(study, body):
    """The command of workers that do `body` instead of training."""
    return lambda i: [sys.executable, "-c", FAKE.format(body=body), str(study), str(i), str(os.getpid())]


def _tried(study):
    return {p.parent.name: p.read_text().split() for p in study.glob("runs/*/tried")}


def test_two_processes_share_a_manifest(study, small_plan):
    lines = []
    work(study, workers=2, echo=lines.append, command=fake_workers(study, "time.sleep(0.3)"))
    tried = _tried(study)
    assert set(tried) == {run.name for run in small_plan.runs}
    assert all(len(pids) == 1 for pids in tried.values()), "a run was trained twice"
    assert len({pids[0] for pids in tried.values()}) == 2, "one worker did everything"
    assert any(line.startswith(f"{len(tried)}/{len(tried)} runs, 100.0% of") for line in lines)
    work(study, workers=2, echo=lines.append, command=lambda i: pytest.fail("nothing was left to do"))
    assert "are finished" in lines[-1]


def test_a_killed_worker_is_replaced_and_its_run_done(study, small_plan):
    lines = []
    first = max(small_plan.runs, key=lambda run: run.estimated_seconds).name
    once = "len((folder / 'tried').read_text().split()) == 1"
    body = f"if facts['name'] == {first!r} and {once}: os.kill(os.getpid(), 9)"
    work(study, workers=1, echo=lines.append, command=fake_workers(study, body))
    assert len(_tried(study)[first]) == 2
    assert any("SIGKILL" in line for line in lines)
    assert all(read_result(study, run.name) for run in read_manifest(study / MANIFEST).runs)


def test_an_error_stops_the_study_and_shows_the_end_of_the_log(study):
    lines = []
    with pytest.raises(StudyError, match="exit code 1: ValueError: the disk is full") as error:
        work(study, workers=2, echo=lines.append, command=fake_workers(study, "raise ValueError('the disk is full')"))
    assert error.value.exit_code == 1
    assert any("ValueError: the disk is full" in line for line in lines)
    assert not list(study.glob("runs/*/lease.json"))


def test_workers_that_end_before_all_is_done_are_an_error(study, small_plan):
    """They say that all is well, and have trained nothing."""
    with pytest.raises(StudyError, match=f"ended without finishing .*{small_plan.runs[0].name}.*logs") as error:
        work(study, workers=1, echo=quiet, command=lambda i: [sys.executable, "-c", "pass"])
    assert error.value.exit_code == 1


def test_sigterm_to_the_parent_stops_the_workers_and_a_restart_finishes(study, small_plan):
    script = (
        f"import sys, os; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_study_pool import fake_workers\n"
        "from chinchilla_jax.study.execute.pool import work\n"
        "from chinchilla_jax.study.execute.worker import Stopped\n"
        "import pathlib\n"
        "study = pathlib.Path(sys.argv[1])\n"
        "try: work(study, workers=2, command=fake_workers(study, 'time.sleep(0.5)'))\n"
        "except Stopped: sys.exit(42)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(study)])
    until(lambda: len(list(study.glob("runs/*/result.json"))) >= 2)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == 42
    done = set(study.glob("runs/*/result.json"))
    assert 2 <= len(done) < len(small_plan.runs) and not list(study.glob("runs/*/lease.json"))
    work(study, workers=2, echo=quiet, command=fake_workers(study, "pass"))
    assert all(len(pids) == 1 for pids in _tried(study).values())


def test_beside_accelerators_no_worker_stands_by(study, small_plan, monkeypatch):
    monkeypatch.setattr(pool.cores, "on_cpu", lambda: False)
    monkeypatch.setattr(pool, "Pool", lambda *_: pytest.fail("a worker would take the accelerator"))
    with standing_by(study, MANIFEST, small_plan.template(), (), 2, quiet) as ready:
        assert ready is None


def test_workers_that_stood_by_train_the_study_and_are_replaced_when_killed(study, small_plan, monkeypatch):
    lines = []
    monkeypatch.setattr(pool, "_command", lambda study, _, i, __: fake_workers(study, "time.sleep(0.1)")(i))
    with standing_by(study, MANIFEST, small_plan.template(), (), 3, lines.append) as ready:
        extra, pids = ready.processes[2], [process.pid for process in ready.processes]
        os.kill(pids[0], signal.SIGKILL)
        assert not _tried(study)
        work(study, workers=2, echo=lines.append, ready=ready)
    tried = _tried(study)
    assert extra.wait(timeout=10) == -signal.SIGKILL and [str(pids[2])] not in tried.values()
    assert set(tried) == {run.name for run in small_plan.runs} and [str(pids[1])] in tried.values()
    assert any("SIGKILL" in line for line in lines)


def test_workers_that_are_not_needed_end_without_a_word(study, small_plan):
    lines = []
    with standing_by(study, MANIFEST, small_plan.template(), (), 2, lines.append) as ready:
        processes = list(ready.processes)
    assert all(process.wait(timeout=10) is not None for process in processes) and not lines
