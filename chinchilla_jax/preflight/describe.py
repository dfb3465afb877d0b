"""How is a preflight told? As a page of text (`describe`), and as the same facts for machines (`facts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import MeshConfig
from chinchilla_jax.preflight.cache import versions
from chinchilla_jax.preflight.check import Checked, Verdict
from chinchilla_jax.preflight.predict import ASSUMPTIONS, BASIS, StepTime
from chinchilla_jax.preflight.search import AXES
from chinchilla_jax.preflight.step import CompiledStep, Refusal

SHOWN = 12  # rows of collectives; the others together move less than any of them


def facts(verdict: Verdict) -> dict[str, Any]:
    """Everything that is known, as plain values for JSON."""
    slice_ = verdict.slice
    return {
        "basis": BASIS,
        "assumptions": list(ASSUMPTIONS),
        "versions": versions(),
        "fits": verdict.fits,
        "slice": {name: getattr(slice_, name) for name in ("name", "chips", "grid")}
        | {"slices": slice_.count, "generation": slice_.generation},
        "config": verdict.config.to_dict(),
        "config_hash": verdict.config.content_hash(),
        "ledger": verdict.ledger.to_dict(),
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
    config, ledger = verdict.config, verdict.ledger
    echo(
        f"{verdict.slice}; mesh {mesh_words(config.mesh)}; {config.train.microbatches} microbatches, "
        f"remat {config.train.remat}, N = {ledger.parameters.total:.4g}, D = {ledger.tokens:.4g}"
    )
    for sequences, checked in sorted(verdict.checked.items()):
        step, tokens = checked.step, sequences * config.data.seq_len
        source = "from the cache" if checked.cached else f"compiled in {step.seconds:.0f} s"
        echo(f"\nstep of {sequences} sequences, {tokens:,d} tokens ({source})")
        lines = [*_memory(checked, verdict.slice.chip.hbm or 0.0)]
        if checked.time is not None:
            lines += ["", *_collectives(step), "", *_time(checked, checked.time)]
        elif step.unread:
            lines.append(f"not timed, since the compiled program was not understood: {step.unread}")
        for line in lines:
            echo(f"  {line}")
    if verdict.cost is not None:
        for line in ["", *_run(verdict), f"assumed ({BASIS}):", *(f"  - {one}" for one in ASSUMPTIONS)]:
            echo(line)


def mesh_words(mesh: MeshConfig) -> str:
    """`data 1, fsdp 64, tensor 8`: every axis, and its devices."""
    return ", ".join(f"{axis} {getattr(mesh, axis)}" for axis in AXES)


def _memory(checked: Checked, hbm: float) -> Iterator[str]:
    refusal, memory = checked.step.refusal, checked.step.memory
    kept = f"  of which {checked.kept_activations / GIB:.3f} kept for the backward pass, by arithmetic"
    free = f"; headroom {memory.headroom / GIB:.3f} ({memory.free_share:.0%})"
    compiled = [
        ("activations and temporary", memory.temporary, kept),
        ("other outputs", memory.outputs, ""),
        ("program", memory.code, ""),
        ("peak", memory.peak, ""),
    ]
    rows = [
        ("parameters", memory.parameters, ""),
        ("optimizer state", memory.optimizer, ""),
        ("batch", memory.batch, ""),
        *([] if refusal else compiled),
        ("usable", memory.usable, f"  of {hbm:g}{'' if refusal else free}"),
    ]
    yield "memory of a chip, GiB"
    yield from (f"  {name:26} {count / GIB:9.3f}{note}" for name, count, note in rows)
    if refusal:
        yield f"does not fit: {refusal_words(refusal)}"


def refusal_words(refusal: Refusal) -> str:
    """The compiler's figures for a step that does not fit."""
    needed, available = refusal.needed / GIB, refusal.available / GIB
    return f"the compiler needs {needed:.2f} GiB and has {available:.2f} ({refusal.message})"


def _collectives(step: CompiledStep) -> Iterator[str]:
    if not step.traffic:
        yield "no collectives"
        return
    columns = "{:20} {:14} {:7} {:5} {:>10} {:>7} {:>10} {:>10} {:>10}"
    yield columns.format("collectives", "axes", "where", "", "in program", "a step", "arrays", "sent", "to slices")
    for g in step.traffic[:SHOWN]:
        where, overlap = "layers" if g.in_layers else "outside", "async" if g.asynchronous else "sync"
        sizes = (size(g.bytes), size(g.wire_bytes), size(g.dcn_bytes))
        yield columns.format(f"  {g.kind}", "+".join(g.axes), where, overlap, g.count, g.runs, *sizes)
    if rest := step.traffic[SHOWN:]:
        yield f"  {len(rest)} more kinds, {size(sum(g.wire_bytes + g.dcn_bytes for g in rest))} sent"
    for row in step.sent:
        if not row.axes:  # the sum over all axes
            where = "a layer sends" if row.in_layers else "embedding and loss send"
            times = f", {row.ratio:.2f} times the least" if row.minimum else ""
            yield f"  {where} {size(row.measured)} a microbatch{times} by arithmetic for this mesh"


def _time(checked: Checked, time: StepTime) -> Iterator[str]:
    step, kernels = checked.step, checked.kernels
    calls = ", ".join(f"{runs} x {name}" for name, runs in step.kernels.items())
    yield f"time of a step, seconds ({BASIS})"
    yield from _seconds(
        ("matrix products", time.products, f"{step.matmul_flops:.4g} FLOPs at peak"),
        ("fusions", time.fusions, f"{step.cycles:,d} cycles by the compiler's estimate"),
        ("HBM", time.hbm, size(step.hbm_bytes)),
        ("compute: longest of these", time.compute, ""),
        ("attention kernels", time.attention, calls or "none in the program"),
    )
    if kernels and kernels.calls:
        m = kernels.measured
        shape = f"{m['rows']} x {m['heads']}, of {m['head_dim']}, {m['seq']} tokens"
        yield f"    a call is {kernels.factor:g} times rows x heads = {shape}"
    if time.unmeasured:
        names = ", ".join(time.unmeasured)
        yield f"    not measured and counted as nothing: {names}{checked.why_unmeasured}"
    yield from _seconds(
        ("synchronous collectives", time.synchronous, ""),
        ("asynchronous collectives", time.asynchronous, "hidden as far as compute and attention last"),
        ("between slices", time.dcn, ""),
        ("exposed communication", time.exposed, ""),
        ("step", time.total, ""),
    )
    if step.unknown_loops:
        yield f"  too short: loops counted once, since their turns are not known: {', '.join(step.unknown_loops)}"


def _seconds(*rows: tuple[str, float, str]) -> Iterator[str]:
    for name, seconds, note in rows:
        yield f"  {name:26} {seconds:9.4f}{note and '  '}{note}"


def _run(verdict: Verdict) -> Iterator[str]:
    cost, flops = verdict.cost, verdict.ledger.flops
    if cost is None:
        return
    first, last = cost.phases[0], cost.phases[-1]
    utilisation = ", ".join(f"{cost.utilisation[name]:.1%} ({name})" for name in ("6nd", "executed"))
    a_chip = last.tokens_per_second / verdict.slice.chips
    yield f"run ({BASIS}): {last.tokens_per_second:,.0f} tokens/s, {a_chip:,.0f} a chip; utilisation {utilisation}"
    if not first.predicted:
        batches = f"with batches of {first.sequences} sequences as many tokens/s are assumed"
        yield f"  {batches}; --every_batch compiles that step too"
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
