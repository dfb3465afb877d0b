"""Which numbers does a row of a table hold, and which rows make one run: each by itself, or all of one name together?

Rows that share a name are told apart by N, seed, budget and what else states a plan. What is left is a **history**
where tokens rise from row to row and the rows look like a log of one training: its last row is the run, the rows before
are its curve. Rows with the same N and D are **replicates**, all kept. Rows of one name that look like separate
trainings for several token counts (**horizons**) are runs of their own. One decision holds for a whole table.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.read.runs import ROLES, BadRow, Curve, Run
from chinchilla_jax.scaling.read.table import cells
from chinchilla_jax.scaling.read.table.cells import Missing, Unusable, Zero, certain, same_value, text_of
from chinchilla_jax.scaling.read.table.formats import Row, Table
from chinchilla_jax.scaling.read.table.headers import joined_words, readings, understand

_NUMBERS = ("params", "tokens", "loss", "flops", "budget", "step", "epochs")
# States that trackers give to runs that did not reach their end.
_UNFINISHED = frozenset(
    """crashed failed running killed preempting preempted pending queued aborted cancelled canceled diverged
    error""".split()
)
_YES = ("true", "yes", "1", "1.0")
# A log counts steps one by one; `steps` or `total_steps` says how long a run was.
_LOGGED = ("step", "global_step", "iteration", "iter")
_PLANNED = re.compile(
    r"(^|_)(horizon|schedule|max_steps|total_steps|num_steps|n_steps|train_steps|training_steps|"
    r"decay_steps|max_tokens|target_tokens|planned_tokens|tokens_planned|max_lr|peak_lr|chinchilla)(_|$)"
)
_LONG = 12  # rows of one name; nobody trains one size for so many token counts
_MOSTLY = 0.9
_SHOWN = 5  # line numbers spelt out for one curve

Point = tuple[str, float | Unusable, float | Unusable]  # where it was read, tokens and loss, or why there are none


@dataclasses.dataclass(eq=False)
class Record:
    """A row with its cells converted.

    `name` in the table, which several rows may share; `label` says where the row is; `numbers` holds the fields that
    have a column, each a number or why there is none; `outcome` is the run that the row makes, or why it makes none,
    or None for a row of another one's history.
    """

    row: Row
    name: str
    label: str
    seed: str
    numbers: Mapping[str, float | Unusable]
    outcome: Run | Unusable | None
    curve_problems: Sequence[BadRow] = ()

    @property
    def run(self) -> Run:
        """The run, of a row that makes one."""
        assert isinstance(self.outcome, Run)
        return self.outcome

    def change(self, **changes: Any) -> None:
        """Gives the run another name, seed or curve."""
        self.outcome = dataclasses.replace(self.run, **changes)


def read_records(table: Table) -> list[Record]:
    """The rows as runs without curves, or with their problems. C is 6 N D unless a column holds it."""
    records = []
    for row in table.rows:
        name = row_name(row, table)
        label = row.where if name in ("", row.where) else f"{row.where} ({name})"
        numbers = {field: table.columns[field].number(row, field) for field in _NUMBERS if field in table.columns}
        seed = text_of(table.cell(row, "seed"))
        if (number := cells.as_number(seed)) is not None and math.isfinite(number) and number == round(number):
            seed = f"{number:.0f}"
        record = Record(row, name, label, seed, numbers, None)
        try:
            record.outcome = _run(record, table)
        except Unusable as reason:
            record.outcome = reason
        records.append(record)
    return records


def row_name(row: Row, table: Table) -> str:
    """The run's name in this row, on one line; empty when it has none."""
    value = table.cell(row, "name")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a workbook has no whole numbers
    return "" if value is None else " ".join(str(value).split())


def _run(record: Record, table: Table) -> Run:
    """The run of a row, or the reason is raised why it is none."""
    row, numbers = record.row, record.numbers
    if row.problem:
        raise Unusable(row.problem)
    if text_of(table.cell(row, "diverged")).lower() in _YES:
        raise Unusable("diverged")
    if (state := text_of(table.cell(row, "state"))).lower() in _UNFINISHED:
        raise Unusable(f"{table.columns['state'].name} is {state}")
    params, tokens, loss = (certain(numbers[field]) for field in ("params", "tokens", "loss"))
    flops = certain(numbers["flops"] if "flops" in numbers else cells.in_range(6.0 * params * tokens, "flops"))
    budget = numbers.get("budget")
    budget = None if budget is None or isinstance(budget, Missing) else certain(budget)
    role = str(table.cell(row, "role") or "").strip()
    if role and role not in ROLES:
        raise Unusable(f"role {role!r} is none of {', '.join(ROLES)}")
    epochs = numbers.get("epochs", 1.0)
    unique = None if isinstance(epochs, Unusable) or epochs <= 1.0 else tokens / epochs
    name, role, seed = record.name or row.where, role or "isoflop", record.seed
    return Run(name, params, tokens, flops, loss, budget, role, seed=seed, unique_tokens=unique)


def to_runs(table: Table, histories: bool | None = None) -> tuple[list[Record], list[BadRow]]:
    """The records that are runs, and the other rows with their reasons; notes what was decided about shared names.

    Everything is in the source's order. Names of runs are unique: the seed or a number is added to shared ones. Two
    rows with the same N, D, C, loss and seed are one run.

    Args:
      histories: whether rows of one name with rising tokens are one run's history; None to judge by the rows.
    """
    records = read_records(table)
    groups = [(group, _rising(group)) for group in _groups(records, table) if len(group) > 1]
    rising = [sequence for _, sequences in groups for sequence in sequences if len(sequence) > 1]
    if rising:
        why = "as --columns says"
        if histories is None:
            histories, why = _looks_like_history(rising, table)
        table.notes.append(_decision(histories, why, rising))
    if rising and histories:
        pointless = sum(_join(group, sequences, "curve" in table.columns) for group, sequences in groups)
        if pointless:
            words = "rows of histories have no loss, or no tokens yet: they are no points of a curve"
            table.notes.append(f"{pointless} {words}")
    usable: dict[tuple, Record] = {}
    bad: list[BadRow] = []
    for record in records:
        bad += record.curve_problems
        if isinstance(record.outcome, Unusable):
            bad.append(BadRow(record.label, str(record.outcome)))
        elif run := record.outcome:
            first = usable.setdefault((run.params, run.tokens, run.flops, run.loss, run.seed), record)
            if first is not record:
                bad.append(BadRow(record.label, f"duplicate of {first.label}: same N, D, C and loss"))
    _make_names_unique(list(usable.values()))
    return list(usable.values()), bad


def _groups(records: Sequence[Record], table: Table) -> list[list[Record]]:
    """Rows that may belong to one run: of one name, N, seed, role, budget, and of one value of every planned column."""
    columns = table.columns
    used = {column.name for field, column in columns.items() if field not in ("budget", "role")}
    plans = [name for name in table.present if name not in used and _PLANNED.search(joined_words(name))]
    plans += [columns[field].name for field in ("budget", "role") if field in columns]
    groups: dict[tuple, list[Record]] = collections.defaultdict(list)
    for position, record in enumerate(records):
        key: tuple = (position,)
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


def _join(group: Sequence[Record], sequences: Sequence[Sequence[Record]], has_curve: bool) -> int:
    """Makes the rows of one name runs with curves, one for each sequence; how many rows are no points of them."""
    for *before, last in sequences:
        for record in before:
            record.outcome = None
        if isinstance(last.outcome, Unusable):
            if before:
                last.label = f"{before[0].row.where} to {last.row.where.rpartition(' ')[2]} ({last.name})"
        elif not has_curve:
            points = [
                (record.row.where, record.numbers["tokens"], record.numbers["loss"]) for record in [*before, last]
            ]
            curve, last.curve_problems = to_curve(points, last.run, last.name)
            last.change(curve=curve)
    silent = [record for record in group if _is_silent(record)]
    for record in silent if sequences else silent[:-1]:
        record.outcome = None
    return len(silent)


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


def to_curve(points: Sequence[Point], run: Run, label: str) -> tuple[Curve | None, list[BadRow]]:
    """The curve of `run`, or None and why it was left out: one bad point spoils it, since nothing fills the gap.

    Args:
      points: in the order they were read. A point at 0 tokens comes before any training: no curve begins there, and it
        is passed over.
      label: the run's name for bad rows, unless the points say it.
    """
    tokens: list[float] = []
    losses: list[float] = []
    problems: dict[str, list[tuple[str, str]]] = {}
    for where, *numbers in points:
        if isinstance(numbers[0], Zero) and not tokens:
            continue
        try:
            at, loss = map(certain, numbers)
            if tokens and at <= tokens[-1]:
                raise Unusable(f"tokens do not rise: {at:.6g} after {tokens[-1]:.6g}")
        except Unusable as reason:
            problems.setdefault(str(reason).partition(":")[0], []).append((where, str(reason)))
        else:
            tokens.append(at)
            losses.append(loss)
    if not problems and tokens and tokens[-1] > 1.01 * run.tokens:
        beyond = f"it goes on to {tokens[-1]:.6g} tokens, the run has D = {run.tokens:.6g}"
        problems["past"] = [(points[-1][0], beyond)]
    if problems:
        return None, [_bad_points(alike, label) for alike in problems.values()]
    return (Curve(np.array(tokens), np.array(losses)) if tokens else None), []


def _bad_points(points: Sequence[tuple[str, str]], label: str) -> BadRow:
    """One entry for the points of a curve that share a problem: their lines, and the first one's words."""
    kind = points[0][0].rpartition(" ")[0]
    numbers = [where.rpartition(" ")[2] for where, _ in points]
    lines = f"{kind}{'s' if len(points) > 1 else ''} {', '.join(numbers[:_SHOWN])}"
    more = f" and {len(points) - _SHOWN} more" if len(points) > _SHOWN else ""
    return BadRow(f"{lines}{more}{f' ({label})' if label else ''}", f"curve left out: {points[0][1]}")
