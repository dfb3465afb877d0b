"""What tells runs of the same N and D apart: a seed, settings that were swept, or a corpus; which of them are fitted?

Replicates differ in their seed or in nothing but the loss, and are all fitted. A **sweep** has several values of a
setting (a learning rate, a batch size) in a cell of (N, D), of which the best one is what a law is about. A **mix** has
a column of words, each on many runs over the same N and C, that are better fitted apart.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.read.table.cells import as_number, holds_numbers, missing, same_value, text_of
from chinchilla_jax.scaling.read.table.columns import Column
from chinchilla_jax.scaling.read.table.formats import Row
from chinchilla_jax.scaling.read.table.headers import HEADERS, split_words

Pair = tuple[Row, Run]
_KNOWN = re.compile(r"(^|_)(lr|lrs|learning_rate|max_lr|peak_lr|batch|batch_size|bs|bsz|wd|weight_decay|beta_?[12]|"
                    r"b[12]|warmup\w*|eps|epsilon|dropout|momentum|clip\w*|optimi[sz]er|schedule|scheduler|decay)(_|$)")
# What is measured, or only a label of a row, is no setting whatever its values do.
_MEASURED = re.compile(r"(^|_)(loss|ppl|perplexity|acc|accuracy|error|bpb|bits|time|seconds|secs|minutes|hours|days|"
                       r"runtime|throughput|mfu|grad|norm|date|created|updated|timestamp|id|index|idx|url|host|cost|"
                       r"hostname|notes?|comment|path|dir|file|line|score|mem|memory|gpus?|name|label|user)(_|$)")
_SEED = re.compile(r"(^|_)(seed|seeds|replicate|replica|rep|repeat|trial|fold)(_|$)")
_SAME_TOKENS = 0.01  # relative: a batch size that does not divide D moves it by less
_EVERY = 3  # runs on each value, on average, of a column that is a setting
_MOST_WORDS, _FEWEST_RUNS = 12, 6  # values of a mix, runs on each of them
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one N and D (or budget), by the values of the settings that differ somewhere."""

    by_setting: Mapping[tuple, tuple[Pair, ...]]

    @property
    def best(self) -> tuple[Pair, ...]:
        """The runs of the setting with the lowest loss, on average over its seeds."""
        return min(self.by_setting.values(), key=lambda pairs: float(np.mean([run.loss for _, run in pairs])))


def best_per_cell(
    pairs: Sequence[Pair], columns: Mapping[str, Column], present: Sequence[str]
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Of each cell of (N, D) the runs of its best setting, and what to say. Held-out runs stay."""
    names, cells = _cells(pairs, columns, present)
    if not names:
        return tuple(pairs), ("--best_per_cell: no N and D have runs that differ in a setting; all are kept",)
    kept = {id(row) for cell in cells for row, _ in cell.best}
    left = tuple((row, run) for row, run in pairs if run.role != "isoflop" or id(row) in kept)
    return left, (f"--best_per_cell: of {len(pairs)} runs at {len(cells)} pairs of N and D those of the lowest loss by "
                  f"{', '.join(names)} are kept, {len(left)} of them",)  # fmt: skip


def remarks(pairs: Sequence[Pair], columns: Mapping[str, Column], present: Sequence[str]) -> tuple[str, ...]:
    """What a reader should know of how the runs differ: sweeps, mixes, replicates, repeated data, two counts of C."""
    pairs = [(row, run) for row, run in pairs if run.role == "isoflop"]
    mixed = mixes(pairs, columns, present)
    names, cells = _cells(pairs, columns, present)
    notes = [_mix_note(mixed)] if mixed else []
    swept = [name for name in names if name not in mixed]
    if swept:
        notes.append(_sweep_note(swept, cells))
    elif not mixed:
        notes += _replicate_note(run for _, run in pairs)
    notes += _repeat_note([run for _, run in pairs], columns)
    notes += _budget_note([run for _, run in pairs], columns)
    return tuple(notes)


def mixes(
    pairs: Sequence[Pair], columns: Mapping[str, Column], present: Sequence[str]
) -> dict[str, collections.Counter]:
    """By column of words: how many runs each of its few values has, where their ranges of N and of C overlap."""
    found = {}
    for name in _others(columns, present):
        values = [text_of(row.values.get(name)) for row, _ in pairs]
        there = [value for value in values if value]
        counts = collections.Counter(there)
        if not 2 <= len(counts) <= _MOST_WORDS or min(counts.values()) < _FEWEST_RUNS or holds_numbers(there):
            continue
        groups = [[run for value, (_, run) in zip(values, pairs, strict=True) if value == one] for one in counts]
        if _overlap(groups):
            found[name] = counts
    return found


def _others(columns: Mapping[str, Column], present: Sequence[str]) -> list[str]:
    """The columns that may be settings: not used for anything else, no seed, no measurement, no label."""
    used = {column.name for field, column in columns.items() if field != "step"}
    labels = ("name", "seed", "state", "role", "diverged", "curve", "step")
    named = {base for field in labels for base in HEADERS[field]}
    found = []
    for name in dict.fromkeys(present):
        base = "_".join(split_words(name))
        if name not in used and base not in named and not _MEASURED.search(base) and not _SEED.search(base):
            found.append(name)
    return found


def _overlap(groups: Sequence[Sequence[Run]]) -> bool:
    """Whether two groups share a part of the range of N and of C: words for sizes or budgets do not."""
    spans = [[(min(values), max(values)) for values in ([run.params for run in runs], [run.flops for run in runs])]
             for runs in groups]  # fmt: skip
    return any(
        all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(one, other, strict=True))
        for position, one in enumerate(spans) for other in spans[position + 1 :]
    )  # fmt: skip


def _cells(
    pairs: Sequence[Pair], columns: Mapping[str, Column], present: Sequence[str]
) -> tuple[list[str], list[Cell]]:
    """(the settings that differ within cells, the cells); runs of other words of a mix are in other cells."""
    pairs = [(row, run) for row, run in pairs if run.role == "isoflop"]
    mixed = [name for name in mixes(pairs, columns, present) if not _KNOWN.search("_".join(split_words(name)))]
    groups = _same_n_and_d(pairs, mixed)
    several = [group for group in groups if len(group) > 1]
    names = [name for name in _others(columns, present) if name not in mixed and _is_swept(name, several, pairs)]
    cells = []
    for group in groups:
        by: dict[tuple, list[Pair]] = collections.defaultdict(list)
        for row, run in group:
            by[tuple(same_value(row.values.get(name)) for name in names)].append((row, run))
        cells.append(Cell({key: tuple(value) for key, value in by.items()}))
    return names, cells


def _same_n_and_d(pairs: Sequence[Pair], mixed: Sequence[str]) -> list[list[Pair]]:
    def key(pair: Pair) -> tuple:
        row, run = pair
        return (*(text_of(row.values.get(name)) for name in mixed), run.params, run.budget or 0.0)

    groups: list[list[Pair]] = []
    before: tuple[tuple, float] | None = None
    for pair in sorted(pairs, key=lambda pair: (*map(str, key(pair)), pair[1].tokens)):
        same = before is not None and before[0] == key(pair)
        near = same and math.log(pair[1].tokens / before[1]) < _SAME_TOKENS
        if not same or not (near or pair[1].budget):
            groups.append([])
        groups[-1].append(pair)
        before = key(pair), pair[1].tokens
    return groups


def _is_swept(name: str, several: Sequence[Sequence[Pair]], pairs: Sequence[Pair]) -> bool:
    """Whether a column differs within cells, as a setting does: by its name, or since its values come again."""
    if not any(len({same_value(row.values.get(name)) for row, _ in group}) > 1 for group in several):
        return False
    if _KNOWN.search("_".join(split_words(name))):
        return True
    values = [row.values.get(name) for row, _ in pairs if not missing(row.values.get(name))]
    distinct = {same_value(value) for value in values}
    numbers = all(as_number(value) is not None for value in values)
    return numbers and len(distinct) > 1 and len(values) >= _EVERY * len(distinct)


def _mix_note(mixed: Mapping[str, collections.Counter]) -> str:
    words = [f"{name} ({', '.join(f'{value} {number}' for value, number in counts.most_common(_SHOWN))}"
             f"{' ...' if len(counts) > _SHOWN else ''})" for name, counts in mixed.items()]  # fmt: skip
    name, counts = next(iter(mixed.items()))
    one = shlex.quote(f"--where={name}={counts.most_common(1)[0][0]}")
    return (f"warning: the table mixes runs of several {', '.join(words)} and all are fitted as one kind: "
            f"{one} takes one, fit {shlex.quote(f'--by={name}')} fits each")  # fmt: skip


def _sweep_note(names: Sequence[str], cells: Sequence[Cell]) -> str:
    swept = [cell for cell in cells if len(cell.by_setting) > 1]
    losses = [[run.loss for group in cell.by_setting.values() for _, run in group] for cell in swept]
    spread = np.median([max(values) / min(values) - 1.0 for values in losses])
    runs = sum(map(len, losses))
    return (f"warning: {runs} runs differ in {', '.join(names)} only, {len(swept)} of {len(cells)} pairs of N and D "
            f"have several (their losses lie {spread:.1%} apart, median), and all are fitted: --best_per_cell keeps "
            "the lowest of each")  # fmt: skip


def _replicate_note(runs: Iterable[Run]) -> list[str]:
    cells = collections.defaultdict(list)
    for run in runs:
        cells[run.params, run.tokens, run.budget].append(run.loss)
    several = [np.array(losses) for losses in cells.values() if len(losses) > 1]
    if not several:
        return []
    left = np.concatenate([losses / losses.mean() - 1.0 for losses in several])
    scatter = float(np.sqrt((left**2).sum() / (len(left) - len(several))))
    return [f"replicates: {len(left)} runs at {len(several)} pairs of N and D, all fitted; they scatter by "
            f"{scatter:.2%} about their means, which is the noise from run to run"]  # fmt: skip


def _repeat_note(runs: Sequence[Run], columns: Mapping[str, Column]) -> list[str]:
    repeated = [run for run in runs if run.unique_tokens]
    if not repeated:
        return []
    epochs = sorted({round(run.tokens / run.unique_tokens, 3) for run in repeated})
    unique = [run.unique_tokens for run in repeated]
    span = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
    return [f"warning: data are repeated in {len(repeated)} of {len(runs)} runs ({columns['epochs'].name} {span}): "
            f"unique tokens are tokens / epochs, {min(unique):.3g} to {max(unique):.3g}; the fits take every token as "
            "new, and repeated ones are worth less"]  # fmt: skip


_APART = 0.05  # nominal budgets are met to within this


def _budget_note(runs: Sequence[Run], columns: Mapping[str, Column]) -> list[str]:
    ratios = np.array([run.flops / run.budget for run in runs if run.budget])
    off = int((np.abs(ratios - 1.0) > _APART).sum())
    if not off:
        return []
    what = columns["flops"].name if "flops" in columns else "6 N D"
    fix = "" if "flops" in columns else f"; --columns=flops:{columns['budget'].name} takes one C for all"
    return [f"warning: C ({what}) is not the budget in {off} of {len(ratios)} runs: C / budget has a median of "
            f"{np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}; approach 2 counts by the budget, "
            f"approaches 1 and 3 by C{fix}"]  # fmt: skip
