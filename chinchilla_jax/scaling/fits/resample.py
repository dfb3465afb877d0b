"""How is an interval made: which runs does a bootstrap replicate hold, or whose errors are drawn anew?

`PAPER`: Hoffmann et al. 2022, section 3.1 and Table 2: 100 subsets of 80% of the runs, without replacement, and the
10th and 90th percentile. Such subsets are too alike: the variance about the full fit is (1 / 0.8 - 1) = 1/4 of the
sampling variance, so intervals come out half as wide as they should. `FULL`: as many runs as there are, with
replacement (Efron 1979), the scheme to quote.

Where few runs stand behind each optimum, dropping a third of them changes the geometry of the fit more than the noise
does: with 7 sizes per budget the intervals of `FULL` are about twice too wide. `Residuals` keeps every run where it is
and draws its error anew.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Resampling:
    """`replicates` B; `fraction` None: n of n runs with replacement, else that share of them without replacement."""

    replicates: int = 1000
    fraction: float | None = None

    def weights(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """[B, size]: how often each of `size` runs occurs in each replicate."""
        if self.fraction is None:
            return rng.multinomial(size, np.full(size, 1.0 / size), size=self.replicates).astype(np.float64)
        keep = max(1, round(self.fraction * size))
        rank = rng.random((self.replicates, size)).argsort(1).argsort(1)
        return (rank < keep).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Residual bootstrap: `replicates` B sets of losses, each run's with a residual of some run added.

    Residuals come divided by sqrt(1 - leverage), as large as the noise. That is itself known from few degrees of
    freedom f: each replicate scales its draw by sqrt(f / chi2_f), so that percentiles are those of Student's t.
    """

    replicates: int = 1000

    def draw(self, residuals: np.ndarray, freedom: float, size: tuple, rng: np.random.Generator) -> np.ndarray:
        """Errors [B, *size] from `residuals` [k] with `freedom` degrees of freedom; zero where k is 0."""
        shape = (self.replicates, *size)
        if not len(residuals):
            return np.zeros(shape)
        scale = np.sqrt(freedom / rng.chisquare(freedom, self.replicates))
        return residuals[rng.integers(len(residuals), size=shape)] * scale.reshape(-1, *[1] * (len(shape) - 1))


@dataclasses.dataclass(frozen=True)
class MinimaScatter:
    """No resampling: `replicates` B draws of a law's constants from the scatter of the minima about it."""

    replicates: int = 1000


Scheme = Resampling | Residuals | MinimaScatter


@dataclasses.dataclass(frozen=True)
class Preset:
    """How an approach is carried out: by which `curve` it reads optima, where its intervals come from (None: there are
    none), and what it does otherwise than other presets, and why, a sentence each."""

    name: str
    curve: str
    resampling: Scheme | None
    differences: tuple[str, ...]


LEAST_NOISE = 1e-4  # relative; no evaluation of a loss is more exact
PAPER = Resampling(100, 0.8)
FULL = Resampling(1000)


def sized(residuals: np.ndarray, noise: float) -> np.ndarray:
    """The residuals times what makes their root mean square `noise`."""
    return residuals * noise / max(1e-300, float(np.sqrt((residuals**2).mean())))


def interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    """Central percentile interval of bootstrap samples [B], e.g. level 0.8 for the 10th to 90th percentile."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)
