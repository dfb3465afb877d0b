"""Does a run fit a slice, and what will it take there? Compiles what is not in the cache, then times it.

A run whose batch doubles has two train steps. The larger decides whether it fits; the other one is compiled on request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.preflight.attention import KernelCycles, kernel_cycles
from chinchilla_jax.preflight.cache import Cache, versions
from chinchilla_jax.preflight.predict import ASSUMPTIONS, BASIS, RunCost, StepTime, batches, run_cost, step_time
from chinchilla_jax.preflight.search import activation_bytes, chip_tokens, mesh_flags, nearest_mesh
from chinchilla_jax.preflight.slices import Slice, lays_out
from chinchilla_jax.preflight.step import CompiledStep
from chinchilla_jax.training.machine.shape import shape_key

Echo = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a preflight goes about it. `every_batch`: both steps of a run whose batch doubles; `price` in dollars per
    chip-hour; `keep_hlo` keeps the text of compiled programs in the cache."""

    cache: Cache
    price: float | None = None
    every_batch: bool = False
    keep_hlo: bool = False


@dataclasses.dataclass(frozen=True)
class Checked:
    """A step of one batch size: what it became, where from, and how long it takes; None if that is not known."""

    step: CompiledStep
    cached: bool
    kernels: KernelCycles | None = None
    time: StepTime | None = None

    @property
    def untimed(self) -> str:
        """Why a step that fits has no time that could be compared with others; empty if it has one."""
        if self.time is None:
            return self.step.unread or "it does not fit"
        if self.time.unmeasured:
            why = f": {self.kernels.error}" if self.kernels and self.kernels.error else ""
            return f"kernels were not measured ({', '.join(self.time.unmeasured)}{why})"
        if self.step.unknown_loops:
            return f"loops of unknown length ({', '.join(self.step.unknown_loops)})"
        return ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A preflight: a step by each batch size that was looked at, and the cost of the run where all were timed."""

    config: RunConfig
    slice: Slice
    checked: dict[int, Checked]
    cost: RunCost | None

    @property
    def fits(self) -> bool:
        """Whether every step does."""
        return all(checked.step.fits for checked in self.checked.values())

    @property
    def largest(self) -> Checked:
        """The step of the largest batch."""
        return self.checked[max(self.checked)]

    def kept_activations(self, sequences: int) -> float:
        """Bytes that a chip keeps for the backward pass, by arithmetic: the compiler does not tell them apart."""
        return activation_bytes(self.config, chip_tokens(self.config, sequences))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        ledger = count_run(self.config)
        return {
            "basis": BASIS, "assumptions": list(ASSUMPTIONS), "versions": versions(), "fits": self.fits,
            "slice": {"name": self.slice.name, "chips": self.slice.chips, "grid": list(self.slice.grid),
                      "slices": self.slice.count, "generation": self.slice.generation},
            "config": self.config.to_dict(), "config_hash": self.config.content_hash(), "ledger": ledger.to_dict(),
            "steps": {str(sequences): {
                "program": checked.step.to_dict(), "cached": checked.cached,
                "kept_activations": self.kept_activations(sequences),
                "attention": checked.kernels and dataclasses.asdict(checked.kernels),
                "seconds": checked.time and checked.time.to_dict(), "untimed": checked.untimed,
            } for sequences, checked in self.checked.items()},
            "run": self.cost and self.cost.to_dict(),
        }  # fmt: skip


def check(config: RunConfig, slice_: Slice, options: Options, echo: Echo) -> Verdict:
    """Compiles and times the step of a config on a slice, or both steps of one whose batch doubles.

    Raises:
      ConfigError: the mesh is not that of the slice, there is no compiler, or the model cannot be laid out.
    """
    check_mesh(config, slice_)
    sizes = batches(config)
    wanted = sizes if options.every_batch else sizes[-1:]
    if wanted != sizes:
        echo(f"the batch doubles to {sizes[-1]} sequences: that step is looked at, it needs most "
             "(--every_batch looks at both)")  # fmt: skip
    checked = {}
    for sequences in reversed(wanted):
        checked[sequences] = check_step(config, slice_, sequences, options, echo)
    times = {sequences: found.time for sequences, found in checked.items() if not found.untimed}
    cost = run_cost(config, times, slice_, options.price) if len(times) == len(checked) else None
    return Verdict(config, slice_, checked, cost)


def check_step(config: RunConfig, slice_: Slice, sequences: int, options: Options, echo: Echo) -> Checked:
    """The step for a batch of `sequences`, from the cache if it is there."""
    shape = shape_key(config).to_dict()
    shape["train"] |= {"batch_size": sequences, "train_tokens": 0}  # a doubled batch is that of a run twice as wide
    key = options.cache.key({"config": shape, "slice": slice_.topology, "slices": slice_.count})
    step, cached = _read(options.cache, key), True
    if step is None:
        cached = False
        from chinchilla_jax.preflight.compiled import compile_step

        echo(f"compiling the step of {sequences} sequences for {slice_}: seconds for a small model, minutes for a "
             "large one")  # fmt: skip
        step, text = _compile(compile_step, config, slice_, sequences)
        options.cache.write(key, step.to_dict())
        echo(f"compiled in {step.seconds:.0f} s")
        if options.keep_hlo and text:
            echo(f"its text: {options.cache.keep_text(key, text)}")
    if not step.fits or step.unread:
        return Checked(step, cached)
    kernels = None
    if step.kernels:
        kernels = kernel_cycles(config, slice_, sequences, options.cache)
    return Checked(step, cached, kernels, step_time(step, slice_, kernels.calls if kernels else {}))


def _compile(compile_step: Callable, config: RunConfig, slice_: Slice, sequences: int) -> tuple[CompiledStep, str]:
    """With mistakes of the config in one line; jax is imported by now."""
    import jax

    from chinchilla_jax.kernels.call import AttentionError
    from chinchilla_jax.parallel.rules import ShardingError
    from chinchilla_jax.preflight.compiled import compiler_words

    try:
        return compile_step(config, slice_, sequences)
    except (AttentionError, ShardingError) as error:
        raise ConfigError("mesh", f"{config.mesh}: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError("--slice", f"{slice_.name}: the compiler refuses it: {compiler_words(error)}") from error


def _read(cache: Cache, key: str) -> CompiledStep | None:
    found = cache.read(key)
    try:
        return None if found is None else CompiledStep.from_dict(found)
    except (KeyError, TypeError, ValueError, AttributeError):  # damaged
        return None


def check_mesh(config: RunConfig, slice_: Slice) -> None:
    """Raises a ConfigError that names a mesh that would do, if the config's does not cover the slice."""
    if lays_out(slice_, config.mesh):
        return
    near = nearest_mesh(config, slice_)
    fix = (f"use {mesh_flags(near)}, or let --choose find the fastest" if near else
           "no mesh of this model and batch covers it: choose another slice, batch or microbatches")  # fmt: skip
    product = f"{config.mesh} has {config.mesh.size} devices" if config.mesh.size != slice_.chips else (
        f"{config.mesh} does not fit its grid: each axis must be made of whole sides"
        f"{', and data a multiple of the slices' if slice_.count > 1 else ''}")  # fmt: skip
    raise ConfigError("mesh", f"the slice is {slice_}; {product}: {fix}")
