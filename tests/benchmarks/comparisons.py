"""How good are compute-equivalent gains? Planted ones on the cells of the `cpu` study, and arms that are the same.

    python -m tests.benchmarks.comparisons [--worlds=200] [--noise=0.004]

1. A law in the place of the study's, a second arm that reaches with C what the first needs `gain` times C for, errors
   of the runs with the scatter `noise` and a correlation between the arms of one cell: bias of ln(gain) in
   half-widths, how often the 95% interval holds the planted gain, its half-width, and that without pairing; how often
   the arms are called different at the target (with a gain of 1: wrongly).
2. The five seeds of the `cpu` study against each other: how often the interval holds a gain of 1.
3. The wall time of `compare` for two tables of 100 runs, beside that of `fit` of both tables in one.
"""

import argparse
import csv
import dataclasses
import itertools
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from chinchilla_jax.scaling.answers.compare.compare import compare
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
from chinchilla_jax.scaling.predict.foresight import scaled
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import LoadedRuns, flops_per_token

STUDIES = pathlib.Path(__file__).parent / "tables"
COLUMNS = {"params": "N", "tokens": "D", "loss": "loss", "flops": "C"}


class Worlds:
    """The cells of a study under a law with the irreducible share `share` at the middle budget."""

    def __init__(self, share: float):
        self.cells = list(load_runs(STUDIES / "cpu_seed0.csv").role("isoflop"))
        self.per_token = flops_per_token(self.cells)
        fit = fit_isoflop(self.cells, preset=CORRECTED, resampling=None)
        middle, self.largest = 1.28e12, fit.profiles[-1].budget
        optimum, exponent = float(fit.params_law.at(middle)), float(fit.params_law.exponent)
        shape = {"loss": 2.9, "irreducible": 2.9 * share, "fall": 0.08 / (1.0 - share)}
        self.law = scaled(self.cells, optimum, exponent, middle, **shape)

    def arms(self, rng, gain: float, noise: float, correlation: float) -> dict[str, LoadedRuns]:
        shared = rng.standard_normal(len(self.cells))
        arms = {}
        for name, factor in (("plain", 1.0), ("other", gain)):
            error = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.standard_normal(len(shared))
            runs = []
            for run, e in zip(self.cells, noise * error, strict=True):
                params = run.params * factor**0.5
                tokens = factor * run.budget / float(self.per_token(np.array(params)))
                loss = float(self.law.loss(params, tokens)) * math.exp(e)
                runs.append(dataclasses.replace(run, loss=loss))
            arms[name] = LoadedRuns(name, tuple(runs), (), COLUMNS, "executed")
        return arms


def planted(share: float, correlation: float, gain: float, noise: float, count: int) -> str:
    worlds, rng, rows, different = Worlds(share), np.random.default_rng(1), {"target": [], "budgets": []}, 0
    for _ in range(count):
        arm = compare(worlds.arms(rng, gain, noise, correlation), budget=4 * worlds.largest).arms[1]
        half_alone = 0.5 * math.log(arm.unpaired_95[1] / arm.unpaired_95[0])
        rows["target"].append((*_logs(arm.target), half_alone))
        rows["budgets"] += [(*_logs(measured), math.nan) for measured in arm.budgets]
        different += not arm.target.factor_95[0] <= 1.0 <= arm.target.factor_95[1]
    line = f"{share:4.2f} {correlation:11.2f} {gain:5.2f}"
    for values in rows.values():
        low, middle, high, alone = np.array(values).T
        half, planted_gain = 0.5 * (high - low).mean(), math.log(gain)
        holds = ((low <= planted_gain) & (planted_gain <= high)).mean()
        line += f" | {holds:7.1%} {half:8.3f} {(middle.mean() - planted_gain) / half:+8.2f}"
        if not np.isnan(alone).all():
            line += f" {np.median(alone):9.3f}"
    return line + f" | {different / count:9.1%}"


def _logs(measured) -> tuple[float, float, float]:
    return math.log(measured.factor_95[0]), math.log(measured.factor), math.log(measured.factor_95[1])


def same_recipe() -> None:
    arms = {path.stem: load_runs(path) for path in sorted(STUDIES.glob("cpu_seed*.csv"))}
    held, count, at_target = 0, 0, []
    for pair in itertools.combinations(arms, 2):
        arm = compare({name: arms[name] for name in pair}).arms[1]
        held += sum(measured.factor_95[0] <= 1.0 <= measured.factor_95[1] for measured in arm.budgets)
        count += len(arm.budgets)
        at_target.append((arm.target.factor_95[0] <= 1.0 <= arm.target.factor_95[1], arm.target.factor))
    print(f"seeds of the cpu study, pairs: interval at a budget holds 1 in {held} of {count}, at the target in "
          f"{sum(holds for holds, _ in at_target)} of {len(at_target)}; gains there "
          f"{min(f for _, f in at_target):.3f} to {max(f for _, f in at_target):.3f}")  # fmt: skip


def speed(rounds: int = 3) -> None:
    rng, ratios = np.random.default_rng(0), []
    cells = [(c, 1.35 ** (i - 4.5)) for c in np.geomspace(1e18, 1e21, 10) for i in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("one.csv", "other.csv", "both.csv")]
        for path, copies in zip(paths, (1, 1, 2), strict=True):
            with path.open("w") as file:
                rows = csv.writer(file)
                rows.writerow(["params", "tokens", "loss", "flops", "budget"])
                for c, factor in cells * copies:
                    n = 0.08 * c**0.5 * factor
                    d = c / 6 / n
                    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * math.exp(0.003 * rng.standard_normal())
                    rows.writerow([n, d, loss, c, c])
        commands = (["fit", f"--runs={paths[2]}"], ["compare", str(paths[0]), str(paths[1])])
        for _ in range(rounds):
            seconds = []
            for command in commands:
                start = time.perf_counter()
                words = [sys.executable, "-m", "chinchilla_jax", *command]
                subprocess.run(words, check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
    print("wall time of compare (two tables of 100 runs, 1000 paired draws) over fit of the same 200 rows: "
          + ", ".join(f"{ratio:.2f}" for ratio in ratios))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.004)
    args = parser.parse_args()
    print(f"{args.worlds} worlds, noise {args.noise:.2%}; half-widths and bias of ln(gain), bias in half-widths")
    print("E/L  correlation  gain | target: holds, half, bias, unpaired half | budgets: holds, half, bias | called "
          "different at the target")  # fmt: skip
    for share in (0.6, 0.35):
        for correlation in (0.0, 0.5, 0.9):
            for gain in (1.0, 1.05, 1.2, 2.0):
                print(planted(share, correlation, gain, args.noise, args.worlds), flush=True)
    same_recipe()
    speed()


if __name__ == "__main__":
    main()
