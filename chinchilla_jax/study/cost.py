"""What does a plan cost? FLOPs and seconds of its runs, and the table that says so."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.study.cell import TRUNK, size_name
from chinchilla_jax.study.execute.pace import estimate
from chinchilla_jax.study.folder import Manifest, PlannedRun
from chinchilla_jax.study.plan import holdout_budget, holdout_runs
from chinchilla_jax.study.recipe import read_recipe


def describe(manifest: Manifest, workers: int, echo: Echo) -> None:
    """Prints a manifest as a table, then what it rests on and what it costs in all.

    Args:
      workers: how many runs train at the same time, for the time estimate.
    """
    template, convention = manifest.template(), manifest.header["convention"]
    echo(
        f"{'run':24} {'role':9} {'layers':>6} {'width':>6} {'N':>8} {'non-emb.':>8} {'D':>8} {'D/N':>7} "
        f"{'C':>9} {'off':>7} {'peak_lr':>9} {'batch':>7} {'time':>9}"
    )
    for run in manifest.runs:
        echo(_row(run))
    for row in manifest.header["dropped"]:
        echo(f"dropped: budget {row['budget']:.3g}, N {size_name(row['params'])}: {row['reason']}")
    if "guess" in manifest.header:
        optima = ", ".join(f"{size_name(n)} at {c:.3g}" for c, n in manifest.header["guess"]["params"])
        echo(f"sizes are centred on N* = {optima}: {manifest.header['guess']['provenance']}")
    echo(f"recipe: {read_recipe(template.study.recipe)}")
    total = sum(run.spent() for run in manifest.runs)
    speed = f"{template.study.flops_per_second:.3g} FLOP/s each (study.flops_per_second)"
    time = f"{duration(estimate(manifest.runs, workers))} with {workers} workers at {speed}"
    echo(f"{len(manifest.runs)} runs, {total:.3g} FLOPs ({convention}); about {time}")
    if any(run.trunk for run in manifest.runs):
        shared, apart = executed(manifest.runs)
        saved = f"{apart - shared:.3g} saved ({1 - shared / apart:.0%}; executed)"
        separate = f"separate runs of the same schedule and horizons would {apart:.3g}"
        echo(f"trunks and branches execute {shared:.3g} FLOPs, {separate}: {saved}")
    if "guess" in manifest.header:
        held_out, number = holdout_budget(template), holdout_runs(template)
        with_them = f"{total + number * held_out:.3g} in all ({convention})"
        echo(f"later {number} held-out runs of {held_out:.3g} FLOPs: with them {with_them}")


def _row(run: PlannedRun) -> str:
    model, optimizer = run.config["model"], run.config["optimizer"]
    batch = run.config["train"]["batch_size"] * run.config["data"]["seq_len"]
    fork = f"  from {run.trunk} at step {run.fork_step}" if run.trunk else ""
    return (
        f"{run.name:24} {run.role:9} {model['n_layers']:6d} {model['d_model']:6d} {size_name(run.params):>8} "
        f"{size_name(run.params_non_embedding):>8} {size_name(run.tokens):>8} {run.tokens / run.params:7.1f} "
        f"{run.cost:9.3g} {run.cost / run.budget - 1:+7.2%} {optimizer['peak_lr']:9.2g} {size_name(batch):>7} "
        f"{duration(run.estimated_seconds):>9}{fork}"
    )


def executed(runs: Sequence[PlannedRun]) -> tuple[float, float]:
    """FLOPs executed by `runs` as planned, and by the same runs without trunks, each from its first step."""
    whole = sum(run.flops["executed"] for run in runs if run.role != TRUNK)
    return sum(run.spent("executed") for run in runs), whole
