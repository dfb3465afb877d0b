"""How far do runs differ that differ only in their seed?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def noise_of_repeats(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Relative standard deviation of one run, pooled over groups of losses, and its degrees of freedom.

    Args:
      groups: losses of runs that differ only in their seed, a group for each setting; single runs say nothing.

    Returns:
      (NaN, 0) where no run is repeated.
    """
    squares, freedom = 0.0, 0
    for losses in groups:
        mean = sum(losses) / max(1, len(losses))
        squares += sum((loss / mean - 1.0) ** 2 for loss in losses)
        freedom += max(0, len(losses) - 1)
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)
