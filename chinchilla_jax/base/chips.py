"""What can one accelerator chip do at most? The one table of published figures and compiler names of every chip.

Everything that knows a chip by its name reads it here: budgets in chip-days, utilisation, the tiles of the kernels,
slices and predicted times in preflight, the meter of kernels. A new chip is a row of `_TABLE`, or `register`ed.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping

from chinchilla_jax.base.config_values import ConfigError, did_you_mean

SECONDS_PER_DAY = 86400.0
GIB = 2.0**30
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Core:
    """One TensorCore of a TPU.

    Cycles of an instruction are how long it holds its unit, by the compiler's `hlo-static-bundle-profile`. Delay slots
    and granules are read off its schedules; the meter's self-test asserts the bytes and multiply-adds that follow.
    """

    mxus: int  # matrix units
    macs: int  # bfloat16 multiply-adds of a matrix unit in a cycle
    matmul_cycles: Mapping[str, int]  # of an instruction of a matrix unit: 8 rows of f32, 16 of bf16, 32 of 8 bits (x8)
    cross_lane_cycles: int  # of an instruction of a cross-lane unit (XLU)
    delay_slots: int  # bundles after a branch that are issued whether it jumps or not
    granule: int  # bytes in a unit of a copy's size operand
    vmem: int  # bytes of vector memory
    rolls: bool = True  # whether one instruction rotates each row of a register by its own distance


@dataclasses.dataclass(frozen=True)
class Network:
    """Links of a chip."""

    links: int  # to neighbouring chips of the slice (ICI): two for each axis of the grid
    link_bandwidth: float  # bytes/s of one of them, one way
    dcn_bandwidth: float  # bytes/s of a chip's share of its host's network, one way, between slices


@dataclasses.dataclass(frozen=True)
class Slices:
    """How slices of a TPU generation are named and how large they are."""

    compiler: str  # its name of the generation, as in `tpu7x:2x2x1`
    axes: int  # sides of the grid of chips
    largest: int | None = None  # chips of the largest slice; None where `preflight` does not know the slices
    aliases: tuple[str, ...] = ()  # other names of the generation in the names of slices
    chip_config: str = ""  # what the compiler is told so that the cores of a chip are one device
    splits_sides: bool = False  # whether JAX splits a side of the grid between axes of a mesh
    async_all_to_all: bool = False  # whether the compiler takes them; not where a mesh axis is part of a side of two
    pci: str = ""  # device number on the PCI bus, as in jax 0.10.2, `hardware_utils`


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip. What is None is not known of it, or not needed."""

    name: str  # of the generation
    peak: float  # dense bfloat16 FLOP/s
    kinds: tuple[str, ...] = ()  # names that JAX gives to its devices
    devices: int = 1  # JAX's, of a chip
    cores: int = 1  # TensorCores; if there are more than devices, a device is all cores of a chip (a megacore)
    hbm: float | None = None  # GiB of memory; a compiler leaves programs less (`preflight.compiled.usable_hbm`)
    hbm_bandwidth: float | None = None  # bytes/s
    core: Core | None = None  # known of the generations that the kernels are compiled for
    network: Network | None = None  # known of the generations that `preflight` predicts times for
    slices: Slices | None = None  # known of TPUs

    @property
    def clock(self) -> float:
        """Hz that the published peak implies."""
        assert self.core is not None, "known only of `kernel_chips`"
        return self.peak / (self.cores * self.core.mxus * self.core.macs * 2)

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """Of one core, when all cores copy at once."""
        return self.hbm_bandwidth_per_device / self.cores_per_device / self.clock

    @property
    def cores_per_device(self) -> int:
        """TensorCores behind one JAX device."""
        return self.cores // self.devices

    @property
    def peak_per_device(self) -> float:
        """FLOP/s of one JAX device."""
        return self.peak / self.devices

    @property
    def hbm_bandwidth_per_device(self) -> float:
        """bytes/s of one JAX device."""
        assert self.hbm_bandwidth is not None, "known only of TPUs from v4 on"
        return self.hbm_bandwidth / self.devices

    @property
    def one_chip(self) -> str:
        """The compiler's name of a slice of one chip, `v5p:1x1x1`."""
        assert self.slices is not None, "known only of TPUs"
        return f"{self.slices.compiler}:{'x'.join('1' * self.slices.axes)}"


# Matrix units of 128 x 128 take one row a cycle; those of 256 x 256 two, each of two rows.
_core_128 = functools.partial(
    Core, mxus=4, macs=128 * 128, matmul_cycles=types.MappingProxyType({"f32": 8, "bf16": 16, "x8": 16})
)
_core_256 = functools.partial(
    Core, mxus=2, macs=2 * 256 * 256, matmul_cycles=types.MappingProxyType({"f32": 4, "bf16": 8, "x8": 8})
)

# Sources: the Cloud TPU documentation, the page of each generation ("TPU v4", v5e, v5p, v6e, TPU7x), for peak, HBM
# capacity and bandwidth, ICI and data centre network. v6e's HBM: 1638 GB/s on the page of 2026; older copies of the
# page print 1600 and 1640. Of v5p's 96 GiB the page counts 95, what is left to programs. ICI is printed for all links
# and both directions, 400 (v5e), 1200 (v5p) and 800 GB/s (v6e); older pages print one direction, 1600 and 4800 Gbit/s,
# which is the same. v4: six links of 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433, table 4). Data centre network:
# v5p 50 Gbit/s per chip; per pod of 256, v5e 6.4 and v6e 25.6 Tbit/s; v4's is not printed, and assumed to be as v5p's.
# v7x: each core is a device; the clock that its published peak implies is not confirmed.
# GPUs: NVIDIA's data sheet of each, dense figures (with sparsity it prints twice as much; of the RTX 4090, with sums in
# float32, the white paper of the Ada architecture, appendix A). Memory is about what the driver shows, in GiB.
_TABLE = (
    Chip("v2", 45e12, ("TPU v2",), devices=2, cores=2, slices=Slices("v2", axes=2, pci="0x0027")),
    Chip("v3", 123e12, ("TPU v3",), devices=2, cores=2, slices=Slices("v3", axes=2, pci="0x0027")),
    Chip("v4", 275e12, ("TPU v4",), cores=2, hbm=32, hbm_bandwidth=1.2288e12,
         core=_core_128(cross_lane_cycles=8, delay_slots=1, granule=512, vmem=16 * MIB, rolls=False),
         network=Network(links=6, link_bandwidth=50e9, dcn_bandwidth=6.25e9),
         slices=Slices("v4", axes=3, largest=4096, chip_config="megacore", async_all_to_all=True, pci="0x005e")),
    Chip("v5e", 197e12, ("TPU v5 lite", "TPU v5e"), hbm=16, hbm_bandwidth=0.819e12,
         core=_core_128(cross_lane_cycles=9, delay_slots=4, granule=32, vmem=128 * MIB),
         network=Network(links=4, link_bandwidth=50e9, dcn_bandwidth=3.125e9),
         slices=Slices("v5e", axes=2, largest=256, aliases=("v5litepod", "v5lite"), splits_sides=True, pci="0x0063")),
    Chip("v5p", 459e12, ("TPU v5", "TPU v5p"), cores=2, hbm=96, hbm_bandwidth=2.765e12,
         core=_core_128(cross_lane_cycles=9, delay_slots=4, granule=32, vmem=64 * MIB),
         network=Network(links=6, link_bandwidth=100e9, dcn_bandwidth=6.25e9),
         slices=Slices("v5p", axes=3, largest=6144, async_all_to_all=True, pci="0x0062")),
    Chip("v6e", 918e12, ("TPU v6 lite", "TPU v6e"), hbm=32, hbm_bandwidth=1.638e12,
         core=_core_256(cross_lane_cycles=4, delay_slots=4, granule=32, vmem=128 * MIB),
         network=Network(links=4, link_bandwidth=100e9, dcn_bandwidth=12.5e9),
         slices=Slices("v6e", axes=2, largest=256, aliases=("v6",), pci="0x006f")),
    Chip("v7x", 2307e12, ("TPU7x",), devices=2, cores=2, hbm=192, hbm_bandwidth=7.38e12,
         core=_core_256(cross_lane_cycles=4, delay_slots=6, granule=32, vmem=64 * MIB),
         slices=Slices("tpu7x", axes=3, pci="0x0076")),
    Chip("a100", 312e12, ("NVIDIA A100-SXM4-80GB",), hbm=80, hbm_bandwidth=2.039e12),
    Chip("a100-pcie", 312e12, ("NVIDIA A100 80GB PCIe",), hbm=80, hbm_bandwidth=1.935e12),
    Chip("a100-40gb", 312e12, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), hbm=40, hbm_bandwidth=1.555e12),
    Chip("h100", 989e12, ("NVIDIA H100 80GB HBM3",), hbm=80, hbm_bandwidth=3.35e12),
    Chip("h100-pcie", 756e12, ("NVIDIA H100 PCIe",), hbm=80, hbm_bandwidth=2.0e12),
    Chip("h200", 989e12, ("NVIDIA H200",), hbm=140, hbm_bandwidth=4.8e12),
    Chip("b200", 2250e12, ("NVIDIA B200",), hbm=179, hbm_bandwidth=8.0e12),
    Chip("rtx4090", 165e12, ("NVIDIA GeForce RTX 4090",), hbm=24, hbm_bandwidth=1.008e12),
    Chip("l4", 121e12, ("NVIDIA L4",), hbm=22, hbm_bandwidth=0.3e12),
)  # fmt: skip
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _TABLE}


def register(chip: Chip) -> Chip:
    """Adds a chip to the table; raises `ValueError` if there is one of that name."""
    if chip.name in CHIPS:
        raise ValueError(f"there is a chip {chip.name!r} already")
    CHIPS[chip.name] = chip
    return chip


def kernel_chips() -> dict[str, Chip]:
    """The chips that the kernels are compiled for and the meter knows, by name."""
    return {name: chip for name, chip in CHIPS.items() if chip.core}


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX devices of this `device_kind` belong to; None where it is not known."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def device_peak(kind: str) -> float | None:
    """Peak FLOP/s of one JAX device of this `device_kind`; None where it is not known."""
    chip = chip_of(kind)
    return None if chip is None else chip.peak_per_device


def chip_days(chip: str, chips: float, days: float, utilisation: float) -> float:
    """FLOPs that `chips` of them deliver in `days` at `utilisation` (share of the peak doing counted model FLOPs).

    Raises:
      ConfigError: an unknown chip, or a number out of range.
    """
    if chip not in CHIPS:
        raise ConfigError("--chip", f"unknown chip {chip!r}{did_you_mean(chip, CHIPS)}; one of {', '.join(CHIPS)}")
    for name, value in (("chips", chips), ("days", days), ("utilisation", utilisation)):
        if not value > 0 or (name == "utilisation" and value > 1):
            most = " and at most 1" if name == "utilisation" else ""
            raise ConfigError(f"--{name}", f"{value:g} must be above 0{most}")
    return CHIPS[chip].peak * chips * days * SECONDS_PER_DAY * utilisation
