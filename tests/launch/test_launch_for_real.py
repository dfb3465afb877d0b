"""A launch with nothing imitated but the way to the hosts: this checkout is shipped, two processes train together."""

import dataclasses
import os
import sys

import pytest

from chinchilla_jax.config import RunConfig
from chinchilla_jax.data import prepare
from chinchilla_jax.launch.backend import Job
from chinchilla_jax.launch.command import Tools
from chinchilla_jax.launch.ssh import Ssh
from chinchilla_jax.study.folder import MANIFEST, read_result, write_manifest
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny

# A host is a folder. Set-up is by pip, which is not for a test: instead .venv/bin/python becomes this interpreter.
SSH = """\
#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
cd "$HOSTS/$1" && HOME=$PWD exec sh -c "$(echo "$2" | sed 's:launch/host.py setup:../../shim.py:')"
"""
SCP = """\
#!/bin/sh
shift; while [ "$1" = -o ]; do shift 2; done
cp "$1" "$HOSTS/${2%%:*}/${2#*:}"
"""
SHIM = f"""\
import pathlib
python = pathlib.Path(".venv/bin/python")
python.parent.mkdir(parents=True, exist_ok=True)
python.write_text('#!/bin/sh\\nexec {sys.executable} "$@"\\n')
python.chmod(0o755)
"""


@pytest.mark.long
def test_two_hosts_train_the_runs_of_a_study_together(tmp_path, monkeypatch):
    for path in (tmp_path / "hosts" / "localhost", tmp_path / "hosts" / "127.0.0.1", tmp_path / "bin"):
        path.mkdir(parents=True)
    for name, text in {"bin/ssh": SSH, "bin/scp": SCP, "hosts/shim.py": SHIM}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("HOSTS", str(tmp_path / "hosts"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    config = RunConfig.from_dict(tiny().to_dict())
    data = dataclasses.replace(config.data, data_dir=str(tmp_path / "data"))
    config = dataclasses.replace(config, data=data, mesh=dataclasses.replace(config.mesh, data=2))
    prepare(data, lambda line: None)
    manifest = plan(config)
    runs = manifest.runs[:2]
    write_manifest(tmp_path / "study" / MANIFEST, dataclasses.replace(manifest, runs=runs))
    said = []
    job = Job("cj-real", str(tmp_path / "study"), MANIFEST)
    Ssh(("localhost", "127.0.0.1"), poll=1.0).launch(job, Tools(said.append))
    for run in runs:
        result = read_result(tmp_path / "study", run.name)
        assert result["loss"] < 7 and result["name"] == run.name
    logs = [tmp_path / "hosts" / host / "cj-real-0" / ".launch" / "log-1" for host in ("localhost", "127.0.0.1")]
    first, second = (log.read_text() for log in logs)
    assert all(f"{run.name}: finished" in first and run.name not in second for run in runs)  # the first one prints
