"""Every second is booked under one part, whatever became of the processes of a run."""

import functools
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import pytest

from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.training import loop
from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.timing.clock import (
    PARTS,
    UNSPLIT,
    Clock,
    CompileSpans,
    StepEnd,
    compile_seconds,
    goodput,
    last_stamp,
    time_line,
    utilisation,
)

KILLED_RUN = pathlib.Path(__file__).parent.parent / "killed_run.py"


class FakeTime:
    """A clock at `now`, the seconds compiled so far, and the end of the step on the devices."""

    def __init__(self):
        self.now, self.compiled, self.ends = 100.0, 7.0, None
        self.clock = Clock(lambda: self.now, lambda: self.compiled, self)

    def follow(self, output):
        self.ends = self.now + output

    def time(self):
        return self.ends if self.ends <= self.now else None

    def iteration(self, host, step):
        """The host makes a batch, dispatches a step of so many seconds, and waits for the one before."""
        previous = self.ends
        with self.clock.preparing():
            self.now += host
        self.clock.dispatched(step)
        if previous is not None:
            self.now = max(self.now, previous)
            self.ends = max(self.ends, previous + step)
            self.clock.book("step", tokens=10)


@pytest.fixture
def fake():
    return FakeTime()


def booked(clock):
    return {part: seconds for part, seconds in clock.parts.items() if seconds}


def stamp_of(clock):
    return {"step": 0, "seconds": clock.seconds(), "time": dict(clock.parts)}


def test_every_second_is_booked_once(fake):
    fake.now += 5
    fake.clock.book("startup")
    fake.now += 2
    with fake.clock.spent("evaluation"):
        fake.now += 3
    with pytest.raises(KeyError), fake.clock.spent("checkpoint"):
        fake.now += 4
        raise KeyError
    assert booked(fake.clock) == {"startup": 5, "step": 2, "evaluation": 3, "checkpoint": 4}
    assert fake.clock.seconds() == fake.now - 100


def test_compilation_is_taken_out_of_whatever_asked_for_it(fake):
    fake.now, fake.compiled = fake.now + 10, fake.compiled + 4
    fake.clock.book("startup")
    with fake.clock.spent("evaluation"):
        fake.now, fake.compiled = fake.now + 6, fake.compiled + 5
    assert booked(fake.clock) == {"startup": 6, "compile": 9, "evaluation": 1}


@pytest.mark.parametrize(("host", "step", "waited"), [(1, 4, 1), (4, 4, 4), (6, 4, 6 + 2 * 9), (6, 0, 60)])
def test_input_is_waited_for_only_after_the_step_before_it_has_ended(fake, host, step, waited):
    """Ten batches; nothing hides the first."""
    for _ in range(10):
        fake.iteration(host, step)
    assert fake.clock.parts["input_wait"] == waited
    assert fake.clock.seconds() == fake.now - 100 and fake.clock.parts["step"] == fake.now - 100 - waited
    assert fake.clock.tokens == 90


def test_input_is_waited_for_after_an_evaluation(fake):
    fake.iteration(host=1, step=4)
    fake.now = fake.ends
    with fake.clock.spent("evaluation"):
        fake.now += 5
    fake.iteration(host=3, step=4)
    assert booked(fake.clock) == {"input_wait": 1 + 3, "step": 4, "evaluation": 5}


def test_tokens_per_second_leave_out_what_is_no_training(fake):
    for _ in range(11):
        fake.iteration(host=1, step=4)
    seconds = fake.now - 100
    assert fake.clock.window() == 100 / seconds
    with fake.clock.spent("checkpoint"):
        fake.now += 1000
    assert fake.clock.window() is None
    assert fake.clock.tokens_per_second() == 100 / seconds


def test_a_thread_notes_when_a_step_ended():
    class Output:
        def __init__(self, error=None):
            self.done, self.error = threading.Event(), error

        def block_until_ready(self):
            assert self.done.wait(60)
            if self.error:
                raise self.error

    for output in (Output(), Output(RuntimeError("the step failed"))):
        end = StepEnd(lambda: 3.0)
        end.follow(output)
        assert end.time() is None
        thread = end._thread
        threading.Timer(0.01, output.done.set).start()
        end.close()
        assert end.time() == 3.0 and thread.daemon and not thread.is_alive()


# --- Over restarts ---


@pytest.fixture
def killed(fake):
    """A process that saved at 20 s, went on, and wrote its last stamp at 50 s: position and stamp."""
    position = Position(step=2, next_sequence=8)
    for part, seconds in (("startup", 5), ("step", 10), ("evaluation", 5)):
        fake.now += seconds
        fake.clock.book(part, tokens=64 * (part == "step"))
    fake.clock.store(position)
    for part, seconds in (("checkpoint", 2), ("compile", 3), ("step", 16), ("input_wait", 1), ("evaluation", 8)):
        fake.now += seconds
        fake.clock.book(part, tokens=64 * (part == "step"))
    return position, stamp_of(fake.clock)


def test_work_newer_than_the_checkpoint_is_lost_and_overheads_stay_what_they_are(killed):
    position, stamp = killed
    after = FakeTime()
    after.now += 4
    assert after.clock.resume(position, stamp) == 16 + 1 + 8
    after.clock.book("startup")
    assert booked(after.clock) == {"startup": 9, "compile": 3, "step": 10, "evaluation": 5, "checkpoint": 2, "lost": 25}
    assert after.clock.seconds() == 50 + 4 and after.clock.tokens == 64
    after.now += 3
    after.clock.book("step", tokens=30)
    assert after.clock.window() == 30 / 3, "the speed is that of this process"


def test_losses_of_several_deaths_add_up(killed):
    position, stamp = killed
    again = FakeTime()
    again.clock.resume(position, stamp)
    again.now += 6
    again.clock.book("step")
    third = FakeTime()
    assert third.clock.resume(position, stamp_of(again.clock)) == 6
    assert third.clock.parts["lost"] == 25 + 6 and third.clock.seconds() == 50 + 6


def test_without_a_checkpoint_everything_done_is_lost(killed):
    _, stamp = killed
    after = FakeTime()
    assert after.clock.resume(Position(), stamp) == 26 + 1 + 13
    assert booked(after.clock) == {"startup": 5, "compile": 3, "checkpoint": 2, "lost": 40} and after.clock.tokens == 0


@pytest.mark.parametrize("older", [None, {"step": 1, "seconds": 12.0, "time": {"startup": 5.0, "step": 7.0}}])
def test_a_stamp_older_than_the_checkpoint_takes_nothing_away(killed, older):
    position, _ = killed
    after = FakeTime()
    assert after.clock.resume(position, older) == 0
    assert booked(after.clock) == {"startup": 5, "step": 10, "evaluation": 5}


def test_seconds_of_a_checkpoint_without_parts_stay_unsplit(fake):
    fake.clock.resume(Position(step=3, seconds=40.0), None)
    fake.now += 10
    fake.clock.book("step", tokens=8)
    assert booked(fake.clock) == {"step": 10, UNSPLIT: 40} and fake.clock.seconds() == 50
    assert goodput(fake.clock.parts) == 1.0
    assert utilisation(fake.clock.parts, fake.clock.tokens, {"6nd": 5.0}, 8.0)["all"] == {"6nd": 0.5}
    position = Position()
    fake.clock.store(position)
    again = FakeTime()
    again.clock.resume(position, None)
    assert again.clock.parts == fake.clock.parts


# --- Time spent compiling counts once, in the thread that spends it ---


def test_nested_spans_count_once():
    spans, trace = CompileSpans(), "/jax/core/compile/jaxpr_trace_duration"
    spans.add(trace, 1.0, 2.0)
    spans.add(trace, 4.0, 5.0)
    spans.add(trace, 5.5, 6.0)
    spans.add(trace, 3.0, 7.0)
    spans.add("/jax/core/compile/backend_compile_duration", 7.0, 10.0)
    spans.add("/jax/something/else", 10.0, 99.0)
    assert spans.seconds == 1 + 4 + 3


def test_only_the_calls_that_compile_count_and_only_in_their_thread():
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    before = compile_seconds()
    double(x).block_until_ready()
    after = compile_seconds()
    double(x).block_until_ready()
    assert after > before and compile_seconds() == after
    elsewhere = []

    def other():
        jax.jit(lambda x: 3 * x)(x).block_until_ready()
        elsewhere.append(compile_seconds())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert elsewhere[0] > 0 and compile_seconds() == after


# --- Shares of a run's time add up, over restarts and branches ---


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
