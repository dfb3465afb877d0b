"""How long will a compiled step take, and what will the run cost? A sum of terms, each with what it assumes.

    step = max(matrix products, the compiler's cycles, HBM traffic) + attention kernels + exposed communication

Nothing here was measured on hardware. The compiler's cycles are its own estimate of every fusion: they rank programs,
within 30% at best. The rest is bytes over published bandwidths.

Attention kernels are counted instruction by instruction (`tools/tpu_meter`), for a row of a few heads. All rows and
heads of a chip are equal turns of the kernels' grid, so the cycles of all are those times their number. Only the start
of the pipeline is then counted too often: 2 to 6% too much, at 2048 tokens on v5p. Where documents are packed, what a
kernel can skip depends on the data; nothing is taken to be skipped.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.chips import SECONDS_PER_DAY
from chinchilla_jax.config import CONVENTIONS, RunConfig
from chinchilla_jax.ledger import Ledger, count_run, train_flops_per_token
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.preflight.cache import Cache
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Traffic, step_configs

BUILD = "chinchilla_jax.tools.meter_attention:build"
FEW = 4  # heads whose attention is measured
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
class KernelCycles:
    """Cycles of the attention kernels of a chip."""

    calls: dict[str, float]  # by kernel, of one call for all rows and heads
    measured: dict[str, Any]  # the shape that was measured
    factor: float  # how many times a call holds that shape
    error: str | None = None  # why nothing was measured


def shape_of(config: RunConfig, slice_: Slice) -> tuple[dict[str, Any], float]:
    """The shape to measure, and how many times a call of a kernel holds it. The batch is that of `config`."""
    m, mesh = config.model, config.mesh
    split = {"batch": mesh.rows, "heads": mesh.tensor, "length": mesh.context}  # over how many devices
    if mesh.rules:
        from chinchilla_jax.parallel.rules import mesh_axes, rules_of  # imports JAX

        with rules_of(mesh):
            split = {name: math.prod(mesh.axes[axis] for axis in mesh_axes(name)) for name in split}
    rows = max(1, config.train.batch_size // config.train.microbatches // split["batch"])
    heads, groups, context = m.n_heads // split["heads"], m.n_kv_heads // split["heads"], split["length"]
    shared = heads // groups
    few = max(n for n in range(1, max(FEW // shared, 1) + 1) if groups % n == 0)
    # Two TensorCores share rows and heads evenly, if there is an even number of them.
    twice = 2 if few * shared % 2 and rows % 2 == 0 else 1
    shape = {
        "generation": slice_.generation,
        "rows": twice,
        "heads": few * shared,
        "groups": few,
        "head_dim": m.head_dim,
        "seq": config.data.seq_len,
        "position": POSITIONS[m.position].kernel_form,
        "packed": config.data.mask_documents,
        "dtype": config.train.compute_dtype,
    }
    # A context axis shares the work out evenly (`parallel/context.py`); where heads do not divide, in two calls.
    calls = 2 if context > 1 and (heads % context or groups % context) else 1
    return shape, rows / twice * groups / few / context / calls


def kernel_cycles(config: RunConfig, slice_: Slice, cache: Cache) -> KernelCycles:
    """Cycles of a call of the forward and of the backward kernel; 5 to 30 seconds the first time for a shape."""
    shape, factor = shape_of(config, slice_)
    key = cache.key({"attention": shape})
    calls = cache.read(key, lambda cycles: _calls(cycles, factor))
    if calls is None:
        from chinchilla_jax.tools.tpu_meter import MeterError
        from chinchilla_jax.tools.tpu_meter.measure import measure

        try:
            report = measure(BUILD, slice_.generation, {k: v for k, v in shape.items() if k != "generation"})
        except MeterError as error:
            return KernelCycles({}, shape, factor, str(error).strip().split("\n")[-1][:200])
        cycles: dict[str, list[float]] = {}
        for kernel in report.kernels:
            cycles.setdefault(plain_name(kernel.name), []).append(kernel.bound_cycles)
        cache.write(key, cycles)
        calls = _calls(cycles, factor)
    return KernelCycles(calls, shape, factor)


def _calls(cycles: dict[str, list[float]], factor: float) -> dict[str, float]:
    """A long sequence takes several calls of a kernel. The program counts each of them, so their mean is taken here."""
    return {name: factor * sum(calls) / len(calls) for name, calls in cycles.items()}


def plain_name(name: str) -> str:
    """`transpose_jvp_attention_backward__.3` -> `attention_backward`: without the transformations around the call."""
    return re.sub(r"^(?:transpose_|jvp_|checkpoint_|rematted_computation_)+", "", name.split(".")[0]).rstrip("_")


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
