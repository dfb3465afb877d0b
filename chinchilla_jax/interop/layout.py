"""How does a weight lie in the tensor that holds it elsewhere? Rows of the tensor become blocks of the weight.

A weight here may have three axes (`[D, H, K]`) and be stacked over layers and experts. Elsewhere it is a matrix of one
layer and one expert, as a rule the other way round, and several weights may share one tensor. A `Place` is one such
matrix: whole rows of a tensor, as they are read one after the other, are a block of the weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from chinchilla_jax.base.errors import ExplainedError
from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.parts import NORMS, Weight, Weights, block_weights, end_weights, is_experts, is_matrix


class WeightsError(ExplainedError, ValueError):
    """Weights that cannot be read, or that are not those of the model."""


class Name(NamedTuple):
    """What a weight is called elsewhere; `{layer}` and `{expert}` stand for numbers.

    Attributes:
      transposed: the matrix is `[out, in]` there.
      part: of a tensor that holds three weights side by side along its last axis, which one.
      interleaved: the two halves of a head's numbers alternate there (the LLaMA release).
      whole: the tensor has the axes that the weight has here.
    """

    tensor: str
    transposed: bool = False
    part: int | None = None
    interleaved: bool = False
    whole: bool = False


PARTS = 3  # weights in a tensor that has parts: query, key and value


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a weight of one layer, or an expert's share of it, lies.

    Attributes:
      tensor: its name there, with numbers in it.
      path: the weight's path here, in a layer without the layer.
      at: indices of the stacked axes before `shape`: of the layer if it is in one, then of the expert.
      shape: of what this tensor holds of the weight.
      split: how many axes of `shape` are one side of the matrix; the others are the other side.
    """

    tensor: str
    name: Name
    path: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    split: int

    @property
    def layer(self) -> int | None:
        """Of which layer; None outside the layers."""
        return self.at[0] if "{layer}" in self.name.tensor else None

    @property
    def expert(self) -> int | None:
        """Of which expert; None for the weight of all."""
        return self.at[-1] if "{expert}" in self.name.tensor else None

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """What the tensor's shape must be."""
        if self.name.whole:
            return self.shape
        sides = [math.prod(axes) for axes in (self.shape[: self.split], self.shape[self.split :]) if axes]
        sides = sides[::-1] if self.name.transposed else sides
        return tuple(sides) if self.name.part is None else (*sides[:-1], PARTS * sides[-1])

    @property
    def row_axes(self) -> range:
        """The axes of `shape` that the tensor's rows run over."""
        if self.name.whole:
            return range(1)
        return range(self.split, len(self.shape)) if self.name.transposed else range(self.split)

    @property
    def unit(self) -> int:
        """Rows that stay together: of one index of the first row axis."""
        return math.prod(self.shape[axis] for axis in self.row_axes[1:])

    @property
    def offset(self) -> int:
        """Before which row of the tensor the weight begins: not 0 for later parts of a vector."""
        vector = len(self.tensor_shape) == 1
        return self.name.part * math.prod(self.shape) if vector and self.name.part is not None else 0

    def block(self, rows: np.ndarray) -> np.ndarray:
        """Some rows of the tensor, in whole units, as a block of the weight: whole along all axes but the first row
        axis. A view where that can be."""
        if self.name.part is not None and rows.ndim > 1:
            rows = np.split(rows, PARTS, axis=-1)[self.name.part]
        first = self.row_axes[0]
        shape = (*self.shape[:first], len(rows) // self.unit, *self.shape[first + 1 :])
        block = (rows.T if self.name.transposed else rows).reshape(shape)
        if not self.name.interleaved:
            return block
        return np.concatenate([block[..., 0::2], block[..., 1::2]], axis=-1)

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """`block` the other way round, of the whole weight: its part of the tensor."""
        if self.name.interleaved:
            raise NotImplementedError("tensors in the layout of the LLaMA release are read, not written")
        if self.name.whole:
            return weight
        sides = [math.prod(axes) for axes in (self.shape[: self.split], self.shape[self.split :]) if axes]
        matrix = weight.reshape(sides)
        return matrix.T if self.name.transposed else matrix


def weights_by_path(model: ModelConfig) -> dict[str, Weight]:
    """Every weight by its path; that of a layer without the layer, as `attention/query`."""
    modules: dict[str, Weights] = {"final_norm": NORMS[model.norm].weights(model), **block_weights(model)}
    inner = {f"{module}/{name}": weight for module, weights in modules.items() for name, weight in weights.items()}
    return end_weights(model) | inner


def places(model: ModelConfig, names: Mapping[str, Name]) -> Iterator[Place]:
    """Of every weight of the model all places, layer by layer. A KeyError is of a weight without a name."""
    layered = block_weights(model)
    for path, weight in weights_by_path(model).items():
        name = names[path]
        layers = range(model.n_layers) if path.split("/")[0] in layered else None
        experts = range(weight.shape[0]) if "{expert}" in name.tensor else None
        shape = weight.shape[1:] if experts is not None else weight.shape
        split = _split(weight) - (is_experts(weight) and experts is not None)
        for layer in layers or [None]:
            for expert in experts or [None]:
                at = tuple(number for number in (layer, expert) if number is not None)
                yield Place(name.tensor.format(layer=layer, expert=expert), name, path, at, shape, split)


def _split(weight: Weight) -> int:
    """Between which axes of a matrix its two sides meet; a vector, of one or more axes, is one side."""
    if not is_matrix(weight):
        return len(weight.shape)
    return len(weight.shape) - 1 if weight.axes[-1] == "embed" else 1 + is_experts(weight)


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], wanted: Collection[Place], where: str, besides: Collection[str] = ()
) -> None:
    """Raises `WeightsError` unless the tensors are those of the places, neither fewer nor more.

    `besides` are names of tensors that may be there too.
    """
    needed = {place.tensor: place.tensor_shape for place in wanted}
    missing = sorted(needed.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - needed.keys() - set(besides))
    for what, names in (("lacks", missing), ("has, beside those of the model,", unexpected)):
        if names:
            raise WeightsError(f"{where} {what} {_few(names)}")
    for name, shape in needed.items():
        if tuple(shapes[name]) != shape:
            raise WeightsError(f"{where}: {name} is {list(shapes[name])}, but its model needs {list(shape)}")


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)}: {', '.join(names[:3])}{rest}"
