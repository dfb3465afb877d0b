"""What can one core of each TPU generation do in a cycle?"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.tools.tpu_meter.errors import MeterError


@dataclasses.dataclass(frozen=True)
class Generation:
    """One JAX device of a TPU generation, and the name of a topology that has one chip of it.

    Peak and HBM bandwidth are the published ones (the page of each generation in the Cloud TPU documentation). The
    cycles of an instruction are the compiler's own: what its `hlo-static-bundle-profile` says that the instruction
    holds its unit for. Delay slots and granules are read off the schedules; the self-test asserts the bytes and
    multiply-adds that follow.

    peak: dense bfloat16 FLOP/s of the device.
    hbm_bandwidth: bytes/s of the device.
    cores: TensorCores behind the device (2 where a chip is used as a megacore).
    mxus: matrix units of a core.
    macs: bfloat16 multiply-adds of a matrix unit in a cycle.
    matmul_cycles: for which one instruction holds a matrix unit: 8 rows of f32, 16 of bf16, 32 of 8 bits (`x8`).
    cross_lane_cycles: for which one instruction holds a cross-lane unit (XLU).
    delay_slots: bundles after a branch that are issued whether it jumps or not.
    granule: bytes in a unit of a copy's size operand.
    """

    name: str
    topology: str
    peak: float
    hbm_bandwidth: float
    cores: int
    mxus: int
    macs: int
    matmul_cycles: Mapping[str, int]
    cross_lane_cycles: int
    delay_slots: int
    granule: int

    @property
    def clock(self) -> float:
        """Hz that the published peak implies."""
        return self.peak / (self.cores * self.mxus * self.macs * 2)

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """Of one core, when all cores copy at once."""
        return self.hbm_bandwidth / self.cores / self.clock


# Matrix units of 128 x 128 take one row a cycle; those of 256 x 256 two, each of two rows.
_MXU_128 = {"mxus": 4, "macs": 128 * 128, "matmul_cycles": types.MappingProxyType({"f32": 8, "bf16": 16, "x8": 16})}
_MXU_256 = {"mxus": 2, "macs": 2 * 256 * 256, "matmul_cycles": types.MappingProxyType({"f32": 4, "bf16": 8, "x8": 8})}

GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", "v4:1x1x1", peak=CHIPS["v4"].peak, hbm_bandwidth=1.2288e12, cores=2, **_MXU_128,
                   cross_lane_cycles=8, delay_slots=1, granule=512),
        Generation("v5e", "v5e:1x1", peak=CHIPS["v5e"].peak, hbm_bandwidth=0.819e12, cores=1, **_MXU_128,
                   cross_lane_cycles=9, delay_slots=4, granule=32),
        Generation("v5p", "v5p:1x1x1", peak=CHIPS["v5p"].peak, hbm_bandwidth=2.765e12, cores=2, **_MXU_128,
                   cross_lane_cycles=9, delay_slots=4, granule=32),
        Generation("v6e", "v6e:1x1", peak=CHIPS["v6e"].peak, hbm_bandwidth=1.64e12, cores=1, **_MXU_256,
                   cross_lane_cycles=4, delay_slots=4, granule=32),
        # One of a chip's two cores: here each is a device. The clock that its published peak implies is not confirmed.
        Generation("v7x", "tpu7x:1x1x1", peak=1153.5e12, hbm_bandwidth=3.69e12, cores=1, **_MXU_256,
                   cross_lane_cycles=4, delay_slots=6, granule=32),
    )
}  # fmt: skip


def generation(name: str) -> Generation:
    """The generation of this name.

    Raises:
      MeterError: there is none.
    """
    if name not in GENERATIONS:
        raise MeterError(f"unknown TPU generation {name!r}{did_you_mean(name, GENERATIONS)}; "
                         f"one of {', '.join(GENERATIONS)}")  # fmt: skip
    return GENERATIONS[name]
