"""Signals stop a run between two steps."""

import signal

import pytest

from chinchilla_jax.training.stops import Signals


@pytest.fixture
def ctrl_c_interrupts():
    """As at a terminal; a test run started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not(ctrl_c_interrupts):
    with Signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
