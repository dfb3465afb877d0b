"""What did the executed schedules of a program cost, and where?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from chinchilla_jax.base.chips import CHIPS, Chip, Core
from chinchilla_jax.tools.tpu_meter.bundles import SLOTS, Schedule, SlotUse, VectorWork, core_of, vector_work
from chinchilla_jax.tools.tpu_meter.machine import Execution, execute
from chinchilla_jax.tools.tpu_meter.program import Words

COSTLIEST = 6
_SHORT = 16  # bundles; shorter predicated regions are not worth a line


@dataclasses.dataclass(frozen=True)
class Region:
    """A stretch of `bundles` from bundle `start` that were all issued `runs` times: `cycles` in all.

    `mxu` is the share of the matrix units' time that its instructions take, `slots` the like of every kind of unit;
    `slots`, `spills` and `fills` (instructions) are None where the compiler's table does not fit the schedule.
    """

    start: int
    bundles: int
    runs: int
    cycles: int
    matmuls: int
    pushes: int
    mxu: float
    slots: Mapping[str, float] | None
    spills: int | None
    fills: int | None


@dataclasses.dataclass(frozen=True)
class Predicated:
    """A region that is jumped over unless a predicate holds: `reached` times, `ran` times, `unknown` whether."""

    start: int
    bundles: int
    reached: int
    ran: int
    unknown: int


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of `bundles` from bundle `start`, inside `depth` loops with itself: `trips` over all its `entries`."""

    start: int
    bundles: int
    depth: int
    trips: int
    entries: int


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """One call of one kernel; the package's docstring says what the counts mean.

    cycles, cycles_low: of the slower core, with regions of unknown predicate run or skipped.
    bound_cycles: the same as `cycles`, but each step at least as long as its HBM copies.
    hbm_bytes: that all cores copy to and from HBM; hbm_cycles: the time that the slower core's take.
    matmul_flops: of all cores, twice the multiply-adds issued.
    mxu_busy: share of the slower core's cycles for which its matrix units are held.
    steps: turns of the outermost loop, pipeline prologue included.
    unresolved: how often what was not known mattered, by where; empty if every count is exact.
    unmodelled: scalar instructions that the meter cannot execute, by opcode; their results count as not known.
    vmem_bytes: scoped VMEM.
    regions: the costliest first.
    """

    name: str
    grid: tuple[int, ...] | None
    static_bundles: int
    cycles: int
    cycles_low: int
    bound_cycles: int
    hbm_bytes: int
    hbm_cycles: int
    matmul_flops: float
    mxu_busy: float
    steps: int
    vmem_bytes: int | None
    unresolved: Mapping[str, int]
    unmodelled: Mapping[str, int]
    loops: tuple[Loop, ...]
    predicated: tuple[Predicated, ...]
    regions: tuple[Region, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """The kernels of a program, and their sums.

    `flops` is the builder's useful work, or None, and `peak_fraction` that work over what the peak would do in
    `cycles`. Versions are kept because every number depends on them.
    """

    build: str
    kwargs: Mapping[str, object]
    generation: str
    device_kind: str
    jax: str
    libtpu: str
    kernels: tuple[KernelReport, ...]
    cycles: int
    cycles_low: int
    bound_cycles: int
    flops: float | None
    peak_fraction: float | None


def kernel_report(
    name: str,
    schedule: Schedule,
    chip: Chip,
    constants: Mapping[int, Words],
    slot_use: SlotUse | None = None,
    vmem_bytes: int | None = None,
) -> KernelReport:
    """Executes a schedule on every core of a device and reports the counts.

    Raises:
      MeterError, DumpError: see `machine.execute`.
    """

    def on_each_core(unknown: str) -> list[Execution]:
        return [execute(schedule, chip, constants, core, unknown) for core in range(chip.cores_per_device)]

    cores = on_each_core("run")
    slower = max(cores, key=_cycles)
    low = max(on_each_core("skip"), key=_cycles) if slower.unresolved else slower
    kind = core_of(chip)
    work = [vector_work(bundle, kind) for bundle in schedule.bundles]
    busy = sum(count * w.busy for count, w in zip(slower.counts, work, strict=True))
    macs = sum(count * w.macs for core in cores for count, w in zip(core.counts, work, strict=True))
    per_cycle = chip.hbm_bytes_per_cycle
    return KernelReport(
        name=name,
        grid=schedule.grid,
        static_bundles=len(schedule.bundles),
        cycles=slower.cycles,
        cycles_low=low.cycles,
        # The copies of a step begin one step ahead of their use.
        bound_cycles=int(sum(max(step.cycles, step.hbm_bytes / per_cycle) for step in slower.steps)),
        hbm_bytes=sum(_hbm_bytes(core) for core in cores),
        hbm_cycles=round(_hbm_bytes(slower) / per_cycle),
        matmul_flops=2.0 * macs,
        mxu_busy=busy / kind.mxus / slower.cycles,
        steps=len(slower.steps) - 1,
        vmem_bytes=vmem_bytes,
        unresolved=dict(slower.unresolved),
        unmodelled=dict(slower.unmodelled),
        loops=_loops(schedule, slower, kind.delay_slots),
        predicated=_predicated(slower, kind.delay_slots),
        regions=_regions(slower.counts, work, slot_use, kind),
    )


def program_report(
    kernels: Sequence[KernelReport],
    chip: Chip,
    *,
    build: str,
    kwargs: Mapping[str, object],
    device_kind: str,
    jax: str,
    libtpu: str,
    flops: float | None,
) -> Report:
    """The report of a program from those of its kernels."""
    cycles = sum(kernel.cycles for kernel in kernels)
    return Report(
        build,
        kwargs,
        chip.name,
        device_kind,
        jax,
        libtpu,
        tuple(kernels),
        cycles,
        sum(kernel.cycles_low for kernel in kernels),
        sum(kernel.bound_cycles for kernel in kernels),
        flops,
        flops * chip.clock / cycles / chip.peak_per_device if flops else None,
    )


def _cycles(execution: Execution) -> int:
    return execution.cycles


def _hbm_bytes(execution: Execution) -> int:
    """Blocks copied; tables for scalar memory are left out."""
    return sum(n for route, n in execution.copied.items() if "hbm" in route and "smem" not in route)


def _loops(schedule: Schedule, execution: Execution, delay_slots: int) -> tuple[Loop, ...]:
    return tuple(
        Loop(
            branch.target,
            at - branch.target + 1 + delay_slots,
            schedule.bundles[branch.target].depth,
            branch.reached,
            branch.reached - branch.jumped,
        )
        for at, branch in sorted(execution.branches.items())
        if branch.target <= at
    )


def _predicated(execution: Execution, delay_slots: int) -> tuple[Predicated, ...]:
    regions = (
        Predicated(
            at + delay_slots + 1,
            branch.target - at - 1 - delay_slots,
            branch.reached,
            branch.reached - branch.jumped,
            branch.unknown,
        )
        for at, branch in sorted(execution.branches.items())
        if branch.target > at
    )
    return tuple(region for region in regions if region.bundles >= _SHORT)


def _regions(
    counts: Sequence[int], work: Sequence[VectorWork], slot_use: SlotUse | None, core: Core
) -> tuple[Region, ...]:
    """The costliest maximal stretches of equal counts."""
    edges = [0, *(i for i in range(1, len(counts)) if counts[i] != counts[i - 1]), len(counts)]
    spans = [(start, end) for start, end in zip(edges, edges[1:], strict=False) if counts[start]]
    spans.sort(key=lambda span: (span[0] - span[1]) * counts[span[0]])
    return tuple(_region(start, counts[start], work[start:end], slot_use, core) for start, end in spans[:COSTLIEST])


def _region(start: int, runs: int, work: Sequence[VectorWork], slot_use: SlotUse | None, core: Core) -> Region:
    bundles = len(work)
    mxu = sum(w.busy for w in work) / (bundles * core.mxus)
    slots = spills = fills = None
    if slot_use:
        used = [sum(column) for column in zip(*slot_use.used[start : start + bundles], strict=True)]
        units = dict(zip(SLOTS, slot_use.capacity, strict=True))
        slots = {slot: n / (bundles * units[slot]) for slot, n in zip(SLOTS, used, strict=True) if units[slot]}
        # The table counts issues; an instruction holds these two units for longer.
        slots["MXU"] = mxu
        slots["XLU"] = sum(w.cross_lane for w in work) * core.cross_lane_cycles / (bundles * units["XLU"])
        spills, fills = used[SLOTS.index("SPILL")], used[SLOTS.index("FILL")]
    return Region(
        start,
        bundles,
        runs,
        bundles * runs,
        sum(w.matmuls for w in work),
        sum(w.pushes for w in work),
        mxu,
        slots,
        spills,
        fills,
    )


def render(report: Report, verbose: bool = False) -> str:
    """The report as text: the costliest region of each kernel, or the `COSTLIEST` when `verbose`."""
    chip = CHIPS[report.generation]
    lines = [
        f"{report.build} on {report.generation} ({report.device_kind}): {chip.clock / 1e9:.2f} GHz, "
        f"{chip.peak_per_device / 1e12:.0f} TFLOP/s bfloat16, {chip.cores_per_device} core(s), "
        f"{core_of(chip).mxus} MXUs per core, {chip.hbm_bandwidth_per_device / 1e9:.0f} GB/s; "
        f"jax {report.jax}, libtpu {report.libtpu}"
    ]
    for kernel in report.kernels:
        lines += ["", *_kernel_lines(kernel, verbose)]
    total = f"total {_span(report.cycles, report.cycles_low)} cycles, bound {report.bound_cycles:,}"
    if report.peak_fraction is not None:
        total += f"; useful {report.flops:.4g} FLOP = {report.peak_fraction:.1%} of the peak"
    return "\n".join([*lines, "", total])


def _kernel_lines(kernel: KernelReport, verbose: bool) -> list[str]:
    lines = [
        f"{kernel.name}: grid {kernel.grid or 'dynamic'}, {kernel.static_bundles} bundles",
        f"  cycles {_span(kernel.cycles, kernel.cycles_low)}, MXU busy {kernel.mxu_busy:.1%}",
        f"  bound {kernel.bound_cycles:,}: HBM copies of {kernel.hbm_bytes / 1e6:.1f} MB take {kernel.hbm_cycles:,}"
        + (f"; scoped VMEM {kernel.vmem_bytes / 2**20:.2f} MiB" if kernel.vmem_bytes is not None else ""),
    ]
    for loop in kernel.loops:
        lines.append(
            f"  loop {loop.start:#x}, depth {loop.depth}: {loop.bundles} bundles, {loop.trips} trips, "
            f"entered {loop.entries}x"
        )
    for part in kernel.predicated:
        unknown = f", not known {part.unknown}x" if part.unknown else ""
        lines.append(f"  predicated {part.start:#x}: {part.bundles} bundles, ran {part.ran} of {part.reached}{unknown}")
    for region in kernel.regions if verbose else kernel.regions[:1]:
        lines.append(
            f"  region {region.start:#x}: {region.bundles} bundles x {region.runs} = {region.cycles:,} "
            f"({region.cycles / kernel.cycles:.1%}); {region.matmuls} matmuls, {region.pushes} pushes, "
            f"MXU {region.mxu:.1%}"
        )
        if region.slots is not None:
            shares = "  ".join(f"{slot} {share:.0%}" for slot, share in region.slots.items())
            lines.append(f"    {shares}; {region.spills} spills, {region.fills} fills")
    for title, counts in (("not resolved", kernel.unresolved), ("not modelled", kernel.unmodelled)):
        if counts:
            lines.append(f"  {title}: " + ", ".join(f"{what} ({n}x)" for what, n in counts.items()))
    return lines


def _span(cycles: int, low: int) -> str:
    return f"{cycles:,}" if cycles == low else f"{low:,}..{cycles:,}"
