"""Which tasks of the harness are those of a paper? A table of benchmarks, by suite: `tables/benchmark_suites.csv`."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, did_you_mean

_TABLE = Path(__file__).parents[2] / "tables" / "benchmark_suites.csv"


class Asked(NamedTuple):
    """A task of the harness, in how many shots (None: as it says itself), and which metric the paper gives."""

    task: str
    shots: int | None = None
    metric: str = ""

    @property
    def name(self) -> str:
        """Of the record."""
        return self.task if self.shots is None else f"{self.task}/{self.shots}"


class Suite(NamedTuple):
    """The tasks of a paper, and the benchmarks of it that the harness does not have."""

    tasks: tuple[Asked, ...]
    missing: tuple[str, ...]


@functools.cache
def suites() -> dict[str, Suite]:
    """All of them by name."""
    found: dict[str, tuple[list[Asked], list[str]]] = {}
    for row in csv.DictReader(files.read_text(_TABLE).splitlines()):
        tasks, missing = found.setdefault(row["suite"], ([], []))
        if row["task"]:
            tasks.append(Asked(row["task"], int(row["shots"]) if row["shots"] else None, row["metric"]))
        else:
            missing.append(row["benchmark"])
    return {name: Suite(tuple(tasks), tuple(missing)) for name, (tasks, missing) in found.items()}


def suite(name: str) -> Suite:
    """One of them. Raises ConfigError: `suite`, no such name."""
    if name not in suites():
        raise ConfigError(
            "suite", f"unknown suite {name!r}{did_you_mean(name, suites())}; one of {', '.join(suites())}"
        )
    return suites()[name]
