"""What is the loss of every held-out token at every kept checkpoint of these runs?

    collect([Path("studies/kept/runs/NAME")], echo=print)

The tokens are those of the runs' own evaluations, so that their weighted mean is the validation loss of `result.json`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chinchilla_jax.base.words import duration
from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.data import Batches
from chinchilla_jax.data.batches import Batch
from chinchilla_jax.evaluation.score import make_nats
from chinchilla_jax.evaluation.trajectories.series import Series, Trajectories
from chinchilla_jax.interop.trained import Trained, no_checkpoint, open_model, read_course
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.parallel.mesh import place
from chinchilla_jax.training.checkpoint import steps_in
from chinchilla_jax.training.evaluate import domain_sequences
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.start import open_batches


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run to look at, and the steps of its checkpoints, rising."""

    folder: Path
    course: Course
    steps: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Of one checkpoint, so far as the time left depends on it."""
        return float(count_parameters(self.course.stages[-1].config.model).total)


@dataclasses.dataclass(frozen=True)
class _Text:
    """Held-out rows: batches of one domain after the other, and what each token of weight counts in the loss."""

    batches: tuple[Batch, ...]
    targets: np.ndarray
    weights: np.ndarray


def collect(
    folders: Sequence[Path],
    *,
    sequences: int | None = None,
    mesh: MeshConfig | None = None,
    compute_dtype: str | None = None,
    echo: Callable[[str], None] = print,
) -> Trajectories:
    """The trajectories of the runs in these folders, at the checkpoints of `train.keep_checkpoints` that are there.

    A run without that setting is taken at all of its checkpoints.

    Args:
      sequences: held-out rows, shared out over domains as an evaluation does; by default those of the first run's
        `train.eval_sequences`.
      mesh, compute_dtype: as `open_model` takes them.
      echo: told of every checkpoint, and how long the others will take.

    Raises:
      ConfigError: a folder is no run, has no checkpoint, or its run was trained on other text than the first; two have
        the same name.
    """
    _check_distinct(folders)
    runs = sorted(map(_open, folders), key=lambda run: run.cost)
    total, done, start = sum(run.cost * len(run.steps) for run in runs), 0.0, time.monotonic()
    number, numbers = 0, sum(len(run.steps) for run in runs)
    first, found = None, []
    for run in runs:
        text = _text(run, sequences or runs[0].course.config.train.eval_sequences)
        first = first or text
        _check_same(runs[0], first, run, text)
        nats = []
        for step in run.steps:
            model = open_model(run.folder, step=step, mesh=mesh, compute_dtype=compute_dtype, echo=echo)
            nats.append(_nats(model, text))
            number, done = number + 1, done + run.cost
            left = (time.monotonic() - start) * (total / done - 1.0)
            loss = float(nats[-1] @ text.weights)
            echo(f"{number}/{numbers} {run.folder.name}, step {step}: loss {loss:.4f}; {duration(left)} left")
        found.append(_series(run, np.stack(nats), text))
    assert first is not None
    return Trajectories(first.targets, first.weights, tuple(found))


def _check_distinct(folders: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        if other := seen.get(folder.resolve().name):
            told = "is named twice" if other.resolve() == folder.resolve() else f"has the name of {other}"
            raise ConfigError("run", f"{folder} {told}; runs are told apart by the names of their folders")
        seen[folder.resolve().name] = folder


def _open(folder: Path) -> _Run:
    course, present = read_course(folder), sorted(steps_in(folder / "checkpoints"))
    kept = course.kept_steps()
    steps = tuple(step for step in present if not kept or step in kept)
    if not steps:
        raise no_checkpoint(folder, None)
    return _Run(folder, course, steps)


def _text(run: _Run, sequences: int) -> _Text:
    """The rows of the run's own evaluations, in batches as large as its own."""
    config = run.course.config
    batches: Batches = open_batches(config)
    rows, targets, weights = [], [], []
    for domain, count in domain_sequences(batches.weights, sequences).items():
        of_domain = list(batches.validation(domain, config.train.batch_size, count))
        real = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in of_domain])
        rows += of_domain
        targets.append(real)
        weights.append(np.full(len(real), batches.weights[domain] / len(real)))
    return _Text(tuple(rows), np.concatenate(targets), np.concatenate(weights))


def _check_same(first: _Run, expected: _Text, run: _Run, text: _Text) -> None:
    same = text.targets.shape == expected.targets.shape and (text.targets == expected.targets).all()
    if not same or not np.allclose(text.weights, expected.weights):
        told = f"{run.folder} was trained on other text, tokens, rows or mixture than {first.folder}"
        raise ConfigError("run", f"{told}; collect runs of one section `data` together")


def _nats(model: Trained, text: _Text) -> np.ndarray:
    """float32 `[T]`, of the tokens that count."""
    function, sharding = make_nats(model.config, model.mesh), model.program.batch_sharding
    found = []
    for batch in text.batches:
        rows, length = batch["inputs"].shape
        short = -rows % model.config.mesh.rows  # each device has as many
        padded = {name: np.pad(x, ((0, short), (0, 0))) for name, x in batch.items()}
        placed = place(lambda padded=padded: padded, (1, rows + short, length), sharding)
        found.append(np.asarray(function(model.params, placed))[0, :rows][batch["weights"] > 0])
    return np.concatenate(found)


def _series(run: _Run, nats: np.ndarray, text: _Text) -> Series:
    course, steps = run.course, run.steps
    return Series(
        name=run.folder.resolve().name,
        params=count_parameters(course.stages[-1].config.model).total,
        step=np.asarray(steps, np.int64),
        tokens=np.asarray([course.at(step).tokens(step) for step in steps], np.int64),
        flops=np.asarray([course.executed(step) for step in steps], np.float64),
        loss=nats @ text.weights,
        nats=nats,
    )
