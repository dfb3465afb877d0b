"""What will it cost, what has it cost? Chip-hours and dollars of a manifest, and of the slices that are held for it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.words import duration
from chinchilla_jax.launch.command import LaunchError
from chinchilla_jax.launch.pack import Packing, pack
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.study.folder import PlannedRun
from chinchilla_jax.training.timing.interval import LIFE_SECONDS, SAVE_SECONDS, daly, goodput

SECONDS_PER_HOUR = 3600.0
ENOUGH_TAKEN = 3  # slices, before their mean life is told by them
RARE = 2.0  # times the best interval, from which on a run is saved too rarely


@dataclasses.dataclass(frozen=True)
class Price:
    """Dollars of a chip-hour, and how many dollars there are; None where nobody said."""

    chip_hour: float | None = None
    budget: float | None = None

    def dollars(self, chip_hours: float) -> float | None:
        return None if self.chip_hour is None else self.chip_hour * chip_hours


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the unfinished runs of a manifest take on `slices` equal slices, each of `chips`.

    `basis` says where the seconds come from.
    """

    packing: Packing
    chips: int
    price: Price
    basis: str

    @property
    def busy_chip_hours(self) -> float:
        """While runs train."""
        return sum(self.packing.loads) * self.chips / SECONDS_PER_HOUR

    @property
    def held_chip_hours(self) -> float:
        """If every slice is held until the last run has ended: the most it comes to without a loss."""
        return self.packing.makespan * len(self.packing.loads) * self.chips / SECONDS_PER_HOUR

    def lines(self) -> list[str]:
        """For people: time, chip-hours, dollars, and how well the runs fill the slices."""
        packing, count = self.packing, len(self.packing.loads)
        busy, held = self.busy_chip_hours, self.held_chip_hours
        costs = [self.price.dollars(hours) for hours in (busy, held)]
        money = ["" if cost is None else f", ${cost:,.2f}" for cost in costs]
        shape = f"{packing.runs} runs on {count} x {self.chips} chips"
        lines = [
            f"{shape}: {duration(packing.makespan)}, slices {packing.filled:.0%} busy ({self.basis})",
            f"training: {busy:,.1f} chip-hours{money[0]}; slices held to the end: {held:,.1f} chip-hours{money[1]}",
        ]
        if count > 1 and packing.enough < count:
            lines.append(f"{packing.enough} slices would end as early: the longest chain of runs decides")
        return lines

    def check(self) -> None:
        """Raises LaunchError if the budget does not pay for the training alone."""
        cost, budget = self.price.dollars(self.busy_chip_hours), self.price.budget
        if budget is not None and cost is None:
            raise LaunchError("--budget_usd needs --price=DOLLARS of a chip-hour")
        if budget is not None and cost is not None and cost > budget:
            told = f"training takes ${cost:,.2f} ({self.basis}), more than --budget_usd={budget:g}"
            raise LaunchError(f"{told}: raise it, plan fewer runs, or take cheaper chips")


def seconds_of(
    runs: Sequence[PlannedRun], slice_: Slice, utilisation: float, checked: Mapping[str, float | None]
) -> tuple[dict[str, float], str]:
    """Seconds of each run on the slice, by name, and where they come from.

    A preflight's prediction (`checked`, or the manifest's own if it was planned for this slice) comes first; a run
    without one is taken to get `utilisation` of the chips' bfloat16 peak.
    """
    seconds, guessed = {}, 0
    for run in runs:
        known = checked.get(run.name) or _planned_seconds(run.preflight, slice_)
        guessed += known is None
        seconds[run.name] = known or run.spent("executed") / (slice_.chips * slice_.chip.peak * utilisation)
    assumed = f"{utilisation:.0%} of the peak assumed"
    if not guessed:
        return seconds, "predicted, no hardware"
    return seconds, assumed if guessed == len(runs) else f"predicted; of {guessed} runs {assumed}"


def saving_line(runs: Sequence[PlannedRun], seconds: Mapping[str, float], life: float, known: str) -> str:
    """How often runs on slices of mean life `life` (seconds) should be saved, and how often these are; empty if that is
    often enough. What a save and a restart take is assumed.
    """
    best = daly(SAVE_SECONDS, life)
    every = {run.name: _seconds_between_saves(run, seconds[run.name]) for run in runs}
    rare = {name: taken for name, taken in every.items() if taken > RARE * best}
    if not rare:
        return ""
    worst = max(rare.values())
    shares = [goodput(interval, SAVE_SECONDS, life) for interval in (worst, best)]
    told = f"{len(rare)} runs are saved every {duration(min(rare.values()))} to {duration(worst)} of training"
    lives = f"slices live {duration(life)} on average ({known}) and a save takes {SAVE_SECONDS:g} s"
    best_told = f"every {duration(best)} is best (Daly): {shares[1]:.0%} of the time trains, not {shares[0]:.0%}"
    return f"{told}; if {lives}, {best_told}. Plan with train.checkpoint_every"


def _seconds_between_saves(run: PlannedRun, seconds: float) -> float:
    """Of training; all of it for a run that is saved at its end alone."""
    train = run.config["train"]
    steps = (run.tokens - run.fork_tokens) / (train["batch_size"] * run.config["data"]["seq_len"])
    return seconds * min(1.0, train["checkpoint_every"] / steps) if train["checkpoint_every"] else seconds


def _planned_seconds(preflight: Mapping[str, Any] | None, slice_: Slice) -> float | None:
    if not preflight or preflight.get("slice") != slice_.name or not preflight.get("chip_hours"):
        return None
    return preflight["chip_hours"] * SECONDS_PER_HOUR / slice_.chips


def estimate(
    runs: Sequence[PlannedRun], slices: int, slice_: Slice, price: Price, utilisation: float,
    checked: Mapping[str, float | None],
) -> Estimate:  # fmt: skip
    """The time and cost of `runs` on so many slices."""
    seconds, basis = seconds_of(runs, slice_, utilisation, checked)
    return Estimate(pack(runs, seconds, slices), slice_.chips, price, basis)


class Spent:
    """Chip-seconds that a launch has held slices for, and how many slices were taken away from it; kept over restarts
    of the launcher in a file of the study.
    """

    def __init__(self, path: pathlib.Path, price: Price):
        self.path, self.price = path, price
        kept = files.read_json(path) if files.exists(path) else {}
        self.chip_seconds, self.taken = float(kept.get("chip_seconds", 0.0)), int(kept.get("taken", 0))

    def add(self, chip_seconds: float, taken: int = 0) -> None:
        """Books what was held, and what was taken away, since the last call."""
        self.chip_seconds, self.taken = self.chip_seconds + chip_seconds, self.taken + taken
        files.write_json(self.path, {"chip_seconds": self.chip_seconds, "taken": self.taken})

    def life(self, chips: int) -> tuple[float, str]:
        """Mean seconds until a slice of so many chips is taken away, and how that is known."""
        if self.taken < ENOUGH_TAKEN:
            return LIFE_SECONDS, "assumed"
        return self.chip_seconds / chips / self.taken, f"{self.taken} were taken away so far"

    @property
    def chip_hours(self) -> float:
        return self.chip_seconds / SECONDS_PER_HOUR

    def over(self) -> bool:
        """Whether the budget is spent."""
        cost = self.price.dollars(self.chip_hours)
        return cost is not None and self.price.budget is not None and cost >= self.price.budget

    def line(self) -> str:
        cost = self.price.dollars(self.chip_hours)
        return f"{self.chip_hours:,.2f} chip-hours held so far" + ("" if cost is None else f", ${cost:,.2f}")
