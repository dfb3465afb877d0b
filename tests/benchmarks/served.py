"""How far can the answers about served mixtures be trusted, when the law is fitted to noisy runs?

    python -m tests.benchmarks.served [worlds]

Each world plants other constants and fits 80 runs of it (4 sizes x 4 counts of tokens x 1, 4, 8, 16 and 32 experts,
Yun et al.'s design, here with 0.3% noise). Asked at 5 times the largest budget: how often the 95% intervals hold the
truth of the planted law and how wide they are, and how often the number of experts that wins is the true one; with the
part of the votes of the replicates that it had. About 20 s a world where the cores are idle.
"""

import sys

import numpy as np

from chinchilla_jax.scaling.answers.serving.cost import Traffic, server_of
from chinchilla_jax.scaling.answers.serving.experts import Mixture, Setting
from chinchilla_jax.scaling.answers.serving.law import ExpertsLaw, fitted_law
from chinchilla_jax.scaling.answers.serving.tables import Bounded, Question, best_of, cheapest_of, find
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.read.runs import LoadedRuns, Run

NOISE, REPLICATES, EXPERTS, FLOPS = 0.003, 100, (1, 4, 8, 16, 32), 6e20
COLUMNS = {name: name for name in ("params", "tokens", "flops", "loss")}
# Of what at a bound: the value of one number of experts, read off the answers under one law.
QUANTITIES = {
    "loss, loss-optimal": lambda bounded, e: bounded.best[e].loss,
    "ln N_E": lambda bounded, e: np.log(bounded.best[e].params),
    "ln N'/N_E, bounded loss": lambda bounded, e: np.log(bounded.share_of_optimal(bounded.cheaper[e])),
    "ln cost over dense, bounded loss": lambda bounded, e: np.log(bounded.cheaper[e].cost / bounded.best[1].cost),
    "ln N'/N_E, bounded cost": lambda bounded, e: np.log(bounded.share_of_optimal(bounded.better[e])),
    "loss, bounded cost": lambda bounded, e: bounded.better[e].loss,
}


def world(seed: int) -> tuple[ExpertsLaw, LoadedRuns]:
    """A planted law, and noisy runs of it."""
    rng = np.random.default_rng(seed)
    constants = {"A": 120.0, "B": rng.uniform(0.05, 0.5), "C": 250.0, "F": 1.3, "alpha": rng.uniform(0.25, 0.3)}
    constants |= {"beta": rng.uniform(0.3, 1.0), "gamma": rng.uniform(0.25, 0.3), "d": rng.uniform(-0.002, 0.001)}
    constants |= {"E_start": rng.uniform(1.2, 3.0), "E_max": np.exp(rng.uniform(np.log(30.0), np.log(500.0)))}
    law = ExpertsLaw("planted", form("routed_served"), constants, ())
    runs, details = [], {}
    for params in np.geomspace(1e8, 1e9, 4):
        for tokens in np.geomspace(2.5e9, 2e10, 4):
            for experts in EXPERTS:
                loss = float(law.loss(params, tokens, experts)) * np.exp(NOISE * rng.standard_normal())
                name = f"run {len(runs)}"
                runs.append(Run(name, params, tokens, 6.0 * params * tokens, loss))
                details[name] = {"experts": experts}
    return law, LoadedRuns(f"world {seed}", tuple(runs), (), COLUMNS, "6nd", details)


def ask(law: ExpertsLaw, replicates: int = 0) -> tuple[Bounded, ...]:
    """The answers under the law, and under its replicates."""
    setting = Setting(law.loss, Mixture(), Traffic(161.0, 338.0), server_of("v5e"))
    found = find(setting, Question(FLOPS, EXPERTS, 1), law.replicates(replicates))
    return found.under, *found.drawn


def held(truth: Bounded, drawn: tuple[Bounded, ...], name: str) -> list[tuple[bool, float]]:
    """By number of experts beyond one, whether the interval of a quantity holds the truth, and its half-width."""
    rows, read = [], QUANTITIES[name]
    for e in EXPERTS[1:]:
        if any(b.cheaper[e] is None or b.better[e] is None for b in (truth, *drawn)):
            continue  # experts that are worth less than the dense model, under some replicate
        low, high = interval(np.array([read(bounded, e) for bounded in drawn]), 0.95)
        rows.append((low - 1e-9 <= read(truth, e) <= high + 1e-9, 0.5 * (high - low)))
    return rows


def main(worlds: int = 20) -> None:
    """Prints the two tables."""
    rows: dict[str, list[tuple[bool, float]]] = {name: [] for name in QUANTITIES}
    right: dict[str, list[tuple[bool, float]]] = {"bounded loss": [], "bounded cost": []}
    for seed in range(worlds):
        planted, runs = world(seed)
        (truth,), (under, *drawn) = ask(planted), ask(fitted_law(runs, REPLICATES, seed), REPLICATES)
        for name in QUANTITIES:
            rows[name] += held(truth, tuple(drawn), name)
        for name, winner in (("bounded loss", cheapest_of), ("bounded cost", best_of)):
            said = winner(under).experts
            votes = np.mean([winner(bounded).experts == said for bounded in drawn])
            right[name].append((said == winner(truth).experts, float(votes)))
            print(f"world {seed}, {name}: {said} experts with {votes:.0%} of the votes, truly {winner(truth).experts}")
    print(f"{worlds} worlds, noise {NOISE:.1%}, C = {FLOPS:g}, {FLOPS / (6 * 1e9 * 2e10):.3g} times the largest")
    for name, found in rows.items():
        inside, widths = zip(*found, strict=True)
        print(f"  {name:34}  holds {np.mean(inside):.0%} of {len(found)}, half-width {np.median(widths):.3f}")
    for name, found in right.items():
        hits, votes = zip(*found, strict=True)
        print(f"  {name}: the right number of experts in {np.mean(hits):.0%}, with {np.mean(votes):.0%} of the votes")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
