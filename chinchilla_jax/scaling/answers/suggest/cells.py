"""What is a further run, and how are the best of many chosen within a purse? Shared by the designs of `suggest`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

LEVEL = 0.95  # of the intervals


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run that could be trained: N, D, C in FLOPs, and the `budget` of its IsoFLOP profile, or None."""

    params: float
    tokens: float
    flops: float
    budget: float | None = None


class Design(Protocol):
    """What further runs would leave of the interval of a quantity, whatever their losses.

    `cells` are the candidates. Chosen runs are indices into them.
    """

    @property
    def cells(self) -> Sequence[Cell]: ...

    def half_width(self, chosen: Sequence[int]) -> float:
        """Half of the 95% interval once the chosen runs are in, relative to the quantity."""
        ...

    def choose(self, purse: float, count: int) -> list[int]:
        """At most `count` cells that cost at most `purse` FLOPs together, for the narrowest interval."""
        ...

    def in_order(self, chosen: Sequence[int]) -> list[int]:
        """The same cells, the largest narrowing per FLOP first."""
        ...

    def repeated(self, flops: float) -> float:
        """Half of the interval if the present runs were repeated, all alike, for `flops`."""
        ...

    def even_grid(self, chosen: Sequence[int]) -> float:
        """Half of the interval if the FLOPs of the chosen runs went to an even grid of budgets and sizes."""
        ...


def cost(cells: Sequence[Cell], chosen: Sequence[int]) -> float:
    """FLOPs of the chosen cells together."""
    return float(sum(cells[i].flops for i in chosen))


def added(covariance: np.ndarray, row: np.ndarray, noise: float = 1.0) -> np.ndarray:
    """The covariance of a linear regression's unknowns with one more run of row [p] (Sherman and Morrison 1950)."""
    along = covariance @ row
    return covariance - np.outer(along, along) / (noise + row @ along)
