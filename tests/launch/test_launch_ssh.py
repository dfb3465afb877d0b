"""Hosts that are listed: workers start there with the variables that they find each other by. `ssh` is an imitation."""

import dataclasses
import os
import pathlib
import shutil
import tarfile

import pytest

from chinchilla_jax.launch import gang
from chinchilla_jax.launch.command import LaunchError
from chinchilla_jax.launch.ssh import Ssh
from chinchilla_jax.parallel.job.hosts import host_settings
from chinchilla_jax.study.folder import run_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKEND = Ssh(("user@a", "b", "c", "d"))
# A host is a folder; what is called there has it for a home. A host whose folder is not there does not answer.
SSH = """\
#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
cd "$HOSTS/$1" 2>/dev/null || { echo "ssh: connect to host $1 port 22: Connection timed out" >&2; exit 255; }
HOME=$PWD exec sh -c "$2"
"""
SCP = """\
#!/bin/sh
shift; while [ "$1" = -o ]; do shift 2; done
cp "$1" "$HOSTS/${2%%:*}/${2#*:}"
"""


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """The folder of the hosts' folders. Their worker is its worker.sh."""
    folder, tree = tmp_path / "hosts", tmp_path / "tree"
    for path in (folder / "user@a", folder / "b", folder / "c", folder / "d", tmp_path / "bin", tree / "launch"):
        path.mkdir(parents=True)
    (tree / ".venv" / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOSTS", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    worker = tree / ".venv" / "bin" / "python"
    for path, text in {tmp_path / "bin" / "ssh": SSH, tmp_path / "bin" / "scp": SCP}.items():
        path.write_text(text)
        path.chmod(0o755)
    worker.write_text('#!/bin/sh\ncd "$HOSTS"\nexec sh worker.sh "$@"\n')
    worker.chmod(0o755)
    shutil.copy(ROOT / "launch" / "host.py", tree / "launch")
    (tree / "launch" / "venv.sh").write_text("make_venv() { :; }\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tree, ".")
    monkeypatch.setattr(gang, "archive", lambda job, tools: str(tmp_path / "code.tar.gz"))
    return folder


def results(job):
    return "; ".join(
        f"mkdir -p {path}; echo '{{\"loss\": 1.0}}' >{path}/.new.$$; mv {path}/.new.$$ {path}/result.json"
        for path in (run_folder(job.folder, run.name) for run in job.runs())
    )


def test_each_slice_is_a_worker_whose_processes_find_each_other(hosts, job, tools):
    noted = '"$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*"'
    all_there = f'while [ "$(cat started | wc -l)" -lt 4 ]; do sleep 0.05; done; {results(job)}'
    (hosts / "worker.sh").write_text(f"echo {noted} >>started\n{all_there}\n")
    BACKEND.launch(job, tools)
    started = sorted(line.split() for line in (hosts / "started").read_text().splitlines())
    assert [line[:3] for line in started] == [[f"{first}:8476", "2", f"{i}"] for first in "ac" for i in range(2)]
    assert [line[-1] for line in started] == ["--worker=0", "--worker=0", "--worker=1", "--worker=1"]
    for address, count, number in (line[:3] for line in started):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        settings = host_settings(environment=dict(zip(names, (address, count, number), strict=True)))
        assert (settings.coordinator, settings.processes, settings.process) == (address, 2, int(number))


def test_a_host_on_its_own_is_told_so(hosts, job, tools):
    one = dataclasses.replace(job, slices=4)
    (hosts / "worker.sh").write_text(f'echo "$JAX_NUM_PROCESSES,$JAX_COORDINATOR_ADDRESS" >>started\n{results(one)}\n')
    BACKEND.launch(one, tools)
    assert set((hosts / "started").read_text().split()) == {"1,"}


def test_42_starts_again_and_1_does_not(hosts, job, tools):
    (hosts / "worker.sh").write_text('echo "$*" >>started\ncase "$*" in *=0) exit 1;; *) exit 42;; esac\n')
    with pytest.raises(LaunchError) as caught:
        BACKEND.launch(job, tools)
    assert "worker 0: failed" in str(caught.value) and "worker 1 was started 3 times" in str(caught.value)
    started = (hosts / "started").read_text().splitlines()
    assert sum(line.endswith("=0") for line in started) == 2 and sum(line.endswith("=1") for line in started) == 6


def test_a_host_that_is_not_there_is_named_by_ssh(hosts, job, tools):
    one = dataclasses.replace(job, slices=1)
    with pytest.raises(LaunchError, match="copying the code failed: .*nowhere"):
        Ssh(("nowhere",)).launch(one, tools)


def test_stop_and_status(hosts, job, tools, said):
    one = dataclasses.replace(job, slices=1)
    (hosts / "worker.sh").write_text(
        "trap 'echo saved >>saved; exit 42' TERM\necho step 5\nwhile :; do sleep 0.05; done\n"
    )
    backend = Ssh(("b",))
    worker = backend.gang(one, 0, ("b",), tools)
    assert worker.bring(gang.archive(one, tools)) == "" and worker.start(1) == ""
    while "step 5" not in worker.last_line():
        assert worker.poll() == ("running", 1)
    backend.status(one, tools)
    assert said[-1] == "worker 0 on b: running, start 1: step 5"
    backend.stop(one, tools)
    assert (hosts / "saved").read_text() == "saved\n" and worker.poll() == ("again", 1)


@pytest.mark.parametrize(("names", "words"), [((), "is missing"), (("a", "a"), "twice"), (("-x",), "no host")])
def test_hosts_that_cannot_be(names, words):
    with pytest.raises(LaunchError, match=words):
        Ssh(names)


def test_hosts_are_shared_equally(job):
    assert BACKEND.shares(job) == [("user@a", "b"), ("c", "d")]
    with pytest.raises(LaunchError, match="4 hosts are not 3 equal slices"):
        BACKEND.shares(dataclasses.replace(job, slices=3))
