"""Which tiles of the fused kernel are fastest on each TPU generation?

    python -m chinchilla_jax.tools.search_tiles                       what is missing; all: 45 minutes
    python -m chinchilla_jax.tools.search_tiles --generations=v5e --sizes=128 --again
    python -m chinchilla_jax.tools.search_tiles --check               what was measured with other versions

Compiles each direction alone with one pair of tiles after the other and counts cycles with the meter: no TPU is needed.
The table is written after every key, so that an interrupted search goes on where it was.

The meter does not see the cost of fetching instructions, and a few percent of a schedule are no promise about a chip.
So among tiles within `CLOSE` of the fastest the smallest program stands first.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from chinchilla_jax.base import files
from chinchilla_jax.base.chips import kernel_chips
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.kernels import fused
from chinchilla_jax.kernels.call import check
from chinchilla_jax.kernels.tiles import SMALLEST, Tiles, limit, table_key, vmem_bytes
from chinchilla_jax.tools.tpu_meter import CompileError, MeterError
from chinchilla_jax.tools.tpu_meter.compile import libtpu_version
from chinchilla_jax.tools.tpu_meter.measure import measure

TABLE = Path(__file__).parents[1] / "tables" / "attention_tiles.json"
SAME_CORE = {"v5p": "v5e"}  # which only differs in memory and in how many there are: tries what won there
SIZES = (128, 256)

SEQUENCE = 2048
HEADS = {128: 8, 256: 4}
# Not 2048: at 2048 tokens, all of them one tile, it is up to 11% faster, but at 8192 tokens only 4%, with programs more
# than twice as large (v6e; on v5e 5% and 2%).
SIDES = (512, 1024)
SMALL = 256  # tried only if few tiles of the others fit; where they fit, it costs 20% and more
STRIPS = (128, 256)
KEPT = 4
CLOSE = 1.03
BUILD = "chinchilla_jax.tools.search_tiles:build"  # __name__ may be "__main__" here
SOURCES = ("fused.py", "fused_kernel.py", "schedule.py")
UNIT = (
    "[block_q, block_kv, strip, cycles, bundles]; cycles of the schedule of one call, each step at least as long "
    "as its copies from and to HBM; bundles are the size of the program"
)


@dataclasses.dataclass(frozen=True)
class Key:
    """A kernel that has an order of tiles of its own; `str` of it is its name in the table."""

    generation: str
    relative: bool
    backward: bool
    size: int

    def __str__(self) -> str:
        return table_key(self.generation, backward=self.backward, relative=self.relative, size=self.size)


class Measured(NamedTuple):
    """A row of the table."""

    block_q: int
    block_kv: int
    strip: int
    cycles: int
    bundles: int


class Refused(NamedTuple):
    """Tiles that cannot be measured, and why."""

    block_q: int
    block_kv: int
    strip: int
    reason: str


# ---------------------------------------------------------------------------------------------------------------------
# What is measured
# ---------------------------------------------------------------------------------------------------------------------


def build(relative: bool, backward: bool, size: int, tiles: Sequence[int]) -> dict:
    """One direction of causal bfloat16 attention alone, for the meter."""
    heads = HEADS[size]
    rows = jax.ShapeDtypeStruct((1, SEQUENCE, heads, size), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((heads, size), jnp.float32)
    arguments = [rows, rows, rows]
    if relative:
        arguments += (jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), bias, bias)
    chosen = {"tiles": SMALLEST, "backward_tiles": SMALLEST}
    chosen["backward_tiles" if backward else "tiles"] = Tiles(*tiles)

    def attend(*arrays: jax.Array) -> jax.Array:  # queries, keys, values, r and the biases: first fields of a call
        return fused.fused_attention(check(*arrays), **chosen)

    if not backward:
        return {"fn": attend, "args": tuple(arguments)}

    def gradients(dout: jax.Array, out: jax.Array, lse: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        # The results of the forward pass are arguments here: its kernel is not called, hence not compiled.
        with mock.patch.object(fused, "forward_call", lambda *_: (out, lse)):
            return jax.vjp(attend, *arguments)[1](dout)

    out = jax.ShapeDtypeStruct((1, SEQUENCE, heads * size), rows.dtype)
    lse = jax.ShapeDtypeStruct((1, heads, 1, SEQUENCE), jnp.float32)
    return {"fn": gradients, "args": (rows, out, lse, *arguments)}


def estimate(key: Key, tiles: Tiles) -> int:
    """Bytes of vector memory by `tiles.vmem_bytes`, as the kernel itself asks for it."""
    distances = SEQUENCE + tiles.strip if key.relative else 0  # causal: no tile needs a mask that is computed
    return vmem_bytes(
        tiles,
        backward=key.backward,
        keys=SEQUENCE,
        size=key.size,
        distances=distances,
        itemsize=2,
        shared=False,
        masked=False,
        capped=False,
    )


def candidates(key: Key) -> list[Tiles]:
    """Tiles of the narrowest strip that fit the chip."""
    for sides in (SIDES, (SMALL, *SIDES)):
        tiles = [Tiles(block_q, block_kv, STRIPS[0]) for block_q in sides for block_kv in sides]
        fitting = [one for one in tiles if estimate(key, one) <= limit(key.generation)]
        if len(fitting) >= KEPT:
            break
    return fitting


def measure_tiles(key: Key, tiles: Tiles) -> tuple[Measured | Refused, int | None]:
    """The row of a table, and the bytes of vector memory that the compiler used.

    Raises:
      MeterError: nothing can be measured, whatever the tiles: no compiler, or its dumps are not understood.
    """
    sides = tiles.block_q, tiles.block_kv, tiles.strip
    try:
        shape = {"relative": key.relative, "backward": key.backward, "size": key.size, "tiles": sides}
        report = measure(BUILD, key.generation, shape)
    except CompileError as error:
        return Refused(*sides, _first_line(str(error))), None
    kernel, *others = report.kernels
    if others or kernel.unresolved:
        return Refused(*sides, "several kernels" if others else "branches depend on data"), kernel.vmem_bytes
    return Measured(*sides, kernel.bound_cycles, kernel.static_bundles), kernel.vmem_bytes


def _first_line(error: str) -> str:
    """Of what the exception says; lines of the traceback stand before it."""
    lines = error.splitlines()
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])[:300]


def order(rows: Iterable[Measured]) -> list[Measured]:
    """Those within `CLOSE` of the fastest by the size of the program, then the others by cycles."""
    rows = list(rows)
    near = CLOSE * min(row.cycles for row in rows)
    return sorted(rows, key=lambda row: (row.cycles > near, row.bundles if row.cycles <= near else row.cycles, row))


def search(key: Key, seeds: Sequence[Tiles], try_tiles: Callable[[Tiles], Measured | Refused]) -> tuple[list, list]:
    """Measures what is worth it: seeds as they are, or else `candidates` and of the best two the other strips.

    Returns:
      the rows measured, in `order`, and the tiles refused.
    """
    results = [try_tiles(tiles) for tiles in seeds or candidates(key)]
    if not seeds:
        best = order(rows)[:2] if (rows := [row for row in results if isinstance(row, Measured)]) else []
        results += [try_tiles(Tiles(row.block_q, row.block_kv, strip)) for row in best for strip in STRIPS[1:]]
    rows = [row for row in results if isinstance(row, Measured)]
    return order(rows) if rows else [], [row for row in results if isinstance(row, Refused)]


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Table:
    """The file: by key the best `KEPT` rows, versions they were measured with, and tiles that were refused."""

    path: Path
    tiles: dict[str, list] = dataclasses.field(default_factory=dict)
    measured_with: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, list] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Table:
        """Empty if there is no such file."""
        if not files.exists(path):
            return cls(path)
        table = files.read_json(path)
        return cls(path, *(table.get(name, {}) for name in ("tiles", "measured_with", "refused")))

    def write(self) -> None:
        """The whole file at once, a row of it a line."""
        head = {"made_by": "python -m chinchilla_jax.tools.search_tiles", "unit": UNIT}
        parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        for name in ("tiles", "measured_with", "refused"):
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(getattr(self, name).items())]
            parts.append(f" {json.dumps(name)}: {{" + (",\n".join(["", *lines])[1:] + "\n }" if lines else "}"))
        files.write_text(self.path, "{\n" + ",\n".join(parts) + "\n}\n")

    def enter(self, key: Key, rows: list[Measured], refused: list[Refused], versions: str) -> None:
        """Replaces what is known of a key, and writes."""
        self.tiles[str(key)], self.measured_with[str(key)] = rows[:KEPT], versions
        self.refused.pop(str(key), None)
        if refused:
            self.refused[str(key)] = refused
        self.write()

    def why_measure(self, key: Key, versions: str) -> str | None:
        """What is wrong with the entry of a key, None if nothing is."""
        if str(key) not in self.tiles:
            return "not measured yet"
        measured_with = self.measured_with.get(str(key), "unknown versions")
        return None if measured_with == versions else f"measured with {measured_with}; here is {versions}"

    def seeds(self, key: Key) -> list[Tiles]:
        """Tiles that won on the same core and fit here."""
        if key.generation not in SAME_CORE:
            return []
        rows = self.tiles.get(str(dataclasses.replace(key, generation=SAME_CORE[key.generation])), [])
        return [tiles for tiles in (Tiles(*row[:3]) for row in rows) if estimate(key, tiles) <= limit(key.generation)]


def versions() -> str:
    """What the measurements depend on: jax, libtpu, and the kernels' sources, by the beginning of their SHA-256.

    Sources that are only written differently give the same kernels. Where the traced programs are the same, the new
    hash may be written into the table instead of measuring again.
    """
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(files.read_bytes(Path(__file__).parents[1] / "kernels" / name))
    return f"jax {importlib.metadata.version('jax')}, libtpu {libtpu_version()}, sources {digest.hexdigest()[:16]}"


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


class Progress:
    """A line for each compilation, with the time that those still to come will take at the pace so far."""

    def __init__(self, compilations: int):
        self.left, self.done, self.start = compilations, 0, time.monotonic()

    def line(self, what: str) -> None:
        """One more is done."""
        self.done, self.left = self.done + 1, max(self.left - 1, 0)
        minutes = (time.monotonic() - self.start) / self.done * self.left / 60
        print(f"{what}; about {minutes:.0f} min left", flush=True)


def run(table: Table, keys: Sequence[Key]) -> int:
    """Measures the keys and enters them. 0, or 1 if there is one of which no tiles could be measured."""
    counts = {key: len(table.seeds(key)) or len(candidates(key)) + 2 * (len(STRIPS) - 1) for key in keys}  # at most
    progress, failed = Progress(sum(counts.values())), 0
    for key in keys:
        now = versions()  # the kernels may be edited meanwhile

        def try_tiles(tiles: Tiles, key: Key = key) -> Measured | Refused:
            result, used = measure_tiles(key, tiles)
            text = (
                f"{result.cycles:,} cycles, {result.bundles:,} bundles"
                if isinstance(result, Measured)
                else f"refused: {result.reason}"
            )
            if used is not None:
                text += f", {used / 2**20:.1f} MiB of {estimate(key, tiles) / 2**20:.1f} estimated"
            progress.line(f"{key}  {tiles.block_q} x {tiles.block_kv}, strip {tiles.strip}: {text}")
            return result

        rows, refused = search(key, table.seeds(key), try_tiles)
        if rows or not refused:
            table.enter(key, rows, refused, now)
        if not rows and refused:
            failed += 1
            print(
                f"error: {key}: no tiles could be measured, its entry is left as it was: {refused[-1].reason}",
                file=sys.stderr,
            )
        elif not rows:
            print(f"{key}: no tiles fit with {SEQUENCE} keys at once, so there is nothing to rank", flush=True)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is measured, 1 if something could not be (or, with --check, is not), 2 if nothing can be."""
    parser = argparse.ArgumentParser(
        prog="python -m chinchilla_jax.tools.search_tiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--generations", default=",".join(kernel_chips()), help="(default %(default)s)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="of heads, padded (default %(default)s)")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table (default: the one the kernels use)")
    parser.add_argument("--again", action="store_true", help="measure also what these versions have measured before")
    parser.add_argument("--check", action="store_true", help="measure nothing, say what would be measured and why")
    flags = parser.parse_args(arguments)
    chosen = {
        "--generations": (flags.generations.split(","), tuple(kernel_chips())),
        "--sizes": (flags.sizes.split(","), [str(size) for size in SIZES]),
    }
    for flag, (names, known) in chosen.items():
        for name in names:
            if name not in known:
                parser.error(f"{flag}: unknown {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    keys = [
        Key(generation, relative, backward, int(size))
        for size in chosen["--sizes"][0]
        for generation in chosen["--generations"][0]
        for relative in (False, True)
        for backward in (False, True)
    ]
    try:
        now, table = versions(), Table.read(flags.out)
        missing = []
        for key in keys:
            why = table.why_measure(key, now) or ("asked for again" if flags.again else None)
            if why:
                missing.append(key)
                print(f"{key}: {why}")
        print(f"{len(missing)} of {len(keys)} keys to measure", flush=True)
        if flags.check:
            return 1 if missing else 0
        return run(table, missing)
    except MeterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
