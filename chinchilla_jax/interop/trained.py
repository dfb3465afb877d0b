"""Which trained model is in a folder? Its config, weights and tokenizer, laid out on the devices of this machine.

    model = open_model(Path("studies/cpu/runs/NAME"))
    model.params, model.config, model.tokenizer

Everything that works with a trained model begins here: generation, evaluation, export, trajectories, transfer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, DataConfig, MeshConfig, RunConfig, TrainConfig
from chinchilla_jax.data import DataError, Tokenizer, TokenStore, open_tokenizer, store_path
from chinchilla_jax.data.tokenizers import find_tokenizer
from chinchilla_jax.interop.folder import is_weights_folder, open_weights
from chinchilla_jax.interop.hf.tokenizers import begin_and_ends
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import restore_params, steps_in
from chinchilla_jax.training.record.directory import read_record
from chinchilla_jax.training.stages import Course, course_of
from chinchilla_jax.training.step import Program, make_program


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that is trained, ready to be used.

    Attributes:
      config: of its last stage, with the mesh that the weights lie on.
      params: as a `TrainState` of that config has them.
      tokenizer: what its tokens mean; None if that is not known.
      source: the folder it came from.
      step: after which step of its training; 0 if that is not known.
      begins: the token that stands before a text, as weights of others name it; by default, and of a run, the one that
        separated texts in training.
      ends_with: tokens that end a text, likewise.
    """

    config: RunConfig
    params: dict[str, Any]
    mesh: Mesh
    tokenizer: Tokenizer | None
    source: Path
    step: int = 0
    begins: int | None = None
    ends_with: tuple[int, ...] = ()

    @property
    def program(self) -> Program:
        """The compiled functions of its config."""
        return make_program(self.config, self.mesh)

    @property
    def begin(self) -> int:
        """The token that stands before a text."""
        return self.need_tokenizer().separator if self.begins is None else self.begins

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.ends_with or (self.need_tokenizer().separator,)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ConfigError if none is known."""
        if self.tokenizer is None:
            raise ConfigError("tokenizer", f"{self.source} has none; name one with --tokenizer=PATH")
        return self.tokenizer


def open_model(
    folder: str | Path,
    *,
    mesh: MeshConfig | None = None,
    step: int | None = None,
    compute_dtype: str | None = None,
    tokenizer: str | Path | None = None,
    echo: Callable[[str], None] = print,
) -> Trained:
    """The model of a run directory (`config.json`, `checkpoints/`), or of a folder of weights (`folder.py`).

    Args:
      folder: the run; of a study its finished run with the lowest loss.
      mesh: over which devices; by default one.
      step: of which checkpoint; by default the newest that can be read.
      compute_dtype: instead of that of its training.
      tokenizer: a file or folder for `open_tokenizer`, instead of what the run's text was cut with.
      echo: told about checkpoints that cannot be read.

    Raises:
      ConfigError: there is no model in the folder, or no checkpoint of that step.
    """
    folder = best_run(files.path(folder))
    if is_weights_folder(folder):
        if step is not None:
            raise ConfigError("step", f"{folder} is no run: it has no checkpoints")
        return _open_weights(folder, mesh, compute_dtype, tokenizer)
    course = read_course(folder)
    at = course.total_steps if step is None else step
    stage = course.at(min(at, course.total_steps))
    config = for_use(stage.config, mesh, compute_dtype)
    devices = make_mesh(config.mesh)
    abstract = make_program(config, devices).abstract.params
    found = restore_params(folder / "checkpoints", step, abstract, echo)
    if found is None:
        raise no_checkpoint(folder, step)
    words = open_tokenizer(tokenizer) if tokenizer else tokenizer_of(config)
    return Trained(config, found[0], devices, words, folder, found[1])


def best_run(folder: Path) -> Path:
    """A run's folder itself; of a study the finished run with the lowest loss. Raises ConfigError if it has none."""
    if files.exists(folder / "config.json") or not files.is_folder(folder / "runs"):
        return folder
    results = files.glob(folder, "runs/*/result.json")
    if not results:
        raise ConfigError("run", f"{folder} is a study without a finished run")
    return min(results, key=lambda path: (read_record(path, "loss", float)["loss"], path)).parent


def _open_weights(
    folder: Path, mesh: MeshConfig | None, compute_dtype: str | None, tokenizer: str | Path | None
) -> Trained:
    found, mesh = open_weights(folder), mesh or MeshConfig()
    path = files.path(tokenizer) if tokenizer else find_tokenizer(folder)
    split = mesh.context * mesh.tensor
    data = DataConfig(
        tokenizer=str(path or folder),
        vocab_size=found.model.vocab_size,
        seq_len=max(found.model.max_position // split, 1) * split,
    )
    train = TrainConfig(train_tokens=16 * data.seq_len)
    config = for_use(RunConfig(found.model, data=data, train=train), mesh, compute_dtype or found.compute_dtype)
    devices = make_mesh(mesh)
    params = found.load(config.model, make_program(config, devices).abstract.params)
    begins, ends = begin_and_ends(folder, found.config, found.model.vocab_size)
    words = open_tokenizer(path) if path else None
    return Trained(config, params, devices, words, folder, begins=begins, ends_with=ends)


def no_checkpoint(folder: Path, step: int | None) -> ConfigError:
    """The error of a run that has no readable checkpoint, or none of this step."""
    steps = ", ".join(map(str, steps_in(folder / "checkpoints"))) or "none"
    wanted = "readable checkpoint" if step is None else f"readable checkpoint of step {step}"
    return ConfigError("run", f"{folder} has no {wanted}; it has: {steps}")


def read_course(folder: Path) -> Course:
    """What the run of a directory trains, by its `config.json`. Raises ConfigError if it is no run's."""
    path = folder / "config.json"
    if not files.exists(path):
        raise ConfigError("run", f"{folder} is no run directory: it has no config.json")
    if is_weights_folder(folder):
        raise ConfigError("run", f"{folder} holds weights, and nothing of their training; name the folder of a run")
    return course_of(RunConfig.from_dict(read_record(path, "config", dict)["config"]))


def for_use(config: RunConfig, mesh: MeshConfig | None = None, compute_dtype: str | None = None) -> RunConfig:
    """The config of a trained model where it is used and not trained: one device unless `mesh` says otherwise."""
    mesh = mesh or MeshConfig()
    rows = -(-config.train.batch_size // mesh.rows) * mesh.rows
    tokens = max(config.train.train_tokens, rows * config.data.seq_len)
    train = dataclasses.replace(config.train, batch_size=rows, microbatches=1, train_tokens=tokens, remat="none")
    train = dataclasses.replace(train, compute_dtype=compute_dtype or config.train.compute_dtype)
    return dataclasses.replace(config, mesh=mesh, train=train, study=None, method=None)


def tokenizer_of(config: RunConfig) -> Tokenizer | None:
    """The one that the run's text was cut with; None if it, or its token store, is gone."""
    if config.data.tokenizer != "train":
        return open_tokenizer(config.data.tokenizer) if files.exists(config.data.tokenizer) else None
    try:
        return TokenStore(store_path(config.data)).tokenizer()
    except (OSError, DataError):
        return None
