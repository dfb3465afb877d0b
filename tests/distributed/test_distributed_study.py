"""A worker of a study may be several hosts: they claim a run once, train it together, and stop together."""

import dataclasses
import json

import pytest

from chinchilla_jax.config import StudyConfig
from chinchilla_jax.study.folder import MANIFEST, read_manifest, read_result, write_manifest
from chinchilla_jax.study.plan import plan
from tests.distributed.conftest import on

pytestmark = pytest.mark.long


def test_two_hosts_work_through_a_manifest(run, launch, tmp_path):
    study = StudyConfig(budgets=(1e10,), sizes=6, size_ratio=1.4, guess="D/N = 0.3", aspect_ratio=24.0)
    model = dataclasses.replace(run.model, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=128)
    train = dataclasses.replace(run.train, batch_size=2, microbatches=1)
    planned = plan(dataclasses.replace(on(run, 1, 2, 1), model=model, train=train, study=study))
    write_manifest(tmp_path / MANIFEST, dataclasses.replace(planned, runs=planned.runs[-2:]))
    runs = read_manifest(tmp_path / MANIFEST).runs

    def work(number, mishaps):
        folder = tmp_path / f"launch{number}"
        folder.mkdir()
        return launch.command(folder, ["work", f"--study={tmp_path}"], 2, mishaps, {}, {"JAX_NUM_CPU_DEVICES": "1"})

    stopped = work(1, {1: "terminated 4"})
    assert [host.code for host in stopped] == [42, 42], stopped[0].errors
    assert not list(tmp_path.glob("runs/*/lease.json"))
    ended = work(2, {})
    assert [host.code for host in ended] == [0, 0], ended[0].errors
    for planned in runs:
        result = read_result(tmp_path, planned.name)
        assert result["devices"] == 2, "a run of one host"
        assert result["tokens"] == planned.tokens and 0 < result["loss"] < 8
    assert json.loads((tmp_path / "runs" / runs[0].name / "config.json").read_text())["config"]["mesh"]["fsdp"] == 2
