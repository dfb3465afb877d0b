"""The small run of the training tests, and what they watch and stop it with."""

from tests.training.conftest import changed, compiled, data, said, saved, small, stop_after

__all__ = ["changed", "compiled", "data", "said", "saved", "small", "stop_after"]
