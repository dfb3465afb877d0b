"""What did a comparison of ways to train find? The page and the JSON of a study of `study/beside/comparison.py`.

    STUDY/comparison.html, comparison.json, plots/*.png

The gains are those of `compare`, with `plain` as the reference. Beside them: final losses and their spread, what a way
costs in wall time, loss against compute on the way, and for mixtures trained densely the loss by the experts used.
"""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base.files import exists, read_bytes, read_json, write_json, write_text
from chinchilla_jax.base.words import Echo, count, duration, flops_text, loss_text
from chinchilla_jax.scaling.answers.compare.arms import arms_by_value
from chinchilla_jax.scaling.answers.compare.compare import Comparison, compare
from chinchilla_jax.scaling.read.directories import BY_EXPERTS, PLAIN
from chinchilla_jax.scaling.read.runs import LoadedRuns, Run
from chinchilla_jax.scaling.report.compared import facts_of_comparison, of_comparison
from chinchilla_jax.scaling.report.facts import as_json
from chinchilla_jax.scaling.report.plots.compared import plot_comparison
from chinchilla_jax.scaling.report.plots.methods import plot_by_experts, plot_on_the_way
from chinchilla_jax.scaling.report.report import render_page
from chinchilla_jax.scaling.report.sections import Section, Table
from chinchilla_jax.scaling.report.text import tell


def write_methods(study: pathlib.Path, echo: Echo) -> pathlib.Path:
    """Compares the ways of a finished study, prints the comparison, and writes the page. Raises as `compare`."""
    arms = arms_by_value(str(study), "method", {})
    comparison = compare(arms, PLAIN)
    experts = _by_experts(study, arms)
    sections = sections_of(comparison, arms, experts)
    facts = facts_of_comparison(comparison, arms, f"python -m chinchilla_jax methods --study={study}")
    facts |= as_json({"final": [_final(name, loaded) for name, loaded in arms.items()], "by_experts": experts})
    tell([*of_comparison(facts)[:2], *sections], echo)
    plots = {
        "Frontiers and gain": plot_comparison(comparison, study / "plots" / "comparison.png"),
        "Loss on the way": plot_on_the_way(study, arms, study / "plots" / "on_the_way.png"),
    }
    if experts:
        plots["Loss by experts used"] = plot_by_experts(experts, study / "plots" / "by_experts.png")
    facts["plots"] = {title: str(path.relative_to(study)) for title, path in plots.items()}
    lead, target, *rest = of_comparison(facts)
    images = {title: read_bytes(path) for title, path in plots.items()}
    page = render_page("Ways to train, at equal compute", [lead, target, *sections], rest, images)
    write_json(study / "comparison.json", facts)
    write_text(study / "comparison.html", page)
    return study / "comparison.html"


def sections_of(comparison: Comparison, arms: Mapping[str, LoadedRuns], experts: Mapping[str, Any]) -> list[Section]:
    """What can be told apart, final losses, wall time, and losses by experts."""
    sections = [_resolution(comparison), _finals(arms, comparison.budget)]
    return [*sections, _experts(experts)] if experts else sections


def _resolution(comparison: Comparison) -> Section:
    lines = []
    for arm in comparison.arms[1:]:
        low, high = arm.target.factor_95
        half = 0.5 * np.log(high / low)
        verdict = "cannot be told from none" if low <= 1.0 <= high else "is more than luck"
        lines.append(
            f"{arm.name}: {arm.runs} runs, gain {arm.target.factor:.2f} {verdict}; one nearer to 1 than a factor "
            f"{np.exp(half):.2f} could not be told from none"
        )
    return Section("What the comparison can resolve", items=lines)


def _final(name: str, loaded: LoadedRuns) -> dict[str, Any]:
    """By budget and size: losses over seeds, seconds, N and D."""
    cells = defaultdict(list)
    for run in loaded.role("isoflop"):
        cells[run.budget or run.flops, run.params].append(run)
    return {"method": name, "cells": [_cell(runs, loaded) for _, runs in sorted(cells.items())]}


def _cell(runs: Sequence[Run], loaded: LoadedRuns) -> dict[str, Any]:
    losses = np.array([run.loss for run in runs])
    seconds = [loaded.details.get(run.name, {}).get("time", {}).get("step") for run in runs]
    known = [value for value in seconds if isinstance(value, (int, float))]
    return {
        "budget": runs[0].budget,
        "params": runs[0].params,
        "tokens": runs[0].tokens,
        "flops": float(np.mean([run.flops for run in runs])),
        "seeds": len(runs),
        "loss": float(losses.mean()),
        "spread": float(losses.std(ddof=1)) if len(runs) > 1 else None,
        "step_seconds": float(np.mean(known)) if known else None,
    }


def _finals(arms: Mapping[str, LoadedRuns], budget: float) -> Section:
    finals = {name: _final(name, loaded)["cells"] for name, loaded in arms.items()}
    plain = [cell for cell in finals[PLAIN] if cell["budget"] == budget]
    rows = []
    for name, cells in finals.items():
        for size, cell in enumerate(c for c in cells if c["budget"] == budget):
            same = plain[size]
            row: dict[str, str | tuple[str, str]] = {"Way": name, "N": count(cell["params"])}
            row |= {"D": count(cell["tokens"]), "C": flops_text(cell["flops"])}
            row["Loss"] = (loss_text(cell["loss"]), f"spread {cell['spread']:.4f}" if cell["spread"] else "")
            row["Against plain"] = "" if name == PLAIN else f"{cell['loss'] / same['loss'] - 1.0:+.2%}"
            if cell["step_seconds"] and same["step_seconds"]:
                slower = cell["step_seconds"] / cell["flops"] / (same["step_seconds"] / same["flops"])
                row["Time of steps"] = (duration(cell["step_seconds"]), f"{slower:.2f} x that of plain for a FLOP")
            rows.append(row)
    title = f"Final losses at {flops_text(budget)} FLOPs"
    note = "The spread is the standard deviation over seeds. Time is that of steps alone, without compilation."
    return Section(title, tables=(Table(rows, words=("Way",)),), notes=(note,))


def _by_experts(study: pathlib.Path, arms: Mapping[str, LoadedRuns]) -> dict[str, Any]:
    """For each way whose runs were evaluated with fewer experts: mean losses over its runs, by how many were used."""
    found: dict[str, Any] = {}
    for name, loaded in arms.items():
        paths = [study / "runs" / run.name / BY_EXPERTS for run in loaded.role("isoflop")]
        tables = [read_json(path)["rows"] for path in paths if exists(path)]
        if tables:
            rows = zip(*tables, strict=True)
            found[name] = [_mean_row(of_runs) for of_runs in rows]
    return found


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    losses = [row["loss"] for row in rows]
    return {"selection": rows[0]["selection"], "used": float(np.mean([row["used"] for row in rows])),
            "loss": float(np.mean(losses)), "runs": len(losses)}  # fmt: skip


def _experts(experts: Mapping[str, Any]) -> Section:
    rows = []
    for name, of_way in experts.items():
        whole = max(of_way, key=lambda row: row["used"])["loss"]
        for row in of_way:
            lost = f"{row['loss'] / whole - 1.0:+.2%}"
            shown = {"Way": name, "Selection": row["selection"], "Experts used": f"{row['used']:.0%}"}
            rows.append(shown | {"Loss": loss_text(row["loss"]), "Against all": lost})
    return Section("Loss by the experts that are used", tables=(Table(rows, words=("Way", "Selection")),))
