"""How many cycles does our fused attention take on each TPU generation, beside the best public kernels? No TPU needed.

    pip install -e .[compiler,benchmarks] -c constraints.txt
    python -m tests.benchmarks.attention_cycles [--gen v5e ...] [--seq 2048 ...] [--head_dim 128 ...] [--case plain ...]

bf16, 8 heads, batch 1, causal. Every number is of the compiler's schedule, read by `chinchilla_jax.tools.tpu_meter`,
and none is wall time on hardware:

    Kcycles  bundles issued by the slower core, thousands; only Pallas kernels, no XLA fusions around them
    HBM      cycles that the kernel's HBM copies take at the published bandwidth
    bound    sum over the steps of the kernel's loop of the larger of the two
    peak     causal-useful FLOPs (forward 2 H S^2 D, backward 2.5 times that) over what the device's matrix units could
             do in these cycles

Forward and backward are kernels of one program, the gradient of the attention, whose forward keeps what the backward
needs; with `--passes forward` of the forward that keeps nothing. The ratio is ours to the public kernel with the fewest
cycles in the same run; the bar is what ours has to meet. Cases:

    plain     ours against the best public kernel
    relative  ours with Transformer-XL's q.r against the best public kernel, which has no such term
    packed    ours with four documents in a row of 2048, against our own without documents
    unaligned    the same, but no document ends where a tile does; on request
    rotated, rotated_before    ours with RoPE in the kernels, and before them (see `--fusions`), against our own without
    kept, recomputed    ours where the backward pass recomputes the layer, with train.remat=attention and =full, against
              our own without; on request

The public kernels run at their best blocks (`public_attention.BEST`); `--search` tries `public_attention.CANDIDATES`
and prints the best. Results are kept in `--cache`, so that a second run compiles only what has changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from chinchilla_jax.base.chips import CHIPS, kernel_chips
from chinchilla_jax.base.files import write_json
from chinchilla_jax.tools.tpu_meter import MeterError
from tests.benchmarks import our_attention, public_attention
from tests.benchmarks.measured import KERNELS, Bench, Cycles, Program, fusions, sha256, sources, total, versions

HEADS = 8
CASES = ("plain", "relative", "packed", "unaligned", "kept", "recomputed", "rotated", "rotated_before")
USUAL = CASES[:3]
AGAINST_OUR_PLAIN = CASES[2:]
WHICH = ("forward", "backward", "both")

# Most cycles of ours, forward and backward, over those of the best public kernel.
BARS = {
    ("plain", 2048, 128): {"v4": 0.80, "v5e": 1.0, "v5p": 0.80, "v6e": 1.0},
    ("plain", 8192, 128): {"v4": 0.80, "v5e": 1.0, "v5p": 0.80, "v6e": 1.0},
    ("relative", 2048, 128): {"v4": 1.2, "v5e": 1.5, "v5p": 1.1, "v6e": 1.6},
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Generation, tokens and head size: one table's."""

    gen: str
    seq: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A kernel at a shape: the blocks of a public one, cycles of forward and backward (None if it was not compiled),
    and if there are none, why."""

    name: str
    forward: Cycles | None = None
    backward: Cycles | None = None
    blocks: public_attention.Blocks | None = None
    absent: str = ""

    @property
    def both(self) -> Cycles | None:
        """Forward and backward; the forward where there is nothing else."""
        parts = [part for part in (self.forward, self.backward) if part]
        return total(parts) if parts else None


def _row(bench: Bench, name: str, program: Program, is_backward: Callable[[str], bool], blocks=None) -> Row:
    kernels = bench.kernels(program)
    if not kernels:
        return Row(name, blocks=blocks, absent=bench.refused[program])
    passes = {True: [], False: []}
    for kernel, cycles in kernels.items():
        passes[is_backward(kernel)].append(cycles)
    return Row(name, *(total(passes[which]) if passes[which] else None for which in (False, True)), blocks)


def public_program(kernel: str, shape: Shape, blocks: public_attention.Blocks, gradients: bool) -> Program:
    """A public kernel at these blocks."""
    arguments = dict(seq=shape.seq, head_dim=shape.head_dim, heads=HEADS, blocks=blocks, gradients=gradients)
    source = inspect.getsource(getattr(public_attention, kernel))
    return Program(f"{public_attention.__name__}:{kernel}", json.dumps(arguments), shape.gen, sha256(source.encode()))


def our_program(case: str, shape: Shape, gradients: bool) -> Program:
    """Ours, of `CASES`."""
    arguments = dict(seq=shape.seq, head_dim=shape.head_dim, heads=HEADS, gradients=gradients)
    tables = KERNELS.parent.glob("tables/attention*.json")
    source = sources(Path(our_attention.__file__), *sorted(KERNELS.glob("*.py")), *sorted(tables))
    return Program(f"{our_attention.__name__}:{case}", json.dumps(arguments), shape.gen, source)


def _our_backward(name: str) -> bool:
    for word in ("forward", "backward"):
        if f"attention_{word}" in name:
            return word == "backward"
    raise SystemExit(f"kernel {name!r} is neither attention_forward... nor attention_backward...")


def search(bench: Bench, kernel: str, shape: Shape) -> public_attention.Blocks:
    """The blocks of fewest cycles for each kernel of the program, among the candidates that fit.

    A program is compiled for one candidate of each; if it is refused, for each alone beside smallest blocks.
    """
    candidates = {name: [blocks for blocks in tried if max(blocks) <= shape.seq]
                  for name, tried in public_attention.CANDIDATES[kernel].items()}  # fmt: skip
    smallest = {name: tried[0] for name, tried in candidates.items()}
    together = [{name: tried[min(i, len(tried) - 1)] for name, tried in candidates.items()}
                for i in range(max(map(len, candidates.values())))]  # fmt: skip
    bench.plan(public_program(kernel, shape, blocks, True) for blocks in together)
    found = {name: {} for name in candidates}

    def note(blocks: public_attention.Blocks, names: Iterable[str]) -> bool:
        measured = bench.kernels(public_program(kernel, shape, blocks, True))
        for called, cycles in measured.items():
            name = public_attention.pass_of(kernel, called)
            if name in names and cycles.low == cycles.cycles:
                found[name][tuple(blocks[name])] = cycles.cycles
        return bool(measured)

    for blocks in together:
        if not note(blocks, tuple(candidates)):
            for name in candidates:
                note(smallest | {name: blocks[name]}, (name,))
    if not all(found.values()):
        raise SystemExit(f"{shape.gen} {kernel}: no candidate was measured; {next(iter(bench.refused.values()), '')}")
    for name, tried in found.items():
        ranked = ", ".join(f"{blocks} {tried[blocks]:,}" for blocks in sorted(tried, key=tried.get))
        print(f"{shape.gen} {shape.seq} x {shape.head_dim} {kernel} {name}: {ranked}")
    best = {name: min(tried, key=tried.get) for name, tried in found.items()}
    print(f"    ({kernel!r}, {shape.gen!r}, {shape.seq}, {shape.head_dim}): {best},")
    return best


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of a shape: public kernels, then ours by case; by pass the tiles visited where documents are packed."""

    shape: Shape
    public: tuple[Row, ...]
    ours: tuple[Row, ...]
    packed_tiles: Mapping[str, our_attention.VisitedTiles]

    @property
    def best(self) -> Row | None:
        """The public kernel of fewest cycles."""
        compiled = [row for row in self.public if row.both]
        return min(compiled, key=lambda row: row.both.cycles) if compiled else None

    def ratio(self, row: Row) -> float | None:
        """Cycles over those it is compared with: our plain kernel or the best public one."""
        own = next((r for r in self.ours if r.name == "plain"), None)
        other = own if row.name in AGAINST_OUR_PLAIN else self.best
        return row.both.cycles / other.both.cycles if row.both and other and other.both else None

    def bar(self, row: Row) -> float | None:
        """The most that the ratio may be, forward and backward together."""
        if row.both and not row.backward:
            return None
        return BARS.get((row.name, self.shape.seq, self.shape.head_dim), {}).get(self.shape.gen)

    def peak(self, row: Row, name: str) -> float | None:
        """Share of the matrix units' peak of the pass `name`, forward, backward or both, on causal-useful FLOPs."""
        cycles = getattr(row, name)
        if cycles is None:
            return None
        forward = public_attention.useful_flops(self.shape.seq, self.shape.head_dim, HEADS, False)
        if row.name in ("packed", "unaligned"):
            forward *= our_attention.DOCUMENT / self.shape.seq
        parts = {"forward": 1.0, "backward": public_attention.BACKWARD_COST}
        done = sum(cost for part, cost in parts.items() if getattr(row, part) and name in (part, "both"))
        chip = CHIPS[self.shape.gen]
        return forward * done * chip.clock / cycles.cycles / chip.peak_per_device


def render(table: Table) -> str:
    """The table as text."""
    shape, chip = table.shape, CHIPS[table.shape.gen]
    title = (f"{shape.gen}: sequence {shape.seq}, head size {shape.head_dim}; "
             f"{chip.peak_per_device / 1e12:.0f} TFLOP/s, {chip.cores_per_device} core(s), "
             f"{chip.hbm_bandwidth_per_device / 1e9:.0f} GB/s")  # fmt: skip
    part = f"{'Kcycles':>8} {'HBM':>6} {'bound':>7} {'peak':>4}"
    lines = ["", title, f"{'':15}  " + "  ".join(f"{which:^28}" for which in WHICH),
             f"{'':15}  {part}  {part}  {part}  ratio  bar"]  # fmt: skip
    for row in (*table.public, *table.ours):
        name = row.name if row in table.public else f"ours, {row.name}"
        if row.both is None:
            lines.append(f"{name:15}  absent: {row.absent}")
            continue
        parts = "  ".join(_cells(getattr(row, which), table.peak(row, which)) for which in WHICH)
        ratio, bar = (f"{number:.2f}" if number else "" for number in (table.ratio(row), table.bar(row)))
        lines.append(f"{name:15}  {parts}  {ratio:>5}  {bar}".rstrip())
    for which, tiles in table.packed_tiles.items():
        lines.append(f"packed, {which}: visits {tiles.visited} tiles of {tiles.block_q} x {tiles.block_kv}, "
                     f"{tiles.visited / tiles.unmasked:.2f} of those unmasked; {tiles.scores_per_pair:.1f} scores in "
                     "them a visible pair")  # fmt: skip
    return "\n".join(lines)


def _cells(cycles: Cycles | None, peak: float | None) -> str:
    if cycles is None:
        return f"{'-':>28}"
    thousands = f"{'' if cycles.low == cycles.cycles else '<'}{cycles.cycles / 1e3:.1f}"
    return f"{thousands:>8} {cycles.hbm / 1e3:6.1f} {cycles.bound / 1e3:7.1f} {peak:4.0%}"


NOTE = """
Kcycles: thousands of bundles of the compiler's schedule, slower core, Pallas kernels only ("<": at most, a branch was
not decided). HBM: cycles of the kernel's HBM copies at the published bandwidth; bound: of each step the larger of both.
peak: causal-useful FLOPs over the matrix units' peak. ratio: to the public kernel of fewest cycles, forward and
backward together; of packed, unaligned, kept and recomputed, to our own plain one; bar: the most it may be.
No number here is a wall time, or measured on a TPU."""


def as_json(table: Table) -> dict:
    """The table with every number, for machines."""
    rows = []
    for row in (*table.public, *table.ours):
        passes = {which: dataclasses.asdict(cycles) | {"peak_fraction": table.peak(row, which)}
                  for which in WHICH if (cycles := getattr(row, which))}  # fmt: skip
        rows.append({"name": row.name, "ours": row in table.ours, "blocks": row.blocks, "absent": row.absent,
                     "passes": passes, "ratio": table.ratio(row), "bar": table.bar(row)})  # fmt: skip
    return {**dataclasses.asdict(table.shape), "heads": HEADS, "rows": rows,
            "packed_tiles": {which: dataclasses.asdict(tiles) for which, tiles in table.packed_tiles.items()}}


def make_table(bench: Bench, shape: Shape, kernels: Sequence[str], cases: Sequence[str], gradients: bool,
               blocks: dict[tuple[str, Shape], public_attention.Blocks]) -> Table:  # fmt: skip
    """Measures what is not in the cache."""
    public = [
        _row(bench, kernel, public_program(kernel, shape, blocks[kernel, shape], gradients),
             lambda name, kernel=kernel: public_attention.pass_of(kernel, name) != "forward", blocks[kernel, shape])
        for kernel in kernels
    ]  # fmt: skip
    ours = [_row(bench, case, our_program(case, shape, gradients), _our_backward) for case in cases]
    tiles = {}
    if any(row.name == "packed" and row.both for row in ours):
        tiles = our_attention.visited_tiles(shape.gen, shape.seq, shape.head_dim, HEADS)
    return Table(shape, tuple(public), tuple(ours), tiles)


def main() -> None:
    """Prints a table per generation, sequence and head size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gen", nargs="+", default=["v4", "v5e", "v5p", "v6e"], choices=sorted(kernel_chips()))
    parser.add_argument("--seq", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--head_dim", nargs="+", type=int, default=[128])
    parser.add_argument("--case", nargs="+", default=list(USUAL), choices=CASES, help="of ours")
    parser.add_argument("--public", nargs="*", default=list(public_attention.CANDIDATES), help="kernels beside ours",
                        choices=list(public_attention.CANDIDATES))  # fmt: skip
    parser.add_argument("--passes", default="both", choices=("both", "forward"))
    parser.add_argument("--search", action="store_true", help="try all candidate blocks of the public kernels")
    parser.add_argument("--fusions", action="store_true", help="list XLA's fusions around the kernels; not cached")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "chinchilla_jax" / "attention_cycles")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    try:
        run(options)
    except MeterError as error:
        raise SystemExit(str(error)) from None


def run(options: argparse.Namespace) -> None:
    """Measures and prints what the command line asks for."""
    bench, gradients = Bench(options.cache), options.passes == "both"
    shapes = [Shape(gen, seq, head_dim) for gen in options.gen for head_dim in options.head_dim for seq in options.seq]
    blocks = {(kernel, shape): search(bench, kernel, shape) if options.search else
              public_attention.best_blocks(kernel, shape.gen, shape.seq, shape.head_dim)
              for shape in shapes for kernel in options.public}  # fmt: skip
    cases = [case for case in CASES if case in options.case or
             case == "plain" and set(AGAINST_OUR_PLAIN) & set(options.case)]  # fmt: skip
    programs = [public_program(kernel, shape, chosen, gradients) for (kernel, shape), chosen in blocks.items()]
    programs += [our_program(case, shape, gradients) for shape in shapes for case in cases]
    bench.plan(programs)
    tables = [make_table(bench, shape, options.public, cases, gradients, blocks) for shape in shapes]
    print(f"\nbfloat16, {HEADS} heads, batch 1, causal; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print("\n".join(render(table) for table in tables) + "\n" + NOTE)
    if options.fusions:
        for program in programs:
            print(f"\nXLA's fusions, cycles and bound: {program}")
            found = fusions(program)
            for name, (cycles, bound) in found.items():
                print(f"{cycles:>12,} {bound:>12,} {name}")
            print(f"{sum(c for c, _ in found.values()):>12,} {sum(b for _, b in found.values()):>12,} in all")
    if options.json:
        write_json(options.json, {"versions": versions(), "unit": "cycles of the schedule",
                                  "tables": [as_json(table) for table in tables]})  # fmt: skip


if __name__ == "__main__":
    main()
