"""Are steps as fast as `preflight` predicted? Told once, as soon as enough of them have been timed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from chinchilla_jax.base.chips import chip_of
from chinchilla_jax.training.timing.clock import Clock

WARMING, STEPS = 3, 20  # steps that are not looked at, and those that are
ERROR = 0.3  # of a predicted step, as `preflight/README.md` states it


class Expected:
    """Waits for `STEPS` steps of the batch that was predicted. `predicted` is what a manifest keeps of a preflight.

    Nothing is told where that was for another slice than the devices here.
    """

    def __init__(self, predicted: Mapping[str, Any] | None, echo: Callable[[str], None]):
        predicted = predicted or {}
        known = predicted.get("step_seconds") and predicted.get("step_tokens")
        self._seconds = predicted["step_seconds"] if known and _is_here(predicted) else None
        self._tokens, self._slice = predicted.get("step_tokens"), predicted.get("slice")
        self._echo, self._count, self._mark = echo, 0, (0, 0.0)

    def step(self, clock: Clock, tokens: int) -> None:
        """A step of so many tokens was sent to the devices."""
        if self._seconds is None:
            return
        self._count = self._count + 1 if tokens == self._tokens else 0
        timed = clock.tokens, clock.parts["step"] + clock.parts["input_wait"]
        if self._count <= WARMING:
            self._mark = timed
        elif self._count == WARMING + STEPS:
            steps = (timed[0] - self._mark[0]) / tokens
            self._tell((timed[1] - self._mark[1]) / steps, self._seconds)
            self._seconds = None

    def _tell(self, measured: float, predicted: float) -> None:
        ratio = measured / predicted
        told = f"a step takes {measured:.4g} s, {ratio:.2f} of the {predicted:.4g} s predicted for {self._slice}"
        if abs(ratio - 1.0) > ERROR:
            told = f"WARNING: {told}: more than the {ERROR:.0%} that predictions are off by; --profile shows where"
        self._echo(told)


def _is_here(predicted: Mapping[str, Any]) -> bool:
    """Whether the prediction is for as many chips of this kind."""
    chip = chip_of(jax.devices()[0].device_kind)
    name = re.fullmatch(r"(?:\d+x)?([a-z]\w*?)[-:].*", str(predicted.get("slice")))
    return bool(chip and name and name[1] == chip.name and jax.device_count() == chip.devices * predicted["chips"])
