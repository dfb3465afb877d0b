"""One worker: every run once, the longest first; what is finished stays; getting ready ahead of the work."""

import functools
import os
import subprocess
import sys
import threading

import pytest

from chinchilla_jax.study.execute import worker
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.execute.worker import Stopped, even_share, preparation, work_alone
from chinchilla_jax.study.folder import MANIFEST, read_result, run_folder
from tests.study.cases import quiet


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
    monkeypatch.setattr("chinchilla_jax.training.machine.ahead.warm", functools.partial(note, "warm"))
    read, write = os.pipe()
    with open(read) as told, open(write, "wb") as parent:
        monkeypatch.setattr(sys, "stdin", told)
        parent.write(preparation(template, run))
        parent.flush()
        assert worker.stand_by(study, 1, 2) == (run.name if known else None)
    warmed = [("warm", run.run_config())] if known else []
    assert done == [("pin", template, 1, 2), ("cache", study), *warmed, ("go",)]
