"""What tells runs of the same N and D apart: a seed, settings that were swept, or a corpus; which of them are fitted?

Replicates differ in their seed or in nothing but the loss, and are all fitted. A **sweep** has several values of a
setting (a learning rate, a batch size) in a cell of (N, D), of which the best one is what a law is about. A **mix** has
a column of words, each on many runs over the same N and C, that are better fitted apart.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import Run, noise_of_repeats
from chinchilla_jax.scaling.read.table.cells import as_number, holds_numbers, missing, same_value, text_of
from chinchilla_jax.scaling.read.table.formats import Table
from chinchilla_jax.scaling.read.table.headers import HEADERS, joined_words
from chinchilla_jax.scaling.read.table.records import Record

_KNOWN = re.compile(
    r"(^|_)(lr|lrs|learning_rate|max_lr|peak_lr|batch|batch_size|bs|bsz|wd|weight_decay|beta_?[12]|"
    r"b[12]|warmup\w*|eps|epsilon|dropout|momentum|clip\w*|optimi[sz]er|schedule|scheduler|decay)(_|$)"
)
# What is measured, a seed, or only a label of a row, is no setting whatever its values do.
_MEASURED = re.compile(
    r"(^|_)(loss|ppl|perplexity|acc|accuracy|error|bpb|bits|time|seconds|secs|minutes|hours|days|"
    r"runtime|throughput|mfu|grad|norm|date|created|updated|timestamp|id|index|idx|url|host|cost|"
    r"hostname|notes?|comment|path|dir|file|line|score|mem|memory|gpus?|name|label|user|"
    r"seed|seeds|replicate|replica|rep|repeat|trial|fold)(_|$)"
)
_LABELS = ("name", "seed", "state", "role", "diverged", "curve", "step")
_SAME_TOKENS = 0.01  # relative: a batch size that does not divide D moves it by less
_EVERY = 3  # runs on each value, on average, of a column that is a setting
_MOST_WORDS, _FEWEST_RUNS = 12, 6  # values of a mix, runs on each of them
_SHOWN = 3
_APART = 0.05  # nominal budgets are met to within this

Cell = dict[tuple, list[Record]]  # runs of one N and D (or budget), by the values of the settings that differ somewhere


def best_per_cell(records: Sequence[Record], table: Table) -> list[Record]:
    """Of each cell of (N, D) the runs of the setting with the lowest mean loss, with a note. Held-out runs stay."""
    names, cells = _cells(_to_fit(records), table)
    if not names:
        table.notes.append("--best_per_cell: no N and D have runs that differ in a setting; all are kept")
        return list(records)

    def mean_loss(group: Sequence[Record]) -> float:
        return float(np.mean([record.run.loss for record in group]))

    best = {record for cell in cells for record in min(cell.values(), key=mean_loss)}
    kept = [record for record in records if record.run.role != "isoflop" or record in best]
    table.notes.append(
        f"--best_per_cell: of {len(records)} runs at {len(cells)} pairs of N and D those of the lowest loss by "
        f"{', '.join(names)} are kept, {len(kept)} of them"
    )
    return kept


def remark(records: Sequence[Record], table: Table) -> None:
    """Notes how the runs differ: sweeps, mixes, replicates, repeated data, two counts of C."""
    records = _to_fit(records)
    runs = [record.run for record in records]
    mixes = _mixes(records, table)
    names, cells = _cells(records, table)
    swept = [name for name in names if name not in mixes]
    notes = [_mix_note(mixes) if mixes else "", _sweep_note(swept, cells) if swept else ""]
    notes += [_replicate_note(runs) if not any(notes) else "", _repeat_note(runs, table), _budget_note(runs, table)]
    table.notes += [note for note in notes if note]


def _to_fit(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.run.role == "isoflop"]


def _value(record: Record, name: str) -> str | float:
    return same_value(record.row.values.get(name))


def _mixes(records: Sequence[Record], table: Table) -> dict[str, collections.Counter]:
    """By column of words: how many runs each of its few values has, where their ranges of N and of C overlap."""
    mixes = {}
    for name in _others(table):
        groups: dict[str, list[Run]] = collections.defaultdict(list)
        for record in records:
            if word := text_of(record.row.values.get(name)):
                groups[word].append(record.run)
        counts = collections.Counter({word: len(runs) for word, runs in groups.items()})
        few = 2 <= len(counts) <= _MOST_WORDS and min(counts.values()) >= _FEWEST_RUNS
        if few and not holds_numbers(counts.elements()) and _overlap(groups.values()):
            mixes[name] = counts
    return mixes


def _others(table: Table) -> list[str]:
    """The columns that may be settings: not used for anything else, no seed, no measurement, no label."""
    used = {column.name for field, column in table.columns.items() if field != "step"}
    labels = {base for field in _LABELS for base in HEADERS[field]}
    others = []
    for name in dict.fromkeys(table.present):
        base = joined_words(name)
        if name not in used and base not in labels and not _MEASURED.search(base):
            others.append(name)
    return others


def _overlap(groups: Iterable[Sequence[Run]]) -> bool:
    """Whether two groups share a part of the range of N and of C: words for sizes or budgets do not."""

    def shared(one: Sequence[float], other: Sequence[float]) -> bool:
        return max(min(one), min(other)) < min(max(one), max(other))

    spans = [([run.params for run in runs], [run.flops for run in runs]) for runs in groups]
    return any(shared(a[0], b[0]) and shared(a[1], b[1]) for a, b in itertools.combinations(spans, 2))


def _cells(records: Sequence[Record], table: Table) -> tuple[list[str], list[Cell]]:
    """(the settings that differ within cells, the cells); runs of other words of a mix are in other cells."""
    mixed = [name for name in _mixes(records, table) if not _KNOWN.search(joined_words(name))]
    groups = _same_n_and_d(records, mixed)
    names = [name for name in _others(table) if name not in mixed and _is_swept(name, groups, records)]
    cells = []
    for group in groups:
        cell: Cell = collections.defaultdict(list)
        for record in group:
            cell[tuple(_value(record, name) for name in names)].append(record)
        cells.append(cell)
    return names, cells


def _same_n_and_d(records: Sequence[Record], mixed: Sequence[str]) -> list[list[Record]]:
    """The records in groups of the same words, N and budget; without a budget, of nearly the same D."""

    def key(record: Record) -> tuple:
        words = (text_of(record.row.values.get(name)) for name in mixed)
        return (*words, record.run.params, record.run.budget or 0.0)

    groups: list[list[Record]] = []
    for record in sorted(records, key=lambda record: (*map(str, key(record)), record.run.tokens)):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and key(last) == key(record)
            and (record.run.budget or math.log(record.run.tokens / last.run.tokens) < _SAME_TOKENS)
        ):
            groups[-1].append(record)
        else:
            groups.append([record])
    return groups


def _is_swept(name: str, groups: Iterable[Sequence[Record]], records: Iterable[Record]) -> bool:
    """Whether a column differs within cells, as a setting does: by its name, or since its values come again."""
    if not any(len({_value(record, name) for record in group}) > 1 for group in groups):
        return False
    if _KNOWN.search(joined_words(name)):
        return True
    filled = [record for record in records if not missing(record.row.values.get(name))]
    values = {_value(record, name) for record in filled}
    numbers = all(as_number(record.row.values[name]) is not None for record in filled)
    return numbers and len(values) > 1 and len(filled) >= _EVERY * len(values)


def _mix_note(mixes: Mapping[str, collections.Counter]) -> str:
    words = []
    for name, counts in mixes.items():
        shown = ", ".join(f"{value} {number}" for value, number in counts.most_common(_SHOWN))
        words.append(f"{name} ({shown}{' ...' if len(counts) > _SHOWN else ''})")
    name, counts = next(iter(mixes.items()))
    one = shlex.quote(f"--where={name}={counts.most_common(1)[0][0]}")
    return (
        f"warning: the table mixes runs of several {', '.join(words)} and all are fitted as one kind: "
        f"{one} takes one, fit {shlex.quote(f'--by={name}')} fits each"
    )


def _sweep_note(names: Sequence[str], cells: Sequence[Cell]) -> str:
    losses = [[r.run.loss for group in cell.values() for r in group] for cell in cells if len(cell) > 1]
    spread = np.median([max(values) / min(values) - 1.0 for values in losses])
    return (
        f"warning: {sum(map(len, losses))} runs differ in {', '.join(names)} only, {len(losses)} of {len(cells)} pairs "
        f"of N and D have several (their losses lie {spread:.1%} apart, median), and all are fitted: --best_per_cell "
        "keeps the lowest of each"
    )


def _replicate_note(runs: Iterable[Run]) -> str:
    cells = collections.defaultdict(list)
    for run in runs:
        cells[run.params, run.tokens, run.budget].append(run.loss)
    several = [losses for losses in cells.values() if len(losses) > 1]
    if not several:
        return ""
    return (
        f"replicates: {sum(map(len, several))} runs at {len(several)} pairs of N and D, all fitted; they scatter by "
        f"{noise_of_repeats(several)[0]:.2%} about their means, which is the noise from run to run"
    )


def _repeat_note(runs: Sequence[Run], table: Table) -> str:
    repeated = [(run.tokens, run.unique_tokens) for run in runs if run.unique_tokens]
    if not repeated:
        return ""
    epochs = sorted({round(tokens / unique, 3) for tokens, unique in repeated})
    unique = [each for _, each in repeated]
    span = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
    return (
        f"warning: data are repeated in {len(repeated)} of {len(runs)} runs ({table.columns['epochs'].name} {span}): "
        f"unique tokens are tokens / epochs, {min(unique):.3g} to {max(unique):.3g}; the fits take every token as "
        "new, and repeated ones are worth less"
    )


def _budget_note(runs: Sequence[Run], table: Table) -> str:
    ratios = np.array([run.flops / run.budget for run in runs if run.budget])
    off = int((np.abs(ratios - 1.0) > _APART).sum())
    if not off:
        return ""
    what, fix = "6 N D", f"; --columns=flops:{table.columns['budget'].name} takes one C for all"
    if "flops" in table.columns:
        what, fix = table.columns["flops"].name, ""
    return (
        f"warning: C ({what}) is not the budget in {off} of {len(ratios)} runs: C / budget has a median of "
        f"{np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}; approach 2 counts by the budget, "
        f"approaches 1 and 3 by C{fix}"
    )
