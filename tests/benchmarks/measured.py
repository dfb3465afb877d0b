"""What does the cycle meter say of a program, asked only once?

    bench = Bench(folder)
    bench.plan(programs)
    bench.kernels(program)  # {"attention_forward.1": Cycles(...)}

Results are kept in files named by all that they depend on, so that a second run compiles only what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import chinchilla_jax.kernels
import chinchilla_jax.tools.tpu_meter
from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.base.files import write_json
from chinchilla_jax.tools.tpu_meter import CompileError
from chinchilla_jax.tools.tpu_meter.bundles import parse_schedule
from chinchilla_jax.tools.tpu_meter.compile import SCHEDULE, read_dumps
from chinchilla_jax.tools.tpu_meter.measure import measure
from chinchilla_jax.tools.tpu_meter.report import kernel_report

KERNELS = Path(chinchilla_jax.kernels.__file__).parent
METER = Path(chinchilla_jax.tools.tpu_meter.__file__).parent


@dataclasses.dataclass(frozen=True)
class Program:
    """What `builder`, `module:function`, returns for `arguments`, keywords as JSON, compiled for a generation.

    `source` stands for the text that the program comes from: another one is another program.
    """

    builder: str
    arguments: str
    gen: str
    source: str

    def __str__(self) -> str:
        words = self.arguments.translate(str.maketrans("", "", '"{}[]'))
        return f"{self.gen} {self.builder.split('.')[-1]} {words}"


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Of a kernel, or summed over some: of the schedule, `low` if every branch that the meter could not decide is
    skipped, of its HBM copies, and the bound of both; `matmul_flops` is what the matrix units execute."""

    cycles: int
    low: int
    hbm: int
    bound: int
    matmul_flops: float


def total(parts: Iterable[Cycles]) -> Cycles:
    """Their sum."""
    parts = tuple(parts)
    return Cycles(*(sum(getattr(part, field.name) for part in parts) for field in dataclasses.fields(Cycles)))


def sha256(*texts: bytes) -> str:
    """Of all texts together."""
    return hashlib.sha256(b"".join(texts)).hexdigest()


def sources(*files: Path) -> str:
    """The `source` of a program that comes from these files."""
    return sha256(*(file.read_bytes() for file in files))


def versions() -> dict[str, str]:
    """Of the packages that decide a schedule."""
    found = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    return {name: found.get(name, "absent") for name in ("jax", "jaxlib", "libtpu", "tokamax")}


class Bench:
    """Measures programs one at a time, keeps the results under `cache`, and says how long the rest takes.

    `refused` says of a program that does not compile why.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self.refused: dict[Program, str] = {}
        self._surroundings = {"meter": sources(*sorted(METER.glob("*.py"))), "versions": versions()}
        self._waiting: set[str] = set()  # by name: the source of one may change meanwhile
        self._seconds: list[float] = []

    def plan(self, programs: Iterable[Program]) -> None:
        """Announces programs, so that the time left counts them."""
        self._waiting |= {str(program) for program in programs if not self._file(program).exists()}

    def kernels(self, program: Program) -> dict[str, Cycles]:
        """The kernels of a program by name, none if it does not compile."""
        file = self._file(program)
        if not file.exists() and program not in self.refused:
            start = time.monotonic()
            try:
                found = _measured(program)
            except CompileError as error:
                self.refused[program] = _reason(str(error))
            else:
                write_json(file, {"program": self._key(program), "kernels": found})
            self._tell(program, time.monotonic() - start)
        if program in self.refused:
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))["kernels"]
        return {name: Cycles(**cycles) for name, cycles in found.items()}

    def _tell(self, program: Program, seconds: float) -> None:
        self._seconds.append(seconds)
        self._waiting.discard(str(program))
        left = len(self._waiting) * sum(self._seconds) / len(self._seconds)
        refused = f" (refused: {self.refused[program]})" if program in self.refused else ""
        print(f"{seconds:3.0f} s, {len(self._waiting)} to go in {left / 60:.1f} min: {program}{refused}", flush=True)

    def _key(self, program: Program) -> dict:
        return dataclasses.asdict(program) | self._surroundings

    def _file(self, program: Program) -> Path:
        return self.cache / f"{sha256(json.dumps(self._key(program), sort_keys=True).encode())[:24]}.json"


def _measured(program: Program) -> dict[str, dict]:
    report = measure(program.builder, program.gen, json.loads(program.arguments))
    return {k.name: dataclasses.asdict(Cycles(k.cycles, k.cycles_low, k.hbm_cycles, k.bound_cycles, k.matmul_flops))
            for k in report.kernels}  # fmt: skip


def _reason(message: str) -> str:
    """The line of a failed compilation that says what is wrong."""
    lines = message.strip().splitlines()
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1])[:200]


def fusions(program: Program) -> dict[str, tuple[int, int]]:
    """Cycles, and their bound with HBM copies, of what XLA wrote around the Pallas kernels of a program: one call each,
    costliest first. Not cached."""
    with tempfile.TemporaryDirectory() as folder:
        measure(program.builder, program.gen, json.loads(program.arguments), keep=Path(folder))
        dumps = read_dumps(Path(folder))
        texts = {name: path.read_text(encoding="utf-8") for (label, name), path in dumps.files.items()
                 if label == SCHEDULE and name not in (*dumps.program.kernels, "TLP") and name[0] != "<"}  # fmt: skip
    chip = CHIPS[program.gen]
    reports = {name: kernel_report(name, parse_schedule(text, name), chip, {}) for name, text in texts.items()}
    found = {name: (report.cycles, report.bound_cycles) for name, report in reports.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))
