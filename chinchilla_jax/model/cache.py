"""What does a decoder keep of the tokens it has seen? Keys and values of all layers, to see them again.

They are kept by head, `[B, G, T, K]`: what is multiplied with a query then lies together, and nothing has to be copied.
Where layers are not scanned those of a single row are `[G, T, K]`: the CPU backend writes into such an array in place,
and would copy one with an axis of 1 before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.positions import Span

AXES = ("batch", "heads", None, "head_dim")  # logical axes of the keys and values of a layer


Pair = tuple[jax.Array, jax.Array]


class Past(NamedTuple):
    """What one layer's attention sees of a `Cache`, whose fields these are, without L."""

    keys: jax.Array | None
    values: jax.Array | None
    distances: jax.Array | None
    starts: jax.Array | None
    length: jax.Array | int

    def span(self, tokens: int) -> Span:
        """Where the next tokens stand."""
        room = tokens if self.keys is None else self.keys.shape[-2]
        return Span(tokens, room, jnp.asarray(self.length, jnp.int32), self.distances)

    def with_new(self, k_BxGxSxK: jax.Array, v_BxGxSxK: jax.Array) -> tuple[Pair, Pair]:
        """All keys and values, `[B, G, T, K]`, with those of the next tokens in their places; and what a layer returns
        of them for `Cache.append`.
        """
        new = (k_BxGxSxK, v_BxGxSxK)
        if self.keys is None or self.values is None:
            return new, new
        written = self._written(self.keys, k_BxGxSxK), self._written(self.values, v_BxGxSxK)
        k_BxGxTxK, v_BxGxTxK = (x.reshape(-1, *x.shape[-3:]) for x in written)
        return (k_BxGxTxK, v_BxGxTxK), self._kept(new, written)

    def _written(self, old: jax.Array, new_BxGxSxK: jax.Array) -> jax.Array:
        return _write(old, new_BxGxSxK.reshape(*old.shape[:-2], *new_BxGxSxK.shape[-2:]), self.length)

    def _kept(self, new: Pair, written: Pair) -> Pair:
        return new  # a scan would copy all of what it returns of each layer

    def visible(self, tokens: int) -> dict[str, Any]:
        """Arguments of attention: where the queries stand among the keys, and which of the keys are only padding."""
        offset = 0 if self.keys is None else self.length
        if self.starts is None:
            return {"q_offset": offset, "segment_ids_BxT": None}
        room = tokens if self.keys is None else self.keys.shape[-2]
        is_text = [
            (first + jnp.arange(count) >= self.starts[:, None]).astype(jnp.int32)
            for first, count in ((0, room), (offset, tokens))
        ]
        return {"q_offset": offset, "segment_ids_BxT": is_text[0], "q_segment_ids_BxS": is_text[1]}


class PastOfLayer(Past):
    """The same of a layer that is not scanned: it returns what it has written, so that nothing is written twice."""

    def _kept(self, new: Pair, written: Pair) -> Pair:
        return written


class Cache(NamedTuple):
    """Of the tokens so far, in all layers. Without keys: of none so far, and there will be room for those that come.

    Where layers are scanned the first three are arrays with L as their first axis, else tuples of L arrays.

    Attributes:
      keys, values: `[L, B, G, T, K]` (`[G, T, K]` each of a tuple, if B is 1), with room for T tokens, in the model's
        compute type. Keys are rotated already.
      distances: `[L, T, H, K]`, the keys of all T distances of relative positions, which would otherwise be computed
        anew with every token; None of models without.
      starts: int32 `[B]`: at which position each row begins. What comes before is padding, which nothing sees. None:
        all begin at 0.
      length: int32 scalar: how many tokens there are, with the padding.
    """

    keys: Any = None
    values: Any = None
    distances: Any = None
    starts: jax.Array | None = None
    length: jax.Array | int = 0

    def layer(self, i: int) -> Past:
        """What layer i sees, of layers that are not scanned."""
        keys, values, distances = (None if x is None else x[i] for x in (self.keys, self.values, self.distances))
        return PastOfLayer(keys, values, distances, self.starts, self.length)

    def scanned(self) -> Past:
        """What all layers see, those of arrays with L as their first axis one after the other."""
        return Past(self.keys, self.values, self.distances, self.starts, self.length)

    def append(self, returned: tuple[Any, Any], tokens: int) -> Cache:
        """With so many tokens more, for which layers returned this. Whether there is room for them is not checked."""
        keys, values = jax.tree.map(_laid_out, returned)
        if self.keys is not None and not isinstance(keys, tuple):
            keys, values = _write(self.keys, keys, self.length), _write(self.values, values, self.length)
        return self._replace(keys=keys, values=values, length=self.length + tokens)

    def with_room(self, capacity: int) -> Cache:
        """The same with room for `capacity` tokens."""

        def grown(x: jax.Array) -> jax.Array:
            x = x[0] if _is_of_one_row(x.shape) else x
            room = [(0, 0)] * (x.ndim - 2) + [(0, capacity - x.shape[-2]), (0, 0)]
            return _laid_out(jnp.pad(x, room))

        keys, values = jax.tree.map(grown, (self.keys, self.values))
        return self._replace(keys=keys, values=values)


def _write(old_xTxK: jax.Array, new_xSxK: jax.Array, at: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old_xTxK, new_xSxK, at, axis=old_xTxK.ndim - 2)


def _laid_out(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, axes_of(x.ndim))


def axes_of(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of keys and values of a layer, or of all layers."""
    return ("layers", *AXES)[-ndim:]


def _is_of_one_row(shape: tuple[int, ...]) -> bool:
    """Whether keys of this shape are those of one layer and of one row."""
    return len(shape) == len(AXES) and shape[0] == 1


def empty_cache(config: ModelConfig, rows: int, capacity: int, dtype: jnp.dtype) -> Cache:
    """Room for `capacity` tokens in each of `rows` rows. `dtype` is the model's compute type."""
    shape: tuple[int, ...] = (rows, config.n_kv_heads, capacity, config.head_dim)
    if config.scan_layers:
        empty: Any = jnp.zeros((config.n_layers, *shape), dtype)
    else:
        shape = shape[1:] if _is_of_one_row(shape) else shape
        empty = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers))
    return Cache(empty, empty, length=jnp.zeros((), jnp.int32))


def cache_bytes(config: ModelConfig, rows: int, capacity: int, itemsize: int) -> int:
    """Bytes of `empty_cache`, with the keys of all distances if positions are relative."""
    numbers = 2 * rows * config.n_kv_heads + (config.n_heads if config.position == "relative" else 0)
    return config.n_layers * capacity * numbers * config.head_dim * itemsize
