"""What can one accelerator chip do at most? Published figures, for utilisation, budgets in chip-days and preflight."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import ConfigError, did_you_mean

SECONDS_PER_DAY = 86400.0
GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Network:
    """Memory and links of a chip, as far as a program that is not run can be timed by them.

    hbm: GiB that a chip has; a compiler leaves programs less (`preflight.compiled.usable_hbm`).
    hbm_bandwidth: bytes/s.
    links: to neighbouring chips of the slice (ICI): two for each axis of the grid.
    link_bandwidth: bytes/s of one of them, one way.
    dcn_bandwidth: bytes/s of a chip's share of its host's network, one way, between slices.
    """

    hbm: float
    hbm_bandwidth: float
    links: int
    link_bandwidth: float
    dcn_bandwidth: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """`peak` dense bfloat16 FLOP/s of a chip; `kinds` as JAX names its devices, of which a chip has `devices`.

    `network` is known of the generations that `preflight` compiles for.
    """

    name: str
    peak: float
    kinds: tuple[str, ...] = ()
    devices: int = 1
    network: Network | None = None


# Cloud TPU documentation, the page "TPU v4" (v5e, v5p, v6e): HBM capacity and bandwidth, ICI and data centre network.
# ICI is printed there for all links and both directions, 400 (v5e), 1200 (v5p) and 800 GB/s (v6e); older pages print
# one direction, 1600 and 4800 Gbit/s, which is the same. v4: six links of 50 GB/s (Jouppi et al. 2023, arXiv
# 2304.01433, table 4). Data centre network: v5p 50 Gbit/s per chip; per pod of 256, v5e 6.4 and v6e 25.6 Tbit/s; v4's
# is not printed, and assumed to be as v5p's. Of v5p's 96 GiB the page counts 95, what is left to programs.
_V4 = Network(hbm=32, hbm_bandwidth=1.2288e12, links=6, link_bandwidth=50e9, dcn_bandwidth=6.25e9)
_V5E = Network(hbm=16, hbm_bandwidth=0.819e12, links=4, link_bandwidth=50e9, dcn_bandwidth=3.125e9)
_V5P = Network(hbm=96, hbm_bandwidth=2.765e12, links=6, link_bandwidth=100e9, dcn_bandwidth=6.25e9)
_V6E = Network(hbm=32, hbm_bandwidth=1.638e12, links=4, link_bandwidth=100e9, dcn_bandwidth=12.5e9)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 45e12, ("TPU v2",), 2),
        Chip("v3", 123e12, ("TPU v3",), 2),
        Chip("v4", 275e12, ("TPU v4",), network=_V4),
        Chip("v5e", 197e12, ("TPU v5 lite", "TPU v5e"), network=_V5E),
        Chip("v5p", 459e12, ("TPU v5", "TPU v5p"), network=_V5P),
        Chip("v6e", 918e12, ("TPU v6 lite", "TPU v6e"), network=_V6E),
        Chip("a100", 312e12),
        Chip("h100", 989e12),
    )
}


def device_peak(kind: str) -> float | None:
    """Peak FLOP/s of one JAX device of this `device_kind`; None where it is not known."""
    return next((chip.peak / chip.devices for chip in CHIPS.values() if kind in chip.kinds), None)


def chip_days(chip: str, chips: float, days: float, utilisation: float) -> float:
    """FLOPs that `chips` of them deliver in `days` at `utilisation` (share of the peak doing counted model FLOPs).

    Raises:
      ConfigError: an unknown chip, or a number out of range.
    """
    if chip not in CHIPS:
        raise ConfigError("--chip", f"unknown chip {chip!r}{did_you_mean(chip, CHIPS)}; one of {', '.join(CHIPS)}")
    for name, value, most in (("chips", chips, None), ("days", days, None), ("utilisation", utilisation, 1.0)):
        if not value > 0 or (most and value > most):
            raise ConfigError(f"--{name}", f"{value:g} must be above 0{f' and at most {most:g}' if most else ''}")
    return CHIPS[chip].peak * chips * days * SECONDS_PER_DAY * utilisation
