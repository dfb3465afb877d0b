"""How long does approach 3 take on the 240 points of Figure 4, beside a plain scipy loop, and the verb `fit` in all?

    python -m tests.benchmarks.fit_speed

Ours: all 4500 starts of the paper and 4000 bootstrap fits, everything. Scipy: `minimize(method="L-BFGS-B")` with the
exact gradient, objective scaled by 1e3 and ftol 1e-12, so that it arrives as well (at its default tolerances few of the
starts do), on every 45th start and on 40 resamples, warm-started; its time is scaled to the whole. Both sides compute
with one BLAS thread: on a busy machine its threads wait for each other, and the loop's are the ones that do.

The verb, with and without 1000 replicates, is timed as a process beside one that only imports numpy and scipy.optimize,
in turn.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import scipy.optimize

import chinchilla_jax
from chinchilla_jax.scaling.fits.approach3.as_published import paper_objective
from chinchilla_jax.scaling.fits.approach3.parametric import SurfaceProblem, fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.resample import Resampling
from chinchilla_jax.scaling.report.paper import figure_4

TABLES = pathlib.Path(chinchilla_jax.__file__).parent / "tables"
STARTS_SUBSET, RESAMPLES, RESAMPLES_SUBSET, ROUNDS = 45, 4000, 40, 3


ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def pin() -> None:
    """Starts this process again with one BLAS thread, which is decided when numpy is imported."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks.fit_speed"], os.environ | ONE_THREAD)


def verb() -> None:
    """Prints how many times the import of numpy and scipy.optimize the verb `fit` takes, medians of five turns."""
    fit = ["-m", "chinchilla_jax", "fit", f"--runs={TABLES / 'chinchilla_fig4_points.csv'}"]
    commands = {
        "import": ["-c", "import numpy, scipy.optimize"],
        "fit, no intervals": [*fit, "--replicates=0"],
        "fit, 1000 replicates": fit,
    }
    seconds = {name: [] for name in commands}
    for _ in range(5):
        for name, arguments in commands.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:22} {value:5.2f} s, {value / median['import']:4.1f} times the import")


def main() -> None:
    """Prints seconds and the ratio, alternating the two."""
    pin()
    verb()
    runs = figure_4()
    problem = SurfaceProblem(runs)
    starts = paper_starts()

    def scipy_fit(start: np.ndarray, weights: np.ndarray) -> scipy.optimize.OptimizeResult:
        options = {"ftol": 1e-12, "gtol": 1e-8, "maxiter": 5000, "maxfun": 20000}
        return scipy.optimize.minimize(
            paper_objective(problem, weights, 1e3), start, jac=True, method="L-BFGS-B", options=options
        )

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
        print(
            f"4500 starts and {RESAMPLES} bootstrap fits of {len(runs)} points: {ours:.1f} s here, "
            f"{fit.agreement:.0%} of the starts at the minimum; scipy loop {loop:.0f} s, from {len(ends)} starts at "
            f"{one_start * 1e3:.0f} ms, {reached:.0%} at the minimum, and {len(weights)} resamples at "
            f"{one_resample * 1e3:.0f} ms; ratio {loop / ours:.1f}",
            flush=True,
        )
    print(f"ratio {np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f} in {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
