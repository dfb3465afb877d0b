"""Leases: one run, one worker; what a dead worker held is taken over."""

import json
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from chinchilla_jax.study.execute import lease
from tests.study.cases import until


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
    until(lambda: held.path.stat().st_mtime > 1)
    held.path.write_text(json.dumps({"host": "elsewhere"}))
    until(lambda: lost)
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


STOPPED = """
import os, pathlib, sys, time
from chinchilla_jax.study.execute import lease
folder = pathlib.Path(sys.argv[1])
held = lease.claim(folder, folder, "0")
held.keep(lost=lambda: os._exit(7))
with open(folder / "written", "a", buffering=1) as file:
    while True:
        print("mine", file=file)
        time.sleep(0.001)
"""


@pytest.mark.parametrize("tries", [4, pytest.param(50, marks=pytest.mark.long)])
def test_who_was_stopped_while_another_took_over_writes_nothing_when_it_wakes(tries, tmp_path):
    for number in range(tries):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", STOPPED, str(folder)])
        until(lambda folder=folder: (folder / "written").exists() and (folder / "written").stat().st_size > 50)
        process.send_signal(signal.SIGSTOP)
        until(
            lambda pid=process.pid: pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        )
        # A worker of another host, which knows this one by its heartbeat alone, has waited long enough.
        (folder / lease.LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        size = (folder / "written").stat().st_size
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=10) == 7
        assert (folder / "written").stat().st_size == size
        assert json.loads((folder / lease.LEASE).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "[]", "5", '"x"', "{}", '{"host": 5}', '{"pid": "x"}', "\xff"])
def test_a_lease_that_nobody_can_read_is_held_until_it_is_stale(content, tmp_path):
    path = _write_lease(tmp_path / "run")
    path.write_text(content)
    assert lease.claim(tmp_path / "run", tmp_path, "1") is None
    os.utime(path, (time.time() - lease.STALE_SECONDS - 1,) * 2)
    assert lease.claim(tmp_path / "run", tmp_path, "1") is not None
