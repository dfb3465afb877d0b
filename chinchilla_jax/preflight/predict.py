"""How long will a compiled step take, and what will the run cost? A sum of terms, each with what it assumes.

    step = max(matrix products, the compiler's cycles, HBM traffic) + attention kernels + exposed communication

Nothing here was measured on hardware. The compiler's cycles are its own estimate of every fusion: they rank programs,
within 30% at best. Kernels are counted instruction by instruction (`tools/tpu_meter`). The rest is bytes over published
bandwidths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.chips import SECONDS_PER_DAY
from chinchilla_jax.config import CONVENTIONS, RunConfig
from chinchilla_jax.ledger import Ledger, count_run, train_flops_per_token
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Traffic, step_configs

BASIS = "predicted, no hardware"
ASSUMPTIONS = (
    "matrix products at the published bfloat16 peak",
    "fusions as long as the compiler estimates, a ranking within 30% at best; compute is the longest of products, "
    "fusions and HBM traffic at published bandwidth",
    "attention kernels by the cycles of their schedules, counted for a row of a few heads, linear in rows and heads, "
    "up to 6% too much; of packed documents no tile is skipped",
    "collectives bandwidth-optimal on the links that their mesh axes have, without latency; synchronous ones hide "
    "behind nothing, asynchronous ones behind compute and attention as far as those last",
    "between slices at a chip's share of its host's network; hidden behind nothing",
    "no input wait, evaluation, checkpoint or restart; every step alike",
)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step of one chip, by term."""

    products: float  # FLOPs of all products over the peak
    fusions: float  # the compiler's cycles over the clock
    hbm: float  # bytes to and from memory over its bandwidth
    attention: float  # kernels
    synchronous: float  # collectives within a slice
    asynchronous: float  # collectives within a slice
    dcn: float  # collectives between slices
    unmeasured: tuple[str, ...] = ()  # kernels that run but were not measured, which count nothing

    @property
    def compute(self) -> float:
        """The longest of the terms that overlap."""
        return max(self.products, self.fusions, self.hbm)

    @property
    def exposed(self) -> float:
        """Communication that nothing hides."""
        return self.synchronous + self.dcn + max(0.0, self.asynchronous - self.compute - self.attention)

    @property
    def total(self) -> float:
        return self.compute + self.attention + self.exposed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, sums included."""
        return dataclasses.asdict(self) | {"compute": self.compute, "exposed": self.exposed, "total": self.total}


def step_time(step: CompiledStep, slice_: Slice, calls: Mapping[str, float]) -> StepTime:
    """The terms of a step on a slice. `calls`: cycles of one call of each attention kernel, over all its rows."""
    chip = slice_.chip
    within = {False: 0.0, True: 0.0}
    for group in step.traffic:
        within[group.asynchronous] += ici_seconds(group, step.links, slice_)
    return StepTime(
        products=step.matmul_flops / chip.peak,
        fusions=step.cycles / chip.clock,
        hbm=step.hbm_bytes / chip.hbm_bandwidth_per_device,
        attention=sum(runs * calls.get(name, 0.0) for name, runs in step.kernels.items()) / chip.clock,
        synchronous=within[False],
        asynchronous=within[True],
        dcn=sum((group.dcn_bytes / slice_.network.dcn_bandwidth for group in step.traffic), 0.0),
        unmeasured=tuple(sorted(name for name in step.kernels if name not in calls)),
    )


def ici_seconds(group: Traffic, links: Mapping[str, int], slice_: Slice) -> float:
    """Seconds of a step's collectives of one kind within a slice. A permute is to one neighbour, over one link."""
    used = sum(links[axis] for axis in group.axes)
    used = min(used, 1) if group.kind == "collective-permute" else used
    return group.wire_bytes / (used * slice_.network.link_bandwidth) if used else 0.0


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with batches of one size: `tokens` in it, at `tokens_per_second`."""

    sequences: int
    tokens: float
    tokens_per_second: float
    predicted: bool


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a whole run takes; no dollars if there is no price."""

    phases: tuple[Phase, ...]
    utilisation: dict[str, float]  # by convention, of the largest batch that was timed
    days: float
    chip_hours: float
    dollars: float | None


def run_cost(
    config: RunConfig, times: Mapping[int, StepTime], slice_: Slice, price: float | None, ledger: Ledger | None = None
) -> RunCost:
    """The cost of a run, from the times of its steps by their sequences, at a price in dollars of a chip-hour.

    A batch size that was not timed is taken to train as many tokens a second as the largest that was. `ledger` has the
    FLOPs of the run where its objective does more than next-token prediction.
    """
    seq_len, largest = config.data.seq_len, max(times)
    rates = {sequences: sequences * seq_len / time.total for sequences, time in times.items()}
    split = config.train.double_batch_at or 1.0
    sizes = (step.train.batch_size for step in step_configs(config))
    phases = tuple(
        Phase(size, share * config.train.train_tokens, rates.get(size, rates[largest]), size in times)
        for size, share in zip(sizes, (split, 1.0 - split), strict=False)
    )
    seconds = sum(phase.tokens / phase.tokens_per_second for phase in phases)
    chip_hours = slice_.chips * seconds / 3600
    rows = largest // config.train.microbatches
    peak = slice_.chips * slice_.chip.peak
    usual = count_run(config).flops
    more = {name: ledger.flops[name] / usual[name] if ledger else 1.0 for name in CONVENTIONS}
    utilisation = {
        name: rates[largest] * train_flops_per_token(config.model, seq_len, name, rows) * more[name] / peak
        for name in CONVENTIONS
    }
    dollars = None if price is None else price * chip_hours
    return RunCost(phases, utilisation, seconds / SECONDS_PER_DAY, chip_hours, dollars)
