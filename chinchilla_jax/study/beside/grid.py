"""Which learning rate, initial deviation and temperature suit a narrow proxy? A grid, and the recipe it leads to.

    STUDY/tune.jsonl     the plan: cell by cell, setting by setting, seed by seed; a manifest like the study's
    STUDY/runs/NAME/     the runs, NAME = CELL-xRATE-iINIT-tTEMPERATURE-sSEED; their role is `noise`: no fit takes them
    STUDY/tune.json      what came out, written when all are finished

By muP the setting that suits the proxy suits every width, which is how Li et al. 2023 (FLM-101B, arXiv 2309.03852)
chose the three for their 101B parameters. A setting is three factors on what the study's recipe says.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.study import folder
from chinchilla_jax.study.beside.noise import chosen, factors, study_of, train_beside
from chinchilla_jax.study.cell import replicate
from chinchilla_jax.study.execute.backend import LOCAL
from chinchilla_jax.study.folder import TUNE, TUNE_RESULT, Manifest, PlannedRun
from chinchilla_jax.study.plan import manifest_header
from chinchilla_jax.study.recipe import Recipe, read_recipe

RATES, ONE = "0.25,0.5,1,2,4", "1"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Factors on the recipe's learning rate, initial deviation and temperature."""

    rate: float
    init: float = 1.0
    temperature: float = 1.0

    def __str__(self) -> str:
        return f"x{self.rate:g}-i{self.init:g}-t{self.temperature:g}"

    def of(self, config: RunConfig) -> RunConfig:
        """The config with this setting; the same one where all factors are 1."""
        optimizer, model = config.optimizer, config.model
        if self.rate != 1.0:
            optimizer = dataclasses.replace(optimizer, peak_lr=float(f"{self.rate * optimizer.peak_lr:.4g}"))
        init, output = self.init * model.init_scale, model.output_scale / self.temperature
        model = dataclasses.replace(model, init_scale=init, output_scale=output)
        return dataclasses.replace(config, optimizer=optimizer, model=model)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with this setting."""
        words = dict(recipe.mup)
        for name, factor in (("init", self.init), ("temperature", self.temperature)):
            if factor != 1.0:
                words[name] = factor * words.get(name, 1.0)
        lr = dataclasses.replace(recipe.lr, coefficient=self.rate * recipe.lr.coefficient)
        return dataclasses.replace(recipe, lr=lr, mup=words)


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting over all cells: relative `excess` of its mean loss over the cells' own means, infinite where a run
    diverged; `loss` is that mean by cell, nats per token."""

    setting: Setting
    excess: float
    loss: tuple[float, ...]
    diverged: int = 0


def tune(
    config: RunConfig | None,
    study: pathlib.Path | None,
    cells: str | None = None,
    seeds: int = 1,
    rates: str = RATES,
    inits: str = ONE,
    temperatures: str = ONE,
    workers: int | None = None,
    echo: Echo = print,
    dry_run: bool = False,
    backend: str = LOCAL,
) -> Recipe | None:
    """Trains what is missing of the grid on some cells of a study, by default the size nearest the guessed optimum of
    the smallest budget; prints every setting and the recipe of the best; returns it, None where nothing is trained.

    Args and errors as `noise.train_beside`; `rates`, `inits` and `temperatures` are factors with commas between them.
    ConfigError `study.recipe` where initial deviation or temperature vary and the recipe is not by muP.
    """
    planned = study_of(config, study)
    recipe = read_recipe(planned.template().study_section.recipe)
    grid = [Setting(*setting) for setting in itertools.product(factors(rates), factors(inits), factors(temperatures))]
    if not recipe.mup and any(one.init != 1.0 or one.temperature != 1.0 for one in grid):
        fix = "write it as 'mup lr = ..., base = 64'"
        raise ConfigError("study.recipe", f"only a recipe by muP has an init and a temperature to carry over; {fix}")
    if cells is None:
        cells = f"{min(planned.template().study_section.budgets)!r}:nearest"
    manifest = grid_plan(planned, chosen(planned, cells), seeds, grid)
    if not train_beside(config, study, TUNE, manifest, workers, echo, dry_run, backend) or not study:
        return None
    results = tried(study, manifest, grid)
    best = min(results, key=lambda one: one.excess)
    for line in [*table(results), *findings(results)]:
        echo(line)
    if not math.isfinite(best.excess):
        return None
    found = best.setting.recipe(recipe)
    echo(f"recipe: --config.study.recipe='{found.text}'")
    files.write_json(study / TUNE_RESULT, facts(results, found) | {"cells": manifest.header["cells"]})
    echo(f"written: {study / TUNE_RESULT}")
    return found


def grid_plan(planned: Manifest, cells: Sequence[PlannedRun], seeds: int, grid: Sequence[Setting]) -> Manifest:
    """Every one of `cells` at every setting with every seed: the study's first seed and those after it."""
    runs = []
    for cell, setting, seed in itertools.product(cells, grid, range(seeds)):
        run = replicate(cell, seed)
        run = run.with_config(setting.of(run.run_config()))
        note = f"{cell.recipe}; setting {setting}"
        name = f"{cell.name}-{setting}-s{seed}"
        runs.append(dataclasses.replace(run, name=name, role="noise", recipe=note, preflight=None))
    header = manifest_header(planned.template(), "tune") | {"dropped": []}
    header |= {"cells": [cell.name for cell in cells], "settings": [str(one) for one in grid], "seeds": seeds}
    return Manifest(header, tuple(runs))


def tried(study: pathlib.Path, manifest: Manifest, grid: Sequence[Setting]) -> list[Tried]:
    """What the finished runs of a grid came to, setting by setting."""
    cells, seeds = manifest.header["cells"], manifest.header["seeds"]
    losses = np.full((len(cells), len(grid), seeds), np.inf)
    for place, run in zip(np.ndindex(losses.shape), manifest.runs, strict=True):
        for _, result in folder.finished(study, [run]):
            losses[place] = np.inf if result.get("diverged") else result["loss"]
    means = losses.mean(axis=2)
    centres = np.ma.masked_invalid(means).mean(axis=1).filled(np.nan)
    excess = np.nan_to_num((means / centres[:, None]).mean(axis=0) - 1.0, nan=np.inf)
    diverged = np.isinf(losses).sum(axis=(0, 2))
    rows = zip(grid, excess, means.T, diverged, strict=True)
    return [Tried(setting, float(more), tuple(map(float, loss)), int(bad)) for setting, more, loss, bad in rows]


def table(results: Sequence[Tried]) -> list[str]:
    """One line for each setting, the best first, below a header; losses in nats per token."""
    lines = [f"{'rate':>6} {'init':>6} {'temp.':>6} {'excess':>8}  mean loss of each cell"]
    for one in sorted(results, key=lambda one: one.excess):
        factors_of = f"{one.setting.rate:6g} {one.setting.init:6g} {one.setting.temperature:6g}"
        losses = " ".join(f"{loss:.4f}" for loss in one.loss)
        excess = f"{one.excess:+.2%}" if math.isfinite(one.excess) else "-"
        lines.append(f"{factors_of} {excess:>8}  {losses}" + (f"  {one.diverged} diverged" if one.diverged else ""))
    return lines


def findings(results: Sequence[Tried]) -> list[str]:
    """What the figures say, as lines: the best setting, and where the grid ends too early."""
    best = min(results, key=lambda one: one.excess)
    if not math.isfinite(best.excess):
        return ["every setting diverged somewhere: lower --rates"]
    lines = [f"best: rate {best.setting.rate:g}, init {best.setting.init:g}, temperature {best.setting.temperature:g}"]
    for name, flag in (("rate", "rates"), ("init", "inits"), ("temperature", "temperatures")):
        values, value = sorted({getattr(one.setting, name) for one in results}), getattr(best.setting, name)
        if len(values) > 1 and value in (values[0], values[-1]):
            end = "lowest" if value == values[0] else "highest"
            lines.append(f"the {end} {name} tried is the best: --{flag} should go further")
    return lines


def facts(results: Sequence[Tried], recipe: Recipe) -> dict[str, Any]:
    """The same for JSON; figures that are not finite are None."""
    rows = [
        dataclasses.asdict(one.setting)
        | {"excess": _finite(one.excess), "loss": [_finite(loss) for loss in one.loss], "diverged": one.diverged}
        for one in results
    ]
    return {"recipe": recipe.text, "settings": rows, "findings": findings(results)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
