"""How long will a compiled step take, and what will the run cost? A sum of terms, each with what it assumes.

    step = max(matrix products, the compiler's cycles, HBM traffic) + attention kernels + exposed communication

Nothing here was measured on hardware. The compiler's cycles are its own estimate of every fusion, a ranking within 30%
at best; kernels are counted instruction by instruction (`tools/tpu_meter`); the rest is bytes
over published bandwidths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.chips import SECONDS_PER_DAY
from chinchilla_jax.config import CONVENTIONS, RunConfig
from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Traffic

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
    """Seconds of a step of one chip, by term.

    Attributes:
      products: FLOPs of all products over the peak. fusions: the compiler's cycles over the clock.
      hbm: bytes to and from memory over its bandwidth.
      attention: kernels. unmeasured: kernels that run but were not measured, which count nothing.
      synchronous, asynchronous: collectives within a slice. dcn: between slices.
      exposed: what is not hidden of these.
    """

    products: float
    fusions: float
    hbm: float
    attention: float
    synchronous: float
    asynchronous: float
    dcn: float
    unmeasured: tuple[str, ...] = ()

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
        """All together."""
        return self.compute + self.attention + self.exposed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, sums included."""
        return dataclasses.asdict(self) | {"compute": self.compute, "exposed": self.exposed, "total": self.total}


def step_time(step: CompiledStep, slice_: Slice, calls: Mapping[str, float]) -> StepTime:
    """The terms of a step on a slice; `calls` the cycles of one call of each attention kernel, over all its rows."""
    chip = slice_.chip
    synchronous = asynchronous = dcn = 0.0
    for group in step.traffic:
        within = ici_seconds(group, step.links, slice_)
        synchronous += 0.0 if group.asynchronous else within
        asynchronous += within if group.asynchronous else 0.0
        dcn += group.dcn_bytes / chip.network.dcn_bandwidth
    return StepTime(
        products=step.matmul_flops / chip.peak,
        fusions=step.cycles / chip.clock,
        hbm=step.hbm_bytes / chip.hbm_bandwidth,
        attention=sum(runs * calls.get(name, 0.0) for name, runs in step.kernels.items()) / chip.clock,
        synchronous=synchronous, asynchronous=asynchronous, dcn=dcn,
        unmeasured=tuple(sorted(name for name in step.kernels if name not in calls)),
    )  # fmt: skip


def ici_seconds(group: Traffic, links: Mapping[str, int], slice_: Slice) -> float:
    """Of a step's collectives of one kind within a slice. A permute is to one neighbour, over one link."""
    used = sum(links[axis] for axis in group.axes)
    if not used:
        return 0.0
    used = 1 if group.kind == "collective-permute" else used
    return group.wire_bytes / (used * slice_.chip.network.link_bandwidth)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with batches of one size: `tokens` in it, at `tokens_per_second`."""

    sequences: int
    tokens: float
    tokens_per_second: float
    predicted: bool

    @property
    def seconds(self) -> float:
        """That it takes."""
        return self.tokens / self.tokens_per_second


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a whole run takes. `utilisation` by convention, of the largest batch that was timed; dollars if a price."""

    phases: tuple[Phase, ...]
    utilisation: dict[str, float]
    days: float
    chip_hours: float
    dollars: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def batches(config: RunConfig) -> tuple[int, ...]:
    """Sequences of every kind of batch that the run has, the first first."""
    once = config.train.batch_size
    return (once, 2 * once) if config.train.double_batch_at else (once,)


def run_cost(config: RunConfig, times: Mapping[int, StepTime], slice_: Slice, price: float | None) -> RunCost:
    """Of the run of a config, from the times of steps by their sequences.

    A batch size that was not timed is taken to train as many tokens a second as the largest that was.

    Args:
      price: dollars of a chip-hour.
    """
    seq_len, tokens, largest = config.data.seq_len, config.train.train_tokens, max(times)
    sizes, split = batches(config), config.train.double_batch_at or 1.0
    shares = (split, 1.0 - split)[: len(sizes)]
    phases = []
    for size, share in zip(sizes, shares, strict=True):
        timed = size if size in times else largest
        phases.append(Phase(size, share * tokens, timed * seq_len / times[timed].total, size in times))
    seconds = sum(phase.seconds for phase in phases)
    chip_hours = slice_.chips * seconds / 3600
    rate = largest * seq_len / times[largest].total
    rows = largest // config.train.microbatches
    utilisation = {name: rate * train_flops_per_token(config.model, seq_len, name, rows)
                   / (slice_.chips * slice_.chip.peak) for name in CONVENTIONS}  # fmt: skip
    return RunCost(tuple(phases), utilisation, seconds / SECONDS_PER_DAY, chip_hours,
                   None if price is None else price * chip_hours)  # fmt: skip
