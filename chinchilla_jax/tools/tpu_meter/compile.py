"""How is a program compiled for a TPU so that the compiler says what it scheduled?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from chinchilla_jax.base import files
from chinchilla_jax.base.chips import Chip
from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.tools.tpu_meter import INSTALL, CompileError, DumpError, MeterError
from chinchilla_jax.tools.tpu_meter.bundles import Schedule, SlotUse, parse_schedule, parse_slot_use
from chinchilla_jax.tools.tpu_meter.program import Program, parse_program

PROGRAM, META = "program.hlo.txt", "meta.json"
SCHEDULE, SLOT_USE = "packed-bundles-post-ra", "pre-delay_hlo-static-per-bundle-utilization"

TIMEOUT = 1800.0  # seconds
_TAIL = 32  # lines of a failed compilation that are shown


def libtpu_version() -> str:
    """The version of the installed compiler.

    Raises:
      MeterError: there is none.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MeterError(f"the TPU compiler libtpu is not installed: {INSTALL}")
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def compile_program(build: str, kwargs: Mapping[str, object], chip: Chip, folder: Path) -> None:
    """Compiles for one chip in another process; program and dumps land in `folder`.

    Raises:
      MeterError: no compiler, or `build` is not of the form module:function.
      CompileError: the builder or the compiler failed, or took longer than `TIMEOUT`.
    """
    libtpu_version()
    if not re.fullmatch(r"[\w.]+:\w+", build):
        raise MeterError(f"builder {build!r} must be of the form module:function")
    files.make_folder(folder)
    flags = (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        f"--xla_jf_dump_llo_pass_label_regex=.*({SCHEDULE}|{SLOT_USE}).*",
        # Else small operands are put in VMEM, and the kernel copies them with vector loads.
        "--xla_msa_enable=false",
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "LIBTPU_INIT_ARGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # what this process can import
    }
    keywords = json.dumps(dict(kwargs))
    command = [sys.executable, "-m", f"{__package__}.child", build, chip.one_chip, keywords, str(folder)]
    what = f"{build} with {keywords} for {chip.name}"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise CompileError(f"{what}: not compiled within {TIMEOUT:.0f} s") from None
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL:])
        raise CompileError(f"{what}: compilation failed (exit {done.returncode}):\n{tail}")


class Facts(TypedDict):
    """What the process that compiled knows of the program besides its text."""

    flops: float | None
    jax: str
    device_kind: str


@dataclasses.dataclass(frozen=True)
class Dumps:
    """What a compilation left in a folder: the program, facts about it, and files by (label, kernel)."""

    program: Program
    meta: Facts
    files: Mapping[tuple[str, str], Path]

    def schedule(self, kernel: str) -> Schedule:
        """The schedule of a kernel, or of another call of the same code: that one is compiled once.

        Raises:
          DumpError: there is none, or it cannot be read.
        """
        path = self.files[SCHEDULE, self._compiled(kernel)]
        return parse_schedule(files.read_text(path), path.name)

    def slot_use(self, kernel: str, schedule: Schedule) -> SlotUse | None:
        """The table of slots, if there is one that has a row for each bundle of the schedule."""
        path = self.files.get((SLOT_USE, self._compiled(kernel)))
        use = parse_slot_use(files.read_text(path), path.name) if path else None
        return use if use and len(use.used) == len(schedule.bundles) else None

    def _compiled(self, kernel: str) -> str:
        for name in (kernel, *self.program.kernels):
            if (SCHEDULE, name) in self.files and self.program.same_kernel(name, kernel):
                return name
        raise DumpError(f"libtpu {libtpu_version()} dumped no schedule of the kernel {kernel!r}")


def read_dumps(folder: Path) -> Dumps:
    """What `compile_program` left behind.

    Raises:
      DumpError: the program cannot be read.
    """
    dumped = {}
    for path in files.glob(folder):
        for label in (SCHEDULE, SLOT_USE):
            match = re.fullmatch(rf"\d+-(.*)-\d+-{re.escape(label)}\.txt", path.name)
            if match:
                dumped[label, match[1]] = path
    try:
        program = parse_program(files.read_text(folder / PROGRAM))
    except HloError as error:
        raise DumpError(str(error)) from error
    return Dumps(program, files.read_json(folder / META), dumped)
