"""How long does approach 3 take on the 240 points of Figure 4, beside a plain scipy loop?

    python -m tests.benchmarks.fit_speed

Ours: all 4500 starts of the paper and 4000 bootstrap fits, everything. Scipy: `minimize(method="L-BFGS-B")` with the
exact gradient, objective scaled by 1e3 and ftol 1e-12, so that it arrives as well (at its default tolerances few of the
starts do), on every 45th start and on 40 resamples, warm-started; its time is scaled to the whole.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.optimize

from chinchilla_jax.scaling.as_published import paper_objective
from chinchilla_jax.scaling.paper import figure_4
from chinchilla_jax.scaling.parametric import fit_parametric, fit_problem, paper_starts
from chinchilla_jax.scaling.resample import Resampling

STARTS_SUBSET, RESAMPLES, RESAMPLES_SUBSET, ROUNDS = 45, 4000, 40, 3


def main() -> None:
    """Prints seconds and the ratio, alternating the two."""
    runs = figure_4()
    problem = fit_problem(runs)
    starts = paper_starts()

    def scipy_fit(start: np.ndarray, weights: np.ndarray) -> scipy.optimize.OptimizeResult:
        options = {"ftol": 1e-12, "gtol": 1e-8, "maxiter": 5000, "maxfun": 20000}
        return scipy.optimize.minimize(paper_objective(problem, weights, 1e3), start, jac=True, method="L-BFGS-B",
                                       options=options)  # fmt: skip

    ratios = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        fit = fit_parametric(runs, resampling=Resampling(RESAMPLES))
        ours = time.perf_counter() - begin
        begin = time.perf_counter()
        ends = [scipy_fit(start, np.ones(len(runs))) for start in starts[::STARTS_SUBSET]]
        one_start = (time.perf_counter() - begin) / len(ends)
        best = min(ends, key=lambda end: end.fun)
        weights = Resampling(RESAMPLES_SUBSET).weights(len(runs), np.random.default_rng(0))
        begin = time.perf_counter()
        for row in weights:
            scipy_fit(best.x, row)
        one_resample = (time.perf_counter() - begin) / len(weights)
        loop = one_start * len(starts) + one_resample * RESAMPLES
        ratios.append(loop / ours)
        reached = np.mean([end.fun < 1e3 * fit.objective * 1.001 for end in ends])
        print(f"4500 starts and {RESAMPLES} bootstrap fits of {len(runs)} points: {ours:.1f} s here, "
              f"{fit.agreement:.0%} of the starts at the minimum; scipy loop {loop:.0f} s, from {len(ends)} starts at "
              f"{one_start * 1e3:.0f} ms, {reached:.0%} at the minimum, and {len(weights)} resamples at "
              f"{one_resample * 1e3:.0f} ms; ratio {loop / ours:.1f}", flush=True)  # fmt: skip
    print(f"ratio {np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f} in {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
