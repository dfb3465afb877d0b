"""Which runs does a directory hold: a study, one run, or a folder of run directories?

    STUDY/manifest.jsonl, verification.jsonl    what was planned; noise.jsonl names runs that are none of the study's
    STUDY/runs/NAME/  or  FOLDER/NAME/  or  RUN/
        result.json                             N, D, C by convention and the loss; written last
        metrics.jsonl                           the training curve

A run without its result is listed as not finished.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chinchilla_jax.config import CONVENTIONS
from chinchilla_jax.scaling.read.runs import BadRow, FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table.columns import NONE, RUN_FIELDS, Column, choose_columns, require
from chinchilla_jax.scaling.read.table.formats import Row, json_lines
from chinchilla_jax.scaling.read.table.history import to_runs
from chinchilla_jax.scaling.read.table.rows import Point, to_curve
from chinchilla_jax.scaling.read.table.select import Where, select
from chinchilla_jax.scaling.read.table.settings import best_per_cell

_DEFAULT = "executed"  # of runs that were trained outside a study and so state no convention
_COUNTED = {
    "params": "total: embeddings included, a tied matrix once",
    "params_non_embedding": "non-embedding: without token, position and output matrices",
}
_TRUNK = "trunk"  # role of a run at a constant rate that others branch off
_NOISE = "noise"  # role of a run that measures how far runs of one size differ
_MARKS = ("result.json", "config.json", "metrics.jsonl")


def load_directory(
    path: pathlib.Path, columns: Mapping[str, str], where: Where | None = None, best: bool = False
) -> LoadedRuns:
    """The finished runs of a study directory, of one run directory, or of a folder of run directories.

    Args:
      columns: keys of `result.json` by field, see `load_runs`.
      where: values by key of `result.json`; runs without one of them are passed over.
      best: whether only the runs of the best setting are kept where several were tried for one N and D.

    Raises:
      FitRefused: `not_found` (none of the three), `manifest`, `conventions`, `columns` or `where`.
    """
    if (path / "manifest.jsonl").exists():
        planned, header, bad = _read_manifests(path)
        folders = {name: path / "runs" / name for name in planned}
        known = planned.keys() | {str(row.values.get("name")) for row in _lines(path / "noise.jsonl")}
        strays = sorted(f.name for f in (path / "runs").glob("*") if f.is_dir() and f.name not in known)
        bad += [BadRow(name, "not in the manifest") for name in strays]
    else:
        planned, header, bad = {}, {}, []
        folders = _run_directories(path)
    rows, unread = _read_results(folders, planned)
    present = tuple(dict.fromkeys(key for row in rows for key in row.values))
    rows, selected = select(str(path), rows, present, where or {})
    conventions = {str(row.values["convention"]) for row in rows if "convention" in row.values}
    if len(conventions) > 1:
        raise FitRefused("conventions", f"{path}: runs count FLOPs in several ways ({', '.join(sorted(conventions))}); "
                         "fit runs of one convention at a time")  # fmt: skip
    stated = conventions.pop() if conventions else _DEFAULT
    rows = [_with_flops(row, stated) for row in rows]
    chosen, notes = _columns(path, rows, columns, stated), selected
    convention = chosen["flops"].count
    if convention != stated and "budget" in chosen:
        del chosen["budget"]
        notes += (f"budgets are left out: they were counted as {stated}, C here as {convention}",)
    trunks = [row for row in rows if row.values.get("role") == _TRUNK and not row.values.get("diverged")]
    if trunks:
        notes += (f"trunks are no runs to fit, their branches are: {len(trunks)} passed over",)
    noisy = [row for row in rows if row.values.get("role") == _NOISE]
    if noisy:
        notes += (f"runs that measure noise are no runs to fit: {len(noisy)} passed over",)
    usable, more, _ = to_runs((row for row in rows if row not in trunks and row not in noisy), chosen)
    if best:
        usable, said = best_per_cell(usable, chosen, present)
        notes += said
    seeded = (dataclasses.replace(run, seed=_seed(row, planned, folders[run.name])) for row, run in usable)
    runs, spoilt = _with_curves(seeded, folders)
    return LoadedRuns(
        source=str(path),
        runs=runs,
        bad=tuple(bad) + tuple(unread) + more + spoilt,
        columns={field: str(column) for field, column in chosen.items()},
        convention=convention,
        details={row.where: row.values for row in rows},
        planned=planned,
        header=header,
        params_count=_COUNTED.get(chosen["params"].name, chosen["params"].count or "not stated"),
        loss_unit="nats per token, on held-out text",
        notes=notes,
    )


def _read_manifests(path: pathlib.Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[BadRow]]:
    """(planned runs by name, the header, what the plan itself left out)."""
    planned: dict[str, dict[str, Any]] = {}
    header: dict[str, Any] = {}
    bad = []
    for file in (path / "manifest.jsonl", path / "verification.jsonl"):
        for row in _lines(file):
            name, line = row.values.get("name"), row.values
            if isinstance(line.get("manifest"), dict):
                header = line["manifest"] | header
                bad += _dropped(file, row.where, line["manifest"].get("dropped", ()))
            elif row.problem or not isinstance(name, str):
                raise _damaged(file, row.where, row.problem or "no run name")
            elif pathlib.PurePath(name).name != name:
                bad.append(BadRow(name, f"a run name must be a plain folder name ({file.name} {row.where})"))
            else:
                planned[name] = line
    return planned, header, bad


def _lines(file: pathlib.Path) -> list[Row]:
    try:
        return list(json_lines(file)) if file.exists() else []
    except FitRefused as refused:
        raise FitRefused("manifest", str(refused)) from None


def _dropped(file: pathlib.Path, where: str, dropped: Any) -> list[BadRow]:
    try:
        return [BadRow(f"budget {drop['budget']:.3g}, N {drop['params']:.3g}",
                       f"dropped from the plan: {drop['reason']}") for drop in dropped]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, where, f"damaged list of what was dropped ({type(error).__name__}: {error})") from None


def _damaged(file: pathlib.Path, where: str, problem: str) -> FitRefused:
    return FitRefused("manifest", f"{file}: {where}: {problem}; restore the file: without it it is not known which "
                      "runs belong to the study")  # fmt: skip


def _run_directories(path: pathlib.Path) -> dict[str, pathlib.Path]:
    def is_run(folder: pathlib.Path) -> bool:
        return any((folder / mark).exists() for mark in _MARKS)

    if is_run(path):
        return {path.resolve().name: path}
    folders = {child.name: child for child in sorted(path.iterdir()) if child.is_dir() and is_run(child)}
    if not folders:
        raise FitRefused("not_found", f"{path}: no manifest.jsonl, and no run directory in it (one has a "
                         "result.json); give a study directory, run directories or a table of runs")  # fmt: skip
    return folders


def _read_results(folders: Mapping[str, pathlib.Path], planned: Mapping[str, Any]) -> tuple[list[Row], list[BadRow]]:
    rows, bad = [], []
    for name, folder in folders.items():
        path = folder / "result.json"
        if not path.exists():
            bad.append(BadRow(name, f"not finished: no result.json{'' if planned else f' in {folder}'}"))
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not an object")
            rows.append(Row(name, values | {"name": name}))
        except (ValueError, RecursionError) as error:
            what = "is not an object" if str(error) == "not an object" else f"is not JSON: {error}"
            bad.append(BadRow(name, f"result.json {what}"))
    return rows, bad


def _with_flops(row: Row, convention: str) -> Row:
    """The row with its FLOPs by convention as columns, and `flops` under the one its study states."""
    by = row.values.get("flops_by_convention")
    by = by if isinstance(by, dict) else {}
    more = {f"flops_{name}": value for name, value in by.items()}
    if "flops" not in row.values and convention in by:
        more["flops"] = by[convention]
    return dataclasses.replace(row, values=dict(row.values) | more)


def _seed(row: Row, planned: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The run's seed in words, from its result, its manifest line or its config; "" if none of them says."""
    if isinstance(row.values.get("seed"), int):
        return str(row.values["seed"])
    try:
        line = planned.get(row.where) or json.loads((folder / "config.json").read_text(encoding="utf-8"))
        seed = line["config"]["train"]["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(seed) if isinstance(seed, int) else ""


def _columns(path: pathlib.Path, rows: Sequence[Row], wanted: Mapping[str, str], stated: str) -> dict[str, Column]:
    """The keys of `result.json` that serve each field: those of this project unless wanted otherwise."""
    present = dict.fromkeys(key for row in rows for key, value in row.values.items() if not isinstance(value, dict))
    chosen = {field: Column(field) for field in RUN_FIELDS if field != "curve"}
    if wanted and rows:
        changed, _ = choose_columns(str(path), list(present), wanted, fields=())
        chosen |= changed
        chosen = {field: column for field, column in chosen.items() if wanted.get(field) != NONE}
        require(str(path), chosen, ("name", "params", "tokens", "loss", "flops"), list(present))
    count = chosen["flops"].count or (stated if chosen["flops"].name == "flops" else "")
    if count not in CONVENTIONS and chosen["flops"].name != "flops":
        raise FitRefused("conventions", f"{path}: key {chosen['flops'].name} of result.json does not say how FLOPs "
                         f"are counted; write --columns=flops_{CONVENTIONS[0]}:{chosen['flops'].name} or one of "
                         f"{', '.join(CONVENTIONS)}")  # fmt: skip
    chosen["flops"] = dataclasses.replace(chosen["flops"], count=count)
    return chosen


def _with_curves(
    runs: Iterable[Run], folders: Mapping[str, pathlib.Path]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...]]:
    made, bad = [], []
    for run in runs:
        path = folders[run.name] / "metrics.jsonl"
        points, problems = [], []
        try:
            for row in json_lines(path) if path.exists() else ():
                if row.problem:
                    problems.append(BadRow(f"metrics.jsonl {row.where} ({run.name})", f"curve left out: {row.problem}"))
                elif "loss" in row.values:  # the other lines are evaluations
                    points.append(Point(f"metrics.jsonl {row.where}", row.values.get("tokens"), row.values["loss"]))
        except FitRefused as refused:
            problems.append(BadRow(run.name, f"curve left out: {refused}"))
        curve, spoilt = to_curve(points, run, run.name)
        bad += problems + spoilt
        made.append(dataclasses.replace(run, curve=None if problems else curve))
    return tuple(made), tuple(bad)
