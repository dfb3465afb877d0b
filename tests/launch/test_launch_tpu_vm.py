"""The life of queued resources, against an imitation of gcloud: hosts are folders where `launch/host.py` runs."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from chinchilla_jax.base.errors import FAILED
from chinchilla_jax.launch import gang, tpu_vm
from chinchilla_jax.launch.command import LaunchError, Tools
from chinchilla_jax.launch.money import Price
from chinchilla_jax.launch.tpu_vm import TpuVm, _Life, passes
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.study.execute.worker import Stopped
from chinchilla_jax.study.folder import run_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKEND = TpuVm("us-west4-a", spot=True)


class Cloud:
    """The imitation: what is to happen, what was called, what workers do."""

    def __init__(self, folder):
        self.folder = folder

    def plan(self, **plan):
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def calls(self, verb=""):
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call[0] == verb or not verb]

    def worker(self, script):
        """Lines of the shell that every worker is: $HOST is which host of its slice, $@ the words of its command."""
        (self.folder / "worker.sh").write_text(f"cd {self.folder}\n{script}\n")

    def started(self):
        """What workers noted with `echo ... >>started`, in order."""
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    def resources(self):
        return sorted(path.stem for path in self.folder.glob("*.resource"))


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    folder, tree = tmp_path / "cloud", tmp_path / "tree"
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    folder.mkdir()
    monkeypatch.setenv("FAKE_GCLOUD", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    fake = pathlib.Path(__file__).with_name("fake_gcloud.py")
    for path, text in {
        tmp_path / "bin" / "gcloud": f'exec {sys.executable} -I -S {fake} "$@"',
        tree / ".venv" / "bin" / "python": 'exec sh "$FAKE_GCLOUD/worker.sh" "$@"',
    }.items():
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (tree / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "host.py", tree / "launch")
    (tree / "launch" / "venv.sh").write_text('make_venv() { echo "$1" >>extras; }\n')
    archive = tmp_path / "code.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, ".")
    monkeypatch.setattr(gang, "archive", lambda job, tools: str(archive))
    return Cloud(folder)


@pytest.fixture
def clock(said):
    """Tools whose seconds pass only in their sleep, which is short."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds
        assert now[0] < 5 * 86400, "it never ends"
        time.sleep(0.02)

    return Tools(said.append, sleep=sleep, clock=lambda: now[0])


@pytest.fixture
def one(job):
    """A job of one slice that is one machine."""
    return dataclasses.replace(job, slice=parse_slice("v5e-4"), slices=1)


def results(job):
    """Shell that gives every run of the job its result."""
    made = []
    for run in job.runs():
        path = run_folder(job.folder, run.name) / "result.json"
        made.append(f"mkdir -p {path.parent}; echo '{{\"loss\": 1.0}}' >{path}.tmp; mv {path}.tmp {path}")
    return "; ".join(made)


def test_slices_come_train_and_are_given_back(cloud, job, clock, said):
    cloud.worker(f'echo "$HOST $JAX_COORDINATOR_PORT $*" >>started; [ "$HOST" = 3 ] && {results(job)}; exit 0')
    BACKEND.launch(job, clock)
    assert cloud.resources() == [] and not job.unfinished()
    # Four hosts of each slice ran its worker, once.
    words = f"-m chinchilla_jax work --study={job.study} --manifest=manifest.jsonl --worker="
    expected = {f"{host} 8476 {words}{worker}" for host in range(4) for worker in range(2)}
    assert set(cloud.started()) <= expected and len(set(cloud.started())) == len(cloud.started()) >= 4
    assert sorted(call[1] for call in cloud.calls("create")) == ["cj-test-0-1", "cj-test-1-1"]
    assert "every host has to mount that folder" in said[0]
    assert "0/3 runs" in said[1] and not any("given up" in line for line in said)


def test_a_preempted_slice_is_deleted_asked_for_again_and_goes_on(cloud, one, clock, said):
    cloud.plan(states={"cj-test-0-1": ["PROVISIONING", *["ACTIVE"] * 3, "SUSPENDING", "SUSPENDED"]})
    cloud.worker(f"echo x >>started; if [ -e second ]; then {results(one)}; else touch second; sleep 30; fi")
    BACKEND.launch(one, clock)
    assert cloud.started() == ["x", "x"] and cloud.resources() == []
    verbs = [(call[0], call[1]) for call in cloud.calls() if call[0] in ("create", "delete")]
    assert verbs == [(verb, f"cj-test-0-{number}") for number in (1, 2) for verb in ("create", "delete")]
    assert any("cj-test-0-1: SUSPENDED; it is deleted" in line for line in said)


def test_a_slice_that_dies_while_code_is_shipped_is_replaced(cloud, one, clock, said):
    cloud.plan(dies_at={"cj-test-0-1": "scp", "cj-test-0-2": "setup"})
    cloud.worker(f"echo x >>started; {results(one)}")
    BACKEND.launch(one, clock)
    assert [call[1] for call in cloud.calls("create")] == [f"cj-test-0-{number}" for number in (1, 2, 3)]
    assert cloud.started() == ["x"] and cloud.resources() == []


def test_a_stock_out_is_waited_for_longer_each_time(cloud, one, clock, said):
    text = "There is no more capacity in the zone; you can try in another zone"
    names = [f"cj-test-0-{number}" for number in (1, 2, 3)]
    cloud.plan(refuse={names[0]: text}, states=dict.fromkeys(names[1:], ["FAILED"]), failed=dict.fromkeys(names, text))
    cloud.worker(results(one))
    BACKEND.launch(one, clock)
    assert [call[1] for call in cloud.calls("create")] == [*names, "cj-test-0-4"] and cloud.resources() == []
    waits = [float(line.split("again in ")[1].split()[0]) for line in said if "again in" in line]
    assert sorted(set(waits)) == [60.0, 120.0, 240.0] and any(text in line for line in said)


@pytest.mark.parametrize("text", [
    "Quota 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' exhausted. Limit 16 in region us-west4",
    "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied",
    "CloudTpu received an invalid AcceleratorType, \"v5litepod-4\" for zone \"us-west4-a\". Valid values are \"v2-8\"",
    "NOT_FOUND: Reservation not found",
])  # fmt: skip
def test_what_waiting_does_not_mend_is_told_in_googles_words(cloud, one, clock, text):
    cloud.plan(refuse={"cj-test-0-1": text})
    with pytest.raises(LaunchError) as caught:
        BACKEND.launch(one, clock)
    assert text in str(caught.value) and caught.value.exit_code == FAILED and "\n" not in str(caught.value)
    assert len(cloud.calls("create")) == 1 and not passes(text)


def test_one_slice_refused_leaves_the_other_at_work(cloud, job, clock, said):
    two = dataclasses.replace(job, slice=parse_slice("v5e-4"))
    cloud.plan(refuse={"cj-test-0-1": "Quota 'x' exhausted"})
    cloud.worker(f"{results(two)}")
    BACKEND.launch(two, clock)
    assert any("0: given up: ERROR" in line and "1: " in line for line in said)


def test_a_slice_that_never_comes_is_given_up_and_not_left_behind(cloud, one, clock):
    cloud.plan(states={"cj-test-0-1": ["WAITING_FOR_RESOURCES"]})
    with pytest.raises(LaunchError, match=r"no slice for 2 h \(WAITING_FOR_RESOURCES\)"):
        dataclasses.replace(BACKEND, wait_hours=2.0, poll=600.0).launch(one, clock)
    assert cloud.resources() == []


def test_a_command_that_gcloud_calls_twice_starts_once(cloud, one, clock):
    cloud.plan(twice="host.py start")
    cloud.worker(f"echo x >>started; sleep 0.3; {results(one)}")
    BACKEND.launch(one, clock)
    assert cloud.started() == ["x"]


def test_exit_code_42_starts_again_on_the_same_slice(cloud, one, clock):
    cloud.worker(f"echo x >>started; [ $(wc -l <started) -lt 3 ] && exit 42; {results(one)}")
    BACKEND.launch(one, clock)
    assert cloud.started() == ["x"] * 3 and len(cloud.calls("create")) == 1


def test_three_starts_in_vain_are_the_last(cloud, one, clock):
    cloud.worker("echo x >>started; exit 42")
    with pytest.raises(LaunchError, match="started 3 times without a new checkpoint"):
        BACKEND.launch(one, clock)
    assert cloud.started() == ["x"] * 3 and cloud.resources() == []


@pytest.mark.parametrize("code", [1, 2])
def test_what_fails_the_same_way_every_time_is_not_started_again(cloud, one, clock, said, code):
    cloud.worker(f"echo x >>started; echo chinchilla_jax: the data are gone; exit {code}")
    with pytest.raises(LaunchError, match="it failed and would again: chinchilla_jax: the data are gone"):
        BACKEND.launch(one, clock)
    assert cloud.started() == ["x"] and cloud.resources() == []
    assert "    chinchilla_jax: the data are gone" in said


def test_a_host_that_was_killed_excuses_the_code_of_its_peer(cloud, job, clock):
    both = dataclasses.replace(job, slice=parse_slice("2xv5e-4"), slices=1)
    again = f"echo x >>started; [ $(wc -l <started) -gt 2 ] && {{ {results(both)}; exit 0; }}"
    cloud.worker(f'{again}; [ "$HOST" = 0 ] && exit 1; kill -9 $$')
    BACKEND.launch(both, clock)
    assert len(cloud.started()) >= 3 and len(cloud.calls("create")) == 1


def test_a_slice_whose_hosts_do_not_answer_is_replaced(cloud, one, clock, said, monkeypatch):
    monkeypatch.setattr(tpu_vm, "MOST_UNREADY", 3)
    cloud.plan(silent=["cj-test-0-1"])
    cloud.worker(results(one))
    BACKEND.launch(one, clock)
    assert [call[1] for call in cloud.calls("create")] == ["cj-test-0-1", "cj-test-0-2"]
    assert any("Connection timed out; the slice is deleted" in line for line in said)


def test_a_launcher_that_comes_later_finds_the_worker_at_work(cloud, one, clock):
    cloud.worker("echo x >>started; while [ ! -e go ]; do sleep 0.05; done; " + results(one))
    first = _Life(BACKEND, one, 0, gang.archive(one, clock), clock)
    while not first.working:
        first.tick(BACKEND.find(one, clock, {}))
    (cloud.folder / "go").touch()
    BACKEND.launch(one, clock)
    assert cloud.started() == ["x"] and len(cloud.calls("create")) == 1 and cloud.resources() == []


def test_two_launchers_ask_and_start_once(cloud, one, clock):
    cloud.worker("echo x >>started; sleep 30")
    lives = [_Life(BACKEND, one, 0, gang.archive(one, clock), clock) for _ in range(2)]
    seen = BACKEND.find(one, clock, {})
    while not all(life.working for life in lives):
        for life in lives:  # both act on what they saw before the other acted
            life.tick(seen)
        seen = BACKEND.find(one, clock, {})
    assert cloud.resources() == ["cj-test-0-1"] and not any(life.over for life in lives)
    assert cloud.started() == ["x"]
    BACKEND.stop(one, clock)
    assert cloud.resources() == []


def test_stopping_lets_the_worker_save_first(cloud, one, clock, said):
    cloud.worker("trap 'echo saved >>started; exit 42' TERM; touch ready; while :; do sleep 0.05; done")
    life = _Life(BACKEND, one, 0, gang.archive(one, clock), clock)
    while not life.working or not (cloud.folder / "ready").exists():
        life.tick(BACKEND.find(one, clock, {}))
    BACKEND.status(one, clock)
    assert said[-1].split() == ["cj-test-0-1", "ACTIVE"]
    BACKEND.stop(one, clock)
    assert cloud.started() == ["saved"] and cloud.resources() == []


def test_the_budget_ends_a_launch(cloud, one, clock):
    cloud.worker("sleep 30")
    paid = dataclasses.replace(one, price=Price(10.0, 0.5))
    with pytest.raises(
        LaunchError, match=r"the budget is spent: 0\.\d\d chip-hours held so far, \$0\.\d\d; slices are given back"
    ):
        BACKEND.launch(paid, clock)
    assert cloud.resources() == []


def test_a_slice_that_others_make_unneeded_is_given_back(cloud, job, clock, said):
    two = dataclasses.replace(job, slice=parse_slice("v5e-4"))
    for run in two.runs():
        path = run_folder(two.folder, run.name)
        path.mkdir(parents=True)
        (path / "lease.json").write_text('{"worker": "0", "host": "elsewhere"}')
    wait = 'while ! grep -q \'"delete", "cj-test-1-1"\' calls.jsonl; do sleep 0.05; done'
    cloud.worker(f'case "$*" in *=0) {wait}; {results(two)};; *) sleep 30;; esac')
    BACKEND.launch(two, clock)
    assert any("worker 1: others train what is left" in line for line in said) and cloud.resources() == []


def test_the_archive_is_the_committed_tree(tmp_path, job, tools, monkeypatch):
    monkeypatch.setattr(gang.tempfile, "gettempdir", lambda: str(tmp_path))
    with tarfile.open(gang.archive(job, tools)) as tar:
        names = set(tar.getnames())
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-tree", "-r", "--name-only", "HEAD"], capture_output=True, text=True
    )
    assert set(tracked.stdout.splitlines()) <= names and "launch/host.py" in names


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud")
def test_the_real_gcloud_understands_every_command(job, said, tmp_path, monkeypatch):
    """Without an account it gets no further than to the words: code 2 is a mistake in them, 1 no account."""
    import shlex

    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
    for name in ("v5e-16", "2xv5e-16"):
        one = dataclasses.replace(job, slice=parse_slice(name), slices=1)
        TpuVm("us-west4-a", "p", spot=True, service_account="a@b").launch(one, Tools(said.append, dry=True))
    calls = {line.removeprefix("# reads: ") for line in said if "gcloud" in line}
    for call in sorted(calls):
        done = subprocess.run(shlex.split(call), capture_output=True, text=True)
        assert done.returncode == 1 and "active account" in done.stderr, (call, done.stderr)


def test_a_launcher_that_is_stopped_leaves_the_workers_at_work(cloud, one, clock):
    cloud.worker("echo x >>started; while [ ! -e go ]; do sleep 0.05; done; " + results(one))

    def sleep(seconds):
        clock.sleep(seconds)
        if cloud.started():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="the workers go on"):
        BACKEND.launch(one, dataclasses.replace(clock, sleep=sleep))
    assert cloud.resources() == ["cj-test-0-1"]
    (cloud.folder / "go").touch()
    BACKEND.launch(one, clock)
    assert cloud.started() == ["x"] and cloud.resources() == []
