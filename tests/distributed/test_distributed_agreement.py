"""Several processes agree on where to stop, whenever the wish comes and however they are spaced: threads stand in."""

import contextlib
import random
import threading
import time
import types

import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.parallel.job.distributed import StopTogether
from chinchilla_jax.parallel.job.hosts import host_settings


class Service:
    """The coordination service's key-value store."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or key not in self._values, f"{key} is set twice"
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, ms / 1000):
                raise RuntimeError(f"{key} is never set")
            return self._values[key]

    def key_value_dir_get(self, prefix):
        with self._changed:
            return [(key, value) for key, value in self._values.items() if key.startswith(prefix)]


class Loops:
    """Loops of `turns` turns in as many threads as there are processes, each up to two turns ahead of the slowest."""

    def __init__(self, processes, turns, wishes, seed):
        self.service, self.random = Service(), random.Random(seed)
        self.begun, self.changed = [0] * processes, threading.Condition()
        self.stopped_at, self.turns, self.wishes = [None] * processes, turns, wishes
        self.over = threading.Event()

    def run(self):
        n = len(self.begun)
        stops = [StopTogether(types.SimpleNamespace(client=self.service, index=i, count=n, peer_timeout=3))
                 for i in range(n)]  # fmt: skip
        loops = [threading.Thread(target=self._loop, args=(i, stops[i])) for i in range(n)]
        listeners = [threading.Thread(target=self._listen, args=(stop,), daemon=True) for stop in stops]
        for thread in loops + listeners:
            thread.start()
        for thread in loops:
            thread.join(20)
            assert not thread.is_alive(), "a process waits for ever"
        self.over.set()
        return self.stopped_at

    def _listen(self, stop):
        while not self.over.wait(self.random.random() * 0.01):
            if self.service.key_value_dir_get("chinchilla_jax/notice/"):
                with contextlib.suppress(RuntimeError):  # of those that are through nobody answers
                    stop.learn()

    def _loop(self, i, stop):
        for turn in range(1, self.turns + 1):
            if stop.reached(turn >= self.wishes.get(i, self.turns + 1)):
                self.stopped_at[i] = turn
                return
            with self.changed:
                self.begun[i] = turn
                self.changed.notify_all()
                assert self.changed.wait_for(lambda turn=turn: min(self.begun) >= turn - 2, 15)
            time.sleep(self.random.random() * 0.004)


@pytest.mark.parametrize("seed", range(12))
def test_all_stop_at_the_same_turn(seed):
    dice = random.Random(seed)
    processes = dice.choice([2, 3, 8])
    wishes = {dice.randrange(processes): dice.randrange(1, 20) for _ in range(dice.choice([1, 1, 2, 3]))}
    stopped = Loops(processes, 400, wishes, seed).run()
    assert len(set(stopped)) == 1 and stopped[0] > min(wishes.values())


def test_a_wish_at_the_very_end_stops_all_or_none():
    for seed in range(6):
        assert len(set(Loops(3, 6, {seed % 3: 5 + seed % 2}, seed).run())) == 1


def test_nobody_stops_unasked():
    assert Loops(3, 30, {}, 0).run() == [None] * 3


def test_one_process_stops_when_asked_and_agrees_with_itself():
    assert [distributed.stop_reached(wish) for wish in (False, True, False)] == [False, True, False]
    assert distributed.first() and not distributed.prefix()
    assert distributed.exchange("anything", "mine") == ["mine"]


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
CPU = {"JAX_PLATFORMS": "cpu"}


def test_a_process_on_its_own_joins_nobody():
    assert host_settings(environment=CPU) is None
    assert host_settings("host:1", 1, 0, environment=CPU) is None
    assert host_settings(environment=CPU | {"TPU_WORKER_HOSTNAMES": "a,b"}) is None
    assert host_settings(environment={"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_flags_go_before_variables():
    found = host_settings(environment=ADDRESS)
    assert (found.coordinator, found.processes, found.process, found.detection) == ("host:1234", 4, 3, "")
    found = host_settings("other:1", 5, 0, 7, 8, environment=ADDRESS)
    assert (found.coordinator, found.processes, found.process) == ("other:1", 5, 0)
    assert (found.peer_timeout, found.join_timeout) == (7, 8)


@pytest.mark.parametrize("environment, expected", [
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "gketpu"),
    ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, "gketpu"),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, ""),
])  # fmt: skip
def test_slices_are_recognised_by_their_variables(environment, expected):
    found = host_settings(environment=environment)
    assert (found.detection if found else "") == expected


def test_pods_of_a_job_do_not_train_the_same_run_each_on_its_own():
    pods = CPU | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
    with pytest.raises(ConfigError, match="set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID in the job"):
        host_settings(environment=pods)
    assert host_settings(environment=pods | ADDRESS).process == 3
    assert host_settings(environment=pods | {"JAX_NUM_PROCESSES": "1"}) is None


@pytest.mark.parametrize("change, message", [
    ({"JAX_PROCESS_ID": ""}, r"--process \(JAX_PROCESS_ID\): is missing; with --coordinator \(JAX_COORDINATOR_ADDRESS"),
    ({"JAX_COORDINATOR_ADDRESS": ""}, r"--coordinator \(JAX_COORDINATOR_ADDRESS\): is missing; with --processes"),
    ({"JAX_NUM_PROCESSES": "four"}, r"--processes \(JAX_NUM_PROCESSES\): expected a whole number, got 'four'"),
    ({"JAX_NUM_PROCESSES": "0"}, r"--processes \(JAX_NUM_PROCESSES\): must be positive, got 0"),
    ({"JAX_PROCESS_ID": "4"}, r"--process \(JAX_PROCESS_ID\): must lie in 0 .. 3, got 4"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, r"--coordinator \(JAX_COORDINATOR_ADDRESS\): expected HOST:PORT, got 'host'"),
    ({"JAX_COORDINATOR_ADDRESS": "host:0"}, r"expected HOST:PORT, got 'host:0'"),
])  # fmt: skip
def test_mistakes_name_flag_and_variable(change, message):
    with pytest.raises(ConfigError, match=message):
        host_settings(environment=ADDRESS | change)


class Unreliable(Service):
    """One whose answers fail, each kind of question once."""

    def __init__(self):
        super().__init__()
        self._failed = set()

    def _fail_once(self, what):
        if what not in self._failed:
            self._failed.add(what)
            raise RuntimeError("UNAVAILABLE: try again")

    def key_value_dir_get(self, prefix):
        self._fail_once((threading.get_ident(), "list"))
        return super().key_value_dir_get(prefix)

    def blocking_key_value_get(self, key, ms):
        self._fail_once((threading.get_ident(), key))
        return super().blocking_key_value_get(key, ms)


def test_a_question_that_fails_once_is_asked_again(monkeypatch):
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.01)
    service = Unreliable()
    jobs = []
    for index in range(2):
        job = object.__new__(distributed._Job)
        job.client, job.index, job.count, job.peer_timeout = service, index, 2, 3
        job.stop, job._leaving = StopTogether(job), threading.Event()
        jobs.append(job)
        threading.Thread(target=job._listen, daemon=True).start()
    stopped = [None, None]

    def loop(i):
        for turn in range(1, 2000):
            if jobs[i].stop.reached(i == 0 and turn > 5):
                stopped[i] = turn
                return
            time.sleep(0.002)

    loops = [threading.Thread(target=loop, args=(i,), daemon=True) for i in range(2)]
    for thread in loops:
        thread.start()
    for thread in loops:
        thread.join(20)
    for job in jobs:
        job._leaving.set()
    assert stopped[0] is not None and stopped[0] == stopped[1]
