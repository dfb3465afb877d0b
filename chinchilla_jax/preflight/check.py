"""Does a run fit a slice, and what will it take there? Compiles what is not in the cache, then times it.

A run whose batch doubles has two train steps. The larger decides whether it fits; the other is compiled on request.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_jax.base.config_values import build
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import Ledger, count_run
from chinchilla_jax.preflight.cache import Cache
from chinchilla_jax.preflight.predict import KernelCycles, RunCost, StepTime, kernel_cycles, run_cost, step_time
from chinchilla_jax.preflight.search import activation_bytes, mesh_flags, nearest_mesh
from chinchilla_jax.preflight.slices import Slice, lays_out
from chinchilla_jax.preflight.step import CompiledStep, step_configs
from chinchilla_jax.training.machine.shape import shape_key

if TYPE_CHECKING:
    from chinchilla_jax.training.objective import Objective


@dataclasses.dataclass(frozen=True)
class Options:
    """How to go about a preflight: the flags of the verb."""

    slice: Slice
    cache: Cache
    price: float | None = None  # dollars of a chip-hour
    every_batch: bool = False  # look at both steps of a run whose batch doubles
    keep_hlo: bool = False  # keep the text of compiled programs in the cache
    choose: bool = False  # search settings, until `compiles` of them fit
    compiles: int = 3
    output: Path | None = None  # a JSON file to write


@dataclasses.dataclass(frozen=True)
class Checked:
    """A step of one batch size.

    `kept_activations` are the bytes that a chip keeps for the backward pass, by arithmetic. The compiler does not tell
    them apart from other temporary arrays.
    """

    step: CompiledStep
    cached: bool  # whether it was compiled before
    kept_activations: float
    kernels: KernelCycles | None = None  # None if it has no attention kernels
    time: StepTime | None = None  # None if it does not fit or was not understood

    @property
    def untimed(self) -> str:
        """Why the step has no time that could be compared with others; empty if it has one."""
        if self.time is None:
            return self.step.unread or "it does not fit"
        if self.time.unmeasured:
            return f"kernels were not measured ({', '.join(self.time.unmeasured)}{self.why_unmeasured})"
        if self.step.unknown_loops:
            return f"loops of unknown length ({', '.join(self.step.unknown_loops)})"
        return ""

    @property
    def why_unmeasured(self) -> str:
        """What the meter said of the kernels, to be put behind their names; empty if it said nothing."""
        return f": {self.kernels.error}" if self.kernels and self.kernels.error else ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A preflight: the steps that were looked at by their sequences, and the cost of the run if all were timed."""

    config: RunConfig
    slice: Slice
    checked: dict[int, Checked]
    cost: RunCost | None
    ledger: Ledger  # with the FLOPs of the objective

    @property
    def fits(self) -> bool:
        return all(checked.step.fits for checked in self.checked.values())

    @property
    def largest(self) -> Checked:
        """The step of the largest batch."""
        return self.checked[max(self.checked)]


def check(config: RunConfig, options: Options, echo: Echo, objective: Objective | None = None) -> Verdict:
    """Compiles and times the step of a config on a slice, or both steps of one whose batch doubles.

    `objective` is what the steps minimise, if it is not the next token; the config has no method.

    Raises:
      ConfigError: the mesh is not that of the slice, there is no compiler, or the model cannot be laid out.
    """
    check_mesh(config, options.slice)
    steps = step_configs(config)
    if len(steps) > 1 and not options.every_batch:
        steps = steps[-1:]
        told = f"the batch doubles to {steps[0].train.batch_size} sequences: that step is looked at, it needs most"
        echo(f"{told} (--every_batch looks at both)")
    checked = {step.train.batch_size: check_step(step, options, echo, objective) for step in reversed(steps)}
    times = {sequences: one.time for sequences, one in checked.items() if one.time and not one.untimed}
    ledger = count_run(config)
    if objective:
        ledger = dataclasses.replace(ledger, flops=objective.flops(config, ledger.tokens))
    cost = run_cost(config, times, options.slice, options.price, ledger) if len(times) == len(checked) else None
    return Verdict(config, options.slice, checked, cost, ledger)


def check_step(config: RunConfig, options: Options, echo: Echo, objective: Objective | None = None) -> Checked:
    """One step, from the cache if it is there. `config` is one of `step_configs`: its batch is that of the step."""
    slice_, cache = options.slice, options.cache
    shape = shape_key(config).to_dict()
    minimised = {"objective": str(objective)} if objective else {}
    key = cache.key({"config": shape, "slice": slice_.topology, "slices": slice_.count} | minimised)
    step: CompiledStep | None = cache.read(key, lambda values: build(CompiledStep, values, ""))
    cached = step is not None
    if step is None:
        told = f"compiling the step of {config.train.batch_size} sequences for {slice_}"
        echo(f"{told}: seconds for a small model, minutes for a large one")
        step, text = _compile(config, slice_, objective)
        cache.write(key, dataclasses.asdict(step))
        echo(f"compiled in {step.seconds:.0f} s")
        if options.keep_hlo and text:
            echo(f"its text: {cache.keep_text(key, text)}")
    config = objective.in_blocks(config) if objective else config
    result = Checked(step, cached, activation_bytes(config))
    if not step.fits or step.unread:
        return result
    kernels = kernel_cycles(config, slice_, cache) if step.kernels else None
    time = step_time(step, slice_, kernels.calls if kernels else {})
    return dataclasses.replace(result, kernels=kernels, time=time)


def _compile(config: RunConfig, slice_: Slice, objective: Objective | None) -> tuple[CompiledStep, str]:
    """`compiled.compile_step`, with mistakes of the config in one line. JAX is imported only here."""
    import jax

    from chinchilla_jax.kernels.call import AttentionError
    from chinchilla_jax.parallel.rules import ShardingError
    from chinchilla_jax.preflight.compiled import compile_step

    try:
        return compile_step(config, slice_, objective)
    except (AttentionError, ShardingError) as error:
        raise ConfigError("mesh", f"{config.mesh}: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        line = str(error).strip().split("\n")[0][:300]
        raise ConfigError("--slice", f"{slice_.name}: the compiler refuses it: {line}") from error


def check_mesh(config: RunConfig, slice_: Slice) -> None:
    """Raises a ConfigError that names a mesh that would do, if the config's does not cover the slice."""
    if lays_out(slice_, config.mesh):
        return
    what = f"{config.mesh} has {config.mesh.size} devices"
    if config.mesh.size == slice_.chips:
        slices = ", and data a multiple of the slices" if slice_.count > 1 else ""
        what = f"{config.mesh} does not fit its grid: each axis must be made of whole sides{slices}"
    near = nearest_mesh(config, slice_)
    fix = "no mesh of this model and batch covers it: choose another slice, batch or microbatches"
    if near:
        fix = f"use {mesh_flags(near)}, or let --choose find the fastest"
    raise ConfigError("mesh", f"the slice is {slice_}; {what}: {fix}")
