"""What does `preflight` do? One run, a choice of settings for it, or every distinct step of a study."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.files import write_json
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.preflight import search
from chinchilla_jax.preflight.cache import open_cache
from chinchilla_jax.preflight.check import Echo, Options, Verdict, check, check_step
from chinchilla_jax.preflight.describe import describe, headroom, mesh_words, refusal_words, table
from chinchilla_jax.preflight.predict import BASIS, batches
from chinchilla_jax.preflight.search import Estimate, Setting, Tried
from chinchilla_jax.preflight.slices import Slice, parse_slice
from chinchilla_jax.preflight.step import Refusal
from chinchilla_jax.training.machine.shape import shape_key

if TYPE_CHECKING:
    from absl import flags

    from chinchilla_jax.study.folder import Manifest, PlannedRun


@dataclasses.dataclass(frozen=True)
class Task:
    """The flags of the verb."""

    slice: Slice
    options: Options
    choose: bool = False
    compiles: int = 3
    output: Path | None = None


def read_options(values: flags.FlagValues) -> Task:
    """From the command line.

    Raises:
      UsageError, ConfigError: there is no --slice, or it is none.
    """
    if not values.slice:
        raise UsageError("--slice=NAME is missing: the TPU slice to compile for, e.g. v5e-16 or v5p-512")
    slice_, cache = parse_slice(values.slice), open_cache(values.cache)
    if "choose" not in values:  # of `plan`, which takes no more
        return Task(slice_, Options(cache))
    if values.price is not None and not 0 <= values.price < math.inf:
        raise UsageError(f"--price={values.price}: dollars of a chip-hour must be a number, 0 or more")
    options = Options(cache, values.price, values.every_batch, values.keep_hlo)
    output = Path(values.output) if values.output else None
    if output is not None and (output.is_dir() or any(p.exists() and not p.is_dir() for p in output.parents)):
        raise UsageError(f"--output={output}: must name a JSON file that can be written")
    return Task(slice_, options, values.choose, values.compiles, output)


def preflight_run(config: RunConfig, task: Task, echo: Echo) -> bool:
    """Prints whether a run fits, and what it takes; returns whether it fits.

    Raises:
      ConfigError: see `check`.
    """
    if task.choose:
        return _choose(config, task, echo)
    verdict = check(config, task.slice, task.options, echo)
    describe(verdict, echo)
    facts = verdict.to_dict()
    if not verdict.fits:
        facts["nearest_that_fits"] = _nearest(verdict, task, echo)
    _write(task, facts, echo)
    return verdict.fits


def _write(task: Task, facts: dict[str, Any], echo: Echo) -> None:
    if task.output is not None:
        write_json(task.output, facts)
        echo(f"written: {task.output}")


class _Attempts:
    """Compiles settings of a config, and says what came of each."""

    def __init__(self, config: RunConfig, task: Task, echo: Echo):
        self.config, self.task, self.echo = config, task, echo
        self.log: list[dict[str, Any]] = []

    def __call__(self, setting: Setting) -> tuple[float, float | None]:
        """Bytes at the peak, or that it would need, and seconds of a step if it fits."""
        config = setting.apply(self.config)
        started = time.perf_counter()
        try:
            found = check_step(config, self.task.slice, batches(config)[-1], self.task.options, lambda line: None)
        except ConfigError as error:
            self._tell(setting, None, None, str(error), started)
            return float("inf"), None
        if not found.step.fits:
            self._tell(setting, None, None, refusal_words(found.step), started)
            return float(found.step.refusal.needed), None
        if found.untimed:
            self._tell(setting, found.step.memory.peak, None, f"fits, but is not timed: {found.untimed}", started)
            return float(found.step.memory.peak), None
        peak, seconds = found.step.memory.peak, found.time.total
        self._tell(setting, peak, seconds, f"fits with {headroom(found.step.memory):.0%} to spare", started)
        return float(peak), seconds

    def _tell(self, setting: Setting, peak: int | None, seconds: float | None, words: str, started: float) -> None:
        self.log.append({"flags": setting.flags, "mesh": list(setting.mesh.shape), "peak": peak, "seconds": seconds,
                         "microbatches": setting.microbatches, "remat": setting.remat, "words": words})  # fmt: skip
        figures = "" if seconds is None else f"{peak / GIB:.2f} GiB, {seconds:.4f} s a step: "
        self.echo(f"  {mesh_words(setting.mesh)}, {setting.microbatches} microbatches, remat {setting.remat}: {figures}"
                  f"{words} ({time.perf_counter() - started:.0f} s)")  # fmt: skip


def _nearest(verdict: Verdict, task: Task, echo: Echo) -> dict[str, Any] | None:
    """Prints and returns the most similar setting that fits: compiled, not only estimated."""
    refused = next(checked.step for _, checked in sorted(verdict.checked.items(), reverse=True)
                   if not checked.step.fits)  # fmt: skip
    assert isinstance(refused.refusal, Refusal)
    order = search.nearest(verdict.config, task.slice, refused.refusal.needed, refused.memory.usable)
    echo(f"\ncompiling its neighbours until one fits; by arithmetic {len(order)} settings may")
    attempts = _Attempts(verdict.config, task, echo)
    for candidate in order[: 3 * task.compiles]:
        _, seconds = attempts(candidate.setting)
        if seconds is not None:
            echo(f"nearest setting that fits: {candidate.setting.flags}")
            return attempts.log[-1]
    echo("none found: more chips, or a smaller batch, are needed" if not order else
         f"none of the {len(attempts.log)} nearest fits; --compiles tries more")  # fmt: skip
    return None


def _choose(config: RunConfig, task: Task, echo: Echo) -> bool:
    from chinchilla_jax.preflight.compiled import usable_hbm

    usable = usable_hbm(task.slice.generation)
    order, ruled_out = search.ranked(config, task.slice, usable)
    echo(f"{task.slice}: {len(order) + len(ruled_out)} settings of mesh, microbatches and remat; "
         f"compiling the best by arithmetic until {task.compiles} fit, minutes each for a "
         "large model")  # fmt: skip
    attempts = _Attempts(config, task, echo)
    tried = search.choose(order, task.compiles, attempts)
    echo(search.rest_words(order, ruled_out, tried, usable))
    facts = {"tried": attempts.log, "not_compiled": _not_compiled(order, ruled_out, tried, usable)}
    if not tried or tried[0].seconds is None:
        fitting = any(t.peak <= usable for t in tried)
        echo("of the settings that fit none could be timed" if fitting else
             "no setting fits: more chips, or a smaller batch, are needed")  # fmt: skip
        _write(task, facts | {"fits": False}, echo)
        return False
    best = tried[0].estimate.setting
    echo(f"\nbest of those compiled ({BASIS}):")
    verdict = check(best.apply(config), task.slice, task.options, echo)
    describe(verdict, echo)
    echo(f"\nchosen: {best.flags}")
    _write(task, verdict.to_dict() | facts | {"chosen": best.flags}, echo)
    return verdict.fits


def _not_compiled(order: Sequence[Estimate], ruled_out: Sequence[Estimate], tried: Sequence[Tried],
                  usable: float) -> list[dict[str, Any]]:  # fmt: skip
    """Every other candidate, with the reason."""
    done = {t.estimate.setting for t in tried}
    smallest = min((t.estimate.memory for t in tried if t.seconds is None), default=float("inf"))
    settled = {(s.mesh, s.remat) for t in tried if t.seconds is not None for s in (t.estimate.setting,)}
    rows = []
    for e in (*order, *ruled_out):
        if e.setting in done:
            continue
        why = "estimated slower than those compiled"
        if e.memory > search.ROOM * usable:
            why = "estimated not to fit"
        elif e.memory >= smallest:
            why = "estimated to need as much as one that did not fit"
        elif (e.setting.mesh, e.setting.remat) in settled:
            why = "more microbatches than one that fits"
        rows.append({"flags": e.setting.flags, "estimated_bytes": e.memory, "estimated_seconds": e.seconds, "why": why})
    return rows


def preflight_study(study: Path, manifest: str, task: Task, echo: Echo) -> bool:
    """Prints which runs of a study's manifest fit; every distinct step is compiled once. Returns whether all do.

    Raises:
      UsageError: with --choose, which is for one run.
      StudyError: there is no manifest.
    """
    if task.choose:
        raise UsageError("--choose is for one run: give --config=FILE instead of --study=DIR")
    from chinchilla_jax.study.folder import read_manifest

    found = check_runs(read_manifest(study / manifest).runs, task, echo)
    _write(task, {"basis": BASIS, "slice": str(task.slice), "fits": all(v.fits for v in found.values()),
                  "runs": {name: v.to_dict() for name, v in found.items()}}, echo)  # fmt: skip
    return all(verdict.fits for verdict in found.values())


def check_runs(runs: Sequence[PlannedRun], task: Task, echo: Echo) -> dict[str, Verdict]:
    """Verdicts on the runs of a plan by name, printed as a table; runs with the same step share its compilation.

    Raises:
      ConfigError: see `check`; names the run.
    """
    configs = {run.name: run.run_config() for run in runs}
    shapes = {name: shape_key(config) for name, config in configs.items()}
    echo(f"{task.slice}: {len(runs)} runs, {len(set(shapes.values()))} distinct steps")
    verdicts: dict[str, Verdict] = {}
    rows = [("run", "peak GiB", "headroom", "step s", "days", "chip-hours", "fits")]
    for name, config in configs.items():
        try:
            verdict = check(config, task.slice, task.options, lambda line, n=name: echo(f"{n}: {line}"))
        except ConfigError as error:
            raise ConfigError(error.key, f"run {name}: {error.message}") from error
        verdicts[name] = verdict
        step, time, cost = verdict.largest.step, verdict.largest.time, verdict.cost
        memory = (f"{step.memory.peak / GIB:.2f}", f"{headroom(step.memory):.0%}")
        if not verdict.fits:
            rows.append((name, "", "", "", "", "", f"no: {refusal_words(step)}"))
        elif cost is None or verdict.largest.untimed:
            rows.append((name, *memory, "", "", "", f"yes; not timed: {verdict.largest.untimed}"))
        else:
            rows.append((name, *memory, f"{time.total:.4f}", f"{cost.days:.3f}", f"{cost.chip_hours:,.1f}", "yes"))
    for line in table(rows):
        echo(line)
    done = [verdict.cost for verdict in verdicts.values() if verdict.cost is not None]
    dollars = "" if task.options.price is None else f", ${sum(cost.dollars or 0.0 for cost in done):,.0f}"
    fitting, hours = sum(verdict.fits for verdict in verdicts.values()), sum(cost.chip_hours for cost in done)
    echo(f"{fitting} of {len(verdicts)} runs fit; {hours:,.1f} chip-hours{dollars} one after the other ({BASIS})")
    return verdicts


def plan_checked(manifest: Manifest, values: flags.FlagValues, echo: Echo) -> Manifest:
    """A plan whose runs all fit the slice of the command line, with the memory and time of each in its line.

    Raises:
      ConfigError: runs that do not fit, by name.
    """
    task = read_options(values)
    verdicts = check_runs(manifest.runs, task, echo)
    if refused := [name for name, verdict in verdicts.items() if not verdict.fits]:
        raise ConfigError("--slice", f"{len(refused)} of {len(verdicts)} runs do not fit {task.slice.name}: "
                          f"{', '.join(refused)}; no manifest is written. More train.microbatches, a stronger "
                          "train.remat, or more chips; `preflight --choose` finds settings for a run")  # fmt: skip
    runs = [dataclasses.replace(run, preflight=summary(verdicts[run.name])) for run in manifest.runs]
    return dataclasses.replace(manifest, runs=tuple(runs))


def summary(verdict: Verdict) -> dict[str, Any]:
    """What a manifest keeps of a verdict that fits: bytes of a chip, seconds of a step, days, chip-hours."""
    memory, cost = verdict.largest.step.memory, verdict.cost
    time = None if verdict.largest.untimed else verdict.largest.time
    return {"slice": verdict.slice.name, "chips": verdict.slice.chips, "peak_bytes": memory.peak,
            "usable_bytes": memory.usable, "step_seconds": time and time.total, "days": cost and cost.days,
            "chip_hours": cost and cost.chip_hours, "basis": BASIS}  # fmt: skip
