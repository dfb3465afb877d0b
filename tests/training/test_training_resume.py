"""A run that was stopped, at any point and in any way, ends with the same bits as one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training import loop
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.step import make_program

KILLED_RUN = pathlib.Path(__file__).parent / "killed_run.py"


@pytest.fixture(scope="module")
def straight(small, tmp_path_factory):
    """The directory of the run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    train(small, workdir, echo=lambda line: None)
    return workdir


def assert_same_end(config, saved, workdir, straight):
    """Metrics byte for byte, the final state bit for bit, the result but for times."""
    assert files.read_bytes(workdir / "metrics.jsonl") == files.read_bytes(straight / "metrics.jsonl")
    (state, position), (expected, expected_position) = saved(config, workdir), saved(config, straight)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert (position.step, position.next_sequence) == (expected_position.step, expected_position.next_sequence)
    result, expected_result = (files.read_json(d / "result.json") for d in (workdir, straight))
    assert result["validation"] == expected_result["validation"]
    assert not files.glob(workdir, "**/*tmp*")


def test_the_straight_run_logs_evaluates_and_saves(small, saved, straight):
    records = read_metrics(straight)
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 12, 16, 20, 24]
    assert [r["step"] for r in records if "validation_loss" in r] == [6, 12, 18, 24]
    assert [r["tokens"] // (8 * 32) for r in records if "loss" in r] == [4, 8, 12, 16, 24, 32]
    assert records[-1]["validation_loss"] < 0.95 * records[1]["validation_loss"]
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {"step_20", "step_24"}
    assert saved(small, straight)[1].next_sequence == 16 * 8 + 8 * 16


def test_two_straight_runs_are_the_same(small, saved, straight, tmp_path):
    train(small, tmp_path, echo=lambda line: None)
    assert_same_end(small, saved, tmp_path, straight)


@pytest.mark.parametrize("stop", [1, 7, 10, 12, 16, 24])
def test_sigterm(small, saved, straight, stop_at, said, tmp_path, stop):
    """In the middle of a logged interval; where a checkpoint, an evaluation, a doubling or the end is due."""
    stop_at(stop)
    with pytest.raises(Preempted, match=f"saved step {stop} of 24"):
        train(small, tmp_path, echo=said)
    position = saved(small, tmp_path)[1]
    assert position.step == stop
    assert position.evaluation_owed == (stop in (12, 24))
    assert len(position.losses) == stop % 4
    assert not (tmp_path / "result.json").exists()
    assert not any(r["step"] == stop and "validation_loss" in r for r in read_metrics(tmp_path))
    train(small, tmp_path, echo=said)
    assert f"resuming at step {stop} of 24" in said.text
    assert_same_end(small, saved, tmp_path, straight)


def test_sigterm_before_the_first_step(small, saved, straight, monkeypatch, said, tmp_path):
    """While programs are compiled, or the data is opened, there is no loop yet to take notice."""
    init = loop.make_program

    def with_signal(*args):
        monkeypatch.setattr(loop, "make_program", init)
        os.kill(os.getpid(), signal.SIGTERM)
        return init(*args)

    monkeypatch.setattr(loop, "make_program", with_signal)
    with pytest.raises(Preempted, match="saved step 0 of 24"):
        train(small, tmp_path, echo=said)
    train(small, tmp_path, echo=said)
    assert_same_end(small, saved, tmp_path, straight)


def test_sigterm_has_its_former_meaning_afterwards(small, stop_at, tmp_path):
    heard = []
    former = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        stop_at(2)
        with pytest.raises(Preempted):
            train(small, tmp_path, echo=lambda line: None)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [True]


def test_stopped_again_and_again(small, saved, straight, stop_at, tmp_path):
    for stop in (3, 4, 11, 17):
        stop_at(stop)
        with pytest.raises(Preempted):
            train(small, tmp_path, echo=lambda line: None)
    train(small, tmp_path, echo=lambda line: None)
    assert_same_end(small, saved, tmp_path, straight)


def test_a_run_does_not_go_on_with_other_text(small, stop_at, tmp_path):
    stop_at(3)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=lambda line: None)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | {"data": "0" * 12}))
    with pytest.raises(ConfigError, match="was trained on other text, or with another tokenizer"):
        train(small, tmp_path, echo=lambda line: None)


def test_resuming_compiles_nothing(small, stop_at, tmp_path):
    """Restored arrays have the layout of fresh ones; the doubled batch is the one other shape."""
    program = make_program(small, make_mesh(small.mesh))
    stop_at(9)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=lambda line: None)
    before = program.step._cache_size(), program.evaluate._cache_size(), program.init._cache_size()
    train(small, tmp_path, echo=lambda line: None)
    assert (program.step._cache_size(), program.evaluate._cache_size(), program.init._cache_size()) == before


@pytest.mark.parametrize("deaths", [
    ("line 4", "saving 5", "step 7", "restored", "result"),
    pytest.param(("evaluated 12", "saving 20", "evaluated 24"), marks=pytest.mark.long),
], ids=", ".join)  # fmt: skip
def test_kill_9(small, saved, straight, compiled, tmp_path, deaths):
    """Processes, one after the other, of which only the last is let live."""
    kill_again_and_again(small, compiled, tmp_path, deaths, tmp_path / "run")
    assert_same_end(small, saved, tmp_path / "run", straight)


def test_kill_9_of_a_run_in_a_bucket(small, changed, saved, straight, compiled, tmp_path, bucket_folder):
    """Its text is in the bucket as well. What a checkpoint rests on is there before it."""
    here = pathlib.Path(small.data.data_dir)
    for path in files.glob(here, "**/*.*"):
        if files.is_file(path):
            files.write_bytes(bucket_folder / "data" / path.relative_to(here).as_posix(), path.read_bytes())
    config = changed(small, data={"data_dir": str(bucket_folder / "data")})
    kill_again_and_again(config, compiled, tmp_path, ("saving 5", "evaluated 12", "result"), bucket_folder / "run")
    assert_same_end(config, saved, bucket_folder / "run", straight)


def kill_again_and_again(config, compiled, tmp_path, deaths, workdir):
    """Trains in processes that die, and one that does not."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"config": config.to_dict(), "jax": compiled | {"jax_num_cpu_devices": 8}}))
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(loop.__file__).parents[2])}
    for death in (*deaths, "never"):
        command = [sys.executable, str(KILLED_RUN), str(settings), str(workdir), *death.split()]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert run.returncode == (0 if death == "never" else -signal.SIGKILL), f"{death}: {run.stderr}"
        assert files.exists(workdir / "result.json") == (death == "never")


def test_the_command_line_exits_with_42(small, changed, compiled, tmp_path):
    config = changed(small, train={"train_tokens": 10**9, "double_batch_at": 0.0}).to_dict()
    file = tmp_path / "config.py"
    file.write_text(f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({config!r})\n")
    environment = os.environ | {name.upper(): str(value) for name, value in compiled.items()}
    command = [sys.executable, "-m", "chinchilla_jax", "train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    run = subprocess.Popen(command, env=environment | {"JAX_NUM_CPU_DEVICES": "8"}, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and len(read_metrics(tmp_path / "run")) < 3:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 42, errors
    assert "start again" in errors and any((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_damaged_newest_checkpoint_costs_time_only(small, saved, straight, stop_at, said, tmp_path):
    stop_at(13)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=said)
    for path in (tmp_path / "checkpoints" / "step_13" / "position").iterdir():
        path.write_bytes(b"")
    train(small, tmp_path, echo=said)
    assert "checkpoint of step 13 cannot be read" in said.text and "resuming at step 10 of 24" in said.text
    assert_same_end(small, saved, tmp_path, straight)


def test_a_run_without_readable_checkpoints_starts_again(small, saved, straight, stop_at, said, tmp_path):
    stop_at(3)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=said)
    (tmp_path / "checkpoints" / "step_3" / "state" / "manifest.ocdbt").unlink()
    train(small, tmp_path, echo=said)
    assert "checkpoint of step 3 cannot be read" in said.text and "resuming" not in said.text
    assert_same_end(small, saved, tmp_path, straight)


def test_a_lost_result_is_made_from_the_last_checkpoint(small, saved, straight, tmp_path):
    """Between the final checkpoint and the result a run may die as well."""
    train(small, tmp_path, echo=lambda line: None)
    (tmp_path / "result.json").unlink()
    train(small, tmp_path, echo=lambda line: None)
    assert_same_end(small, saved, tmp_path, straight)


KEPT = {1, 2, 4, 11, 24}  # after a hundredth, 3.2, 10, 32 and 100 percent of the tokens


@pytest.mark.parametrize("stop", [2, 4, 22])
def test_kept_checkpoints_stay_whatever_stops_the_run(small, changed, saved, straight, stop_at, tmp_path, stop):
    """At a kept step, and between two; the run itself is the one that keeps nothing, to the bit."""
    config = changed(small, train={"keep_checkpoints": 5})
    stop_at(stop)
    with pytest.raises(Preempted, match=f"saved step {stop} of 24"):
        train(config, tmp_path, echo=lambda line: None)
    train(config, tmp_path, echo=lambda line: None)
    assert_same_end(config, saved, tmp_path, straight)
    kept = {int(path.name.removeprefix("step_")) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept >= KEPT and kept - KEPT <= {18, 20, 22}, "those that stay besides are the last two and the best"
