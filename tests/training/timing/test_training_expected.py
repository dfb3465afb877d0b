"""Measured steps are told beside those that preflight predicted, once, with a warning where it was too far off."""

import types

import pytest

from chinchilla_jax.training.loop import train
from chinchilla_jax.training.timing import expected
from chinchilla_jax.training.timing.expected import STEPS, WARMING, Expected

PREDICTED = {"slice": "v5e-16", "chips": 16, "step_seconds": 0.5, "step_tokens": 100}


@pytest.fixture
def here(monkeypatch):
    """The devices are those of the prediction."""
    monkeypatch.setattr(expected, "_is_here", lambda predicted: True)


def told(seconds, predicted=PREDICTED, steps=100, tokens=lambda step: 100):
    """What is said of steps that take so long each."""
    said, clock = [], types.SimpleNamespace(tokens=0, parts={"step": 0.0, "input_wait": 0.0})
    watch = Expected(predicted, said.append)
    for step in range(steps):
        watch.step(clock, tokens(step))
        clock.tokens += tokens(step)
        clock.parts["step"] += 9.0 if step < WARMING - 1 else 0.75 * seconds  # the first steps are slower
        clock.parts["input_wait"] += 0.25 * seconds
    return said


def test_after_enough_steps_they_are_told_once(here):
    assert told(0.55) == ["a step takes 0.55 s, 1.10 of the 0.5 s predicted for v5e-16"]
    assert not told(0.55, steps=WARMING + STEPS - 1)


@pytest.mark.parametrize("seconds", [0.5 * 1.31, 0.5 * 0.69])
def test_what_is_beyond_the_stated_error_is_a_warning(here, seconds):
    (line,) = told(seconds)
    assert line.startswith("WARNING: a step takes") and "30%" in line


def test_only_steps_of_the_predicted_batch_count(here):
    assert not told(0.5, tokens=lambda step: 50)
    assert "1.00 of the" in told(0.5, tokens=lambda step: 50 if step < 40 else 100)[0]


@pytest.mark.parametrize(
    "changes", [{"slice": "v5p-16"}, {"chips": 4}, {"step_seconds": None}, {"step_tokens": None}, {"slice": None}]
)
def test_of_another_slice_or_without_a_time_nothing_is_told(changes):
    assert not told(0.5, PREDICTED | changes) and not told(0.5, None)


def test_devices_of_the_slice_are_known_by_their_kind_and_number(monkeypatch):
    monkeypatch.setattr(expected.jax, "devices", lambda: [types.SimpleNamespace(device_kind="TPU v5 lite")])
    monkeypatch.setattr(expected.jax, "device_count", lambda: 16)
    assert expected._is_here(PREDICTED) and expected._is_here(PREDICTED | {"slice": "2xv5e-8"})
    assert not expected._is_here(PREDICTED | {"chips": 32}) and not expected._is_here(PREDICTED | {"slice": "v5p-16"})


def test_a_run_tells_of_a_planted_prediction(here, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setattr(expected, "WARMING", 1)
    monkeypatch.setattr(expected, "STEPS", 2)
    said, tokens = [], tiny_run.train.batch_size * tiny_run.data.seq_len
    train(tiny_run, tmp_path, predicted=PREDICTED | {"step_seconds": 1e-9, "step_tokens": tokens}, echo=said.append)
    assert [line for line in said if line.startswith("WARNING: a step takes")]
