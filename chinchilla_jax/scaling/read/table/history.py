"""Which rows of a table make one run: each by itself, or all of one name together?

Rows that share a name are told apart by N, seed, budget and what else states a plan. What is left is a **history**
where tokens rise from row to row and the rows look like a log of one training: its last row is the run, the rows before
are its curve. Rows with the same N and D are **replicates**, all kept. Rows of one name that look like separate
trainings for several token counts (**horizons**) are runs of their own. One decision holds for a whole table.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import BadRow, Run
from chinchilla_jax.scaling.read.table.cells import missing, same_value
from chinchilla_jax.scaling.read.table.columns import Column
from chinchilla_jax.scaling.read.table.formats import Row
from chinchilla_jax.scaling.read.table.headers import last_part, split_words, understand
from chinchilla_jax.scaling.read.table.rows import Parsed, Point, parse, to_curve, value_of

# A log counts steps one by one; `steps` or `total_steps` says how long a run was.
_LOGGED = ("step", "global_step", "iteration", "iter")
_PLANNED = re.compile(r"(^|_)(horizon|schedule|max_steps|total_steps|num_steps|n_steps|train_steps|training_steps|"
                      r"decay_steps|max_tokens|target_tokens|planned_tokens|tokens_planned|max_lr|peak_lr|"
                      r"chinchilla)(_|$)")  # fmt: skip
_LONG = 12  # rows of one name; nobody trains one size for so many token counts
_MOSTLY = 0.9


def to_runs(
    rows: Iterable[Row],
    columns: Mapping[str, Column],
    present: Sequence[str] = (),
    histories: bool | None = None,
) -> tuple[tuple[tuple[Row, Run], ...], tuple[BadRow, ...], tuple[str, ...]]:
    """The usable rows, each with its run, the others with their reasons, and what was decided about shared names.

    Everything is in the source's order. Names of runs are unique: the seed or a number is added to shared ones. Two
    rows with the same N, D, C, loss and seed are one run.

    Args:
      present: the columns of the source, some of which may tell runs of one name apart.
      histories: whether rows of one name with rising tokens are one run's history; None to judge by the rows.
    """
    parsed = [parse(row, columns) for row in rows]
    parts = _parts(parsed, columns, present)
    sequences = {id(part): _rising(part, columns) for part in parts if len(part) > 1}
    rising = [seq for found in sequences.values() for seq in found if len(seq) > 1]
    notes: list[str] = []
    if rising:
        why = "as --columns says"
        if histories is None:
            histories, why = _looks_like_history(rising, columns)
        notes.append(_says(histories, why, rising))
    usable: list[tuple[Row, Run]] = []
    bad: list[tuple[Row, BadRow]] = []
    passed = 0
    for part in parts:
        if not (rising and histories and len(part) > 1):
            usable += [(p.row, p.run) for p in part if p.run is not None]
            bad += [(p.row, BadRow(p.label, p.problem)) for p in part if p.run is None]
            continue
        found, spoilt, pointless = _of_history(part, sequences[id(part)], columns)
        usable += found
        bad += spoilt
        passed += pointless
    if passed:
        notes.append(f"{passed} rows of histories have no loss, or no tokens yet: they are no points of a curve")
    order = {id(p.row): position for position, p in enumerate(parsed)}
    labels = {id(p.row): p.label for p in parsed}
    usable.sort(key=lambda pair: order[id(pair[0])])
    kept, twice = _distinct(usable, labels)
    bad = sorted(bad + twice, key=lambda entry: order[id(entry[0])])
    return _with_own_names(kept), tuple(entry for _, entry in bad), tuple(notes)


def _parts(parsed: Sequence[Parsed], columns: Mapping[str, Column], present: Sequence[str]) -> list[list[Parsed]]:
    """Rows that may belong to one run: of one name, N, seed, role, budget, and of one value of every planned column."""
    used = {column.name for field, column in columns.items() if field not in ("budget", "role")}
    plans = [name for name in present if name not in used and _PLANNED.search("_".join(split_words(name)))]
    plans += [columns[field].name for field in ("budget", "role") if field in columns]
    parts: dict[tuple, list[Parsed]] = {}
    for position, p in enumerate(parsed):
        key: tuple = (position,)
        if p.name and not p.row.problem:
            values = p.row.values
            key = (p.name, same_value(values.get(columns["params"].name)), p.seed,
                   *(same_value(values.get(name)) for name in plans))  # fmt: skip
        parts.setdefault(key, []).append(p)
    return list(parts.values())


def _rising(part: Sequence[Parsed], columns: Mapping[str, Column]) -> list[list[Parsed]]:
    """The rows that have tokens and a loss, cut wherever the tokens do not rise; a list newest first is turned."""
    points = [(at, p) for p in part if (at := _at(p, columns)) is not None]
    if len(points) > 2 and all(late[0] < early[0] for early, late in zip(points, points[1:], strict=False)):
        points.reverse()
    found: list[list[Parsed]] = []
    before = np.inf
    for at, p in points:
        if at <= before:
            found.append([])
        found[-1].append(p)
        before = at
    return found


def _at(p: Parsed, columns: Mapping[str, Column]) -> float | None:
    """Tokens of a row that may be a point of a curve: one with a loss, be it not finite."""
    return None if missing(p.row.values.get(columns["loss"].name)) else value_of(p.row, "tokens", columns)


def _looks_like_history(rising: Sequence[Sequence[Parsed]], columns: Mapping[str, Column]) -> tuple[bool, str]:
    """(whether these are logs of single trainings, by what that is judged)."""
    if "step" in columns:
        name = columns["step"].name
        logged = {understand("step", header)[0] for header in (name, last_part(name)) if header} & set(_LOGGED)
        if logged and np.mean([_climbs(seq, columns) for seq in rising]) >= _MOSTLY:
            return True, f"column {name} rises with the tokens"
    longest = int(np.median([len(seq) for seq in rising]))
    if longest >= _LONG:
        return True, f"{longest} rows a name"
    votes = [np.diff(tokens).std() / np.diff(tokens).mean() < np.diff(np.log(tokens)).std() / np.diff(
        np.log(tokens)).mean() for seq in rising if len(seq) > 2
        for tokens in [np.array([value_of(p.row, "tokens", columns) for p in seq])]]  # fmt: skip
    if votes and np.mean(votes) > 0.5:
        return True, "their tokens are evenly spaced, as in a log"
    return False, "too few rows a name for a log" if not votes else "their tokens are spaced by factors, not evenly"


def _climbs(seq: Sequence[Parsed], columns: Mapping[str, Column]) -> bool:
    steps = [value_of(p.row, "step", columns) or 0.0 for p in seq]
    return all(late > early for early, late in zip(steps, steps[1:], strict=False))


def _says(histories: bool, why: str, rising: Sequence[Sequence[Parsed]]) -> str:
    rows, names = sum(map(len, rising)), len({seq[0].name for seq in rising})
    shared = f"{rows} rows share {names} name{'s' * (names > 1)} while their tokens rise"
    if histories:
        return (f"{shared}: read as histories ({why}) of {len(rising)} run{'s' * (len(rising) > 1)}: the last row is "
                "the run, those before are its curve; if each row is a run of its own: --columns=step:-")  # fmt: skip
    return (f"{shared}: read as {rows} runs trained for several token counts ({why}); if they are histories, of which "
            "the last row counts: --columns=step:COLUMN names the column of the steps, or of the tokens")  # fmt: skip


def _of_history(
    part: Sequence[Parsed], sequences: Sequence[Sequence[Parsed]], columns: Mapping[str, Column]
) -> tuple[list[tuple[Row, Run]], list[tuple[Row, BadRow]], int]:
    """(runs with their curves, what is wrong, how many rows are no points) of the rows of one name."""
    usable: list[tuple[Row, Run]] = []
    bad: list[tuple[Row, BadRow]] = []
    for seq in sequences:
        last = seq[-1]
        if last.run is None:
            where = f"{seq[0].row.where} to {last.row.where.rpartition(' ')[2]} ({last.name})"
            bad.append((last.row, BadRow(where if len(seq) > 1 else last.label, last.problem)))
            continue
        points = [Point(p.row.where, value_of(p.row, "tokens", columns), _loss(p, columns)) for p in seq]
        curve, spoilt = (None, []) if "curve" in columns else to_curve(points, last.run, last.name)
        bad += [(last.row, problem) for problem in spoilt]
        usable.append((last.row, dataclasses.replace(last.run, curve=curve)))
    inside = {id(p) for seq in sequences for p in seq}
    outside = [p for p in part if id(p) not in inside]
    silent = [p for p in outside if missing(p.row.values.get(columns["loss"].name)) or _before_start(p, columns)]
    bad += [(p.row, BadRow(p.label, p.problem)) for p in outside if p not in silent]
    if not sequences and silent:
        bad.append((silent[-1].row, BadRow(silent[-1].label, silent[-1].problem)))
    return usable, bad, len(silent)


def _loss(p: Parsed, columns: Mapping[str, Column]) -> object:
    value = value_of(p.row, "loss", columns)
    return p.row.values.get(columns["loss"].name) if value is None else value


def _before_start(p: Parsed, columns: Mapping[str, Column]) -> bool:
    raw = p.row.values.get(columns["tokens"].name)
    return missing(raw) or same_value(raw) == 0.0


def _distinct(
    usable: Sequence[tuple[Row, Run]], labels: Mapping[int, str]
) -> tuple[list[tuple[Row, Run]], list[tuple[Row, BadRow]]]:
    seen: dict[tuple, str] = {}
    kept, bad = [], []
    for row, run in usable:
        key = (run.params, run.tokens, run.flops, run.loss, run.seed)
        if key in seen:
            bad.append((row, BadRow(labels[id(row)], f"duplicate of {seen[key]}: same N, D, C and loss")))
        else:
            seen[key] = labels[id(row)]
            kept.append((row, run))
    return kept, bad


def _with_own_names(usable: Sequence[tuple[Row, Run]]) -> tuple[tuple[Row, Run], ...]:
    """The runs under names that are unique: `x seed 1` where seeds tell them apart, else `x`, `x #2`, `x #3`."""
    counts = collections.Counter(run.name for _, run in usable)
    taken = {name for name, number in counts.items() if number == 1}
    made = []
    for row, run in usable:
        name = run.name
        if counts[name] > 1:
            stem = f"{name} seed {run.seed}" if run.seed else name
            numbered = (f"{stem} #{number}" for number in range(2, len(usable) + 2 + len(taken)))
            name = next(candidate for candidate in (stem, *numbered) if candidate not in taken)
            taken.add(name)
        made.append((row, dataclasses.replace(run, name=name)))
    return tuple(made)
