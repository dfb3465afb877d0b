"""How is a preflight told? As a page of text (`describe`), and as the same facts for machines (`facts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import MeshConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.preflight.cache import versions
from chinchilla_jax.preflight.check import Checked, Verdict
from chinchilla_jax.preflight.predict import ASSUMPTIONS, BASIS, RunCost, StepTime
from chinchilla_jax.preflight.search import AXES
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep

SHOWN = 12  # rows of collectives; the others together move less than any of them


def facts(verdict: Verdict) -> dict[str, Any]:
    """Everything that is known, as plain values for JSON."""
    slice_ = verdict.slice
    return {
        "basis": BASIS,
        "assumptions": list(ASSUMPTIONS),
        "versions": versions(),
        "fits": verdict.fits,
        "slice": {
            "name": slice_.name,
            "chips": slice_.chips,
            "grid": list(slice_.grid),
            "slices": slice_.count,
            "generation": slice_.generation,
        },
        "config": verdict.config.to_dict(),
        "config_hash": verdict.config.content_hash(),
        "ledger": count_run(verdict.config).to_dict(),
        "steps": {
            str(sequences): {
                "program": dataclasses.asdict(checked.step),
                "cached": checked.cached,
                "kept_activations": checked.kept_activations,
                "attention": checked.kernels and dataclasses.asdict(checked.kernels),
                "seconds": checked.time and checked.time.to_dict(),
                "untimed": checked.untimed,
            }
            for sequences, checked in verdict.checked.items()
        },
        "run": verdict.cost and dataclasses.asdict(verdict.cost),
    }


def describe(verdict: Verdict, echo: Echo) -> None:
    """Prints a preflight: memory, collectives and time of each step, then the run."""
    config = verdict.config
    ledger = count_run(config)
    echo(
        f"{verdict.slice}; mesh {mesh_words(config.mesh)}; {config.train.microbatches} microbatches, "
        f"remat {config.train.remat}, N = {ledger.parameters.total:.4g}, D = {ledger.tokens:.4g}"
    )
    for sequences, checked in sorted(verdict.checked.items()):
        tokens = sequences * config.data.seq_len
        source = "from the cache" if checked.cached else f"compiled in {checked.step.seconds:.0f} s"
        echo(f"\nstep of {sequences} sequences, {tokens:,d} tokens ({source})")
        for line in _step(checked, verdict.slice):
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
    return ", ".join(f"{axis} {getattr(mesh, axis)}" for axis in AXES)


def _step(checked: Checked, slice_: Slice) -> Iterator[str]:
    step = checked.step
    yield from _memory(checked, slice_)
    if checked.time is not None:
        yield ""
        yield from _collectives(step)
        yield ""
        yield from _time(checked, checked.time)
    elif step.unread:
        yield f"not timed, since the compiled program was not understood: {step.unread}"


def _memory(checked: Checked, slice_: Slice) -> Iterator[str]:
    step, memory = checked.step, checked.step.memory

    def row(name: str, count: float, note: str = "") -> str:
        return f"  {name:26} {count / GIB:9.3f}{note}"

    yield "memory of a chip, GiB"
    yield row("parameters", memory.parameters)
    yield row("optimizer state", memory.optimizer)
    yield row("batch", memory.batch)
    if step.fits:
        note = f"  of which {checked.kept_activations / GIB:.3f} kept for the backward pass, by arithmetic"
        yield row("activations and temporary", memory.temporary, note)
        yield row("other outputs", memory.outputs)
        yield row("program", memory.code)
        yield row("peak", memory.peak)
    free = f"; headroom {memory.headroom / GIB:.3f} ({memory.free_share:.0%})" if step.fits else ""
    yield row("usable", memory.usable, f"  of {slice_.chip.hbm:g}{free}")
    if not step.fits:
        yield f"does not fit: {refusal_words(step)}"


def refusal_words(step: CompiledStep) -> str:
    """The compiler's figures for a step that does not fit."""
    needed, available = step.refusal.needed / GIB, step.refusal.available / GIB
    return f"the compiler needs {needed:.2f} GiB and has {available:.2f} ({step.refusal.message})"


def _collectives(step: CompiledStep) -> Iterator[str]:
    if not step.traffic:
        yield "no collectives"
        return
    yield (
        f"{'collectives':20} {'axes':14} {'where':7} {'':5} {'in program':>10} {'a step':>7} {'arrays':>10} "
        f"{'sent':>10} {'to slices':>10}"
    )
    for g in step.traffic[:SHOWN]:
        yield (
            f"  {g.kind:18} {'+'.join(g.axes):14} {'layers' if g.in_layers else 'outside':7} "
            f"{'async' if g.asynchronous else 'sync':5} {g.count:10d} {g.runs:7d} {size(g.bytes):>10} "
            f"{size(g.wire_bytes):>10} {size(g.dcn_bytes):>10}"
        )
    if rest := step.traffic[SHOWN:]:
        yield f"  {len(rest)} more kinds, {size(sum(g.wire_bytes + g.dcn_bytes for g in rest))} sent"
    for row in step.sent:
        if not row.axes:  # the sum over all axes
            where = "a layer sends" if row.in_layers else "embedding and loss send"
            times = f", {row.ratio:.2f} times the least" if row.minimum else ""
            yield f"  {where} {size(row.measured)} a microbatch{times} by arithmetic for this mesh"


def _time(checked: Checked, time: StepTime) -> Iterator[str]:
    step, kernels = checked.step, checked.kernels

    def row(name: str, seconds: float, note: str = "") -> str:
        return f"  {name:26} {seconds:9.4f}{note and '  '}{note}"

    yield f"time of a step, seconds ({BASIS})"
    yield row("matrix products", time.products, f"{step.matmul_flops:.4g} FLOPs at peak")
    yield row("fusions", time.fusions, f"{step.cycles:,d} cycles by the compiler's estimate")
    yield row("HBM", time.hbm, size(step.hbm_bytes))
    yield row("compute: longest of these", time.compute)
    calls = ", ".join(f"{runs} x {name}" for name, runs in step.kernels.items())
    yield row("attention kernels", time.attention, calls or "none in the program")
    if kernels and kernels.calls:
        m = kernels.measured
        yield (
            f"    a call is {kernels.factor:g} times rows x heads = {m['rows']} x {m['heads']}, of {m['head_dim']}, "
            f"{m['seq']} tokens"
        )
    if time.unmeasured:
        why = f": {kernels.error}" if kernels and kernels.error else ""
        yield f"    not measured and counted as nothing: {', '.join(time.unmeasured)}{why}"
    yield row("synchronous collectives", time.synchronous)
    hidden = "hidden as far as compute and attention last"
    yield row("asynchronous collectives", time.asynchronous, hidden)
    yield row("between slices", time.dcn)
    yield row("exposed communication", time.exposed)
    yield row("step", time.total)
    if step.unknown_loops:
        yield f"  too short: loops counted once, since their turns are not known: {', '.join(step.unknown_loops)}"


def _run(cost: RunCost, slice_: Slice, flops: dict[str, float]) -> Iterator[str]:
    first, last = cost.phases[0], cost.phases[-1]
    utilisation = ", ".join(f"{cost.utilisation[name]:.1%} ({name})" for name in ("6nd", "executed"))
    yield (
        f"run ({BASIS}): {last.tokens_per_second:,.0f} tokens/s, "
        f"{last.tokens_per_second / slice_.chips:,.0f} a chip; utilisation {utilisation}"
    )
    if not first.predicted:
        yield (
            f"  with batches of {first.sequences} sequences as many tokens/s are assumed; --every_batch compiles "
            "that step too"
        )
    dollars = "" if cost.dollars is None else f", ${cost.dollars:,.0f}"
    yield (
        f"  {cost.days:,.2f} days, {cost.chip_hours:,.0f} chip-hours{dollars} for {flops['6nd']:.4g} FLOPs (6nd), "
        f"{flops['executed']:.4g} (executed)"
    )


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
