"""Every second is booked under one part, whatever became of the processes of a run."""

import threading

import pytest

from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.timing.clock import Clock, StepEnd
from chinchilla_jax.training.timing.goodput import UNSPLIT, goodput, utilisation


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
        assert end.time() == 3.0 and not thread.is_alive()


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
