"""Which settings of mesh, microbatches and remat policy are compiled, and what came of each?

Either the nearest ones to a setting that does not fit, until one fits, or the best ones by arithmetic, until a few fit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.preflight import search
from chinchilla_jax.preflight.check import Options, Verdict, check_step
from chinchilla_jax.preflight.describe import mesh_words, refusal_words
from chinchilla_jax.preflight.search import Estimate, setting_flags
from chinchilla_jax.preflight.step import step_configs


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was compiled."""

    estimate: Estimate
    fits: bool
    needed: float  # bytes at the peak, or what it would need if it does not fit; infinite if it cannot be laid out
    seconds: float | None  # of a step; None if it does not fit, or has no time that could be compared
    words: str  # what came of it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        config = self.estimate.config
        return {
            "flags": setting_flags(config),
            "mesh": list(config.mesh.shape),
            "peak": self.needed if self.fits else None,
            "seconds": self.seconds,
            "microbatches": config.train.microbatches,
            "remat": config.train.remat,
            "words": self.words,
        }


def attempt(candidate: Estimate, options: Options, echo: Echo) -> Tried:
    """Compiles a setting, and prints what came of it."""
    started, config, figures = time.perf_counter(), candidate.config, ""
    try:
        checked = check_step(step_configs(config)[-1], options, lambda line: None)
    except ConfigError as error:
        tried = Tried(candidate, False, math.inf, None, str(error))
    else:
        memory, refusal = checked.step.memory, checked.step.refusal
        if refusal:
            tried = Tried(candidate, False, refusal.needed, None, refusal_words(refusal))
        elif checked.untimed or checked.time is None:
            tried = Tried(candidate, True, memory.peak, None, f"fits, but is not timed: {checked.untimed}")
        else:
            words, seconds = f"fits with {memory.free_share:.0%} to spare", checked.time.total
            figures = f"{memory.peak / GIB:.2f} GiB, {seconds:.4f} s a step: "
            tried = Tried(candidate, True, memory.peak, seconds, words)
    train, passed = config.train, time.perf_counter() - started
    setting = f"{mesh_words(config.mesh)}, {train.microbatches} microbatches, remat {train.remat}"
    echo(f"  {setting}: {figures}{tried.words} ({passed:.0f} s)")
    return tried


def nearest_that_fits(verdict: Verdict, options: Options, echo: Echo) -> dict[str, Any] | None:
    """Prints and returns the setting most similar to one that does not fit: compiled, not only estimated."""
    steps = [one.step for _, one in sorted(verdict.checked.items(), reverse=True)]
    needed, usable = next((step.refusal.needed, step.memory.usable) for step in steps if step.refusal)
    order = search.nearest(verdict.config, options.slice, needed, usable)
    echo(f"\ncompiling its neighbours until one fits; by arithmetic {len(order)} settings may")
    candidates = order[: 3 * options.compiles]
    for candidate in candidates:
        tried = attempt(candidate, options, echo)
        if tried.seconds is not None:
            echo(f"nearest setting that fits: {setting_flags(candidate.config)}")
            return tried.to_dict()
    none_fits = f"none of the {len(candidates)} nearest fits; --compiles tries more"
    echo(none_fits if candidates else "none found: more chips, or a smaller batch, are needed")
    return None


def choose(config: RunConfig, options: Options, echo: Echo) -> tuple[RunConfig | None, dict[str, Any]]:
    """Compiles the best settings by arithmetic, and prints what came of each.

    Returns:
      The config with the fastest setting that fits, None if none does; and for JSON what was compiled, and why other
      settings were not.
    """
    from chinchilla_jax.preflight.compiled import usable_hbm

    usable = usable_hbm(options.slice.generation)
    order, ruled_out = search.ranked(config, options.slice, usable)
    echo(
        f"{options.slice}: {len(order) + len(ruled_out)} settings of mesh, microbatches and remat; compiling the best "
        f"by arithmetic until {options.compiles} fit, minutes each for a large model"
    )
    tried = try_in_order(order, options.compiles, lambda candidate: attempt(candidate, options, echo))
    least = f", the least of them {ruled_out[0].memory / GIB:.1f} GiB" if ruled_out else ""
    echo(
        f"not compiled: {len(order) - len(tried)} settings estimated slower, or as large as one that did not fit, or "
        f"with more microbatches than needed; {len(ruled_out)} estimated not to fit {usable / GIB:.2f} GiB{least}"
    )
    others = [e for e in order if all(e is not t.estimate for t in tried)]
    reasons = [(e, _why_skipped(e, tried) or "estimated slower than those compiled") for e in others]
    reasons += [(e, "estimated not to fit") for e in ruled_out]
    facts = {
        "tried": [t.to_dict() for t in tried],
        "not_compiled": [
            {"flags": setting_flags(e.config), "estimated_bytes": e.memory, "estimated_seconds": e.seconds, "why": why}
            for e, why in reasons
        ],
    }
    if best := fastest(tried):
        return best.estimate.config, facts
    none_fits = "no setting fits: more chips, or a smaller batch, are needed"
    echo("of the settings that fit none could be timed" if any(t.fits for t in tried) else none_fits)
    return None, facts


def try_in_order(order: Sequence[Estimate], compiles: int, compile_one: Callable[[Estimate], Tried]) -> list[Tried]:
    """Compiles settings in order until `compiles` of them fit, and at most three times as many."""
    tried: list[Tried] = []
    for candidate in order:
        if sum(t.seconds is not None for t in tried) >= compiles or len(tried) >= 3 * compiles:
            break
        if not _why_skipped(candidate, tried):
            tried.append(compile_one(candidate))
    return tried


def fastest(tried: Iterable[Tried]) -> Tried | None:
    """The one with the shortest step, None if none was timed."""
    return min((t for t in tried if t.seconds is not None), key=lambda t: t.seconds or 0.0, default=None)


def _why_skipped(candidate: Estimate, tried: Iterable[Tried]) -> str:
    """Why what was compiled already speaks against a setting; empty if nothing does."""
    if any(t.seconds is None and candidate.memory >= t.estimate.memory for t in tried):
        return "estimated to need as much as one that did not fit"
    mesh, remat = candidate.config.mesh, candidate.config.train.remat
    fitting = [t.estimate.config for t in tried if t.seconds is not None]
    if any((one.mesh, one.train.remat) == (mesh, remat) for one in fitting):
        return "more microbatches than one that fits"
    return ""
