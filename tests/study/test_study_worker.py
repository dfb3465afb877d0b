"""Leases and workers: one run, one worker; what a dead worker held is taken over; what is finished stays."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from chinchilla_jax.study.execute import lease, pool, worker
from chinchilla_jax.study.execute.pool import standing_by, work
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.execute.worker import Stopped, even_share, preparation, work_alone
from chinchilla_jax.study.folder import MANIFEST, StudyError, read_manifest, read_result, run_folder


def quiet(_):
    """An `echo` that says nothing."""


def _dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _write_lease(folder, age=0.0, **owner):
    folder.mkdir(parents=True)
    path = folder / lease.LEASE
    path.write_text(json.dumps({"host": lease._host(), "pid": os.getpid(), "process_start": None} | owner))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_lease_is_exclusive_until_released(tmp_path):
    first = lease.claim(tmp_path / "run", tmp_path, "0")
    assert first is not None and lease.alive(first.path)
    assert lease.claim(tmp_path / "run", tmp_path, "1") is None
    first.release()
    assert not first.path.exists()
    assert lease.claim(tmp_path / "run", tmp_path, "1") is not None


@pytest.mark.parametrize("age", [0.0, 1e4])
def test_a_living_process_of_this_host_keeps_its_lease_even_if_it_slept(tmp_path, age):
    _write_lease(tmp_path / "run", age, process_start=lease._started(os.getpid()))
    assert lease.claim(tmp_path / "run", tmp_path, "1") is None


def test_a_dead_process_loses_its_lease(tmp_path):
    _write_lease(tmp_path / "run", pid=_dead_pid())
    taken = lease.claim(tmp_path / "run", tmp_path, "1")
    assert taken is not None and lease.owner(taken.path)["pid"] == os.getpid()


def test_a_process_number_that_was_given_again_is_not_the_holder(tmp_path):
    _write_lease(tmp_path / "run", process_start="1")
    assert lease.claim(tmp_path / "run", tmp_path, "1") is not None


@pytest.mark.parametrize(("age", "stale"), [(10.0, False), (lease.STALE_SECONDS + 10, True)])
def test_a_holder_elsewhere_is_judged_by_its_heartbeat(tmp_path, age, stale):
    _write_lease(tmp_path / "run", age, host=f"not-{socket.gethostname()}", pid=1)
    assert (lease.claim(tmp_path / "run", tmp_path, "1") is not None) is stale


def test_the_heartbeat_beats_and_notices_a_lost_lease(tmp_path):
    held = lease.claim(tmp_path / "run", tmp_path, "0")
    os.utime(held.path, (0, 0))
    lost = []
    held.keep(lambda: lost.append(True), interval=0.02)
    _until(lambda: held.path.stat().st_mtime > 1)
    held.path.write_text(json.dumps({"host": "elsewhere"}))
    _until(lambda: lost)
    held.release()
    assert held.path.exists(), "another's lease is not removed"


def _claim_many(folder, barrier, results):
    barrier.wait()
    for n in range(40):
        held = lease.claim(folder / str(n), folder, str(os.getpid()))
        if held is not None:
            results.put(n)


def test_of_several_workers_one_gets_each_run_also_when_all_leases_are_stale(tmp_path):
    dead = _dead_pid()
    for n in range(40):
        _write_lease(tmp_path / str(n), pid=dead)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim_many, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    claimed = sorted(results.get(timeout=5) for _ in range(40))
    assert claimed == list(range(40)) and results.empty()


def test_a_worker_trains_every_run_once_the_longest_first(study, small_plan, finish):
    order = []

    def train(config, folder, facts, echo):
        order.append(facts["name"])
        assert config.content_hash() == next(r.config_hash for r in small_plan.runs if r.name == facts["name"])
        return finish(config, folder, facts, time=None)

    work_alone(study, MANIFEST, 0, quiet, train)
    seconds = {run.name: run.estimated_seconds for run in small_plan.runs}
    assert sorted(order) == sorted(seconds)
    assert [seconds[name] for name in order] == sorted(seconds.values(), reverse=True)
    work_alone(study, MANIFEST, 0, quiet, lambda *_, **__: pytest.fail("nothing was left to train"))
    assert not list(study.glob("runs/*/lease.json"))


def test_the_next_run_is_the_slowest_by_the_times_of_finished_ones_or_the_one_made_ready(study, small_plan, finish):
    """Large models turn out so fast that the smallest of the largest budget takes longest."""
    largest = max(run.budget for run in small_plan.runs)
    small, *others = sorted((run for run in small_plan.runs if run.budget == largest), key=lambda run: run.params)
    for run in small_plan.runs:
        if run.budget != largest:
            step = run.spent("executed") / run.params**2
            finish(None, run_folder(study, run.name), run.facts(), time={"step": step}, seconds=step)
    for first, expected in ((None, small), (others[2].name, others[2])):
        run, held = worker._claim_next(study, small_plan.runs, "0", first)
        held.release()
        assert run == expected


def test_divergence_is_recorded_and_not_tried_again(study, small_plan, finish):
    loop = pytest.importorskip("chinchilla_jax.training.loop")
    victim = small_plan.runs[0].name
    tried = []

    def train(config, folder, facts, echo):
        if facts["name"] == victim:
            tried.append(victim)
            raise loop.Diverged("loss is nan at step 3")
        return finish(config, folder, facts)

    for _ in range(2):
        work_alone(study, MANIFEST, 0, quiet, train)
    result = read_result(study, victim)
    assert tried == [victim] and result["diverged"] is True and "nan at step 3" in result["error"]
    assert {row.name: row.state for row in status(study, quiet)}[victim] == "failed"


def test_a_preempted_worker_gives_its_run_back(study, finish):
    loop = pytest.importorskip("chinchilla_jax.training.loop")

    def train(config, folder, facts, echo):
        raise loop.Preempted("saved")

    with pytest.raises(Stopped):
        work_alone(study, MANIFEST, 0, quiet, train)
    assert not list(study.glob("runs/*/lease.json"))


def test_beside_accelerators_cores_are_split_evenly():
    assert [even_share(i, 2, [0, 1]) for i in range(2)] == [[0], [1]]
    assert [even_share(i, 2, [0, 1, 2, 3, 4]) for i in range(2)] == [[0, 1], [2, 3, 4]]
    assert [even_share(i, 3, [4, 5]) for i in range(3)] == [[4], [5], [4]]


FAKE = """
import json, os, pathlib, sys, time
from chinchilla_jax.study.execute import worker
def train(config, folder, facts, echo):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tried", "a") as file: file.write(str(os.getpid()) + "\\n")
    {body}
    (folder / "result.json").write_text(json.dumps(facts | {{"loss": 3.0, "diverged": False, "seconds": 0.1}}))
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


def test_sigterm_to_the_parent_stops_the_workers_and_a_restart_finishes(study, small_plan):
    script = (f"import sys, os; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
              "from test_study_worker import fake_workers\n"
              "from chinchilla_jax.study.execute.pool import work\n"
              "from chinchilla_jax.study.execute.worker import Stopped\n"
              "import pathlib\n"
              "study = pathlib.Path(sys.argv[1])\n"
              "try: work(study, workers=2, command=fake_workers(study, 'time.sleep(0.5)'))\n"
              "except Stopped: sys.exit(42)\n")  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", script, str(study)])
    _until(lambda: len(list(study.glob("runs/*/result.json"))) >= 2)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == 42
    done = set(study.glob("runs/*/result.json"))
    assert 2 <= len(done) < len(small_plan.runs) and not list(study.glob("runs/*/lease.json"))
    work(study, workers=2, echo=quiet, command=fake_workers(study, "pass"))
    assert all(len(pids) == 1 for pids in _tried(study).values())


def test_status_tells_done_running_and_waiting(study, small_plan, finish):
    done, running, stopped = small_plan.runs[:3]
    finish(None, run_folder(study, done.name), done.facts())
    for run in (running, stopped):
        run_folder(study, run.name).mkdir(parents=True)
        line = json.dumps({"step": 5, "tokens": run.tokens // 2, "loss": 4.5})
        (run_folder(study, run.name) / "metrics.jsonl").write_text(line + '\n{"step": 6, "tok')
        (run_folder(study, run.name) / "timing.jsonl").write_text('{"step": 5, "seconds": 7.0}\n')
    lease.claim(run_folder(study, running.name), study, "0")
    lines = []
    rows = {row.name: row for row in status(study, lines.append)}
    assert [rows[run.name].state for run in small_plan.runs[:4]] == ["done", "running", "waiting", "waiting"]
    assert rows[running.name].progress == pytest.approx(0.5, abs=0.01) and rows[running.name].loss == 4.5
    assert rows[running.name].seconds_left == pytest.approx(7.0, rel=0.05)
    assert "1 done, 1 running, 0 failed, 10 waiting" in lines[-1]


def _until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


STANDBY = """
import pathlib, sys
from chinchilla_jax.study.execute import worker
try:
    first = worker.stand_by(pathlib.Path(sys.argv[1]), 0, 1)
except worker.Stopped as stopped:
    sys.exit(str(stopped))
print(first, "jax" in sys.modules, flush=True)
"""


@pytest.mark.parametrize("needed", [True, False])
def test_a_worker_that_stands_by_begins_when_it_is_told_to(study, small_plan, needed):
    run = small_plan.runs[0]
    process = subprocess.Popen(
        [sys.executable, "-c", STANDBY, str(study)],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    told = preparation(small_plan.template(), run).decode()
    output, errors = process.communicate(told + "\n" * needed, timeout=120)
    assert output == (f"{run.name} True\n" if needed else "") and ("not needed" in errors) is not needed


@pytest.mark.parametrize("known", [True, False])
def test_a_worker_that_stands_by_is_pinned_before_it_compiles_its_first_run(study, small_plan, known, monkeypatch):
    done, run = [], small_plan.runs[0] if known else None
    template, last = small_plan.template(), "warm" if known else "cache"

    def note(what, *told):
        done.append((what, *told))
        if what == last:
            threading.Timer(0.2, go).start()

    def go():
        done.append(("go",))
        parent.write(worker.GO)
        parent.flush()

    monkeypatch.setattr(worker, "pin", functools.partial(note, "pin"))
    monkeypatch.setattr(worker, "use_compilation_cache", functools.partial(note, "cache"))
    monkeypatch.setattr("chinchilla_jax.training.machine.warm.warm", functools.partial(note, "warm"))
    read, write = os.pipe()
    with open(read) as told, open(write, "wb") as parent:
        monkeypatch.setattr(sys, "stdin", told)
        parent.write(preparation(template, run))
        parent.flush()
        assert worker.stand_by(study, 1, 2) == (run.name if known else None)
    warmed = [("warm", run.run_config())] if known else []
    assert done == [("pin", template, 1, 2), ("cache", study), *warmed, ("go",)]


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
