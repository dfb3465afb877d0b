"""Where do the units of a model go when it grows, and which weights of the larger one are new?

Old coordinates of the residual stream, hidden units and key heads come first. Query heads keep their key head, so they
move where a key head gets more of them. Old layers keep their order.

The keys of distances in relative positions are made of sinusoids as wide as the model. With w_t(d) = 10000^(-2t/d) the
frequencies of a width k d hold those of d: w_kt(k d) = w_t(d). So old rows of the projection go to every k-th row of
each half, and old heads get zeros for the frequencies between: they see the same keys, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.parts import NORMS, Weight, block_weights, end_weights

_KEY_HEADS = ("key", "value", "key_bias", "value_bias")
# What writes to the residual stream: the embeddings, and the last product of attention and of the feed-forward layer.
_WRITES = {
    "": ("embedding", "position"),
    "attention": ("output", "output_bias"),
    "feed_forward": ("down", "down_bias"),
}


Layers = slice | int | None


class Place(NamedTuple):
    """A weight of both models: the module it belongs to, `""` at the ends; its name; where its old entries go.

    `old_at` has for each axis of a single layer's array the new indices of the old ones; `shape` is the new array's.
    """

    module: str
    name: str
    shape: tuple[int, ...]
    old_at: tuple[np.ndarray, ...]

    @property
    def writes(self) -> bool:
        """Whether it writes to the residual stream."""
        return self.name in _WRITES.get(self.module, ())

    def is_old(self) -> jax.Array:
        """Which entries hold old weights, as an array that broadcasts to `shape`."""
        mask: Any = jnp.array(True)
        for axis, (size, indices) in enumerate(zip(self.shape, self.old_at, strict=True)):
            if len(indices) < size:
                along = np.isin(np.arange(size), indices)
                mask = mask & along.reshape([-1 if i == axis else 1 for i in range(len(self.shape))])
        return mask

    def put(self, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """The larger array: old entries where they belong, fresh ones elsewhere."""
        wide = old
        for axis, (size, indices) in enumerate(zip(self.shape, self.old_at, strict=True)):
            if len(indices) < size:
                wide = _spread(wide, axis, size, indices)
        if self.name == "relative":
            fresh = jnp.where(np.isin(np.arange(self.shape[1]), self.old_at[1])[:, None], 0.0, fresh)
        return jnp.where(self.is_old(), wide, fresh)


def _spread(x: jax.Array, axis: int, size: int, indices: np.ndarray) -> jax.Array:
    """x with its entries along an axis at new indices, and anything between them."""
    if np.array_equal(indices, np.arange(len(indices))):
        return jnp.pad(x, [(0, size - len(indices)) if i == axis else (0, 0) for i in range(x.ndim)])
    inverse = np.zeros(size, np.int32)
    inverse[indices] = np.arange(len(indices))
    return jnp.take(x, inverse, axis=axis)


def layer_sources(old: int, new: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """For each of the `new` layers the old one it begins as, and whether it is a copy, and no old layer itself.

    `interleave`: copies follow their source; the layers nearest to the output get one more where numbers do not divide.
    `stack`: copies of the whole stack above it, and above these the upper part of it.
    """
    whole, rest = divmod(new, old)
    if how == "stack":
        sources = np.concatenate([np.tile(np.arange(old), whole), np.arange(old - rest, old)])
        return sources, np.arange(new) >= old
    sources = np.repeat(np.arange(old), [whole + (layer >= old - rest) for layer in range(old)])
    return sources, np.concatenate([[False], sources[1:] == sources[:-1]])


def _places(small: ModelConfig, large: ModelConfig) -> Iterator[Place]:
    """Every weight of both models; of those in layers, that of one layer."""
    modules = [
        ("", end_weights(small), end_weights(large)),
        ("final_norm", NORMS[small.norm].weights(small), NORMS[large.norm].weights(large)),
    ]
    larger = block_weights(large)
    modules += [(module, weights, larger[module]) for module, weights in block_weights(small).items()]
    for module, weights, large_weights in modules:
        for name, weight in weights.items():
            old_at = tuple(_old_at(name, axis, weight, small, large) for axis in range(len(weight.shape)))
            yield Place(module, name, large_weights[name].shape, old_at)


def _old_at(name: str, axis: int, weight: Weight, small: ModelConfig, large: ModelConfig) -> np.ndarray:
    indices, logical = np.arange(weight.shape[axis]), weight.axes[axis]
    if logical == "heads" and name not in _KEY_HEADS:
        per_group, larger = (c.n_heads // c.n_kv_heads for c in (small, large))
        return indices // per_group * larger + indices % per_group
    if logical == "embed" and name == "relative":
        half = small.d_model // 2
        factor = large.d_model // small.d_model
        return indices // half * (large.d_model // 2) + indices % half * factor
    return indices


def map_weights(
    function: Callable[..., jax.Array], small: ModelConfig, large: ModelConfig, *trees: dict[str, Any]
) -> dict[str, Any]:
    """`function(place, layers, *leaves)` for every weight of parameter trees that are laid out as those of `large`.

    `layers` says of which layers the leaves are: all of them, stacked, or one, or None at the ends.
    """
    made: dict[str, Any] = {}

    def put(path: tuple[str, ...], place: Place, layers: Layers) -> None:
        leaves, module = trees, made
        for key in path:
            leaves, module = tuple(tree[key] for tree in leaves), module.setdefault(key, {})
        module[place.name] = function(place, layers, *(tree[place.name] for tree in leaves))

    of_layers: dict[str, Layers] = {f"layer_{i}": i for i in range(large.n_layers)}
    if large.scan_layers:
        of_layers = {"layers": slice(None)}
    for place in _places(small, large):
        if place.module in ("", "final_norm"):
            put((place.module,) if place.module else (), place, None)
        else:
            for key, layers in of_layers.items():
                put((key, place.module), place, layers)
    return made


def in_layers(
    params: dict[str, Any], small: ModelConfig, large: ModelConfig, sources: np.ndarray, copies: np.ndarray | None
) -> dict[str, Any]:
    """Parameters of the small model with as many layers as the large one, each that of its source.

    With `copies`, which says for every layer whether it is one, these are zeros instead: moments start anew.
    """
    keep = np.ones(large.n_layers, bool) if copies is None else ~copies

    def stacked(leaf: jax.Array) -> jax.Array:
        taken = jnp.take(leaf, sources, axis=0)
        return taken if keep.all() else jnp.where(keep.reshape(-1, *(1,) * (leaf.ndim - 1)), taken, 0)

    if small.scan_layers:
        return params | {"layers": jax.tree.map(stacked, params["layers"])}
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    layers = [params[f"layer_{source}"] for source in sources]
    layers = [layer if kept else jax.tree.map(jnp.zeros_like, layer) for layer, kept in zip(layers, keep, strict=True)]
    return rest | {f"layer_{i}": layer for i, layer in enumerate(layers)}
