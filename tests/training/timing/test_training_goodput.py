"""Shares of a run's time add up, over restarts and branches."""

import functools
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.training import loop
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.timing.clock import Clock
from chinchilla_jax.training.timing.goodput import PARTS, goodput, last_stamp, time_line, utilisation

KILLED_RUN = pathlib.Path(__file__).parent.parent / "killed_run.py"


def quiet(_):
    """An `echo` that says nothing."""


def test_the_last_whole_stamp_is_read(tmp_path):
    assert last_stamp(tmp_path) is None
    stamps = [{"step": step, "seconds": float(step), "time": {"step": float(step)}} for step in range(1, 5)]
    lines = [json.dumps(stamp) for stamp in stamps] + ['{"step": 5, "seconds": 6.0}', '{"step": 5, "seco']
    (tmp_path / "timing.jsonl").write_text("\n".join(lines))
    assert last_stamp(tmp_path) == last_stamp(tmp_path, window=150) == stamps[-1]


def test_goodput_and_utilisation_by_hand():
    parts = dict.fromkeys(PARTS, 0.0) | {"step": 60.0, "compile": 25.0, "lost": 15.0}
    assert goodput(parts) == 0.6
    used = utilisation(parts, tokens=1000, flops_per_token={"6nd": 6e9, "executed": 9e9}, peak=2e11)
    assert used["step"] == pytest.approx({"6nd": 0.5, "executed": 0.75})
    assert used["all"] == pytest.approx({"6nd": 0.3, "executed": 0.45})
    assert time_line(parts, used) == (
        "time: step 60.0%, compile 25.0%, lost 15.0%; utilisation 50.0% of peak (6nd), 75.0% (executed)"
    )
    assert time_line({}) == "time: nothing booked yet" and goodput({}) == 0.0


# --- Runs ---


def test_the_parts_of_a_run_add_up_to_every_tick_of_its_clock(small, stop_at, monkeypatch, said, tmp_path):
    """Each reading of the timer is a second later than the one before; stopped once, in the middle."""
    ticks, compiled = [], itertools.count(0.0, 0.25)

    def timer():
        ticks.append(len(ticks))
        return float(ticks[-1])

    ended = types.SimpleNamespace(follow=lambda output: None, time=lambda: 0.0, close=lambda: None)
    monkeypatch.setattr(loop, "Clock", functools.partial(Clock, timer, lambda: next(compiled), ended))
    stop_at(13)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=quiet)
    before = len(ticks)
    assert sum(last_stamp(tmp_path)["time"].values()) == pytest.approx(before - 1, abs=1e-5)
    result = train(small, tmp_path, echo=said)
    assert set(result["time"]) == set(PARTS) and all(result["time"][part] > 0 for part in PARTS if part != "lost")
    assert sum(result["time"].values()) == pytest.approx(len(ticks) - 2, abs=1e-5) == result["seconds"]
    assert time_line(result["time"], result["utilisation"]) in said.text
    assert last_stamp(tmp_path)["time"] == pytest.approx(result["time"], abs=1e-5)
    assert result["goodput"] == pytest.approx(result["time"]["step"] / result["seconds"])
    for convention in ("6nd", "executed", "table_a4", "appendix_f"):
        per_token = train_flops_per_token(small.model, 32, convention, 4)
        expected = result["tokens"] * per_token / result["time"]["step"] / result["peak_flops"]
        assert result["utilisation"]["step"][convention] == pytest.approx(expected)
        assert result["utilisation"]["all"][convention] == pytest.approx(expected * result["goodput"])


def test_steps_that_a_killed_process_must_do_again_are_lost(small, saved, compiled, said, tmp_path):
    """Killed when step 14 is dispatched, stamped at 12 after an evaluation; saved at 10 if that was written in time."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"config": small.to_dict(), "jax": compiled | {"jax_num_cpu_devices": 8}}))
    command = [sys.executable, str(KILLED_RUN), str(settings), str(tmp_path / "run"), "step", "14"]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    position, stamp = saved(small, tmp_path / "run")[1], last_stamp(tmp_path / "run")
    assert position.step in (5, 10) and stamp["step"] == 12
    newer = {part: stamp["time"][part] - position.parts[part] for part in ("step", "input_wait", "evaluation")}
    assert newer["step"] > 0 and newer["evaluation"] > 0 and position.parts["compile"] > 0
    result = train(small, tmp_path / "run", echo=said)
    assert result["time"]["lost"] == pytest.approx(sum(newer.values()), abs=1e-5)
    assert result["seconds"] > stamp["seconds"] and f"steps {position.step + 1} to 12 are done again" in said.text
    executed = train_flops_per_token(small.model, 32, "executed", 4) * result["tokens"]
    expected = executed / result["time"]["step"] / result["peak_flops"]
    assert result["utilisation"]["step"]["executed"] == pytest.approx(expected), "steps done twice count once"
    records = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "tokens_per_second" in r].count(12) == 2, "what happened is kept"
    seconds = [r["seconds"] for r in records]
    assert seconds == sorted(seconds)


def test_a_branch_counts_only_the_tokens_it_trained(small, changed, tmp_path):
    plan = {"schedule": "cooldown", "cooldown_fraction": 0.5}
    branch = changed(small, optimizer=plan, train={"double_batch_at": 0.0, "train_tokens": 32 * 8 * 16})
    trunk = changed(branch, optimizer={"schedule": "constant"}, train={"train_tokens": 32 * 8 * 8})
    train(trunk, tmp_path / "trunk", keep=(8,), echo=quiet)
    result = train(branch, tmp_path / "branch", fork=loop.Fork(tmp_path / "trunk", 8), echo=quiet)
    executed = train_flops_per_token(small.model, 32, "executed", 4)
    expected = 32 * 8 * 8 * executed / result["time"]["step"] / result["peak_flops"]
    assert result["utilisation"]["step"]["executed"] == pytest.approx(expected)
