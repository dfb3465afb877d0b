"""Which runs does a directory hold: a study, one run, or a folder of run directories?

    STUDY/manifest.jsonl, verification.jsonl    what was planned, and later in next.jsonl, next_2.jsonl ...; noise.jsonl
                                                names runs that are none of the study's
    STUDY/runs/NAME/  or  FOLDER/NAME/  or  RUN/
        result.json                             N, D, C by convention and the loss; written last
        metrics.jsonl                           the training curve

A run without its result is listed as not finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.config import CONVENTIONS
from chinchilla_jax.scaling.read.runs import BadRow, Curve, FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table.cells import number
from chinchilla_jax.scaling.read.table.columns import NONE, RUN_FIELDS, choose_columns, require
from chinchilla_jax.scaling.read.table.formats import Column, Row, Table, json_lines, table_of
from chinchilla_jax.scaling.read.table.records import Point, to_curve, to_runs
from chinchilla_jax.scaling.read.table.select import Where, select
from chinchilla_jax.scaling.read.table.settings import best_per_cell

_DEFAULT = "executed"  # of runs that were trained outside a study and so state no convention
_COUNTED = {
    "params": "total: embeddings included, a tied matrix once",
    "params_non_embedding": "non-embedding: without token, position and output matrices",
}
# Roles of runs that no law is fitted to, and what is said of them: those at a constant rate that others branch off, and
# those that measure how far runs of one size differ.
_NOT_FITTED = {
    "trunk": "trunks are no runs to fit, their branches are",
    "noise": "runs that measure noise are no runs to fit",
}
_VALIDATION = (
    *(f"data.{key}" for key in ("source", "mixture", "tokenizer", "vocab_size", "seq_len", "validation_fraction")),
    "train.eval_sequences",
)
METHOD, PLAIN = "method", "plain"  # the key of a result that says how the run was trained
BY_EXPERTS = "by_experts.json"  # in a run directory: validation losses with fewer experts
_MARKS = ("result.json", "config.json", "metrics.jsonl")


@dataclasses.dataclass
class _Study:
    """The run directories by name, what the manifests say of them, if there are any, and what is left out."""

    folders: dict[str, pathlib.Path]
    planned: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    bad: list[BadRow] = dataclasses.field(default_factory=list)


def load_directory(path: pathlib.Path, by_hand: Mapping[str, str], where: Where, best: bool) -> LoadedRuns:
    """The finished runs of a study directory, of one run directory, or of a folder of run directories.

    The arguments are those of `load_runs`: keys of `result.json` by field (`by_hand`), values by key (`where`), and
    whether the best setting alone is kept. Refused as `not_found` (none of the three), `manifest`, `conventions`,
    `columns` or `where`.
    """
    # 1. The results become rows of a table; what is not asked for goes.
    study = _read_study(path) if files.exists(path / "manifest.jsonl") else _Study(_run_directories(path))
    table = select(_read_results(path, study), where)

    # 2. FLOPs of one convention, and the key that serves each field.
    stated = _stated_convention(table)
    table.rows = rows = [_with_flops(row, stated) for row in table.rows]
    table.columns = _columns(table, by_hand, stated)
    convention = table.columns["flops"].count
    if convention != stated and "budget" in table.columns:
        del table.columns["budget"]
        table.notes.append(f"budgets are left out: they were counted as {stated}, C here as {convention}")

    # 3. Rows become runs, or the reason why not.
    for role, why in _NOT_FITTED.items():
        if passed := sum(_is_passed_over(row, role) for row in rows):
            table.notes.append(f"{why}: {passed} passed over")
    table.rows = [row for row in rows if not any(_is_passed_over(row, role) for role in _NOT_FITTED)]
    if METHOD not in where:
        _leave_plain(table)
    usable, bad_rows = to_runs(table)

    # 4. The best settings, if asked for; then seeds and training curves.
    if best:
        usable = best_per_cell(usable, table)
    bad_curves = []
    for record in usable:
        folder = study.folders[record.row.where]
        curve, problems = None, list[BadRow]()
        if not record.row.values.get("stages"):  # otherwise its training loss is not that of next tokens all the way
            curve, problems = read_curve(record.run, folder / "metrics.jsonl")
        bad_curves += problems
        record.change(seed=_seed(record.row, study.planned, folder), curve=curve)
    params = table.columns["params"]
    return LoadedRuns(
        source=str(path),
        runs=tuple(record.run for record in usable),
        bad=(*study.bad, *bad_rows, *bad_curves),
        columns={field: str(column) for field, column in table.columns.items()},
        convention=convention,
        details={row.where: row.values for row in rows},
        planned=study.planned,
        header=study.header,
        params_count=_COUNTED.get(params.name, params.count or "not stated"),
        loss_unit="nats per token, on held-out text",
        notes=tuple(table.notes),
        validation=_validation(study),
    )


def _leave_plain(table: Table) -> None:
    """Takes runs that were trained otherwise than plainly out of the table, with a note."""
    plain = [row for row in table.rows if row.values.get(METHOD) in (None, PLAIN)]
    if others := len(table.rows) - len(plain):
        asked = f"--where={METHOD}=... or --by={METHOD} asks for them"
        table.notes.append(f"runs trained otherwise than plainly: {others} passed over; {asked}")
    table.rows = plain


def _validation(study: _Study) -> dict[str, str]:
    """The settings that decide which rows the losses were measured on, of the study or of its first run."""
    config = study.header.get("config")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
        return validation_of(config or files.read_json(next(iter(study.folders.values())) / "config.json")["config"])
    return {}


def validation_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run's config, as nested mappings, that decide which rows its loss is measured on."""
    return {key: str(config[key.split(".")[0]][key.split(".")[1]]) for key in _VALIDATION}


def _read_study(path: pathlib.Path) -> _Study:
    """What the manifests plan, what they left out, and what lies beside the planned runs."""
    study = _Study({})
    further = list(itertools.takewhile(files.exists, (path / name for name in _further())))
    for file in (path / "manifest.jsonl", path / "verification.jsonl", *further):
        for row in _lines(file):
            name, line = row.values.get("name"), row.values
            if isinstance(line.get("manifest"), dict):
                study.header = line["manifest"] | study.header
                study.bad += _dropped(file, row.where, line["manifest"].get("dropped", ()))
            elif row.problem or not isinstance(name, str):
                raise _damaged(file, row.where, row.problem or "no run name")
            elif pathlib.PurePath(name).name != name:
                study.bad.append(BadRow(name, f"a run name must be a plain folder name ({file.name} {row.where})"))
            else:
                study.planned[name] = {**line, "further": True} if file in further else line
                study.folders[name] = path / "runs" / name
        if not _is_as_written(file):
            raise _damaged(file, "its digest", "it is not as it was written: edited, or cut off")
    beside = (row for name in ("noise.jsonl", "tune.jsonl") for row in _lines(path / name))
    known = study.planned.keys() | {str(row.values.get("name")) for row in beside}
    folders = (folder for folder in files.glob(path / "runs") if files.is_folder(folder))
    study.bad += [BadRow(folder.name, "not in the manifest") for folder in folders if folder.name not in known]
    return study


def _further() -> Iterator[str]:
    """Names of the manifests of runs that were added later, in their order."""
    yield "next.jsonl"
    yield from (f"next_{number}.jsonl" for number in itertools.count(2))


def manifest_digest(header: Mapping[str, Any], lines: Sequence[str]) -> str:
    """That of a manifest's header and its other lines, which stands in its first line."""
    return hashlib.sha256("\n".join([json.dumps(header), *lines]).encode()).hexdigest()[:16]


def _is_as_written(file: pathlib.Path) -> bool:
    """Whether a manifest agrees with its digest, if it has one and can be read at all."""
    try:
        head, *lines = files.read_text(file).splitlines()
        first = json.loads(head)
        return "digest" not in first or first["digest"] == manifest_digest(first["manifest"], lines)
    except (OSError, ValueError, KeyError, TypeError):
        return True  # its lines say more exactly what is wrong


def _lines(file: pathlib.Path) -> list[Row]:
    try:
        return list(json_lines(file)) if files.exists(file) else []
    except FitRefused as refused:
        raise FitRefused("manifest", str(refused)) from None


def _dropped(file: pathlib.Path, where: str, dropped: Any) -> list[BadRow]:
    try:
        return [
            BadRow(f"budget {drop['budget']:.3g}, N {drop['params']:.3g}", f"dropped from the plan: {drop['reason']}")
            for drop in dropped
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, where, f"damaged list of what was dropped ({type(error).__name__}: {error})") from None


def _damaged(file: pathlib.Path, where: str, problem: str) -> FitRefused:
    fix = "restore the file: without it it is not known which runs belong to the study"
    return FitRefused("manifest", f"{file}: {where}: {problem}; {fix}")


def _run_directories(path: pathlib.Path) -> dict[str, pathlib.Path]:
    def is_run(folder: pathlib.Path) -> bool:
        return any(files.exists(folder / mark) for mark in _MARKS)

    if is_run(path):
        return {files.resolved(path).name: path}
    folders = {child.name: child for child in files.glob(path) if files.is_folder(child) and is_run(child)}
    if not folders:
        nothing = "no manifest.jsonl, and no run directory in it (one has a result.json)"
        fix = "give a study directory, run directories or a table of runs"
        raise FitRefused("not_found", f"{path}: {nothing}; {fix}")
    return folders


def _read_results(path: pathlib.Path, study: _Study) -> Table:
    """The `result.json` of every run that has one as a row; the other runs join what is left out."""
    rows = []
    for name, folder in study.folders.items():
        try:
            values = files.read_json(folder / "result.json")
            if isinstance(values, dict):
                rows.append(Row(name, values | {"name": name}))
            else:
                study.bad.append(BadRow(name, "result.json is not an object"))
        except (FileNotFoundError, NotADirectoryError):
            place = "" if study.planned else f" in {folder}"
            study.bad.append(BadRow(name, f"not finished: no result.json{place}"))
        except (ValueError, RecursionError) as error:
            study.bad.append(BadRow(name, f"result.json is not JSON: {error}"))
    return table_of(str(path), rows)


def _stated_convention(table: Table) -> str:
    """How the results say that FLOPs were counted; refused where they do in several ways."""
    conventions = sorted({str(row.values["convention"]) for row in table.rows if "convention" in row.values})
    if len(conventions) > 1:
        ways = f"runs count FLOPs in several ways ({', '.join(conventions)})"
        raise table.refused("conventions", f"{ways}; fit runs of one convention at a time")
    return conventions[0] if conventions else _DEFAULT


def _with_flops(row: Row, convention: str) -> Row:
    """The row with its FLOPs by convention as columns, and `flops` under the one its study states."""
    by = row.values.get("flops_by_convention")
    by = by if isinstance(by, dict) else {}
    values = dict(row.values) | {f"flops_{name}": value for name, value in by.items()}
    if convention in by:
        values.setdefault("flops", by[convention])
    return Row(row.where, values)


def _columns(table: Table, by_hand: Mapping[str, str], stated: str) -> dict[str, Column]:
    """The keys of `result.json` that serve each field: those of this project unless named by hand."""
    columns = {field: Column(field) for field in RUN_FIELDS if field != "curve"}
    if by_hand and table.rows:
        keys = (key for row in table.rows for key, value in row.values.items() if not isinstance(value, dict))
        chosen = Table(table.source, table.rows, list(dict.fromkeys(keys)))
        choose_columns(chosen, by_hand, fields=())
        columns = {field: column for field, column in columns.items() if by_hand.get(field) != NONE}
        chosen.columns = columns = columns | chosen.columns
        require(chosen, "name", "params", "tokens", "loss", "flops")
    flops = columns["flops"]
    if flops.name == "flops":
        return columns | {"flops": dataclasses.replace(flops, count=flops.count or stated)}
    if flops.count not in CONVENTIONS:
        words = f"key {flops.name} of result.json does not say how FLOPs are counted"
        fix = f"write --columns=flops_{CONVENTIONS[0]}:{flops.name} or one of {', '.join(CONVENTIONS)}"
        raise table.refused("conventions", f"{words}; {fix}")
    return columns


def _is_passed_over(row: Row, role: str) -> bool:
    """Whether a finished run has this role; a trunk that diverged is listed as such instead."""
    return row.values.get("role") == role and not (role == "trunk" and row.values.get("diverged"))


def _seed(row: Row, planned: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The run's seed in words, from its result, its manifest line or its config; "" if none of them says."""
    seed = row.values.get("seed")
    try:
        if not isinstance(seed, int):
            line = planned.get(row.where) or files.read_json(folder / "config.json")
            seed = line["config"]["train"]["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(seed) if isinstance(seed, int) else ""


def read_curve(run: Run, path: pathlib.Path, growing: bool = False) -> tuple[Curve | None, list[BadRow]]:
    """The training curve in the metrics of a run, or None and what is wrong with it.

    `growing`: the run goes on, and its last line may be half written.
    """
    points: list[Point] = []
    bad: list[BadRow] = []
    try:
        rows = list(json_lines(path)) if files.exists(path) else []
        if growing and rows and rows[-1].problem:
            rows.pop()
        for row in rows:
            if row.problem:
                bad.append(BadRow(f"metrics.jsonl {row.where} ({run.name})", f"curve left out: {row.problem}"))
            elif "loss" in row.values:  # the other lines are evaluations
                tokens, loss = number(row.values.get("tokens"), "tokens"), number(row.values["loss"], "loss")
                points.append((f"metrics.jsonl {row.where}", tokens, loss))
    except FitRefused as refused:
        bad.append(BadRow(run.name, f"curve left out: {refused}"))
    curve, bad_points = to_curve(points, run, run.name)
    return (None if bad else curve), bad + bad_points
