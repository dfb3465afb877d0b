"""What is a slice called `v5p-512`? Names as Google Cloud writes them, and the grid of chips behind each.

v5e-16, v5litepod-16, v6e-64    16, 16, 64 chips
v4-1024, v5p-512                512 and 256 chips: these generations are named by TensorCores, two to a chip
2xv5e-256                       two slices of 256 chips, joined by the data centre network (DCN)
v5p:8x8x12, 2xv5p:4x4x8         the grid itself, as the compiler names it; for grids that have no other name
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from chinchilla_jax.base.chips import CHIPS, Chip, Network, Slices
from chinchilla_jax.config import ConfigError, MeshConfig, did_you_mean

# Chips: their grid, as Cloud offers it.
_SMALL_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4  # from 64 chips on, grids are of cubes of 4 x 4 x 4 chips


@dataclasses.dataclass(frozen=True)
class Slice:
    """`count` equal slices, each a `grid` of chips of one generation. A chip is one JAX device in all of them."""

    generation: str
    grid: tuple[int, ...]
    count: int = 1

    @property
    def chips(self) -> int:
        """In all slices together."""
        return self.count * math.prod(self.grid)

    @property
    def topology(self) -> str:
        """The compiler's name of one of them, `v5p:4x8x8`."""
        return f"{self.generation}:{_cross(self.grid)}"

    @property
    def chip(self) -> Chip:
        """What one chip can do."""
        return CHIPS[self.generation]

    @property
    def network(self) -> Network:
        """The links of one chip."""
        assert self.chip.network is not None, "`parse_slice` knows only generations that have it"
        return self.chip.network

    @property
    def name(self) -> str:
        """The name that Google Cloud has for it, or else the compiler's."""
        one = math.prod(self.grid)
        usual = offered(self.generation).get(one) == self.grid
        name = f"{self.generation}-{one * self.chip.cores}" if usual else self.topology
        return f"{self.count}x{name}" if self.count > 1 else name

    def __str__(self) -> str:
        """`v5p-512: 256 chips, 4x8x8`."""
        slices = f"{self.count} slices of " if self.count > 1 else ""
        return f"{self.name}: {self.chips} chips, {slices}{_cross(self.grid)}"

    def wraps(self, axis: int) -> bool:
        """Whether the chips along an axis of the grid form a ring.

        2D slices have it along sides of 16, 3D ones where every side is a multiple of 4 (Cloud TPU documentation).
        """
        if len(self.grid) == 2:
            return self.grid[axis] == 16
        return all(side % _CUBE == 0 for side in self.grid)


def _cross(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def _slices(generation: str) -> Slices:
    slices = CHIPS[generation].slices
    assert slices is not None, "every TPU has slices, and `parse_slice` knows nothing else"
    return slices


@functools.cache
def offered(generation: str) -> dict[int, tuple[int, ...]]:
    """`{chips: grid}` of the slices of a generation that have a usual grid: beyond a cube, the most cubic one."""
    if _slices(generation).axes == 2:
        return {math.prod(grid): grid for grid in _SMALL_2D}
    grids: dict[int, tuple[int, ...]] = {math.prod(grid): grid for grid in _SMALL_3D}
    cubes = (_slices(generation).largest or 0) // _CUBE**3
    shapes = [
        (a, b, c)
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        for c in range(b, min(cubes // (a * b), 4 * a) + 1)
    ]
    for shape in sorted(shapes, key=lambda shape: -shape[2] / shape[0]):  # the last of equal size is the most cubic
        grids[_CUBE**3 * math.prod(shape)] = tuple(_CUBE * side for side in shape)
    return dict(sorted(grids.items()))


def parse_slice(text: str) -> Slice:
    """The slice of a name.

    Raises:
      ConfigError: an unknown generation, a size that is not offered (names the nearest), or no name of a slice.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(v\d\w*?)(?:-(\d+)|:(\d+(?:x\d+)+))", text.strip().lower())
    if (chip := CHIPS.get(text.strip().lower().partition("-")[0])) and not chip.slices:
        told = "is a GPU: only programs for TPUs can be compiled and timed without the chip; train a few steps on it"
        raise ConfigError("--slice", f"{text!r} {told}")
    if not match:
        raise ConfigError("--slice", f"{text!r} is no slice: write v5e-16, v5p-512, 2xv5e-256, or v5p:8x8x8")
    known = {name: slices for name, chip in CHIPS.items() if (slices := chip.slices) and slices.largest}
    aliases = {alias: name for name, slices in known.items() for alias in slices.aliases}
    count, generation = int(match[1] or 1), aliases.get(match[2], match[2])
    if generation not in known:
        names = f"{match[2]!r}{did_you_mean(match[2], known)}; one of {', '.join(known)}"
        raise ConfigError("--slice", f"unknown TPU generation {names}")
    if match[4]:
        return Slice(generation, _grid(generation, match[4]), count)
    size, cores, usual = int(match[3]), CHIPS[generation].cores, offered(generation)
    if size % cores == 0 and size // cores in usual:
        return Slice(generation, usual[size // cores], count)
    near = sorted(sorted(usual, key=lambda chips: abs(chips * cores - size))[:2])
    names = " or ".join(f"{generation}-{chips * cores}" for chips in near)
    counted = " (the name counts TensorCores, two to a chip)" if cores == 2 else ""
    others = f"other grids of chips can be named as {generation}:{_cross(usual[near[0]])}"
    raise ConfigError("--slice", f"no slice {text!r}{counted}; nearest: {names}; {others}")


def _grid(generation: str, text: str) -> tuple[int, ...]:
    grid, slices, usual = tuple(map(int, text.split("x"))), _slices(generation), list(offered(generation).values())
    largest, odd = slices.largest or 0, set(grid) != {1} and any(side % 2 for side in grid[:2])
    if len(grid) != slices.axes:
        near = usual[0] if max(usual[0]) > 1 else (2, 2)
        fix = f"its grids have {slices.axes} sides, as in {generation}:{_cross(near)}"
    elif odd or math.prod(grid) > largest or 0 in grid:
        near = min(usual, key=lambda other: abs(math.prod(other) - math.prod(grid)))
        why = "the first two sides must be even" if odd else f"at most {largest} chips"
        fix = f"{why}; nearest: {generation}:{_cross(near)}"
    else:
        return grid
    raise ConfigError("--slice", f"{generation}:{text}: {fix}")


def lays_out(slice_: Slice, mesh: MeshConfig) -> bool:
    """Whether the mesh is as large as the slice and each of its axes is made of whole sides of the grid.

    Where JAX splits sides of the grid there is no such limit. Across slices the `data` axis is split first.
    """
    if mesh.size != slice_.chips or mesh.shape[0] % slice_.count:
        return False
    shape = (mesh.shape[0] // slice_.count, *mesh.shape[1:])
    return _slices(slice_.generation).splits_sides or _assignable(shape, slice_.grid)


def _assignable(shape: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether the sides can be dealt out so that each entry of `shape` is the product of those it gets."""
    if not sides:
        return all(size == 1 for size in shape)
    if sides[0] == 1:
        return _assignable(shape, sides[1:])
    return any(
        size % sides[0] == 0 and _assignable((*shape[:i], size // sides[0], *shape[i + 1 :]), sides[1:])
        for i, size in enumerate(shape)
    )
