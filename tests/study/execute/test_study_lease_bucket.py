"""Leases in a bucket, which has no locks: of several who claim, renew or take over, one succeeds."""

import json
import multiprocessing
import os
import socket

import pytest

from chinchilla_jax.base import bucket, files
from chinchilla_jax.study.execute import lease
from tests.study.cases import until


def _left_by_another(folder, **owner):
    files.write_json(folder / lease.LEASE, {"host": f"not-{socket.gethostname()}", "pid": 1} | owner)


def test_a_lease_is_exclusive_until_released(bucket_folder):
    first = lease.claim(bucket_folder / "run", bucket_folder, "0")
    assert first is not None and lease.alive(first.path)
    assert lease.claim(bucket_folder / "run", bucket_folder, "1") is None
    first.release()
    assert not files.exists(first.path)
    assert lease.claim(bucket_folder / "run", bucket_folder, "1") is not None


@pytest.mark.parametrize("seconds", [lease.STALE_SECONDS, -1.0])
def test_a_holder_elsewhere_is_judged_by_its_heartbeat(bucket_folder, seconds, monkeypatch):
    _left_by_another(bucket_folder / "run")
    monkeypatch.setattr(lease, "STALE_SECONDS", seconds)
    assert (lease.claim(bucket_folder / "run", bucket_folder, "1") is not None) is (seconds < 0)


def test_a_heartbeat_fails_and_a_release_removes_nothing_once_another_took_over(bucket_folder):
    held = lease.claim(bucket_folder / "run", bucket_folder, "0")
    lost = []
    assert held.renew() and held.renew()
    _left_by_another(bucket_folder / "run")
    held.keep(lambda: lost.append(True), interval=0.02)
    until(lambda: lost)
    held.release()
    assert files.read_json(held.path)["pid"] == 1


def test_who_was_away_while_another_took_over_cannot_renew(bucket_folder, monkeypatch):
    """Also where the holder's words are the same: what counts is which write it was."""
    held = lease.claim(bucket_folder / "run", bucket_folder, "0")
    files.write_text(held.path, json.dumps(held.holder))
    assert not held.renew()


def test_without_an_answer_from_storage_a_lease_is_given_up_before_another_may_take_it(bucket_folder, monkeypatch):
    held = lease.claim(bucket_folder / "run", bucket_folder, "0")
    lost = []
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.2)

    def silent(*_):
        raise bucket.BucketError("no answer")

    monkeypatch.setattr(files, "replace_version", silent)
    held.keep(lambda: lost.append(True), interval=0.01)
    until(lambda: lost)


def _claim_many(folder, barrier, results):
    barrier.wait()
    for n in range(20):
        if lease.claim(folder / str(n), folder, str(os.getpid())) is not None:
            results.put(n)


def test_of_several_workers_one_gets_each_run_also_when_all_leases_are_of_the_dead(bucket_folder):
    for n in range(20):
        _left_by_another(bucket_folder / str(n), host=lease._host(), process_start="1")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim_many, args=(bucket_folder, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    claimed = sorted(results.get(timeout=60) for _ in range(20))
    for process in processes:
        process.join(timeout=60)
    assert claimed == list(range(20)) and results.empty()
