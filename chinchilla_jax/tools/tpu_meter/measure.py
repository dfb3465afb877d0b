"""What does a kernel cost: from a builder's name to a report. Importing this does not import jax."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from chinchilla_jax.base import files
from chinchilla_jax.base.chips import Chip, kernel_chips
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.tools.tpu_meter import MeterError
from chinchilla_jax.tools.tpu_meter.compile import compile_program, libtpu_version, read_dumps
from chinchilla_jax.tools.tpu_meter.report import Report, kernel_report, program_report


def measure(
    build: str, gen: str = "v5e", kwargs: Mapping[str, object] | None = None, keep: Path | None = None
) -> Report:
    """Compiles `build(**kwargs)` for one chip and counts the cycles of its Pallas kernels. Takes 5 to 20 seconds.

    Args:
      build: `module:function`, importable here; what it returns is in the package's docstring.
      gen: one of `chips.kernel_chips`.
      kwargs: of the builder, as JSON can write them.
      keep: a folder, new or empty, for the program and the compiler's dumps; otherwise they are thrown away.

    Raises:
      CompileError: the builder or the compiler failed; the message ends as theirs does.
      DumpError: this libtpu's dumps are not understood.
      MeterError: no libtpu, an unknown generation, no kernel in the program, or one that runs too long to follow.
    """
    chip = _chip(gen)
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="kernel_meter_") as folder:
            return _measure(build, chip, kwargs or {}, Path(folder))
    if files.glob(keep):
        raise MeterError(f"{keep} is not empty: dumps of two programs would mix; name another folder")
    return _measure(build, chip, kwargs or {}, keep)


def _chip(name: str) -> Chip:
    known = kernel_chips()
    if name not in known:
        raise MeterError(f"unknown TPU generation {name!r}{did_you_mean(name, known)}; one of {', '.join(known)}")
    return known[name]


def _measure(build: str, chip: Chip, kwargs: Mapping[str, object], folder: Path) -> Report:
    compile_program(build, kwargs, chip, folder)
    dumps = read_dumps(folder)
    kernels = []
    for name in dumps.program.kernels:
        schedule = dumps.schedule(name)
        kernels.append(
            kernel_report(
                name,
                schedule,
                chip,
                dumps.program.constant_operands(name),
                dumps.slot_use(name, schedule),
                dumps.program.vmem_bytes(name),
            )
        )
    if not kernels:
        raise MeterError(f"{build}: the compiled program calls no Pallas kernel, so there is nothing to measure")
    return program_report(kernels, chip, build=build, kwargs=dict(kwargs), libtpu=libtpu_version(), **dumps.meta)
