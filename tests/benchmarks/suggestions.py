"""What are the next runs that `suggest` chooses worth, beside an even grid and a random choice? By replay on tables.

    python -m tests.benchmarks.suggestions [--starts=50] [--tables=owt2]

Of every IsoFLOP table the largest budget with a known minimum is the target, and hidden throughout. Of the rest a start
is shown: four random sizes of each of its three smallest budgets (where only three lie below the target, five of each
of the two smallest). The other runs are hidden until they are bought, at their own price, with purses that are shares
of what all hidden runs cost, each spent anew from the start:

- `suggest`: chosen for the loss among the hidden runs, at once, or in three rounds, the first two with up to 1/64 and
  1/8 of the purse;
- `even grid`: profiles of six sizes, as `plan` has at least, or all there are, evenly spread over what the table has,
  at all budgets up to the largest one the purse pays for, with as many sizes as it pays for; what is left buys further
  sizes from the largest budget on;
- `random`: hidden runs in random order, each that the purse still pays for.

Printed are, by purse, the half-width of the 95% interval at the target and the error of the loss, both relative, and
how often the interval holds the truth: means over starts, then over tables. Last, the share of the grid's compute with
which `suggest` in three rounds has the half-width that the grid has (at most this: no purse below the least is tried).
"""

import argparse
import dataclasses
from collections import defaultdict

import numpy as np

from chinchilla_jax.scaling.answers.suggest.cells import Cell
from chinchilla_jax.scaling.answers.suggest.suggest import chosen_design
from chinchilla_jax.scaling.answers.suggest.surface_design import SurfaceDesign
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.predict import recommend
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_of
from tests.benchmarks.prediction import STARTS, tables, truth

SHARES = (0.03, 0.05, 0.08, 0.13, 0.2, 0.35, 0.7)
ROUNDS = {"suggest at once": (1.0,), "suggest, three rounds": (1 / 64, 1 / 8, 1.0)}
LEAST, PLANNED = 4, 6  # sizes of a profile: to have a minimum, and as `plan` has them
MOST = 24  # runs of one suggestion


def fits_of(runs: list[Run]) -> Analysis:
    """The recommended fit, and no other. Raises FitRefused if there is none."""
    refused, profiles = {}, None
    try:
        profiles = fit_isoflop(runs, preset=CORRECTED, resampling=None)
    except FitRefused as refusal:
        refused["isoflop"] = str(refusal)
    surface = None
    if profiles is None or len(profiles.profiles) < 3:
        surface = fit_parametric(runs, starts=STARTS, resampling=None)
    return Analysis("corrected", tuple(runs), 0, None, profiles, surface, refused)


def predicted(runs: list[Run], target: float) -> tuple[float, float]:
    """Loss at the target and half of its 95% interval, relative."""
    fits = fits_of(runs)
    if recommend(fits)[0] == "isoflop":
        law = fits.isoflop.loss_law
        low, high = law.interval(target, 0.95)
        return law.at(target), (high - low) / 2 / law.at(target)
    count = flops_of(runs)
    design = SurfaceDesign(fits.parametric, runs, target, "loss", count, max(run.flops for run in runs), cells=[])
    return float(fits.parametric.surface.optimum(target, count)[2]), design.half_width(())


def cost(runs: list[Run]) -> float:
    """FLOPs of all."""
    return sum(run.flops for run in runs)


def suggested(start: list[Run], hidden: list[Run], target: float, purses: np.ndarray, rounds: tuple[float, ...]):
    """Runs bought with each purse, in rounds that may spend such shares of it."""
    for purse in purses:
        bought: list[Run] = []
        for share in rounds:
            left = purse * share * (1 + 1e-9) - cost(bought)
            free = [run for run in hidden if run not in bought]
            cells = [Cell(run.params, run.tokens, run.flops, run.budget) for run in free]
            try:
                _, chosen, *_ = chosen_design(fits_of(start + bought), target, left, MOST, "loss", cells)
            except FitRefused:
                continue
            bought = bought + [free[i] for i in chosen]
        yield bought


def even_grid(start: list[Run], hidden: list[Run], target: float, purses: np.ndarray):
    """As `suggested`; what the start has is not paid again."""
    by_budget = defaultdict(list)
    for run in sorted(start + hidden, key=lambda run: run.params):
        by_budget[run.budget].append(run)

    def grid(count: int, budgets: int) -> list[Run]:
        chosen = []
        for budget in sorted(by_budget)[:budgets]:
            runs = by_budget[budget]
            places = np.linspace(0, len(runs) - 1, min(count, len(runs)) + 2)[1:-1]
            chosen += [runs[i] for i in sorted(set(np.rint(places).astype(int)))]
        return [run for run in chosen if run not in start]

    for purse in purses:
        purse = purse * (1 + 1e-9)
        most = max(map(len, by_budget.values()))
        affordable = [
            (budgets, count, grid(count, budgets))
            for budgets in range(1, len(by_budget) + 1)
            for count in range(PLANNED, most + 1)
            if cost(grid(count, budgets)) <= purse
        ]
        bought = max(affordable, key=lambda option: option[:2])[2] if affordable else []
        for run in sorted(hidden, key=lambda run: -run.flops):
            if run not in bought and cost(bought) + run.flops <= purse:
                bought = [*bought, run]
        yield bought


def at_random(start: list[Run], hidden: list[Run], target: float, purses: np.ndarray, seed: int):
    """As `suggested`."""
    order = np.random.default_rng(seed).permutation(len(hidden))
    for purse in purses:
        bought: list[Run] = []
        for i in order:
            if cost(bought) + hidden[i].flops <= purse * (1 + 1e-9):
                bought = [*bought, hidden[i]]
        yield bought


def starts(groups: dict[float, list[Run]], target: float, number: int):
    """(Shown, hidden), `number` times; only starts whose profiles can be fitted."""
    budgets = [budget for budget in groups if budget < target]
    shown, sizes = (3, LEAST) if len(budgets) > 3 else (2, LEAST + 1)
    rng, made = np.random.default_rng(0), 0
    while made < number:
        start = []
        for budget in budgets[:shown]:
            runs = groups[budget]
            start += [runs[i] for i in rng.choice(len(runs), min(sizes, len(runs)), replace=False)]
        try:
            if len(fit_isoflop(start, preset=CORRECTED, resampling=None).profiles) < shown:
                continue
        except FitRefused:
            continue
        made += 1
        yield start, [run for budget in budgets for run in groups[budget] if run not in start]


def replay(groups: dict[float, list[Run]], number: int):
    """By method [purse, (half-width, error, held)]: means over the starts of one table, None without a target."""
    groups = {budget: distinct(runs) for budget, runs in groups.items()}
    known = {budget: truth(runs) for budget, runs in groups.items()}
    target = max((budget for budget in groups if known[budget]), default=None)
    if target is None:
        return None
    loss = known[target][1]
    rows = defaultdict(list)
    for seed, (start, hidden) in enumerate(starts(groups, target, number)):
        purses = np.array(SHARES) * cost(hidden)
        asked = start, hidden, target, purses
        ways = {name: suggested(*asked, rounds) for name, rounds in ROUNDS.items()}
        ways |= {"even grid": even_grid(*asked), "random": at_random(*asked, seed)}
        first = predicted(start, target)
        for way, bought in ways.items():
            row = []
            for more in bought:
                last = first
                try:
                    last = predicted(start + more, target)
                except FitRefused:
                    pass  # these runs carry no fit: what was known before stands
                row.append((last[1], abs(last[0] / loss - 1), abs(last[0] / loss - 1) <= last[1]))
            rows[way].append(row)
        rows["start"].append([(first[1], abs(first[0] / loss - 1), abs(first[0] / loss - 1) <= first[1])] * len(SHARES))
    return {way: np.array(values, float) for way, values in rows.items()}


def distinct(runs: list[Run]) -> list[Run]:
    """One run of each size; their names tell them apart."""
    sizes = {run.params: run for run in runs}
    return [dataclasses.replace(run, name=f"{run.budget:.4g}-{size:.6g}") for size, run in sizes.items()]


def compute_ratio(ours: np.ndarray, grid: np.ndarray) -> list[float]:
    """By purse: the share of it with which the half-widths `ours` [purse] come down to the grid's; NaN outside."""
    log_share, lowest = np.log(SHARES), np.minimum.accumulate(ours)
    ratios = []
    for share, half in zip(log_share, grid, strict=True):
        reached = np.flatnonzero(lowest <= half * (1 + 1e-9))
        if not len(reached) or reached[0] == 0:
            ratios.append(float("nan") if not len(reached) else float(np.exp(log_share[0] - share)))
            continue
        k = reached[0]
        between = np.log(lowest[k - 1] / half) / np.log(lowest[k - 1] / lowest[k])
        ratios.append(float(np.exp(log_share[k - 1] + between * (log_share[k] - log_share[k - 1]) - share)))
    return ratios


def main() -> None:
    """Prints a table for each table of runs, and the means over them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--tables", default="", help="only those whose name has this in it")
    options = parser.parse_args()
    of_table, ratios = {}, []
    for name, groups in tables().items():
        if options.tables in name and (rows := replay(groups, options.starts)):
            of_table[name] = {way: values.mean(0) for way, values in rows.items()}
            ratios.append(
                compute_ratio(of_table[name]["suggest, three rounds"][:, 0], of_table[name]["even grid"][:, 0])
            )
            show(name[-40:], of_table[name])
            print("  compute beside the grid's  " + " ".join(f"{ratio:16.2f}" for ratio in ratios[-1]), flush=True)
    show(f"mean over {len(of_table)} tables", {w: np.mean([t[w] for t in of_table.values()], 0) for w in rows})
    middle = np.exp(np.nanmean(np.log(ratios), 0))
    print("  compute beside the grid's  " + " ".join(f"{ratio:16.2f}" for ratio in middle))


def show(name: str, means: dict[str, np.ndarray]) -> None:
    """Half-width, error and share held, by purse."""
    print(f"\n{name}\n  share of the hidden compute  " + " ".join(f"{share:>16.3f}" for share in SHARES))
    for way, values in means.items():
        text = " ".join(f"{half:6.2%} {error:5.2%} {held:3.0%}" for half, error, held in values)
        print(f"  {way:27} {text}")


if __name__ == "__main__":
    main()
