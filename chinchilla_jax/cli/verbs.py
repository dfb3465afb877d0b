"""The command line: one verb a job.

    data      --config=FILE[:NAME]                     fetch, clean, tokenise
    plan      --config=FILE[:NAME] --study=DIR         write a study's manifest (or only show it: --dry_run); --next: of
                                                       further runs
    preflight --config=FILE[:NAME] --slice=NAME        does it fit a TPU slice, how fast would it be: without a TPU
    train     --config=FILE[:NAME] --workdir=DIR       one run, new or resumed
    work      --study=DIR                              train the runs of a manifest
    launch    --study=DIR --backend=NAME               train them where the chips are: TPU VMs, Kubernetes, Slurm, ssh
    status    --study=DIR                              how far they are
    fit       --study=DIR | --runs=PATH                scaling laws of the finished runs
    predict   --study=DIR | --runs=PATH | --law=NAME   what to train: N, D and loss for --budget=C, and other questions
    suggest   --study=DIR | --runs=PATH                which runs next, for no more than --purse FLOPs
    report    --study=DIR | --runs=PATH                the same as a page with plots
    forecast  RUN... | --study=DIR | --runs=PATH       where runs under way will end, and which go wrong
    verify    FILE RUN                                 judge a finished run by a prediction on record
    compare   ARM ARM... | --runs=TABLE --by=COLUMN    how much compute one way to train is worth against another
    study     --config=FILE[:NAME] --study=DIR         all of it, from text to report
    methods   --config=FILE[:NAME] --study=DIR         ways to train at equal compute: patches, growth, experts
    noise     --config=FILE[:NAME] --study=DIR         how far its runs differ by their seeds, and at other rates
    tune      --config=FILE[:NAME] --study=DIR         learning rate, initialisation and temperature on a narrow proxy
    generate  RUN [PROMPT...]                          text from a trained model: prompts, files of them, a chat
    evaluate  RUN...                                   scores on tasks: of held-out text, IQ, of lm-eval
    trajectories collect|classify|match|plot|contrast  how single tokens are learned, over the checkpoints of runs
    transfer  RUN                                      does it help with tasks that are no text: lists, pictures
    import    FROM TO                                  other people's weights, in this code's own layout
    export    RUN FOLDER                               the weights of a run, for transformers
    presets                                            published models and their counts
    paper                                              what Hoffmann et al. 2022 printed, computed again

Every setting of a config can be set after it, as `--config.optimizer.peak_lr=1e-3`.
`python -m chinchilla_jax VERB --help` lists a verb's flags.

--runs takes a table (CSV, JSON lines, Parquet, .xlsx), a run directory or a folder of them. Exit codes: 0
done; 42 stopped by a signal, start the same command again; 1 it fails the same way every time; 2 a mistake in the
command or the config, or data that cannot carry what is asked of them, one line on stderr says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import DONE, FAILED, PREEMPTED, USAGE, ExplainedError, UsageError
from chinchilla_jax.cli import evaluate, generate, launch, models, runs, studies, trajectories, transfer
from chinchilla_jax.cli.flags import check_paths, define
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.config_flag import define_config, read_config

if TYPE_CHECKING:
    from chinchilla_jax.parallel.job.hosts import Settings
    from chinchilla_jax.training.start import FirstWeights

_echo = runs.echo


@dataclasses.dataclass(frozen=True)
class Verb:
    """What a verb does, which its docstring explains, and the flags it takes (`cli/flags.py`).

    `run` returns the exit code; None is `DONE`. `words` names what it takes besides flags, and is given to `run` as a
    list; "" is nothing.
    """

    run: Callable[..., int | None]
    flags: tuple[str, ...]
    words: str = ""


VERBS: dict[str, Verb] = {}
# Flags that were, and what does their work.
# Verbs of which what they do matters, and not only what they print.
_WORKING = ("data", "train", "plan", "work", "study", "methods", "noise", "tune", "launch", "evaluate", "trajectories",
            "transfer", "import", "export")  # fmt: skip
_GONE = {"more_runs": "ask `suggest --purse=FLOPS --number=COUNT` with the same --study or --runs"}
_RUNS_BEFORE_PROMPTS = {"generate": 1, "trajectories": 3}  # of their words; a prompt may be anything
_PROCESSES = ("coordinator", "processes", "process", "peer_timeout", "join_timeout")


def _verb(*names: str, words: str = "") -> Callable[[Callable], Callable]:
    """Adds a function to the verbs, under its name, with these flags and words."""

    def add(run: Callable) -> Callable:
        VERBS[run.__name__.strip("_")] = Verb(run, names, words)
        return run

    return add


@_verb("config")
def _data(values: flags.FlagValues) -> None:
    """Fetches, cleans and tokenises the text of a config."""
    config = read_config(values)
    from chinchilla_jax.data import prepare

    prepare(config.data, _echo)


@_verb("config", "study", "workers", "dry_run", "slice", "cache", "next", "purse", "number", "quantity", "budget")
def _plan(values: flags.FlagValues) -> None:
    """Writes the manifest of a study and prints its runs and their cost. --dry_run only prints.

    With --slice every distinct step is first compiled for that TPU slice, as `preflight` does: a plan with a run that
    does not fit is refused, and the manifest's lines say what memory and time each run needs.

    With --next, --purse=FLOPS and the --study alone it plans the runs that `suggest` proposes, as a further manifest:
    `work --manifest=next.jsonl` trains them, and fits take them with the others.
    """
    if values.next:
        return _plan_next(values)
    from chinchilla_jax.parallel.job.cores import default_workers
    from chinchilla_jax.study.folder import MANIFEST, write_manifest
    from chinchilla_jax.study.foresee import foresee
    from chinchilla_jax.study.plan import describe, plan

    config = read_config(values)
    study = studies.folder(values, "study") if values.study or not values.dry_run else None
    manifest = plan(config)
    describe(manifest, values.workers or default_workers(config), _echo)
    foresee(manifest, study, _echo)
    if values.slice:
        manifest = studies.preflight_verb().plan_checked(manifest, values, _echo)
    if study is not None and not values.dry_run:
        written = write_manifest(study / MANIFEST, manifest)
        _echo(f"{study / MANIFEST}: {'written' if written else 'unchanged, it holds this plan already'}")


def _plan_next(values: flags.FlagValues) -> None:
    from chinchilla_jax.parallel.job.cores import default_workers
    from chinchilla_jax.study.folder import write_manifest
    from chinchilla_jax.study.further import plan_next
    from chinchilla_jax.study.plan import describe

    if "config" in values or values.slice or values.purse is None:
        raise UsageError("plan --next takes --study=DIR of a planned study and --purse=FLOPS, no --config or --slice")
    study, asked = studies.folder(values, "study"), (values.purse, values.number, values.quantity)
    name, manifest = plan_next(study, values.budget, *asked, _echo)
    describe(manifest, values.workers or default_workers(manifest.template()), _echo)
    if not values.dry_run:
        write_manifest(study / name, manifest)
        _echo(
            f"{study / name}: written; to train them: python -m chinchilla_jax work --study={study} --manifest={name}"
        )


_COMPILED = ("slice", "choose", "compiles", "every_batch", "price", "output", "cache", "keep_hlo", "generate")


@_verb("config", "study", "manifest", *_COMPILED)
def _preflight(values: flags.FlagValues) -> int:
    """Compiles the train step of --config, or every distinct one of --study, for a TPU slice; needs no TPU.

    Prints memory, collectives and predicted time of a step, and what the run takes. Compiling takes minutes for a large
    model, and is done once: results are cached. A step that does not fit gives exit code 2 and the nearest setting that
    does. --choose searches mesh, microbatches and remat policy instead, for the best predicted time. --generate looks
    at the decoding of the trained model instead: the memory of its cache, cycles and bytes a token.

    --slice is named as Google Cloud does: v5e-16 and v6e-64 are chips, v4-1024 and v5p-512 TensorCores, two to a chip;
    2xv5e-256 is two slices, joined by the data centre network; v5p:8x8x12 names the grid of chips.
    """
    verb = studies.preflight_verb()
    options = verb.read_options(values)
    if values.study and "config" in values:
        raise UsageError("give either --config=FILE or --study=DIR")
    if values.generate:
        if values.study or values.choose:
            raise UsageError("--generate is for one model on one mesh: give --config=FILE, no --study or --choose")
        verb.preflight_generation(read_config(values), values.generate, options, _echo)
        return DONE
    if values.study:
        fits = verb.preflight_study(studies.folder(values, "study"), values.manifest, options, _echo)
    else:
        fits = verb.preflight_run(read_config(values), options, _echo)
    return DONE if fits else USAGE


@_verb("config", "workdir", "profile", "init_from", *_PROCESSES)
def _train(values: flags.FlagValues) -> int | None:
    """Trains the run of a config in --workdir, or goes on with it. --profile=START:STOP traces some of its steps.

    --init_from=FOLDER begins with its weights, a run's or other people's, and a fresh optimizer; it belongs to the run.

    Of a study's config that is its template, on as many cores of a CPU as the study gives each run (study.cores).
    """
    config, workdir = read_config(values), studies.folder(values, "workdir")
    from chinchilla_jax.parallel.job import cores, distributed

    processes = _processes(values)
    if config.study and not processes and cores.on_cpu():
        cores.use(cores.of_study(config))
    with distributed.joined(processes):
        from chinchilla_jax.training import loop
        from chinchilla_jax.training.timing import profiler

        window = profiler.parse_window(values.profile) if values.profile else None
        try:
            first = _first_weights(values.init_from) if values.init_from else None
            loop.train(dataclasses.replace(config, study=None), workdir, profile=window, first=first, echo=_echo)
        except loop.Preempted as stopped:
            return _say(f"{distributed.prefix()}stopped: {stopped}; start again to go on", PREEMPTED)
        except loop.Diverged as error:
            return _say(f"{distributed.prefix()}diverged: {error}", FAILED)
    return None


def _first_weights(folder: str) -> FirstWeights:
    from chinchilla_jax.interop.first import first_weights

    return first_weights(files.path(folder), _echo)


@_verb("study", "manifest", "workers", "worker", "standby", "parent", *_PROCESSES)
def _work(values: flags.FlagValues) -> int | None:
    """Trains the runs of a study's manifest on this machine. With --worker=I as one worker, in this process.

    On a slice of several hosts, each of which runs this command, all hosts together are one worker.
    """
    study = studies.folder(values, "study")
    if processes := _processes(values):
        return _work_together(study, values, processes)
    if values.worker is None:
        from chinchilla_jax.study.execute.backend import LOCAL, run_manifest

        run_manifest(LOCAL, study, values.manifest, values.workers, _echo)
        return None
    from chinchilla_jax.parallel.job.cores import default_workers
    from chinchilla_jax.study.execute import worker
    from chinchilla_jax.study.folder import read_manifest

    first = None
    if values.standby:
        first = worker.stand_by(study, values.worker, values.workers)
    else:
        template = read_manifest(study / values.manifest).template()
        worker.pin(template, values.worker, values.workers or default_workers(template))
        worker.use_compilation_cache(study)
    worker.work_alone(study, values.manifest, values.worker, _echo, parent=values.parent, first=first)
    return None


def _work_together(study: pathlib.Path, values: flags.FlagValues, processes: Settings) -> int | None:
    """Joins the other processes of a slice: all of them are one worker, and the first one prints."""
    from chinchilla_jax.parallel.job import distributed

    with distributed.joined(processes):
        from chinchilla_jax.study.execute import worker

        echo = _echo if distributed.first() else lambda line: None
        worker.use_compilation_cache(study)
        try:
            worker.work_alone(study, values.manifest, values.worker or 0, echo)
        except worker.Stopped as stopped:
            return _say(f"{distributed.prefix()}{stopped}", PREEMPTED)
    return None


@_verb("study")
def _status(values: flags.FlagValues) -> None:
    """Shows which runs of a study are done, running, failed and waiting."""
    from chinchilla_jax.study.execute.status import status

    status(studies.folder(values, "study"), _echo)


_verb(*launch.LAUNCH, words="[status | stop]")(launch.launch)
_verb(*runs.FIT)(runs.fit)
_verb(*runs.PREDICT)(runs.predict)
_verb(*runs.SUGGEST)(runs.suggest)
_verb(*runs.REPORT)(runs.report)
_verb(*runs.FORECAST, words="RUN...")(runs.forecast)
_verb(words="FILE RUN")(runs.verify)
_verb(*runs.COMPARE, words="ARM...")(runs.compare)


_verb(*studies.STUDY)(studies.study)
_verb(*studies.METHODS)(studies.methods)
_verb(*studies.NOISE)(studies.noise)
_verb(*studies.TUNE)(studies.tune)
_verb(*generate.GENERATE, words="RUN [PROMPT...]")(generate.generate)
_verb(*evaluate.EVALUATE, words="RUN...")(evaluate.evaluate)
_verb(*trajectories.TRAJECTORIES, words="ACTION ...")(trajectories.trajectories)
_verb(*transfer.TRANSFER, words="RUN")(transfer.transfer)

_verb(*models.IMPORT, words="FROM TO")(models.import_)
_verb(*models.EXPORT, words="RUN FOLDER")(models.export)


@_verb()
def _presets(values: flags.FlagValues) -> None:
    """Lists the published models: the size printed in the paper and the one counted from the shape."""
    from chinchilla_jax.presets import describe

    describe(_echo)


@_verb()
def _paper(values: flags.FlagValues) -> None:
    """Recomputes what Hoffmann et al. 2022 printed: Tables 3 and A3, exponents, and what averaging did to eq. 10."""
    from chinchilla_jax.scaling.report.paper import describe

    describe(_echo)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's); returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("--help", "-h", "help"):
        _echo(__doc__)
        return DONE
    if not argv or argv[0] not in VERBS:
        what = f"unknown verb {argv[0]!r}{did_you_mean(argv[0], VERBS)}" if argv else "a verb is missing"
        return _say(f"{what}; one of {', '.join(VERBS)} (--help explains them)", USAGE)
    name, known = argv[0], [f"--{flag}" for flag in VERBS[argv[0]].flags]
    try:
        with _stoppable(name):
            return _run(name, argv[1:])
    except flags.UnrecognizedFlagError as error:
        unknown = f"--{error.flagname}"
        what = f"{name}: unknown flag {unknown}{did_you_mean(unknown, known)}"
        if error.flagname in _GONE:
            return _say(f"{name}: --{error.flagname} is gone: {_GONE[error.flagname]}", USAGE)
        return _say(f"{what}; {name} takes {', '.join(known) or 'none'}", USAGE)
    except flags.Error as error:
        return _say(str(error), USAGE)
    except ExplainedError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        told = "nobody reads its output any more, and it is not done; start again to go on"
        return _say(f"{name}: {told}", PREEMPTED) if name in _WORKING else DONE
    except OSError as error:
        if not error.filename:
            raise
        again = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # it goes on once somebody has seen to that
        return _say(f"{error.filename2 or error.filename}: {error.strerror}", PREEMPTED if again else USAGE)
    except KeyboardInterrupt:
        return _say("interrupted; start again to go on", PREEMPTED)


def _stoppable(name: str) -> contextlib.AbstractContextManager[None]:
    """SIGTERM stops a verb that works as Ctrl-C does, wherever it is; what has to stop otherwise says how itself."""
    if name not in _WORKING or threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    from chinchilla_jax.study.execute.worker import on_signal

    return on_signal(lambda number: signal.default_int_handler(number, None))


def _run(name: str, words: list[str]) -> int:
    verb, values = VERBS[name], flags.FlagValues()
    define(verb.flags, values)
    if any(word in ("--help", "-h", "-help") for word in words):
        _help(name, verb, values)
        return DONE
    if "config" in verb.flags:
        words = define_config(values, words)
    left = values([f"chinchilla_jax {name}", *words])[1:]
    check_paths(values)
    for word in left[: _RUNS_BEFORE_PROMPTS.get(name)]:
        files.here(word)
    if verb.words:
        return verb.run(values, left) or DONE
    if left:
        raise UsageError(f"{name}: unexpected argument {left[0]!r}; settings look like --flag=value")
    return verb.run(values) or DONE


def _say(message: str, code: int) -> int:
    print(f"chinchilla_jax: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _help(name: str, verb: Verb, values: flags.FlagValues) -> None:
    words = f" {verb.words}" if verb.words else ""
    _echo(f"python -m chinchilla_jax {name}{words} [flags]\n\n{verb.run.__doc__}\n")
    for flag in verb.flags:
        if flag == "config":
            use = "Config file, e.g. configs/isoflop.py:cpu; --config.SECTION.KEY=VALUE with it changes a setting."
            _echo(f"  --config=FILE[:NAME]  {use}")
        else:
            default = values[flag].default
            _echo(f"  --{flag}  {values[flag].help}{f' Default: {default}.' if default is not None else ''}")


def _processes(values: flags.FlagValues) -> Settings | None:
    from chinchilla_jax.parallel.job.hosts import host_settings

    return host_settings(values.coordinator, values.processes, values.process, values.peer_timeout, values.join_timeout)
