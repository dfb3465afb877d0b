"""Which cores a run computes with, and how many runs a machine trains at the same time."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest

from chinchilla_jax.config import MeshConfig, RunConfig, StudyConfig
from chinchilla_jax.parallel.job import cores
from chinchilla_jax.study.execute.worker import pin


@pytest.fixture
def of_cores():
    """`of_cores(n)`: a study whose runs have n cores each."""
    return lambda n: RunConfig(study=StudyConfig(cores=n))


def test_workers_have_cores_of_their_own_where_there_are_enough():
    assert [cores.share(i, 1, [4, 7]) for i in range(2)] == [[4], [7]]
    assert [cores.share(i, 2, [0, 1, 2, 3]) for i in range(2)] == [[0, 1], [2, 3]]


def test_workers_take_turns_where_there_are_not():
    assert [cores.share(i, 1, [4, 5]) for i in range(3)] == [[4], [5], [4]]
    assert [cores.share(i, 2, [0, 1, 2]) for i in range(2)] == [[0, 1], [0, 2]]
    assert cores.share(1, 4, [0, 1]) == [0, 1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_PLATFORMS": "cpu"}, True),
        ({"JAX_PLATFORMS": "cpu,tpu"}, True),
        ({"JAX_PLATFORMS": "tpu,cpu"}, False),
        ({"JAX_PLATFORMS": "cuda"}, False),
        ({"JAX_PLATFORM_NAME": "cpu"}, True),
    ],
)
def test_jax_platforms_says_whether_the_cpu_computes(environment, expected):
    assert cores.on_cpu(environment) is expected


def test_without_jax_platforms_the_cpu_computes_unless_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(cores, "is_cloud_tpu", lambda: True)
    monkeypatch.setattr(cores.importlib.util, "find_spec", lambda name: True)
    assert not cores.on_cpu({})
    monkeypatch.setattr(cores.importlib.util, "find_spec", lambda name: None)
    assert cores.on_cpu({})


def test_as_many_workers_as_have_cores_and_memory_of_their_own(monkeypatch, of_cores):
    monkeypatch.setattr(cores, "available", lambda: list(range(8)))
    monkeypatch.setattr(cores, "_quota", lambda: 6.5)
    monkeypatch.setattr(cores, "_free_memory", lambda: math.inf)  # not known, as without /proc
    assert [cores.default_workers(of_cores(n)) for n in (1, 2)] == [6, 3]
    monkeypatch.setattr(cores, "_free_memory", lambda: 4.2e9)
    assert [cores.default_workers(of_cores(n)) for n in (1, 2, 4, 16)] == [4, 3, 1, 1]
    emulated = dataclasses.replace(of_cores(1), mesh=MeshConfig(data=2))
    assert cores.of_study(emulated) == 2 and cores.default_workers(emulated) == 3


def test_beside_accelerators_there_are_two_workers(monkeypatch, of_cores):
    monkeypatch.setattr(cores, "on_cpu", lambda: False)
    assert cores.default_workers(of_cores(1)) == 2


def test_every_worker_is_bound_to_the_cores_after_those_of_the_one_before(monkeypatch, of_cores):
    bound = []
    monkeypatch.setattr(cores, "available", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, numbers: bound.append(numbers), raising=False)
    monkeypatch.setattr(cores, "on_cpu", lambda: True)
    monkeypatch.setenv("PJRT_NPROC", "9")
    for worker in range(2):
        pin(of_cores(2), worker, workers=2)
    assert bound == [[0, 1], [2, 3]] and os.environ["PJRT_NPROC"] == "2"


def test_what_xla_reads_first_says_how_many_threads_there_are(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("PJRT_NPROC", "3")
    monkeypatch.setenv("NPROC", "7")
    assert cores.in_use() == 3 and cores.in_use(devices=5) == 5
    monkeypatch.delenv("PJRT_NPROC")
    assert cores.in_use() == 7
    monkeypatch.setenv("NPROC", "many")
    assert cores.in_use() == 4


def test_a_process_is_bound_to_its_cores_and_jax_has_as_many_threads_as_were_planned():
    code = (
        "import os; from chinchilla_jax.parallel.job import cores; cores.use(3, worker=1); import jax\n"
        "from chinchilla_jax.training.machine.hardware import cpu_cores\n"
        "print(cpu_cores(), len(os.sched_getaffinity(0)))"
    )
    there = len(os.sched_getaffinity(0))
    environment = os.environ | {"NPROC": "7", "PJRT_NPROC": "9", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["3", str(min(3, there))]
