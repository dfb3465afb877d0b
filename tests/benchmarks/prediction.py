"""How far off are predictions of runs that were trained and hidden? For every IsoFLOP table in the repository.

    python -m tests.benchmarks.prediction [--draws=200] [--parts=hidden,shapes,perturbed,planted]

1. Each budget that has two or more below it is hidden in turn: `next` is the budget after the fitted ones, `4 -> 4x` a
   budget 3 to 6 times the largest of four neighbouring ones, `ahead` 10 to 300 times the largest of all below. Then
   the same by family of tables: what other forms and penalties gain beside the plain surface.
2. How far minima scatter about their line, and how curved profiles are; the losses of this project's studies
   perturbed.
3. Planted laws with more and less irreducible loss.
4. Widths of a sweep: planted surfaces, seven sizes within 1.5 to 16 times the guessed N*, which is off by up to a
   factor 2. Near sizes tell the minimum, far ones where it is not.

Truth is the minimum of a parabola through the five runs about the lowest of the hidden budget. Errors are relative
errors of the loss. Beside our approaches stand two plain baselines: parabolas through all runs with E + k C^-g through
their minima by scipy, and a Huber fit of E + A/N^alpha + B/D^beta by scipy. Surfaces are fitted to all runs, and to
those `near` the minimum of their budget: within 5% of its lowest loss, and the two sizes on either side.
"""

import argparse
import csv
import pathlib
import sys
import warnings
from collections import defaultdict

import numpy as np
from scipy.optimize import curve_fit, minimize

import chinchilla_jax
from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.minimise import ASYMMETRIC_HUBER, HUBER
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws.coupled import fit_coupled
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, Run

TABLES = pathlib.Path(chinchilla_jax.__file__).parent / "tables"
STUDIES = pathlib.Path(__file__).parent / "tables"
SETTING = ("hparams", "warmup", "decay", "param_count", "split")
STARTS = paper_starts()[::45]
FAMILIES = {"figure 4": "Figure 4", "owt2": "Porian et al.", "cpu": "cpu studies"}  # by the start of a table's name
BRIEF = ("4 -> 4x", "next, largest")  # kinds that every method is asked; the others only the recommended one
KINDS = (("4 -> 4x", 3, 6), ("10x ahead", 7, 15), ("30x ahead", 20, 45), ("100x+ ahead", 70, 450))


def tables() -> dict[str, dict[float, list[Run]]]:
    """Runs by budget, by table; budgets with fewer than four sizes are left out."""
    runs_of = {"figure 4": [r for r in load_runs(TABLES / "chinchilla_fig4_points.csv").runs if r.budget]}
    for row in csv.DictReader((TABLES / "porian_owt2_points.csv").open()):
        n, d, c = float(row["n"]), float(row["tokens"]), float(row["flops"])
        name = "owt2 " + " ".join(row[key] for key in SETTING)
        runs_of.setdefault(name, []).append(Run(name, n, d, c, float(row["loss"]), c))
    for path in sorted(STUDIES.glob("*.csv")):
        runs_of[path.stem] = list(load_runs(path).role("isoflop"))
    return {name: _by_budget(runs) for name, runs in runs_of.items()}


def _by_budget(runs) -> dict[float, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[run.budget].append(run)
    return {c: groups[c] for c in sorted(groups) if len({run.params for run in groups[c]}) >= 4}


def truth(runs: list[Run]) -> tuple[float, float] | None:
    """(N*, L*) of a hidden budget, None where its lowest run is at an edge."""
    runs = sorted(runs, key=lambda run: run.params)
    x, y = np.log([run.params for run in runs]), np.array([run.loss for run in runs])
    i = int(y.argmin())
    if len(runs) < 5 or i in (0, len(runs) - 1):
        return None
    low = max(0, min(i - 2, len(y) - 5))
    second, first, constant = np.polyfit(x[low : low + 5] - x[i], y[low : low + 5], 2)
    if second <= 0:
        return None
    return float(np.exp(x[i] - first / (2 * second))), float(constant - first**2 / (4 * second))


def recommended(runs: list[Run], budget: float):
    """(loss, N*, interval) of approach 2, which is recommended."""
    fit = fit_isoflop(runs, preset=CORRECTED, resampling=None)
    return fit.loss_law.at(budget), float(fit.params_law.at(budget)), fit.loss_law.interval(budget, 0.95)


def surface(runs: list[Run], budget: float, misfit=HUBER):
    """Approach 3."""
    fit = fit_parametric(runs, misfit=misfit, starts=STARTS, resampling=None)
    params, _, loss = fit.surface.optimum(budget, per_token(runs))
    return float(loss), float(params), None


def asymmetric(runs: list[Run], budget: float):
    """Approach 3 with losses predicted too high counted ten times."""
    return surface(runs, budget, ASYMMETRIC_HUBER)


def skaling(runs: list[Run], budget: float):
    """E + A (N^-alpha + R D^-beta)^k."""
    return _coupled(runs, budget, "skaling")


def saturating(runs: list[Run], budget: float):
    """E + (L0 - E) h / (1 + h)."""
    return _coupled(runs, budget, "saturating")


def _coupled(runs: list[Run], budget: float, name: str):
    params, _, loss = fit_coupled(runs, name).optimum(budget, per_token(runs))
    return loss, params, None


def near(runs: list[Run]) -> list[Run]:
    """The runs near the minimum of their budget."""
    kept = []
    for profile in _by_budget(runs).values():
        profile = sorted(profile, key=lambda run: run.params)
        lowest = min(range(len(profile)), key=lambda i: profile[i].loss)
        limit = 1.05 * profile[lowest].loss
        kept += [run for i, run in enumerate(profile) if run.loss <= limit or abs(i - lowest) <= 2]
    return kept


def of_near(method):
    """The method on the runs near their minima."""
    return lambda runs, budget: method(near(runs), budget)


def parabolas(runs: list[Run], budget: float):
    """Baseline: a parabola through all runs of a budget, E + k C^-g through the minima."""
    c, best, low = [], [], []
    for flops, profile in _by_budget(runs).items():
        x = np.log([run.params for run in profile])
        second, first, constant = np.polyfit(x - x.mean(), [run.loss for run in profile], 2)
        if second > 0:
            c.append(flops)
            best.append(x.mean() - first / (2 * second))
            low.append(constant - first**2 / (4 * second))
    x, low = np.log(c) - np.log(c[-1]), np.array(low)
    start = (0.6 * low[-1], 0.4 * low[-1], 0.15)
    (e, k, g), _ = curve_fit(lambda x, e, k, g: e + k * np.exp(-g * x), x, low, start, bounds=(0, np.inf))
    ahead = np.log(budget) - np.log(c[-1])
    return float(e + k * np.exp(-g * ahead)), float(np.exp(np.polyval(np.polyfit(x, best, 1), ahead))), None


def huber(runs: list[Run], budget: float):
    """Baseline: Hoffmann et al.'s objective by scipy, from a few starts."""
    n, d, y = (np.log([getattr(run, key) for run in runs]) for key in ("params", "tokens", "loss"))

    def objective(theta):
        a, b, e, alpha, beta = theta
        left = np.logaddexp.reduce([a - alpha * n, b - beta * d, np.full_like(n, e)]) - y
        size = np.abs(left)
        return np.where(size < 1e-3, 0.5 * left**2, 1e-3 * (size - 0.5e-3)).sum()

    starts = [(a, b, e, p, p) for a in (4, 8) for b in (4, 8) for e in (0.0, 0.7) for p in (0.3, 0.5)]
    best = min((minimize(objective, s, method="BFGS") for s in starts), key=lambda r: r.fun)
    a, b, e, alpha, beta = best.x
    sizes = np.geomspace(min(np.exp(n)) / 30, max(np.exp(n)) * 1000, 4000)
    tokens = budget / (per_token(runs) * sizes)
    loss = np.exp(e) + np.exp(a) * sizes**-alpha + np.exp(b) * tokens**-beta
    return float(loss.min()), float(sizes[loss.argmin()]), None


SURFACES = {
    "approach 3": surface,
    "asymmetric penalty": asymmetric,
    "Skaling": skaling,
    "saturating": saturating,
}
METHODS = {
    "recommended": recommended,
    **SURFACES,
    **{f"{name}, near": of_near(method) for name, method in SURFACES.items()},
    "parabola + offset": parabolas,
    "Huber, scipy": huber,
}


def per_token(runs: list[Run]) -> float:
    """C = per_token N D of a table: the median."""
    return float(np.median([run.flops / (run.params * run.tokens) for run in runs]))


def cases(groups: dict[float, list[Run]]):
    """(kind, runs fitted, hidden budget, truth)."""
    budgets = list(groups)
    for i in range(2, len(budgets)):
        known = truth(groups[budgets[i]])
        if known is None:
            continue
        if i >= 3:
            yield ("next, largest" if i == len(budgets) - 1 else "next"), budgets[:i], budgets[i], known
        for kind, low, high in KINDS:
            count = 4 if kind == "4 -> 4x" else 6
            fits = [j for j in range(count, i + 1) if low <= budgets[i] / budgets[j - 1] <= high]
            if fits:
                j = min(fits, key=lambda j: abs(np.log(budgets[i] / budgets[j - 1] / np.sqrt(low * high))))
                yield kind, budgets[j - count : j], budgets[i], known


def line(name: str, rows: list[tuple]) -> str:
    """One method's row: rows are (relative error, ln of the factor in N, held or None, half-width)."""
    error = np.abs([row[0] for row in rows])
    factor = np.abs([row[1] for row in rows])
    text = (
        f"{name:28} {len(rows):4} {error.mean():7.2%} {np.median(error):7.2%} {np.mean(error < 0.01):5.0%} "
        f"{np.mean(error < 0.015):5.0%} {np.mean(factor < np.log(1.3)):6.0%}"
    )
    if rows[0][2] is not None:
        text += f" {np.mean([row[2] for row in rows]):6.1%} {np.mean([row[3] for row in rows]):6.2%}"
    return text


def compared(predicted: float, params: float, span, known: tuple[float, float]) -> tuple:
    """A row of `line`, given what was predicted and the truth."""
    size, loss = known
    held = span and span[0] <= loss <= span[1]
    return predicted / loss - 1, np.log(params / size), held, span and (span[1] - span[0]) / 2 / predicted


def family(table: str) -> str:
    """Of a table, by its name."""
    return next(words for start, words in FAMILIES.items() if table.startswith(start))


def hidden(runs_of: dict[str, dict[float, list[Run]]]) -> None:
    """Part 1."""
    rows, by_table, errors = defaultdict(list), defaultdict(list), defaultdict(dict)
    for name, groups in runs_of.items():
        for kind, fitted, budget, known in cases(groups):
            runs = [run for c in fitted for run in groups[c]]
            for method, predict in METHODS.items():
                if method != "recommended" and kind not in BRIEF:
                    continue
                try:
                    row = compared(*predict(runs, budget), known)
                except (FitRefused, RuntimeError, ValueError):
                    continue
                rows[kind, method].append(row)
                errors[kind, method, family(name)][name, budget] = abs(row[0])
                if method == "recommended":
                    by_table[name].append(row)
        print(f"{name}: done", file=sys.stderr, flush=True)
    head = f"{'':28} {'n':>4} {'mean':>7} {'median':>7} {'<1%':>5} {'<1.5%':>5} {'N<1.3':>6} {'holds':>6} {'width':>6}"
    for kind in dict.fromkeys(kind for kind, _ in rows):
        print(f"\n{kind}\n{head}")
        for method in METHODS:
            if rows[kind, method]:
                print(line(method, rows[kind, method]))
    print(f"\nrecommended, by table\n{head}")
    for name, rows_of_table in by_table.items():
        print(line(name[-28:], rows_of_table))
    gains(errors)


def gains(errors: dict[tuple[str, str, str], dict[tuple[str, float], float]]) -> None:
    """Mean error by family; of the cases that both answer, those where a method is nearer the truth than approach 3."""
    for kind in BRIEF:
        print(f"\n{kind}, by family: mean error, cases nearer the truth than approach 3 on all runs")
        print(f"{'':28}" + "".join(f"{words:>22}" for words in FAMILIES.values()))
        for method in METHODS:
            text = ""
            for words in FAMILIES.values():
                some, plain = errors[kind, method, words], errors[kind, "approach 3", words]
                nearer = [some[case] < plain[case] for case in some if case in plain]
                text += f"{np.mean([*some.values()]):14.2%} {sum(nearer):3}/{len(nearer):<3}" if some else f"{'-':>22}"
            print(f"{method:28}{text}")


def shapes(runs_of: dict[str, dict[float, list[Run]]]) -> None:
    """What the priors of `near_minimum` and `fit_optimum` stand for, in each table."""
    print("\nby table: scatter of ln N* about its line in ln C, and the middle curvature of the profiles, relative")
    for name, groups in runs_of.items():
        fit = fit_isoflop([run for profile in groups.values() for run in profile], preset=CORRECTED, resampling=None)
        x, y = np.log([(p.budget, p.params.best) for p in fit.profiles]).T
        left = y - np.polyval(np.polyfit(x, y, 1), x)
        curvature = np.median([p.params.curvature / p.params.lowest for p in fit.profiles])
        print(f"{name[-28:]:28} {np.sqrt((left**2).sum() / (len(x) - 2)):6.3f} {curvature:6.3f}")


def perturbed(runs_of: dict[str, dict[float, list[Run]]], draws: int) -> None:
    """Part 2: the truth is the fit to the losses as they are."""
    print("\nown studies, losses perturbed: noise, within 1.5% of the unperturbed answer, interval holds it")
    for name, groups in runs_of.items():
        if not name.startswith("cpu"):
            continue
        runs, text = [run for profile in groups.values() for run in profile], ""
        budget = 4.0 * max(groups)
        middle = recommended(runs, budget)[0]
        for noise in (0.0025, 0.006):
            rng, rows = np.random.default_rng(0), []
            for _ in range(draws):
                luck = np.exp(noise * rng.standard_normal(len(runs)))
                moved = [Run(r.name, r.params, r.tokens, r.flops, r.loss * e, r.budget) for r, e in zip(runs, luck)]  # noqa: B905
                predicted, _, (low, high) = recommended(moved, budget)
                rows.append((abs(predicted / middle - 1) < 0.015, low <= middle <= high))
            near, held = np.mean(rows, axis=0)
            text += f"   {noise:.2%}: {near:4.0%} {held:4.0%}"
        print(f"{name:28}{text}")


def planted(draws: int) -> None:
    """Part 3: four budgets a factor 2 apart and six sizes, and six clean budgets over two decades."""
    print("\nplanted laws, 4 budgets -> 4x: E/L at the largest budget, noise, within 1.5%, interval holds, half-width")
    for share in (0.0, 0.3, 0.5, 0.7):
        print(f"E/L {share:.1f}  " + _planted(share, np.geomspace(1, 8, 4), 4.0, (0.003, 0.006), draws))
    print("\nplanted laws, 6 budgets over two decades, clean (0.05%): at 10, 30, 100 and 300 times the largest")
    for share in (0.0, 0.3, 0.6):
        for ahead in (10, 30, 100, 300):
            print(f"E/L {share:.1f} x{ahead:<4} " + _planted(share, np.geomspace(1, 100, 6), ahead, (0.0005,), 20))


def _planted(share: float, budgets: np.ndarray, ahead: float, noises: tuple[float, ...], draws: int) -> str:
    top, lowest, g = budgets[-1], 2.77, 0.083 / (1 - share)
    level = lambda c: lowest * (share + (1 - share) * (c / top) ** -g)  # noqa: E731
    text = ""
    for noise in noises:
        rng, rows = np.random.default_rng(1), []
        for _ in range(draws):
            runs = []
            for c in budgets:
                for size in np.exp(np.log(1e5) + 0.55 * np.log(c) + 0.37 * (np.arange(6) - 2.5)):
                    u = np.log(size / 1e5) - 0.55 * np.log(c)
                    loss = level(c) * (1 + 0.045 * profile_shape.shape(u, 0.02)) * np.exp(noise * rng.standard_normal())
                    runs.append(Run("r", size, 1e12 * c / (6 * size), 1e12 * c, float(loss), 1e12 * c))
            predicted, _, (low, high) = recommended(runs, 1e12 * top * ahead)
            one = level(top * ahead) * np.exp(noise * rng.standard_normal())
            rows.append(
                (abs(predicted / level(top * ahead) - 1) < 0.015, low <= one <= high, (high - low) / 2 / predicted)
            )
        near, held, width = np.mean(rows, axis=0)
        text += f"  {noise:.2%}: {near:4.0%} {held:4.0%} {width:6.2%}"
    return text


SURFACES = {
    "Besiroglu": Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "Hoffmann": Surface(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    "steep N": Surface(1.7, 3000.0, 1500.0, 0.45, 0.35),
}
WIDTHS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)


def widths(draws: int) -> None:
    """Part 4: four budgets a factor 2 apart, seven sizes, the target four times the largest."""
    print("\nwidths of a sweep, 7 sizes: mean error of the loss, half-width, factor in N* (95 of 100), fits; by noise")
    budgets = 1e19 * 2.0 ** np.arange(4)
    target = 4.0 * budgets[-1]
    for noise in (0.001, 0.003, 0.006):
        for width in WIDTHS:
            rng, rows, asked = np.random.default_rng(2), [], 0
            for law in SURFACES.values():
                size, _, lowest = (float(v) for v in law.optimum(target))
                for _ in range(draws // len(SURFACES)):
                    asked += 1
                    off = 2.0 ** rng.uniform(-1, 1)
                    runs = []
                    for c in budgets:
                        for n in off * float(law.optimum(c)[0]) * width ** np.linspace(-1, 1, 7):
                            loss = float(law.loss(n, c / 6 / n)) * np.exp(noise * rng.standard_normal())
                            runs.append(Run("r", n, c / 6 / n, c, float(loss), c))
                    try:
                        predicted, best, (low, high) = recommended(runs, target)
                    except FitRefused:
                        continue
                    rows.append((abs(predicted / lowest - 1), (high - low) / 2 / predicted, abs(np.log(best / size))))
            if not rows:
                print(f"{noise:.1%}  within {width:4.1f}x  none of {asked} could be fitted")
                continue
            error, half, factor = np.array(rows).T
            print(
                f"{noise:.1%}  within {width:4.1f}x  {error.mean():6.2%} {half.mean():6.2%} "
                f"{np.exp(np.quantile(factor, 0.95)):5.2f} {len(rows) / asked:4.0%}"
            )


PARTS = {
    "hidden": lambda runs_of, draws: hidden(runs_of),
    "shapes": lambda runs_of, draws: shapes(runs_of),
    "perturbed": perturbed,
    "planted": lambda runs_of, draws: planted(draws),
    "widths": lambda runs_of, draws: widths(draws),
}


def main() -> None:
    """Prints the four parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200, help="of the perturbed and planted losses")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas between them")
    values = parser.parse_args()
    unknown = set(values.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    runs_of = tables()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of the baselines
        for part in values.parts.split(","):
            PARTS[part](runs_of, values.draws)


if __name__ == "__main__":
    main()
