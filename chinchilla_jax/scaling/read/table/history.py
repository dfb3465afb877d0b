"""Which rows of a table make one run: each by itself, or all of one name together?

Rows that share a name are told apart by N, seed, budget and what else states a plan. What is left is a **history**
where tokens rise from row to row and the rows look like a log of one training: its last row is the run, the rows before
are its curve. Rows with the same N and D are **replicates**, all kept. Rows of one name that look like separate
trainings for several token counts (**horizons**) are runs of their own. One decision holds for a whole table.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import BadRow, Run
from chinchilla_jax.scaling.read.table.cells import Missing, Unusable, Zero, certain, same_value
from chinchilla_jax.scaling.read.table.curves import to_curve
from chinchilla_jax.scaling.read.table.formats import Table
from chinchilla_jax.scaling.read.table.headers import joined_words, readings, understand
from chinchilla_jax.scaling.read.table.records import Record, read_records

# A log counts steps one by one; `steps` or `total_steps` says how long a run was.
_LOGGED = ("step", "global_step", "iteration", "iter")
_PLANNED = re.compile(
    r"(^|_)(horizon|schedule|max_steps|total_steps|num_steps|n_steps|train_steps|training_steps|"
    r"decay_steps|max_tokens|target_tokens|planned_tokens|tokens_planned|max_lr|peak_lr|chinchilla)(_|$)"
)
_LONG = 12  # rows of one name; nobody trains one size for so many token counts
_MOSTLY = 0.9


def to_runs(table: Table, histories: bool | None = None) -> tuple[list[Record], tuple[BadRow, ...]]:
    """The records that are runs, and the other rows with their reasons; notes what was decided about shared names.

    Everything is in the source's order. Names of runs are unique: the seed or a number is added to shared ones. Two
    rows with the same N, D, C, loss and seed are one run.

    Args:
      histories: whether rows of one name with rising tokens are one run's history; None to judge by the rows.
    """
    groups = _groups(read_records(table), table)
    sequences = [_rising(group) if len(group) > 1 else [] for group in groups]
    rising = [sequence for group in sequences for sequence in group if len(sequence) > 1]
    if rising:
        why = "as --columns says"
        if histories is None:
            histories, why = _looks_like_history(rising, table)
        table.notes.append(_decision(histories, why, rising))
    usable: list[Record] = []
    bad: list[tuple[int, BadRow]] = []
    pointless = 0
    for group, parts in zip(groups, sequences, strict=True):
        if rising and histories and len(group) > 1:
            runs, problems, silent = _of_history(group, parts, "curve" in table.columns)
            usable += runs
            bad += problems
            pointless += silent
        else:
            usable += [record for record in group if isinstance(record.outcome, Run)]
            bad += [(record.position, record.left_out()) for record in group if isinstance(record.outcome, Unusable)]
    if pointless:
        words = f"{pointless} rows of histories have no loss, or no tokens yet: they are no points of a curve"
        table.notes.append(words)
    kept: dict[tuple, Record] = {}
    for record in sorted(usable, key=lambda record: record.position):
        run = record.run
        first = kept.setdefault((run.params, run.tokens, run.flops, run.loss, run.seed), record)
        if first is not record:
            twice = record.left_out(f"duplicate of {first.label}: same N, D, C and loss")
            bad.append((record.position, twice))
    _make_names_unique(list(kept.values()))
    return list(kept.values()), tuple(row for _, row in sorted(bad, key=lambda listed: listed[0]))


def _groups(records: Sequence[Record], table: Table) -> list[list[Record]]:
    """Rows that may belong to one run: of one name, N, seed, role, budget, and of one value of every planned column."""
    columns = table.columns
    used = {column.name for field, column in columns.items() if field not in ("budget", "role")}
    plans = [name for name in table.present if name not in used and _PLANNED.search(joined_words(name))]
    plans += [columns[field].name for field in ("budget", "role") if field in columns]
    groups: dict[tuple, list[Record]] = collections.defaultdict(list)
    for record in records:
        key: tuple = (record.position,)
        if record.name and not record.row.problem:
            values = record.row.values
            key = (record.name, record.seed, *(same_value(values.get(n)) for n in (columns["params"].name, *plans)))
        groups[key].append(record)
    return list(groups.values())


def _rising(group: Sequence[Record]) -> list[list[Record]]:
    """The rows that have tokens and a loss, cut wherever the tokens do not rise; a list newest first is turned."""
    points = [record for record in group if not isinstance(record.numbers["loss"], Missing)]
    points = [record for record in points if not isinstance(record.numbers["tokens"], Unusable)]
    if len(points) > 2 and all(_tokens(late) < _tokens(early) for early, late in itertools.pairwise(points)):
        points.reverse()
    sequences: list[list[Record]] = []
    before = np.inf
    for record in points:
        if _tokens(record) <= before:
            sequences.append([])
        sequences[-1].append(record)
        before = _tokens(record)
    return sequences


def _tokens(record: Record) -> float:
    return certain(record.numbers["tokens"])


def _looks_like_history(rising: Sequence[Sequence[Record]], table: Table) -> tuple[bool, str]:
    """(whether these are logs of single trainings, by what that is judged)."""
    if "step" in table.columns:
        name = table.columns["step"].name
        logged = any(understand("step", header)[0] in _LOGGED for header in readings(name))
        if logged and np.mean([_climbs(sequence) for sequence in rising]) >= _MOSTLY:
            return True, f"column {name} rises with the tokens"
    longest = int(np.median([len(sequence) for sequence in rising]))
    if longest >= _LONG:
        return True, f"{longest} rows a name"
    votes = [_evenly_spaced([_tokens(record) for record in sequence]) for sequence in rising if len(sequence) > 2]
    if votes and np.mean(votes) > 0.5:
        return True, "their tokens are evenly spaced, as in a log"
    return False, "too few rows a name for a log" if not votes else "their tokens are spaced by factors, not evenly"


def _climbs(sequence: Sequence[Record]) -> bool:
    found = (record.numbers["step"] for record in sequence)
    steps = [0.0 if isinstance(step, Unusable) else step for step in found]
    return all(late > early for early, late in itertools.pairwise(steps))


def _evenly_spaced(tokens: Sequence[float]) -> bool:
    """Whether the gaps between numbers vary less than the factors between them."""
    gaps, factors = np.diff(tokens), np.diff(np.log(tokens))
    return bool(gaps.std() / gaps.mean() < factors.std() / factors.mean())


def _decision(histories: bool, why: str, rising: Sequence[Sequence[Record]]) -> str:
    rows, names = sum(map(len, rising)), len({sequence[0].name for sequence in rising})
    shared = f"{rows} rows share {names} name{'s' * (names > 1)} while their tokens rise"
    if histories:
        runs = f"histories ({why}) of {len(rising)} run{'s' * (len(rising) > 1)}"
        fix = "if each row is a run of its own: --columns=step:-"
        return f"{shared}: read as {runs}: the last row is the run, those before are its curve; {fix}"
    fix = "--columns=step:COLUMN names the column of the steps, or of the tokens"
    runs = f"{rows} runs trained for several token counts ({why})"
    return f"{shared}: read as {runs}; if they are histories, of which the last row counts: {fix}"


def _of_history(
    group: Sequence[Record], sequences: Sequence[Sequence[Record]], has_curve: bool
) -> tuple[list[Record], list[tuple[int, BadRow]], int]:
    """(runs with their curves, what is wrong by position, how many rows are no points) of the rows of one name."""
    usable: list[Record] = []
    bad: list[tuple[int, BadRow]] = []
    for sequence in sequences:
        last = sequence[-1]
        if isinstance(last.outcome, Unusable):
            span = f"{sequence[0].row.where} to {last.row.where.rpartition(' ')[2]} ({last.name})"
            bad.append((last.position, BadRow(span if len(sequence) > 1 else last.label, str(last.outcome))))
            continue
        if not has_curve:
            points = [(r.row.where, r.numbers["tokens"], r.numbers["loss"]) for r in sequence]
            curve, problems = to_curve(points, last.run, last.name)
            bad += [(last.position, problem) for problem in problems]
            last.change(curve=curve)
        usable.append(last)
    inside = {record for sequence in sequences for record in sequence}
    outside = [record for record in group if record not in inside]
    silent = [record for record in outside if _is_silent(record)]
    listed = [record for record in outside if record not in silent] + (silent[-1:] if not sequences else [])
    return usable, bad + [(record.position, record.left_out()) for record in listed], len(silent)


def _is_silent(record: Record) -> bool:
    """Whether a row of a history has no loss, or no tokens yet."""
    return isinstance(record.numbers["loss"], Missing) or isinstance(record.numbers["tokens"], (Missing, Zero))


def _make_names_unique(records: Sequence[Record]) -> None:
    """Shared names become `x seed 1` where seeds tell the runs apart, else `x`, `x #2`, `x #3`."""
    counts = collections.Counter(record.run.name for record in records)
    taken = {name for name, number in counts.items() if number == 1}
    for record in records:
        name = record.run.name
        if counts[name] > 1:
            stem = f"{name} seed {record.run.seed}" if record.run.seed else name
            candidates = itertools.chain([stem], (f"{stem} #{number}" for number in itertools.count(2)))
            unique = next(candidate for candidate in candidates if candidate not in taken)
            taken.add(unique)
            record.change(name=unique)
