"""Signals stop a run between two steps."""

import signal

import pytest

from chinchilla_jax.training.stops import Signals


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with Signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
