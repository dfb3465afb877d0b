"""Which weights are in a checkpoint of a run? Those that are asked for, and no others, come into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig
from chinchilla_jax.interop.layout import WeightsError
from chinchilla_jax.interop.trained import for_use, no_checkpoint, read_course
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import restore_params
from chinchilla_jax.training.step import make_program


class RunWeights:
    """The weights of a run directory, to be read a kind at a time: one array here holds it for all layers.

    `step` is that of the checkpoint: the one that is asked for, or the newest that can be read. `config` is of the
    stage that it belongs to. Raises ConfigError as `trained.open_model` does.
    """

    def __init__(self, folder: Path, step: int | None, echo: Callable[[str], None]):
        self.path, self._checkpoints, self._echo = folder, folder / "checkpoints", echo
        course = read_course(folder)
        at = min(course.total_steps if step is None else step, course.total_steps)
        self.config: RunConfig = course.at(at).config
        usable = for_use(self.config)
        self._abstract = make_program(usable, make_mesh(usable.mesh)).abstract.params
        found = restore_params(self._checkpoints, step, self._part({"final_norm/gain"}), echo)
        if found is None:
            raise no_checkpoint(folder, step)
        self.step = found[1]
        if course.at(min(self.step, course.total_steps)).config.model != self.config.model:
            raise ConfigError("step", f"the newest readable checkpoint is of another stage: give --step={self.step}")
        self._held: dict[str, Any] = {}

    @property
    def model(self) -> ModelConfig:
        """What the weights are of."""
        return self.config.model

    def begin(self, paths: Iterable[str]) -> None:
        """Reads these weights, of all layers, and forgets the others."""
        paths = set(paths)
        self._held = {path: arrays for path, arrays in self._held.items() if path in paths}
        if missing := paths - self._held.keys():
            found = restore_params(self._checkpoints, self.step, self._part(missing), self._echo)
            if found is None:
                raise WeightsError(f"{self._checkpoints}: the checkpoint of step {self.step} is damaged")
            for path in missing:
                self._held[path] = {key: np.asarray(array) for key, array in _leaves(found[0], path)}

    def dtype_of(self, path: str) -> np.dtype:
        """Weights in training are float32."""
        del path
        return np.dtype(np.float32)

    def read(self, path: str, layer: int | None, expert: int | None = None) -> np.ndarray:
        """A weight of one layer, or of one expert in it. `begin` has named it."""
        arrays = self._held[path]
        if layer is None:
            array = arrays[path]
        elif f"layers/{path}" in arrays:
            array = arrays[f"layers/{path}"][layer]
        else:
            array = arrays[f"layer_{layer}/{path}"]
        return array if expert is None else array[expert]

    def _part(self, paths: Iterable[str]) -> dict[str, Any]:
        """The tree of these weights alone."""
        tree: dict[str, Any] = {}
        for path in paths:
            for key, leaf in _leaves(self._abstract, path):
                *modules, name = key.split("/")
                within = tree
                for module in modules:
                    within = within.setdefault(module, {})
                within[name] = leaf
        return tree


def _leaves(tree: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    """The leaves of a weight by their own paths: one, or one a layer."""
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = "/".join(entry.key for entry in keys)
        if path in (key, key.partition("/")[2]):
            found.append((key, leaf))
    return found
