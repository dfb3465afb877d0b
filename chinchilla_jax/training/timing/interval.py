"""How often is a run to be saved, and what share of its time is left for training? By how often it is interrupted.

Notation, all in seconds: C, what a save takes away from training (of an asynchronous one the copy that steps wait for);
tau, training between two saves; M, mean time between interruptions; R, from an interruption to the first new step; U,
from a save's call to its commit. Interruptions come at random, at a constant rate.
"""

from __future__ import annotations

import math

SAVE_SECONDS = 3.0  # C, where it was not measured
RESTART_SECONDS = 900.0  # R: a new slice, its environment, restoring, compiling
LIFE_SECONDS = 12 * 3600.0  # M of a preemptible slice, where it was not measured


def young(save: float, life: float) -> float:
    """Young's interval tau = sqrt(2 C M) (Young 1974, Communications of the ACM 17).

    Raises:
      ValueError: a time is not positive.
    """
    _positive(save, life)
    return math.sqrt(2.0 * save * life)


def daly(save: float, life: float) -> float:
    """Daly's interval of higher order (Daly 2006, Future Generation Computer Systems 22): M where a save takes 2 M or
    more.

    Raises:
      ValueError: a time is not positive.
    """
    _positive(save, life)
    if save >= 2.0 * life:
        return life
    share = save / (2.0 * life)
    return math.sqrt(2.0 * save * life) * (1.0 + math.sqrt(share) / 3.0 + share / 9.0) - save


def goodput(
    interval: float, save: float, life: float, restart: float = RESTART_SECONDS, uncommitted: float = 0.0
) -> float:
    """Share of the time that trains, to first order: 1 - C/tau - (tau/2 + U + R)/M, and no less than 0.

    After an interruption half an interval is done again on average, and what was not committed; R does not move the
    best interval, but decides what is left of the time once saves are cheap.

    Raises:
      ValueError: interval, save or life is not positive.
    """
    _positive(interval, save, life)
    return max(0.0, 1.0 - save / interval - (interval / 2.0 + uncommitted + restart) / life)


def gang_life(life: float, machines: int) -> float:
    """M of `machines` that train one run together, each of mean life `life`: the first that goes stops all."""
    _positive(life, machines)
    return life / machines


def _positive(*values: float) -> None:
    if not all(0.0 < value < math.inf for value in values):
        raise ValueError(f"times must be positive and finite, got {', '.join(f'{value:g}' for value in values)}")
