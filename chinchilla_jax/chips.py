"""What can one accelerator chip do at most? Published peaks, for utilisation and for budgets in chip-days."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import ConfigError, did_you_mean

SECONDS_PER_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Chip:
    """`peak` dense bfloat16 FLOP/s of a chip; `kinds` as JAX names its devices, of which a chip has `devices`."""

    name: str
    peak: float
    kinds: tuple[str, ...] = ()
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 45e12, ("TPU v2",), 2),
        Chip("v3", 123e12, ("TPU v3",), 2),
        Chip("v4", 275e12, ("TPU v4",)),
        Chip("v5e", 197e12, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459e12, ("TPU v5", "TPU v5p")),
        Chip("v6e", 918e12, ("TPU v6 lite", "TPU v6e")),
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
