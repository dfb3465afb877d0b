"""What is known of the way of several runs: the loss of the same tokens at every checkpoint, in one file.

trajectories = load("trajectories.npz")
trajectories.runs[0].nats  # float32 [checkpoints, tokens]
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError

_OF_RUNS = ("name", "params")
_OF_CHECKPOINTS = ("step", "tokens", "flops", "loss")


@dataclasses.dataclass(frozen=True)
class Series:
    """The way of one run. Checkpoints are in the order of their steps.

    Attributes:
      name: of the run.
      params: of its last model, by the ledger.
      step, tokens: int64 `[P]`, done and consumed at each of P checkpoints.
      flops: float64 `[P]`, executed up to there.
      loss: float64 `[P]`, the validation loss of the mixture in nats per token: `nats @ Trajectories.weights`.
      nats: float32 `[P, T]`, the loss of each of T tokens.
    """

    name: str
    params: int
    step: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    nats: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """The ways of several runs on the same held-out tokens.

    Attributes:
      targets: int32 `[T]`, the tokens that are predicted.
      weights: float64 `[T]`, what each counts in the validation loss; their sum is 1.
      runs: smallest first.
    """

    targets: np.ndarray
    weights: np.ndarray
    runs: tuple[Series, ...]


def save(path: str | Path, trajectories: Trajectories) -> None:
    """Writes one NumPy archive, whole or not at all."""
    runs = trajectories.runs
    arrays = {name: np.asarray([getattr(run, name) for run in runs]) for name in _OF_RUNS}
    arrays |= {name: np.concatenate([getattr(run, name) for run in runs]) for name in _OF_CHECKPOINTS}
    arrays |= {"targets": trajectories.targets, "weights": trajectories.weights}
    arrays["checkpoints"] = np.asarray([len(run.step) for run in runs])
    arrays |= {f"nats_{number}": run.nats for number, run in enumerate(runs)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())


def load(path: str | Path) -> Trajectories:
    """What `save` wrote. Raises UsageError if there is no such file, or it is none of these."""
    if not files.is_file(path):
        raise UsageError(f"{path}: no such file; write it with `trajectories collect RUN... --output={path}`")
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as archive:
            return _unpacked(archive)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        why = "it is no .npz archive" if "allow_pickle" in str(error) else f"{type(error).__name__}: {error}"
        told = f"holds no trajectories ({why})"
        raise UsageError(f"{path}: {told}; write it again with `trajectories collect`") from None


def _unpacked(archive: np.lib.npyio.NpzFile) -> Trajectories:
    ends = np.cumsum(archive["checkpoints"])
    runs = []
    for number, end in enumerate(ends):
        part = slice(end - archive["checkpoints"][number], end)
        of_checkpoints = {name: archive[name][part] for name in _OF_CHECKPOINTS}
        name, params = str(archive["name"][number]), int(archive["params"][number])
        runs.append(Series(name, params, **of_checkpoints, nats=archive[f"nats_{number}"]))
    found = Trajectories(archive["targets"], archive["weights"], tuple(runs))
    shapes = {(len(run.step), len(found.targets)) == run.nats.shape for run in runs}
    if shapes != {True} or found.weights.shape != found.targets.shape:
        raise ValueError("its arrays do not fit each other")
    return found
