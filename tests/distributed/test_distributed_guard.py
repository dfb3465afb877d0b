"""Whatever ends the process that works, the one that was started tells it in a line and an exit code."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

PREAMBLE = """
import os, signal, sys, time
from chinchilla_jax.parallel.job.guard import guarded
has_joined = guarded("they never came")
def abort(words):
    print(words, file=sys.stderr, flush=True)
    os.abort()
FATAL = ("F0101 00:00:00.000000 1 client.h:80] Terminating process because the JAX distributed service detected fatal "
         "errors. absl::Status: UNAVAILABLE: ")
LOST = FATAL + "The following tasks are unhealthy (stopped sending heartbeats):\\n3\\n5\\nThe tasks have crashed."
"""


def run(body):
    return subprocess.run([sys.executable, "-c", PREAMBLE + body], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("body, code, errors", [
    ("", 0, ""),
    ("sys.exit(7)", 7, ""),
    ("print('words', file=sys.stderr); sys.exit(1)", 1, "words\n"),
    ("has_joined(); abort('words\\n' + LOST)", 42, "words\nchinchilla_jax: process 3, 5 stopped answering; "
     "stopped without saving. Start again to go on from the last checkpoint\n"),
    ("has_joined(); abort(FATAL + 'Connection refused')", 42, "chinchilla_jax: lost contact with process 0, "
     "which keeps the others together; stopped without saving. Start again to go on from the last checkpoint\n"),
    ("abort(FATAL + 'DEADLINE_EXCEEDED')", 2, "chinchilla_jax: they never came\n"),
    ("has_joined(); abort('a defect')", 134, "a defect\nchinchilla_jax: killed by SIGABRT\n"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "chinchilla_jax: killed by SIGKILL\n"),
    ("print('E0101 00:00:00.0 1 coordination_service.cc:1] hm', *range(300), sep='\\n', file=sys.stderr)", 0,
     "\n".join(["E0101 00:00:00.0 1 coordination_service.cc:1] hm", *map(str, range(300)), ""])),
    ("print('E0101 00:00:00.0 1 coordination_service.cc:1] hm', file=sys.stderr); sys.exit(3)", 3,
     "E0101 00:00:00.0 1 coordination_service.cc:1] hm\n"),
])  # fmt: skip
def test_endings(body, code, errors):
    ended = run(body)
    assert (ended.returncode, ended.stderr) == (code, errors)


WORK = "print(os.getpid(), flush=True); time.sleep(60)"


def start(body):
    process = subprocess.Popen([sys.executable, "-c", PREAMBLE + body], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_one_that_works(number):
    process, _ = start(f"signal.signal({int(number)}, lambda *_: sys.exit(42)); {WORK}")
    process.send_signal(number)
    assert process.wait(30) == 42


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_one_that_watches_takes_signals_by_waiting_for_them():
    """A handler may not run while it reads: a signal that came just before the read would be lost."""
    process, _ = start(WORK)
    time.sleep(0.3)
    blocked = re.search(r"^SigBlk:\s*(\w+)", pathlib.Path(f"/proc/{process.pid}/status").read_text(), re.M)
    process.terminate()
    assert process.wait(30) == 42
    for number in (signal.SIGTERM, signal.SIGINT):
        assert int(blocked[1], 16) >> (number - 1) & 1, number


def test_a_signal_before_it_is_listened_to():
    process, _ = start(WORK)
    process.terminate()
    assert process.wait(30) == 42
    assert process.stderr.read() == "chinchilla_jax: stopped before there was anything to save; start again\n"


def test_the_one_that_works_dies_with_the_one_that_watches():
    process, worker = start(WORK)
    process.kill()
    process.wait(30)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(worker, 0)
            with open(f"/proc/{worker}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
