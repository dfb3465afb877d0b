"""Which finished runs is a scaling law fitted to, and which rows were left out and why?

Two sources: a study directory (`manifest.jsonl`, `verification.jsonl` with the held-out runs once they are planned,
`runs/<name>/result.json`) or a table (CSV or JSON lines) from
anywhere. A row that cannot be used is listed with its reason; nothing is dropped in silence.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

ROLES = ("isoflop", "predicted", "half", "double")

# Column names met in published run tables, most specific first; compared without regard to case.
_COLUMNS = {
    "name": ("name", "run", "run_name", "run_id", "id"),
    "params": ("params", "n_params", "num_params", "parameters", "model_size", "n"),
    "tokens": ("tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "d"),
    "loss": ("loss", "final_loss", "val_loss", "validation_loss", "eval_loss", "l"),
    "flops": ("flops", "training_flops", "train_flops", "compute", "flops_6nd", "c"),
    "budget": ("budget", "isoflop_budget", "flop_budget"),
    "role": ("role",),
}
_SIX_ND = "6 * params * tokens"


class FitRefused(ValueError):
    """The data cannot carry the fit asked for. `reason` is one word to test for; the message says what to do."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training loss on the way: `tokens` [K] seen, rising; `loss` [K] nats per token, unsmoothed."""

    tokens: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished training.

    `params` N; `tokens` D; `flops` C, both counted as the table or study states; `loss` in nats per token; `budget`
    the nominal FLOPs of its IsoFLOP profile, or None; `role` is `isoflop` for runs that laws are fitted to, otherwise
    the place of a held-out run: `predicted`, `half` or `double` the predicted size. `curve` is there where the source
    has one; C at a point of it is `flops * curve.tokens / tokens`.
    """

    name: str
    params: float
    tokens: float
    flops: float
    loss: float
    budget: float | None = None
    role: str = "isoflop"
    curve: Curve | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row left out: `where` is a run's name or `line K`, `reason` says what is wrong with it."""

    where: str
    reason: str


@dataclasses.dataclass(frozen=True)
class LoadedRuns:
    """What a path held.

    `columns` echoes which column served as what; `convention` is how N and C were counted; `details` maps a run's name
    to everything else its `result.json` said (seconds, bits per byte ...); `planned` to its manifest line, finished or
    not; `header` is the manifest's own (the study's config among it).
    """

    source: str
    runs: tuple[Run, ...]
    bad: tuple[BadRow, ...]
    columns: Mapping[str, str]
    convention: str
    details: Mapping[str, Mapping[str, Any]]
    planned: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    header: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def role(self, *roles: str) -> tuple[Run, ...]:
        """The runs with one of these roles, in their order."""
        return tuple(run for run in self.runs if run.role in roles)


def load_runs(path: str | pathlib.Path, columns: Mapping[str, str] | None = None) -> LoadedRuns:
    """Runs of a study directory, a CSV file or a JSON-lines file.

    Args:
      columns: for tables, overrides the guess, e.g. `{"flops": "flops_table_a4"}`; keys are fields of `Run`.

    Raises:
      FitRefused: `not_found`, `columns` (a needed column is missing), `conventions` (FLOPs counted in several ways) or
        `no_runs` (not one usable row).
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FitRefused("not_found", f"{path}: no such file or study directory")
    if path.is_dir():
        loaded = _load_study(path)
    else:
        loaded = _load_table(path, columns or {})
    if not loaded.runs and not any("not finished" in row.reason for row in loaded.bad):
        first = f"; the first: {loaded.bad[0].where}: {loaded.bad[0].reason}" if loaded.bad else ""
        raise FitRefused("no_runs", f"{path}: no usable run among {len(loaded.bad)} rows{first}")
    return loaded


def _load_study(path: pathlib.Path) -> LoadedRuns:
    manifest = path / "manifest.jsonl"
    if not manifest.exists():
        raise FitRefused("not_found", f"{path}: no manifest.jsonl; give a study directory or a table of runs")
    rows, bad, details, conventions = [], [], {}, set()
    header: dict[str, Any] = {}
    planned: dict[str, dict[str, Any]] = {}
    for file in (path / "manifest.jsonl", path / "verification.jsonl"):
        for where, row, error in _json_lines(file) if file.exists() else ():
            name = row.get("name")
            if isinstance(row.get("manifest"), dict):
                header = row["manifest"] | header
                for drop in row["manifest"].get("dropped", ()):
                    where = f"budget {drop['budget']:.3g}, N {drop['params']:.3g}"
                    bad.append(BadRow(where, f"dropped from the plan: {drop['reason']}"))
            elif error or not isinstance(name, str):
                raise FitRefused("manifest", f"{file}: {where}: {error or 'no run name'}; restore the file: without it "
                                 "it is not known which runs belong to the study")  # fmt: skip
            elif pathlib.PurePath(name).name != name:
                bad.append(BadRow(name, "a run name must be a plain folder name"))
            else:
                planned[name] = row
    for name in planned:
        result = path / "runs" / name / "result.json"
        if not result.exists():
            bad.append(BadRow(name, "not finished: no result.json"))
            continue
        try:
            row = json.loads(result.read_text())
        except ValueError as error:
            bad.append(BadRow(name, f"result.json is not JSON: {error}"))
            continue
        if not isinstance(row, dict):
            bad.append(BadRow(name, "result.json is not an object"))
            continue
        rows.append((name, row | {"name": name}))
    for folder in sorted((path / "runs").glob("*")):
        if folder.is_dir() and folder.name not in planned:
            bad.append(BadRow(folder.name, "not in the manifest"))
    for name, row in rows:
        details[name] = row
        if "convention" in row:
            conventions.add(str(row["convention"]))
    if len(conventions) > 1:
        raise FitRefused(
            "conventions",
            f"{path}: runs count FLOPs in several ways ({', '.join(sorted(conventions))}); "
            "fit runs of one convention at a time",
        )
    mapping = {field: field for field in _COLUMNS}
    runs, more = _to_runs(rows, mapping)
    return LoadedRuns(
        str(path),
        runs,
        tuple(bad) + more,
        mapping,
        conventions.pop() if conventions else "unstated",
        details,
        planned,
        header,
    )


def _load_table(path: pathlib.Path, columns: Mapping[str, str]) -> LoadedRuns:
    bad, rows, present = [], [], {}
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        for where, row, error in _json_lines(path):
            if error:
                bad.append(BadRow(where, error))
            else:
                rows.append((where, row))
                present |= dict.fromkeys(row)
    else:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""))
        present = dict.fromkeys(reader.fieldnames or ())
        rows = [(f"line {reader.line_num}", row) for row in reader]
    mapping = _guess_columns(path, list(present), columns)
    runs, more = _to_runs(rows, mapping)
    return LoadedRuns(str(path), runs, tuple(bad) + more, mapping, f"as in {path.name}: {mapping['flops']}", {})


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError):
        raise FitRefused("columns", f"{path}: not a text file; give a CSV or JSON-lines table of runs") from None


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"line {number}", {}, f"not JSON: {error}"
            continue
        yield f"line {number}", row if isinstance(row, dict) else {}, "" if isinstance(row, dict) else "not an object"


def _guess_columns(path: pathlib.Path, present: list[str], wanted: Mapping[str, str]) -> dict[str, str]:
    for field, column in wanted.items():
        if field not in _COLUMNS:
            raise FitRefused("columns", f"{path}: {field!r} is no field of a run; use one of {', '.join(_COLUMNS)}")
        if column not in present:
            raise FitRefused("columns", f"{path}: no column {column!r} for {field}; there are {', '.join(present)}")
    lower = {column.lower(): column for column in reversed(present)}
    mapping = {}
    for field, guesses in _COLUMNS.items():
        found = wanted.get(field) or next((lower[guess] for guess in guesses if guess in lower), None)
        if found:
            mapping[field] = found
    missing = [field for field in ("params", "tokens", "loss") if field not in mapping]
    if missing:
        raise FitRefused(
            "columns",
            f"{path}: no column for {', '.join(missing)} among {', '.join(present) or 'none'}; "
            f"rename your column to {missing[0]}",
        )
    mapping.setdefault("flops", _SIX_ND)
    return mapping


def _to_runs(
    rows: list[tuple[str, dict[str, Any]]], mapping: Mapping[str, str]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...]]:
    runs, bad, seen, names = [], [], {}, set()
    for where, row in rows:
        name = str(row.get(mapping.get("name", ""), None) or where)
        values, reason = {}, ""
        if str(row.get("diverged", "")).lower() in ("true", "1"):
            reason = "diverged"
        for field in ("params", "tokens", "loss", "flops", "budget"):
            column = mapping.get(field)
            if field == "flops" and column == _SIX_ND:
                values[field] = 6.0 * (values.get("params") or math.nan) * (values.get("tokens") or math.nan)
                continue
            raw = row.get(column) if column else None
            if raw is None or raw == "":
                values[field] = None
                if field != "budget":
                    reason = reason or f"{field} is missing"
                continue
            try:
                values[field] = float(raw)
            except (TypeError, ValueError):
                reason = reason or f"{field} is not a number: {raw!r}"
                continue
            if not math.isfinite(values[field]) or values[field] <= 0 or isinstance(raw, bool):
                reason = reason or f"{field} is not a positive finite number: {raw!r}"
        role = str(row.get(mapping.get("role", ""), None) or "isoflop")
        if role not in ROLES:
            reason = reason or f"role {role!r} is none of {', '.join(ROLES)}"
        if not reason:
            run = Run(name, role=role, **values)
            key = (run.params, run.tokens, run.flops, run.loss)
            if key in seen:
                reason = f"duplicate of {seen[key]}"
            elif name in names:
                reason = f"duplicate name {name}"
            else:
                seen[key] = name
                names.add(name)
                runs.append(run)
        if reason:
            bad.append(BadRow(name, reason))
    return tuple(runs), tuple(bad)
