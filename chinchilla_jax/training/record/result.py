"""`result.json`: what a run achieved and what it cost. It is written last, and says that the run is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.ledger import Ledger
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.record.directory import read_record
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.timing.clock import Clock
from chinchilla_jax.training.timing.goodput import goodput, time_line, utilisation


def finished_result(workdir: Path, echo: Callable[[str], None]) -> dict[str, Any] | None:
    """The result of a run that is finished already, else None; what process 0 sees counts for all."""
    path = workdir / "result.json"
    if distributed.exchange("finished", str(path.exists()))[0] != "True":
        return None
    result = read_record(path, "loss", float)
    echo(f"finished already: loss {result['loss']:.4f} nats/token; another run needs another directory")
    return result


def write_result(
    workdir: Path,
    facts: Mapping[str, Any],
    course: Course,
    ledger: Ledger,
    validation: Mapping[str, float],
    clock: Clock,
    peak: tuple[float, str],
    echo: Callable[[str], None],
) -> dict[str, Any]:
    """Writes and returns the result of a run that has ended; `peak` is what `hardware.peak_flops` gives."""
    flops_per_token = {convention: flops / ledger.tokens for convention, flops in ledger.flops.items()}
    used = utilisation(clock.parts, clock.tokens, flops_per_token, peak[0])
    seconds, speed, devices = clock.seconds(), clock.tokens_per_second(), course.config.mesh.size
    result = {
        **facts,
        "loss": validation["validation_loss"],
        "bits_per_byte": validation["bits_per_byte"],
        "validation": dict(validation),
        "diverged": False,
        "params": ledger.parameters.total,
        "tokens": ledger.tokens,
        "flops_by_convention": ledger.flops,
        "steps": course.total_steps,
        "seconds": seconds,
        "time": clock.parts,
        "goodput": goodput(clock.parts),
        "utilisation": used,
        "device_hours": seconds * devices / 3600,
        "tokens_per_second": speed,
        "flops_per_second": speed * flops_per_token["executed"],
        "peak_flops": peak[0],
        "peak_is": peak[1],
        "devices": devices,
        "platform": jax.default_backend(),
        "cores": hardware.cpu_cores(),
        "config_hash": course.content_hash(),
        "code": code_revision(),
    }
    if distributed.first():
        write_json(workdir / "result.json", result)
    echo(
        f"done: loss {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte, {seconds:.1f} s, "
        f"{result['flops_per_second'] / 1e9:.1f} GFLOP/s"
    )
    echo(time_line(clock.parts, used))
    return result
