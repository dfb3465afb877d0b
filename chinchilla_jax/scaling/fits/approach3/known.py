"""Do these runs determine the constants of approach 3 at all, or only the loss near themselves?

With D = k N throughout the loss is a function of N alone, and A N^-alpha cannot be told from B (k N)^-beta: the
condition number of what the runs say of A and B grows as the inverse square of alpha - beta (arXiv 2605.08541), as

    4 / ((alpha - beta)^2 Var(ln N))

for small gaps, the variance weighted by the product of the terms (`on_a_ray`). Near such a ray, or over a small range
of budgets, the constants are there but noise carries them far. A condition number alone does not say how far: that
depends on the noise and on the number of runs too. So what is judged is how far alpha, beta and the two terms are
known: the standard deviations that the runs' information matrix implies at the fitted law, at the noise at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from chinchilla_jax.scaling.fits.surface import Surface

# Standard deviations of an exponent beyond which constants mean nothing: a third of it, where the 95% interval begins
# at a third of it and ends at nearly twice. One that is small anyway may be off by so much: over a factor 1000 in N or
# D its term then comes out within a factor 2 (95%).
_SHARE, _LEAST = 1.0 / 3.0, 0.05
_TERM = 0.5  # of ln A and ln B: each term is known to a factor e (95%)
_LEVEL_95 = 1.96
_MORE = 1.15  # either way, of ln C or ln D/N, together a factor 10: which of the two spreads would help more?
_NAMES = ("ln A", "ln B", "ln E", "alpha", "beta")


@dataclasses.dataclass(frozen=True)
class Known:
    """How well runs determine the constants of a law.

    `deviations` are implied standard deviations of alpha, beta, and of ln A, ln B and ln E of the terms at the middle
    of the runs. `condition` is the condition number of the runs' information on A, B, alpha and beta, each scaled to
    its own; `on_ray` that on A and B alone if the runs had one D/N. `why` says what is missing; empty if nothing is.
    """

    deviations: Mapping[str, float]
    condition: float
    on_ray: float
    why: str

    @property
    def determined(self) -> bool:
        """Whether the constants may be shown."""
        return not self.why


def known(law: Surface, params: np.ndarray, tokens: np.ndarray, noise: float, tied: bool = False) -> Known:
    """How well runs of N and D [n] determine the law, at a relative `noise` of one run; `tied`: alpha = beta."""
    params, tokens = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
    slopes = _slopes(law, params, tokens)
    deviations = _deviations(slopes, noise, tied)
    scaled = slopes[:, [0, 1, 3, 4]] / np.maximum(np.linalg.norm(slopes[:, [0, 1, 3, 4]], axis=0), 1e-300)
    with np.errstate(divide="ignore"):
        condition = float(np.linalg.cond(scaled) ** 2)
    ratio = float(np.exp(np.log(tokens / params).mean()))
    return Known(
        deviations, condition, on_a_ray(law, params, ratio), _why(law, params, tokens, noise, tied, deviations)
    )


def on_a_ray(law: Surface, params: np.ndarray, ratio: float) -> float:
    """Condition number of the information on A and B if D were `ratio` N throughout; infinite if alpha = beta.

    The unit columns of the two differ by a factor N^(alpha - beta): with g its logarithm's standard deviation, weighted
    by the product of the columns, their cosine is 1 - g^2 / 2, and the condition number (1 + cosine) / (1 - cosine).
    """
    x, slopes = np.log(params), law.slopes(params, ratio * params)
    weight = slopes[:, 0] * slopes[:, 1] / (slopes[:, 0] * slopes[:, 1]).sum()
    gap = float((law.alpha - law.beta) ** 2 * (weight * (x - weight @ x) ** 2).sum())
    return 4.0 / gap if gap > 0.0 else np.inf


def _slopes(law: Surface, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return law.slopes(params, tokens, (float(np.log(params).mean()), float(np.log(tokens).mean())))


def _deviations(slopes: np.ndarray, noise: float, tied: bool) -> dict[str, float]:
    """Standard deviations by name; infinite of what is not measured. E of a law without one is taken as known."""
    if tied:
        slopes = np.column_stack([slopes[:, :3], slopes[:, 3] + slopes[:, 4]])
    length = np.linalg.norm(slopes, axis=0)
    there = length > 1e-9 * length.max()
    _, values, vectors = np.linalg.svd(slopes[:, there] / length[there], full_matrices=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(values > 1e-12 * values[0], 1.0 / values, np.inf)
        spread = np.nan_to_num(np.abs(vectors.T) * reach, nan=0.0, posinf=np.inf)
    deviations = np.full(len(length), np.inf)
    deviations[2] = 0.0
    deviations[there] = noise * np.sqrt((spread**2).sum(1)) / length[there]
    if tied:
        deviations = np.append(deviations, deviations[3])
    return dict(zip(_NAMES, deviations.tolist(), strict=True))


def _excess(law: Surface, deviations: Mapping[str, float]) -> float:
    """The largest standard deviation over what is allowed of it."""
    allowed = {"alpha": max(_SHARE * float(law.alpha), _LEAST), "beta": max(_SHARE * float(law.beta), _LEAST)}
    return max(deviations[name] / limit for name, limit in (allowed | {"ln A": _TERM, "ln B": _TERM}).items())


def _why(
    law: Surface, params: np.ndarray, tokens: np.ndarray, noise: float, tied: bool, deviations: Mapping[str, float]
) -> str:
    if _excess(law, deviations) <= 1.0:
        return ""
    log_flops, log_ratio = np.log(params) + np.log(tokens), np.log(tokens) - np.log(params)

    def widened(flops: float, ratio: float) -> float:
        """The excess of as many runs, half of them with so much more ln C or ln D/N and half with so much less."""
        c, r = (np.append(x - more, x + more) for x, more in ((log_flops, flops), (log_ratio, ratio)))
        n, d = np.exp(0.5 * (c - r)), np.exp(0.5 * (c + r))
        return _excess(law, _deviations(_slopes(law, n, d), np.sqrt(2.0) * noise, tied))

    alpha, beta = (f"{name} +-{_LEVEL_95 * deviations[name]:.2g}" for name in ("alpha", "beta"))
    if widened(0.0, _MORE) <= widened(_MORE, 0.0):
        missing = (
            f"D/N differs by a factor {np.exp(np.ptp(log_ratio)):.3g} only: train some sizes on other token counts"
        )
    else:
        missing = f"C differs by a factor {np.exp(np.ptp(log_flops)):.3g} only: train at further budgets"
    terms = " and ".join(f"{np.exp(_LEVEL_95 * min(deviations[name], 99.0)):.2g}" for name in ("ln A", "ln B"))
    reach = f"they are known to {alpha} and {beta}, and the two terms to factors {terms} (95%)"
    return f"at {noise:.2%} noise {reach}; {missing}"
