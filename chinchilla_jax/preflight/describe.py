"""How is a preflight told? As a page of text; `Verdict.to_dict` has the same for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.config import MeshConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.preflight.check import Checked, Echo, Verdict
from chinchilla_jax.preflight.predict import ASSUMPTIONS, BASIS, RunCost, StepTime
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Memory

SHOWN = 12  # rows of collectives; the others together move less than any of them


def describe(verdict: Verdict, echo: Echo) -> None:
    """Prints a preflight: memory, collectives and time of each step, then the run."""
    config = verdict.config
    ledger = count_run(config)
    echo(f"{verdict.slice}; mesh {mesh_words(config.mesh)}; {config.train.microbatches} microbatches, "
         f"remat {config.train.remat}, N = {ledger.parameters.total:.4g}, D = {ledger.tokens:.4g}")  # fmt: skip
    for sequences, checked in sorted(verdict.checked.items()):
        tokens = sequences * config.data.seq_len
        source = "from the cache" if checked.cached else f"compiled in {checked.step.seconds:.0f} s"
        echo(f"\nstep of {sequences} sequences, {tokens:,d} tokens ({source})")
        for line in _step(verdict, checked):
            echo(f"  {line}")
    if verdict.cost is not None:
        echo("")
        for line in _run(verdict.cost, verdict.slice, ledger.flops):
            echo(line)
        echo(f"assumed ({BASIS}):")
        for line in ASSUMPTIONS:
            echo(f"  - {line}")


def mesh_words(mesh: MeshConfig) -> str:
    """`data 1, fsdp 64, tensor 8`: every axis, and its devices."""
    return ", ".join(f"{axis} {devices}" for axis, devices in vars(mesh).items())


def _step(verdict: Verdict, checked: Checked) -> Iterator[str]:
    step = checked.step
    yield from _memory(step, verdict)
    if checked.time is None:
        if step.unread:
            yield f"not timed, since the compiled program was not understood: {step.unread}"
        return
    yield ""
    yield from _collectives(step)
    yield ""
    yield from _time(checked, checked.time)


def _memory(step: CompiledStep, verdict: Verdict) -> Iterator[str]:
    memory = step.memory
    kept = verdict.kept_activations(step.sequences)
    rows = [("parameters", memory.parameters), ("optimizer state", memory.optimizer), ("batch", memory.batch)]
    if step.fits:
        rows += [("activations and temporary", memory.temporary), ("other outputs", memory.outputs),
                 ("program", memory.code), ("peak", memory.peak)]  # fmt: skip
    yield "memory of a chip, GiB"
    for name, count in rows:
        note = (f"  of which {kept / GIB:.3f} kept for the backward pass, by arithmetic"
                if name.startswith("activations") else "")  # fmt: skip
        yield f"  {name:26} {count / GIB:9.3f}{note}"
    usable = f"  {'usable':26} {memory.usable / GIB:9.3f}  of {verdict.slice.chip.hbm:g}"
    if step.refusal is not None:
        yield usable
        yield f"does not fit: {refusal_words(step)}"
    else:
        yield f"{usable}; headroom {memory.headroom / GIB:.3f} ({headroom(memory):.0%})"


def headroom(memory: Memory) -> float:
    """Share of the usable memory that is free."""
    return memory.headroom / memory.usable


def refusal_words(step: CompiledStep) -> str:
    """The compiler's figures."""
    assert step.refusal is not None
    return (f"the compiler needs {step.refusal.needed / GIB:.2f} GiB and has {step.refusal.available / GIB:.2f} "
            f"({step.refusal.message})")  # fmt: skip


def _collectives(step: CompiledStep) -> Iterator[str]:
    if not step.traffic:
        yield "no collectives"
        return
    yield (f"{'collectives':20} {'axes':14} {'where':7} {'':5} {'in program':>10} {'a step':>7} {'arrays':>10} "
           f"{'sent':>10} {'to slices':>10}")  # fmt: skip
    for g in step.traffic[:SHOWN]:
        yield (f"  {g.kind:18} {'+'.join(g.axes):14} {'layers' if g.in_layers else 'outside':7} "
               f"{'async' if g.asynchronous else 'sync':5} {g.count:10d} {g.runs:7d} {size(g.bytes):>10} "
               f"{size(g.wire_bytes):>10} {size(g.dcn_bytes):>10}")  # fmt: skip
    if rest := step.traffic[SHOWN:]:
        yield f"  {len(rest)} more kinds, {size(sum(g.wire_bytes + g.dcn_bytes for g in rest))} sent"
    for row in step.sent:
        if row.axes:
            continue  # only the sums over all axes
        where = "a layer sends" if row.in_layers else "embedding and loss send"
        times = f", {row.measured / row.minimum:.2f} times the least" if row.minimum else ""
        yield f"  {where} {size(row.measured)} a microbatch{times} by arithmetic for this mesh"


def _time(checked: Checked, time: StepTime) -> Iterator[str]:
    step, kernels = checked.step, checked.kernels
    yield f"time of a step, seconds ({BASIS})"
    yield f"  {'matrix products':26} {time.products:9.4f}  {step.matmul_flops:.4g} FLOPs at peak"
    yield f"  {'fusions':26} {time.fusions:9.4f}  {step.cycles:,d} cycles by the compiler's estimate"
    yield f"  {'HBM':26} {time.hbm:9.4f}  {size(step.hbm_bytes)}"
    yield f"  {'compute: longest of these':26} {time.compute:9.4f}"
    calls = ", ".join(f"{runs} x {name}" for name, runs in step.kernels.items())
    yield f"  {'attention kernels':26} {time.attention:9.4f}  {calls or 'none in the program'}"
    if kernels and kernels.calls:
        m = kernels.measured
        yield (f"    a call is {kernels.factor:g} times rows x heads = {m['rows']} x {m['heads']}, of {m['head_dim']}, "
               f"{m['seq']} tokens")  # fmt: skip
    if time.unmeasured:
        why = f": {kernels.error}" if kernels and kernels.error else ""
        yield f"    not measured and counted as nothing: {', '.join(time.unmeasured)}{why}"
    yield f"  {'synchronous collectives':26} {time.synchronous:9.4f}"
    yield f"  {'asynchronous collectives':26} {time.asynchronous:9.4f}  hidden as far as compute and attention last"
    yield f"  {'between slices':26} {time.dcn:9.4f}"
    yield f"  {'exposed communication':26} {time.exposed:9.4f}"
    yield f"  {'step':26} {time.total:9.4f}"
    if step.unknown_loops:
        yield f"  too short: loops counted once, since their turns are not known: {', '.join(step.unknown_loops)}"


def _run(cost: RunCost, slice_: Slice, flops: dict[str, float]) -> Iterator[str]:
    first, last = cost.phases[0], cost.phases[-1]
    yield (f"run ({BASIS}): {last.tokens_per_second:,.0f} tokens/s, "
           f"{last.tokens_per_second / slice_.chips:,.0f} a chip; utilisation "
           + ", ".join(f"{cost.utilisation[name]:.1%} ({name})" for name in ("6nd", "executed")))  # fmt: skip
    if not first.predicted:
        yield (f"  with batches of {first.sequences} sequences as many tokens/s are assumed; --every_batch compiles "
               "that step too")  # fmt: skip
    dollars = "" if cost.dollars is None else f", ${cost.dollars:,.0f}"
    yield (f"  {cost.days:,.2f} days, {cost.chip_hours:,.0f} chip-hours{dollars} for {flops['6nd']:.4g} FLOPs (6nd), "
           f"{flops['executed']:.4g} (executed)")  # fmt: skip


def size(count: float) -> str:
    """Bytes: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as lines with their columns aligned."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
