"""What does `preflight` do? One run, a choice of settings for it, or every distinct step of a study.

The way of a run: which train steps it has (`step.step_configs`); each compiled for the slice, unless it is in the cache
(`check.check_step`, `compiled.compile_step`); its numbers (`program/`); whether it fits, how long it takes and what it
costs (`check.Verdict`, `predict`); a page of text and JSON (`describe`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_jax.base import files
from chinchilla_jax.base.chips import GIB, SECONDS_PER_DAY
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.preflight.cache import open_cache
from chinchilla_jax.preflight.check import Options, Verdict, check, check_mesh
from chinchilla_jax.preflight.choose import choose, nearest_that_fits
from chinchilla_jax.preflight.describe import describe, facts, refusal_words
from chinchilla_jax.preflight.predict import BASIS
from chinchilla_jax.preflight.search import setting_flags
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.training.machine.shape import shape_key

if TYPE_CHECKING:
    from absl import flags

    from chinchilla_jax.study.folder import Manifest, PlannedRun
    from chinchilla_jax.training.objective import Objective


def read_options(values: flags.FlagValues) -> Options:
    """The options of a command line, of `preflight` or of `plan`.

    Raises:
      UsageError, ConfigError: --slice is missing or no slice; a price, an output or a cache that cannot be.
    """
    if not values.slice:
        raise UsageError("--slice=NAME is missing: the TPU slice to compile for, e.g. v5e-16 or v5p-512")
    options = Options(parse_slice(values.slice), open_cache(values.cache))
    if "choose" not in values:  # `plan` takes no more
        return options
    if values.price is not None and not 0 <= values.price < math.inf:
        raise UsageError(f"--price={values.price}: dollars of a chip-hour must be a number, 0 or more")
    output = files.path(values.output) if values.output else None
    if output and (files.is_folder(output) or any(files.exists(p) and not files.is_folder(p) for p in output.parents)):
        raise UsageError(f"--output={output}: must name a JSON file that can be written")
    names = ("price", "every_batch", "keep_hlo", "choose", "compiles")
    return dataclasses.replace(options, output=output, **{name: values[name].value for name in names})


def preflight_run(config: RunConfig, options: Options, echo: Echo) -> bool:
    """Prints whether a run fits, and what it takes; with --choose of the best settings. Returns whether it fits.

    Raises:
      ConfigError: see `check`.
    """
    if config.method is not None:
        return _preflight_stages(config, options, echo)
    more: dict[str, Any] = {}
    if options.choose:
        best, more = choose(config, options, echo)
        if best is None:
            _write(options, more | {"fits": False}, echo)
            return False
        config = best
        echo(f"\nbest of those compiled ({BASIS}):")
    verdict = check(config, options, echo)
    describe(verdict, echo)
    if options.choose:
        more["chosen"] = setting_flags(config)
        echo(f"\nchosen: {more['chosen']}")
    elif not verdict.fits:
        more["nearest_that_fits"] = nearest_that_fits(verdict, options, echo)
    _write(options, facts(verdict) | more, echo)
    return verdict.fits


def preflight_generation(config: RunConfig, asked: str, options: Options, echo: Echo) -> None:
    """Prints what a token costs a trained model of this config on the slice: `ROWS:PROMPT:NEW` are asked of it.

    Raises:
      UsageError, ConfigError: see `decoding.py`, and `check.check_mesh`.
    """
    from chinchilla_jax.preflight import decoding  # imports JAX

    what = decoding.parse_asked(asked)
    check_mesh(config, options.slice)
    _write(options, decoding.preflight_decoding(config, what, options, echo), echo)


def _preflight_stages(config: RunConfig, options: Options, echo: Echo) -> bool:
    """The same for every stage of a run that has a method; all have to fit."""
    if options.choose:
        raise UsageError("--choose is for plain training: choose for each shape of model and mesh, without the method")
    from chinchilla_jax.training.stages import course_of

    verdicts = []
    stages = course_of(config).stages
    for number, stage in enumerate(stages, 1):
        steps, objective = f"steps {stage.first_step + 1:,} to {stage.last_step:,}", str(stage.objective)
        what = f"{stage.own_tokens:.4g} tokens, {objective.partition('(')[0]}"
        echo(f"\nstage {number} of {len(stages)}: {steps}, {what}")
        verdicts.append(check(stage.config, options, echo, stage.objective))
        describe(verdicts[-1], echo)
    fits = all(verdict.fits for verdict in verdicts)
    flops, costs = count_run(config).flops, [verdict.cost for verdict in verdicts]
    total = f"{len(stages)} stages, C = {flops['executed']:.4g} executed, {flops['6nd']:.4g} as 6ND"
    known = [cost for cost in costs if cost is not None]
    if len(known) == len(costs):
        days, hours = (sum(getattr(cost, name) for cost in known) for name in ("days", "chip_hours"))
        total += f"; {days:.4g} days, {hours:,.0f} chip-hours"
    unfit = ", ".join(str(number) for number, verdict in enumerate(verdicts, 1) if not verdict.fits)
    echo(f"\n{total}; {'every stage fits' if fits else f'stages {unfit} do not fit'} {options.slice.name} ({BASIS})")
    _write(options, {"fits": fits, "flops": flops, "stages": [facts(verdict) for verdict in verdicts]}, echo)
    return fits


def _write(options: Options, values: dict[str, Any], echo: Echo) -> None:
    if options.output is not None:
        files.write_json(options.output, values)
        echo(f"written: {options.output}")


def preflight_study(study: Path, manifest: str, options: Options, echo: Echo) -> bool:
    """Prints which runs of a study's manifest fit; every distinct step is compiled once. Returns whether all do.

    Raises:
      UsageError: with --choose, which is for one run.
      StudyError: there is no manifest.
    """
    if options.choose:
        raise UsageError("--choose is for one run: give --config=FILE instead of --study=DIR")
    from chinchilla_jax.study.folder import read_manifest

    verdicts = check_runs(read_manifest(study / manifest).runs, options, echo)
    fits = all(verdict.fits for verdict in verdicts.values())
    runs = {name: facts(verdict) for name, verdict in verdicts.items()}
    _write(options, {"basis": BASIS, "slice": str(options.slice), "fits": fits, "runs": runs}, echo)
    return fits


def check_runs(runs: Sequence[PlannedRun], options: Options, echo: Echo) -> dict[str, Verdict]:
    """Verdicts on the runs of a plan by name, printed as a table; runs with the same step share its compilation.

    Raises:
      ConfigError: see `check`; names the run.
    """
    parts = {name: part for run in runs for name, part in _parts(run).items()}
    distinct = len({(shape_key(config), objective) for config, objective in parts.values()})
    echo(f"{options.slice}: {len(runs)} runs, {distinct} distinct steps")
    verdicts: dict[str, Verdict] = {}
    for name, (config, objective) in parts.items():

        def echo_named(line: str, name: str = name) -> None:
            echo(f"{name}: {line}")

        try:
            verdicts[name] = check(config, options, echo_named, objective)
        except ConfigError as error:
            raise ConfigError(error.key, f"run {name}: {error.message}") from error
    rows: list[tuple[str, ...]] = [("run", "peak GiB", "headroom", "step s", "days", "chip-hours", "fits")]
    rows += [_row(name, verdict) for name, verdict in verdicts.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    costs = [verdict.cost for verdict in verdicts.values() if verdict.cost is not None]
    dollars = "" if options.price is None else f", ${sum(cost.dollars or 0.0 for cost in costs):,.0f}"
    fitting, hours = sum(verdict.fits for verdict in verdicts.values()), sum(cost.chip_hours for cost in costs)
    echo(f"{fitting} of {len(verdicts)} runs fit; {hours:,.1f} chip-hours{dollars} one after the other ({BASIS})")
    return verdicts


def _parts(run: PlannedRun) -> dict[str, tuple[RunConfig, Objective | None]]:
    """What a planned run computes: one thing by its name, or with a method its stages by theirs."""
    config = run.run_config()
    if config.method is None:
        return {run.name: (config, None)}
    from chinchilla_jax.training.stages import course_of

    stages = course_of(config).stages
    return {f"{run.name}, stage {i}": (stage.config, stage.objective) for i, stage in enumerate(stages, 1)}


def _row(name: str, verdict: Verdict) -> tuple[str, ...]:
    """A run in the table of a plan."""
    step, time, cost = verdict.largest.step, verdict.largest.time, verdict.cost
    if step.refusal:
        return (name, "", "", "", "", "", f"no: {refusal_words(step.refusal)}")
    memory = (f"{step.memory.peak / GIB:.2f}", f"{step.memory.free_share:.0%}")
    if cost is None or time is None:
        return (name, *memory, "", "", "", f"yes; not timed: {verdict.largest.untimed}")
    return (name, *memory, f"{time.total:.4f}", f"{cost.days:.3f}", f"{cost.chip_hours:,.1f}", "yes")


def plan_checked(manifest: Manifest, values: flags.FlagValues, echo: Echo) -> Manifest:
    """A plan whose runs all fit the slice of the command line, with the memory and time of each in its line.

    Raises:
      ConfigError: runs that do not fit, by name.
    """
    options = read_options(values)
    verdicts = check_runs(manifest.runs, options, echo)
    _refuse(verdicts, options, "; no manifest is written")
    runs = [
        dataclasses.replace(run, preflight=_summary([verdicts[part] for part in _parts(run)])) for run in manifest.runs
    ]
    return dataclasses.replace(manifest, runs=tuple(runs))


def _summary(stages: Sequence[Verdict]) -> dict[str, Any]:
    """What a manifest keeps of a run that fits: bytes of a chip and seconds of a step where it needs most memory; days
    and chip-hours of all its stages.
    """
    verdict = max(stages, key=lambda stage: stage.largest.step.memory.peak)
    memory, costs = verdict.largest.step.memory, [stage.cost for stage in stages if stage.cost]
    known = len(costs) == len(stages)
    time = None if verdict.largest.untimed else verdict.largest.time
    return {
        "slice": verdict.slice.name,
        "chips": verdict.slice.chips,
        "peak_bytes": memory.peak,
        "usable_bytes": memory.usable,
        "step_seconds": time and time.total,
        "step_tokens": max(verdict.checked) * verdict.config.data.seq_len,
        "days": sum(cost.days for cost in costs) if known else None,
        "chip_hours": sum(cost.chip_hours for cost in costs) if known else None,
        "basis": BASIS,
    }


def seconds_that_fit(runs: Sequence[PlannedRun], values: flags.FlagValues, echo: Echo) -> dict[str, float | None]:
    """Predicted seconds of each run on the slice of the command line, None where a step could not be timed.

    Raises:
      ConfigError: runs that do not fit, by name.
    """
    options = read_options(values)
    verdicts = check_runs(runs, options, echo)
    _refuse(verdicts, options, "")
    costs = {run.name: [verdicts[part].cost for part in _parts(run)] for run in runs}
    days = {name: [cost.days if cost else math.nan for cost in each] for name, each in costs.items()}
    seconds = {name: sum(each) * SECONDS_PER_DAY for name, each in days.items()}
    return {name: None if math.isnan(value) else value for name, value in seconds.items()}


def _refuse(verdicts: Mapping[str, Verdict], options: Options, then: str) -> None:
    if refused := [name for name, verdict in verdicts.items() if not verdict.fits]:
        told = f"{len(refused)} of {len(verdicts)} runs do not fit {options.slice.name}: {', '.join(refused)}"
        fix = "More train.microbatches, a stronger train.remat, or more chips"
        end = "`preflight --choose` finds settings for a run"
        raise ConfigError("--slice", f"{told}{then}. {fix}; {end}")
