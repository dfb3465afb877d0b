"""How far off are forecasts of runs under way, how often do their intervals hold, and how long does the verb take?

    python -m tests.benchmarks.forecasts --study=DIR [--study=DIR ...]
    python -m tests.benchmarks.forecasts --runs=TABLE [--curves=TABLE] [--columns=...]
    python -m tests.benchmarks.forecasts --speed

Curves of finished runs are cut off at 25, 50, 75 and 90% of the training. `all others`: each run in turn beside all
others, finished. `smaller budgets`: the runs of each budget together, and the held-out runs, beside those of the
smaller budgets only, as a study goes. Prints the mean relative error of the loss at the end, how often the 95% interval
holds and its half-width, beside baselines: the last line, the mean over the last eighth, that times end over level of
the nearest finished run in ln N and ln D, and that times what a regression of ln(end / level) on ln N and ln D gives.

--speed: wall time of the verbs `forecast` and `fit` (whole commands, in turn) on a table of 100 planted runs of which
10 are under way, and of the same rows, all finished.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from chinchilla_jax.scaling.answers.flight.forecast import forecast
from chinchilla_jax.scaling.answers.flight.law_at import law_at
from chinchilla_jax.scaling.read.in_flight import Running
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import Curve, Run
from chinchilla_jax.scaling.read.table.columns import parse_columns

SHARES = (0.25, 0.5, 0.75, 0.9)
METHODS = ("forecast", "last line", "last eighth", "neighbour", "regression")
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ROUNDS, PLANTED, UNDER_WAY = 5, 100, 10
Case = tuple[list[Run], list[Run]]  # finished, and under way


def cut(run: Run, share: float) -> Running:
    """The run at a share of its training; at least one line of its curve."""
    keep = run.curve.tokens <= share * run.tokens * (1.0 + 1e-9)
    keep[0] = True
    curve = Curve(run.curve.tokens[keep], run.curve.loss[keep])
    return Running(run.name, run.params, run.tokens, run.flops, curve, None, run.seed)


def cases(runs: Sequence[Run]) -> dict[str, list[Case]]:
    """Both settings; the second only where runs have budgets."""
    fitted = [run for run in runs if run.role == "isoflop" and run.curve is not None]
    held = [run for run in runs if run.role != "isoflop" and run.curve is not None]
    settings = {"all others": [([other for other in fitted if other is not run], [run]) for run in fitted]}
    budgets = sorted({run.budget for run in fitted if run.budget})
    steps = [([r for r in fitted if r.budget < c], [r for r in fitted if r.budget == c]) for c in budgets[1:]]
    if steps:
        settings["smaller budgets"] = steps + ([(fitted, held)] if held else [])
    return settings


def log_level(run: Run | Running, share: float, window: float) -> float:
    """ln of the mean loss over the lines of a window before a share; the last line where it holds none."""
    tokens, loss = run.curve.tokens, run.curve.loss
    before = tokens <= max(share * run.tokens * (1.0 + 1e-9), tokens[0])
    inside = before & (tokens > (share - window) * run.tokens)
    return float(np.log(loss[inside].mean() if inside.any() else loss[before][-1]))


def baselines(finished: Sequence[Run], run: Running, share: float) -> list[float]:
    """ln of the loss at the end by each baseline."""
    level = log_level(run, share, 0.125)
    away = np.log([[other.params / run.params, other.tokens / run.tokens] for other in finished])
    gains = np.array([np.log(other.loss) - log_level(other, share, 0.125) for other in finished])
    nearest = level + gains[int((away**2).sum(1).argmin())]
    basis = np.concatenate([np.ones((len(away), 1)), away], 1)
    regressed = level + float(np.linalg.lstsq(basis, gains, rcond=None)[0][0])
    return [log_level(run, share, 0.0), level, nearest, regressed]


def errors(setting: Sequence[Case]) -> Iterator[tuple[float, np.ndarray]]:
    """(share, [relative error of each method, whether the interval holds, its half-width]) of every forecast."""
    for finished, under_way in setting:
        law = law_at(finished)
        for share in SHARES:
            running = [cut(run, share) for run in under_way]
            for made, run, part in zip(forecast(finished, running, law), under_way, running, strict=True):
                logs = [np.log(made.loss), *baselines(finished, part, share)]
                off = [abs(np.exp(value) / run.loss - 1.0) for value in logs]
                yield share, np.array([*off, made.low <= run.loss <= made.high, (made.high - made.low) / made.loss / 2])


def show(name: str, results: dict[str, list[tuple[float, np.ndarray]]]) -> None:
    """Prints the tables of one or several sources."""
    for setting, pairs in results.items():
        print(f"{name}, finished: {setting}; {len(pairs) // len(SHARES)} runs")
        means = np.array([np.mean([row for share, row in pairs if share == at], axis=0) for at in SHARES])
        for label, column in zip((*METHODS, "holds", "half-width"), means.T, strict=True):
            digits = 0 if label == "holds" else 2
            print(f"  {label:12}" + "".join(f"{value:9.{digits}%}" for value in column), flush=True)


def speed() -> None:
    """Prints the wall time of `forecast` and of `fit`, in turn."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="forecasts"))
    rng, rows, lines = np.random.default_rng(0), [], []
    for k in range(PLANTED):
        budget = (1e18, 3e18, 1e19, 3e19, 1e20)[k % 5]
        params = (budget / 120) ** 0.5 * 1.25 ** (k // 5 - 9.5)
        tokens = budget / 6 / params
        at = np.linspace(0.005, 1.0, 200) * tokens
        loss = (1.8 + 480 / params**0.34 + 2000 / at**0.36) * np.exp(0.01 * rng.standard_normal(200))
        done, state = (200, "finished") if k < PLANTED - UNDER_WAY else (120, "running")
        lines += [(f"run{k}", f"{x:.6g}", f"{y:.5f}") for x, y in zip(at[:done], loss[:done], strict=True)]
        rows.append((f"run{k}", f"{params:.6g}", f"{tokens:.6g}", f"{budget:g}", f"{loss[-1]:.5f}", state))
    for name, header, table in (
        ("finished.csv", "name params tokens budget loss", [row[:5] for row in rows]),
        ("running.csv", "name params tokens budget loss state", rows),
        ("curves.csv", "run tokens loss", lines),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header.split(), *table])
    curves = f"--curves={folder / 'curves.csv'}"
    verbs = {
        "forecast": ["forecast", f"--runs={folder / 'running.csv'}", curves],
        "fit": ["fit", f"--runs={folder / 'finished.csv'}", curves],
    }
    seconds: dict[str, list[float]] = {name: [] for name in verbs}
    for _ in range(ROUNDS):
        for name, words in verbs.items():
            begin = time.perf_counter()
            command = [sys.executable, "-m", "chinchilla_jax", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(f"{PLANTED} curves of 200 lines: " + ", ".join(f"{name} {value:.2f} s" for name, value in medians.items()))
    print(f"forecast takes {medians['forecast'] / medians['fit']:.2f} times the wall time of fit")


def main() -> None:
    """Prints the figures of every source, and of all studies together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="append", default=[])
    parser.add_argument("--runs", action="append", default=[])
    parser.add_argument("--curves")
    parser.add_argument("--columns", default="")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--output", help="also write every error there, as JSON")
    values = parser.parse_args()
    if values.speed:
        speed()
    everything: dict[str, list[tuple[float, np.ndarray]]] = {}
    sources = [load_runs(study) for study in values.study]
    sources += [load_runs(runs, columns=parse_columns(values.columns), curves=values.curves) for runs in values.runs]
    for loaded in sources:
        results = {setting: list(errors(setting_cases)) for setting, setting_cases in cases(loaded.runs).items()}
        show(loaded.source, results)
        for setting, pairs in results.items():
            everything.setdefault(setting, []).extend(pairs)
    if len(sources) > 1:
        show(f"all {len(sources)}", everything)
    if values.output:
        record = {setting: [[share, row.tolist()] for share, row in pairs] for setting, pairs in everything.items()}
        pathlib.Path(values.output).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
