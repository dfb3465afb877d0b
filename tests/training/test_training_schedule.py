"""Learning rate and batch size as functions of the step."""

import math

import numpy as np
import pytest

from chinchilla_jax.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.training.schedule import BatchSchedule, cooldown_start, learning_rate, log_spaced, steps_of

PLAIN = BatchSchedule(batch_size=4, steps_before_doubling=100, total_steps=100, seq_len=8)
DOUBLED = BatchSchedule(batch_size=4, steps_before_doubling=60, total_steps=90, seq_len=8)


def schedule_of(**train):
    """The schedule of a run with these settings, in rows of 8 tokens."""
    return steps_of(RunConfig(data=DataConfig(seq_len=8), train=TrainConfig(**train)))


def rates(optimizer, batches):
    return np.array([learning_rate(optimizer, batches, step) for step in range(batches.total_steps)])


@pytest.mark.parametrize("batches", [PLAIN, DOUBLED])
@pytest.mark.parametrize("schedule", ["cosine", "cooldown", "cooldown_sqrt"])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_last_step_has_exactly_the_final_rate(batches, schedule, final):
    optimizer = OptimizerConfig(peak_lr=3e-4, schedule=schedule, warmup_steps=7, final_lr_fraction=final)
    assert learning_rate(optimizer, batches, batches.total_steps - 1) == 3e-4 * final
    assert (rates(optimizer, batches)[7:] >= 3e-4 * final).all()


def test_warm_up_is_linear_and_ends_at_the_peak():
    lr = rates(OptimizerConfig(peak_lr=1.0, warmup_steps=9), PLAIN)
    np.testing.assert_allclose(lr[:10], np.arange(1, 11) / 10)
    assert lr.argmax() == 9 and lr[9] == 1.0
    assert rates(OptimizerConfig(peak_lr=1.0, warmup_steps=0), PLAIN)[0] == 1.0


def test_cosine_is_half_a_period_from_warm_up_to_the_last_step():
    lr = rates(OptimizerConfig(peak_lr=2.0, warmup_steps=19, final_lr_fraction=0.1), PLAIN)
    assert lr[59] == pytest.approx(2.0 * 0.55)
    np.testing.assert_allclose(lr[19:], 1.1 + 0.9 * np.cos(np.pi * np.arange(81) / 80))


def test_cosine_is_matched_in_tokens_when_the_batch_doubles():
    """After as many tokens, both are equally far down; in steps they are not."""
    optimizer = OptimizerConfig(peak_lr=1.0, warmup_steps=0, final_lr_fraction=0.0)
    assert DOUBLED.tokens(90) == 120 * 4 * 8
    end = DOUBLED.tokens(89)
    for step in range(90):
        expected = 0.5 * (1 + math.cos(math.pi * DOUBLED.tokens(step) / end))
        assert learning_rate(optimizer, DOUBLED, step) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(optimizer, DOUBLED, 60) == pytest.approx(0.5 * (1 + math.cos(math.pi * 60 / 118)))


@pytest.mark.parametrize(("batches", "first"), [(PLAIN, 80), (DOUBLED, 78)])
def test_cooldown_is_constant_and_then_linear_in_tokens(batches, first):
    optimizer = OptimizerConfig(
        peak_lr=1.0, schedule="cooldown", warmup_steps=5, final_lr_fraction=0.25, cooldown_fraction=0.2
    )
    lr = rates(optimizer, batches)
    assert (lr[5:first] == 1.0).all() and lr[first] < 1.0
    slopes = np.diff(lr[first:])
    np.testing.assert_allclose(slopes, slopes[0])
    last = batches.total_steps - 1
    length = 0.2 * batches.tokens(batches.total_steps)
    assert lr[last - 1] - lr[last] == pytest.approx(
        0.75 * batches.batch_size * batches.seq_len * (2 if batches is DOUBLED else 1) / length
    )


def test_the_square_root_cooldown_is_one_minus_the_root_of_the_share_done():
    """Haegele et al. 2024, equation 2: f(n) = 1 - sqrt((n - (N - N_decay)) / N_decay), here above a final rate."""
    optimizer = OptimizerConfig(peak_lr=2.0, schedule="cooldown_sqrt", final_lr_fraction=0.0, cooldown_fraction=0.2)
    lr = rates(optimizer, PLAIN)
    assert (lr[:80] == 2.0).all()
    np.testing.assert_allclose(lr[80:], 2.0 * (1 - np.sqrt((np.arange(80, 100) - 79) / 20)), atol=1e-12)
    linear = rates(OptimizerConfig(peak_lr=2.0, schedule="cooldown", final_lr_fraction=0.0), PLAIN)
    assert (lr[80:99] < linear[80:99]).all(), "it falls faster than the line at first"


def test_a_constant_rate_is_the_peak_from_warm_up_on():
    lr = rates(OptimizerConfig(peak_lr=3e-4, schedule="constant", warmup_steps=4), PLAIN)
    assert (lr[4:] == 3e-4).all() and (np.diff(lr[:5]) > 0).all()


@pytest.mark.parametrize("schedule", ["cooldown", "cooldown_sqrt"])
@pytest.mark.parametrize(("fraction", "final", "warmup"), [(0.2, 0.1, 3), (0.2, 0.3, 0), (0.37, 0, 9), (1, 0.7, 5)])
def test_up_to_the_start_of_its_cooldown_a_run_is_the_constant_run(schedule, fraction, final, warmup):
    optimizer = OptimizerConfig(
        peak_lr=0.7, schedule=schedule, warmup_steps=warmup, final_lr_fraction=final, cooldown_fraction=fraction
    )
    start = cooldown_start(optimizer, PLAIN)
    constant = rates(OptimizerConfig(peak_lr=0.7, schedule="constant", warmup_steps=warmup), PLAIN)
    lr = rates(optimizer, PLAIN)
    assert (lr[:start] == constant[:start]).all() and (lr[start:] < 0.7).all()
    assert start == max(warmup, 100 - math.ceil(100 * fraction))


@pytest.mark.parametrize("double_at", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("tokens", [2000, 10_000, 12_345])
def test_each_sequence_is_consumed_once(double_at, tokens):
    batches = schedule_of(train_tokens=tokens, batch_size=6, double_batch_at=double_at)
    consumed = []
    for step in range(batches.total_steps):
        first = batches.first_sequence(step)
        consumed += range(first, first + batches.sequences(step))
    assert consumed == list(range(len(consumed)))
    assert batches.tokens(batches.total_steps) == 8 * len(consumed)
    largest = batches.sequences(batches.total_steps - 1) * 8
    assert abs(batches.tokens(batches.total_steps) - tokens) <= (largest + 6 * 8) / 2


def test_the_batch_doubles_midway():
    batches = schedule_of(train_tokens=9600, batch_size=6, double_batch_at=0.5)
    assert (batches.steps_before_doubling, batches.total_steps) == (100, 150)
    assert [batches.sequences(step) for step in (0, 99, 100, 149)] == [6, 6, 12, 12]
    assert batches.tokens(100) == 4800 and batches.tokens(150) == 9600


def test_steps_of_a_run(small):
    batches = steps_of(small)
    assert (batches.steps_before_doubling, batches.total_steps) == (16, 24)
    assert batches.tokens(24) == small.train.train_tokens


@pytest.mark.parametrize("batches", [PLAIN, DOUBLED, BatchSchedule(4, 3000, 5000, 8)])
@pytest.mark.parametrize("number", [1, 2, 7, 24, 60])
def test_kept_steps_are_as_many_and_equally_far_apart_in_the_logarithm_of_tokens(batches, number):
    total, last = batches.total_steps, batches.tokens(batches.total_steps)
    steps = log_spaced(number, batches.tokens, total)
    assert len(steps) == number and steps[-1] == total and steps[0] >= 1
    assert list(steps) == sorted(set(steps)), "each once"
    wanted = [last * 0.01 ** (1 - i / (number - 1)) for i in range(number)] if number > 1 else [last]
    apart = [a for a, b in zip(range(number), steps, strict=True) if b > 1 + (steps[a - 1] if a else 0)]
    for i in apart:  # the first step after which there are as many tokens
        assert batches.tokens(steps[i] - 1) < wanted[i] * (1 + 1e-9) and batches.tokens(steps[i]) >= int(wanted[i])


def test_a_run_of_few_steps_keeps_all_of_them_and_none_is_none():
    assert log_spaced(24, PLAIN.tokens, 5) == (1, 2, 3, 4, 5)
    assert log_spaced(0, PLAIN.tokens, 100) == ()
    assert len(log_spaced(100, PLAIN.tokens, 100)) == 100
