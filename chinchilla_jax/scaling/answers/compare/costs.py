"""What does a loss cost, in FLOPs, in tokens and in chip-hours? Arms that cost the same in one may not in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.read.runs import SECONDS, LoadedRuns, Run, flops_of, interpolated, stated_number

KINDS = ("FLOPs", "tokens", "chip-hours")
_DIFFERS = 0.01  # relative, of FLOPs or seconds a token, that is said
_CHIPS = ("chips", "devices", "n_chips", "num_chips", "accelerators")
_HOURS = ("chip_hours", "device_hours", "accelerator_hours", "gpu_hours", "tpu_hours")


@dataclasses.dataclass(frozen=True)
class Cost:
    """A gain in one kind of cost, with its central 95% interval."""

    factor: float
    factor_95: tuple[float, float]


Costs = Mapping[str, Cost | None]  # by kind; None where it is not known


@dataclasses.dataclass(frozen=True)
class Pricing:
    """What one arm pays: training FLOPs, and chip-seconds, of a token over N; `source` of the latter, in words."""

    flops_per: FlopsPerToken
    chip_seconds: Callable[[np.ndarray], np.ndarray] | None
    source: str

    def cost(self, kind: str, params: np.ndarray, flops: float | np.ndarray) -> np.ndarray | None:
        """What `flops` spent on models of `params` [B] come to; None if it is not known."""
        if kind == "FLOPs":
            return np.broadcast_to(flops, params.shape)
        tokens = flops / per_token(params, self.flops_per)
        if kind == "tokens":
            return tokens
        return tokens * self.chip_seconds(params) / 3600.0 if self.chip_seconds else None


def pricing(loaded: LoadedRuns) -> Pricing:
    """By the runs' own N, D, C and time. Chip-seconds are measured (hours or seconds in the results or the table), or
    predicted (the plan's preflight)."""
    runs = loaded.role("isoflop")
    for source, read in (("measured", _measured), ("predicted by preflight", _predicted)):
        seconds = {run.name: read(loaded, run) for run in runs}
        timed = [run for run in runs if seconds[run.name]]
        if len({run.params for run in timed}) >= 2:
            values = [float(seconds[run.name] or 0.0) / run.tokens for run in timed]
            return Pricing(flops_of(runs), interpolated([run.params for run in timed], values), source)
    return Pricing(flops_of(runs), None, "not known")


def differences(pricings: Mapping[str, Pricing], params: float) -> Iterator[str]:
    """Sentences: in which costs the other arms differ from the first at a size of `params`."""
    (first, one), *others = pricings.items()
    at = np.array(params)
    for name, other in others:
        ratio = float(per_token(at, other.flops_per) / per_token(at, one.flops_per))
        if abs(ratio - 1.0) > _DIFFERS:
            yield f"{name} takes {ratio:.3f} times the FLOPs a token of {first} at N = {params:.3g}"
        if one.chip_seconds is None or other.chip_seconds is None:
            known = [arm for arm, price in ((first, one), (name, other)) if price.chip_seconds is None]
            yield f"no chip-hours of {' and '.join(known)}: neither measured nor predicted"
            continue
        ratio = float(one.chip_seconds(at) / other.chip_seconds(at))
        if abs(ratio - 1.0) > _DIFFERS:
            how = one.source if one.source == other.source else f"{other.source}; of {first} {one.source}"
            yield f"{name} trains {ratio:.3f} times the tokens a second and chip of {first} at N = {params:.3g} ({how})"


def _measured(loaded: LoadedRuns, run: Run) -> float | None:
    details = loaded.details.get(run.name, {})
    hours = stated_number(details, _HOURS)
    if hours:
        return 3600.0 * hours
    seconds = stated_number(details, SECONDS)
    return seconds * (stated_number(details, _CHIPS) or 1.0) if seconds else None


def _predicted(loaded: LoadedRuns, run: Run) -> float | None:
    hours = stated_number((loaded.planned.get(run.name) or {}).get("preflight") or {}, ("chip_hours",))
    return 3600.0 * hours if hours else None
