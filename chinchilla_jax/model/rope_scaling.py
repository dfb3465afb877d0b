"""How do rotary positions reach farther than a model was trained for? Their frequencies are changed, once.

    linear FACTOR                    positions lie FACTOR times closer (position interpolation, Chen et al. 2023,
                                     arXiv 2306.15595).
    llama3 FACTOR LOW HIGH LENGTH    the scaling of LLaMA 3.1: waves that turn less than LOW times in LENGTH positions
                                     become FACTOR times longer, those that turn more than HIGH times stay, and those
                                     between are mixed, linearly in their turns.

JAX is not imported: a config is checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from chinchilla_jax.base.config_values import ConfigError, one_of


class Scaling(NamedTuple):
    """A kind with its numbers."""

    kind: str
    numbers: tuple[float, ...]

    def __call__(self, frequencies: Any) -> Any:
        """Frequencies of rotary positions, an array of float32, as they are used."""
        return KINDS[self.kind].function(frequencies, *self.numbers)


class Kind(NamedTuple):
    """What it does to frequencies, and the names of its numbers in Hugging Face configs."""

    function: Callable
    numbers: tuple[str, ...]


def _linear(frequencies: Any, factor: float) -> Any:
    return frequencies / factor


def _llama3(frequencies: Any, factor: float, low: float, high: float, length: float) -> Any:
    turns = length * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clip(0.0, 1.0)
    return frequencies * ((1 - kept) / factor + kept)


KINDS = {
    "linear": Kind(_linear, ("factor",)),
    "llama3": Kind(_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
}


def read_scaling(text: str) -> Scaling | None:
    """What a config's `rope_scaling` says; None if it is empty. Raises ConfigError if it cannot be read."""
    if not text.strip():
        return None
    kind, *words = text.split()
    one_of("rope_scaling", kind, KINDS)
    names = KINDS[kind].numbers
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        numbers = ()
    if len(numbers) != len(names) or not all(0 < number < math.inf for number in numbers):
        form = " ".join((kind, *(name.upper() for name in names)))
        raise ConfigError("rope_scaling", f"expected '{form}', all positive; got {text!r}")
    if kind == "llama3" and numbers[1] >= numbers[2]:
        raise ConfigError("rope_scaling", f"low_freq_factor must be below high_freq_factor; got {text!r}")
    return Scaling(kind, numbers)


def scaling_text(kind: str, numbers: tuple[float, ...]) -> str:
    """As a config says it; `read_scaling` inverts it exactly."""
    return " ".join((kind, *(repr(float(number)) for number in numbers)))
