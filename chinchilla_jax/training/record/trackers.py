"""Where are a run's numbers drawn while it trains? `train.tracker` names one place; the run's files are there anyway.

tensorboard   events in `WORKDIR/tensorboard`; none of a run in a bucket
wandb         Weights & Biases: offline, in `WORKDIR/wandb`, unless `WANDB_MODE` says otherwise
trackio       a database of this machine (`TRACKIO_DIR`), unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` is set

A run that goes on is the same record there. What a restart does again TensorBoard leaves out; the others show it twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, RunConfig

PROJECT = "chinchilla_jax"  # for runs of no study; `WANDB_PROJECT` comes first
Echo = Callable[[str], None]


class Tracker(Protocol):
    """Takes numbers of steps, by name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Of one step; the same step may come again, with other names."""

    def close(self) -> None:
        """Nothing comes after it."""


def check_tracker(name: str) -> None:
    """A `ConfigError` that says what to install, if that is missing for the tracker of this name."""
    if name != "tensorboard" and importlib.util.find_spec(name) is None:
        fix = f"pip install 'chinchilla_jax[{name}]', or leave train.tracker at tensorboard"
        raise ConfigError("train.tracker", f"the package {name} is not installed: {fix}")


def open_tracker(config: RunConfig, workdir: Path, step: int, echo: Echo) -> Tracker:
    """The tracker of a run, which goes on after `step`.

    One that fails is given up with a line to `echo`: what it is for is to watch, and nothing is lost without it.
    """
    name = config.train.tracker
    if name == "tensorboard":
        if files.in_bucket(workdir):
            echo("tensorboard: events are written to disks only; metrics.jsonl has everything")
            return _Nothing()
        return TensorBoard(workdir, step)
    return _Expendable(name, lambda: _OPENERS[name](config, workdir, echo), echo)


class _Nothing:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Events, of which those after the step that a run resumes from are replaced."""

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one step."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes."""
        self._events.close()


class _Wandb:
    def __init__(self, config: RunConfig, workdir: Path, echo: Echo):
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode != "online":  # read when it is imported; reports of its own errors would need a network
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        name, disk = _identity(workdir), files.on_disk(workdir)
        files.make_folder(disk)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _project(workdir)), name=workdir.name, id=name, resume="allow",
            mode=mode, dir=str(disk), config=config.to_dict(),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )  # fmt: skip
        # Its own count of steps refuses one that comes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        how = f"upload it: wandb sync {disk}/wandb/*-{name}" if mode == "offline" else f"mode {mode}"
        echo(f"wandb: run {name} in {disk}/wandb; {how}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, config: RunConfig, workdir: Path, echo: Echo):
        import trackio

        self._trackio: Any = trackio
        project, name = _project(workdir), f"{workdir.name}-{_identity(workdir)}"
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = self._trackio.init(
                project=project, name=name, resume="allow", config=config.to_dict(), embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )  # fmt: skip
        echo(f"trackio: run {name}; look at it: trackio show --project {project}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()  # that of the run alone is done, and told, again when the process ends


_OPENERS: dict[str, Callable[[RunConfig, Path, Echo], Tracker]] = {"wandb": _Wandb, "trackio": _Trackio}


class _Expendable:
    """A tracker that may fail at any time, and then is not asked again."""

    def __init__(self, name: str, opener: Callable[[], Tracker], echo: Echo):
        self._name, self._echo = name, echo
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", opener()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if tracker := self._tracker:
            self._try(lambda: tracker.log(step, values))

    def close(self) -> None:
        if tracker := self._tracker:
            self._try(tracker.close)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # of a service, a network, another's code
            self._tracker = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._echo(f"{self._name}: {reason}; the run goes on without it, metrics.jsonl has everything")


def _project(workdir: Path) -> str:
    """The name of the study's folder (STUDY/runs/NAME), without what is no letter, digit, dot or dash."""
    study = files.resolved(workdir).parents[1]
    if not files.exists(study / "manifest.jsonl"):
        return PROJECT
    return re.sub(r"[^A-Za-z0-9._-]+", "-", study.name).strip("-") or PROJECT


def _identity(workdir: Path) -> str:
    """12 hexadecimal digits that belong to this run: `config.json` says when it began, and stays when it goes on."""
    return hashlib.sha256(files.read_bytes(workdir / "config.json")).hexdigest()[:12]
