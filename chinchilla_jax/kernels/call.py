"""What is one call of attention, and which calls are well formed?

A call is made and checked once, where attention is entered, and passed on. So every implementation refuses the same
calls with the same words, and none of them checks again.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_DOCUMENT = -(2**31)  # the id of queries that do not stand among the keys: equal to no id


class AttentionError(ValueError):
    """A call that attention cannot serve: `argument` is the name of what to change, the message says to what."""

    def __init__(self, argument: str, message: str):
        super().__init__(f"{argument}: {message}")
        self.argument = argument


@dataclasses.dataclass(frozen=True)
class Shape:
    """B rows, S queries, T keys, H heads that share G groups of keys, K numbers a head."""

    B: int
    S: int
    T: int
    H: int
    G: int
    K: int

    @property
    def heads_per_group(self) -> int:
        """Head h reads group `h // heads_per_group`."""
        return self.H // self.G


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """Arrays and settings of one call. B rows, S queries, T keys, H heads, G groups of keys, K numbers a head.

    After `check`, `q_offset` and `scale` have values. Inside `shard_map` the arrays are replaced by a device's parts of
    them, which need no other check.

    Attributes:
      q_BxSxHxK: queries, float32 or bfloat16 (or float64, for the plain form).
      k_BxTxGxK, v_BxTxGxK: keys and values of the same type; head h reads group h // (H / G).
      r_NxHxK: projected sinusoids of the same type, row c for the distance N - 1 - c: the farthest first. N is at least
        `min(q_offset + S, window)`, or `min(T, window)` if q_offset is traced; distances beyond count as r = 0.
      content_bias_HxK, position_bias_HxK: floats; with r, or not at all.
      q_turn_2xSxK, k_turn_2xTxK: rotate queries and keys first, `attention.turn`; both or neither, and not with r. They
        get no gradients. (The fused kernel does it on the chip.)
      segment_ids_BxT: int32; attention stays inside equal ids.
      q_segment_ids_BxS: those of the queries; default the ids at the queries' positions.
      q_offset: position of the first query; int, or an int32 scalar array for decoding with a cache; default T - S. May
        be negative, or T and more.
      window: how many keys a query sees at most, its own included.
      softcap: bound on the size of a score (Gemma 2, Gemma Team 2024, section 2).
      scale: of the scores; default K ** -0.5.
      return_lse: whether the log-sum-exp of each query's scores is returned too; it is differentiable.
    """

    q_BxSxHxK: jax.Array
    k_BxTxGxK: jax.Array
    v_BxTxGxK: jax.Array
    r_NxHxK: jax.Array | None = None
    content_bias_HxK: jax.Array | None = None
    position_bias_HxK: jax.Array | None = None
    q_turn_2xSxK: jax.Array | None = None
    k_turn_2xTxK: jax.Array | None = None
    segment_ids_BxT: jax.Array | None = None
    q_segment_ids_BxS: jax.Array | None = None
    q_offset: int | jax.Array | None = None
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    return_lse: bool = False

    def replace(self, **changes: Any) -> AttentionCall:
        """The call with other arrays or settings, by name; they are not checked."""
        return dataclasses.replace(self, **changes)

    def of_queries(self, first: int, stop: int) -> AttentionCall:
        """The same keys, and only queries `first : stop`."""
        part = (slice(None), slice(first, stop))
        return self.replace(
            q_BxSxHxK=self.q_BxSxHxK[part],
            q_turn_2xSxK=None if self.q_turn_2xSxK is None else self.q_turn_2xSxK[part],
            q_segment_ids_BxS=None if self.segment_ids_BxT is None else self.ids_of_queries[part],
            q_offset=self.q_offset + first,
        )

    def of_keys(self, first: int, stop: int) -> AttentionCall:
        """The same queries, with their ids, and only keys `first : stop`."""
        part = (slice(None), slice(first, stop))
        return self.replace(
            k_BxTxGxK=self.k_BxTxGxK[part],
            v_BxTxGxK=self.v_BxTxGxK[part],
            k_turn_2xTxK=None if self.k_turn_2xTxK is None else self.k_turn_2xTxK[part],
            q_segment_ids_BxS=self.ids_of_queries,
            segment_ids_BxT=None if self.segment_ids_BxT is None else self.segment_ids_BxT[part],
            q_offset=self.q_offset - first,
        )

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """By name, those that there are."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in named.items() if isinstance(x, jax.Array | np.ndarray)}

    @property
    def shape(self) -> Shape:
        """The sizes of the arrays."""
        (b, s, h, size), (t, g) = self.q_BxSxHxK.shape, self.k_BxTxGxK.shape[1:3]
        return Shape(b, s, t, h, g, size)

    @property
    def offset_is_static(self) -> bool:
        """Whether `q_offset` is known while tracing."""
        return isinstance(self.q_offset, int)

    @property
    def queries_are_keys(self) -> bool:
        """Whether it is certain while tracing that each query stands among the keys."""
        return self.offset_is_static and 0 <= self.q_offset <= self.k_BxTxGxK.shape[1] - self.q_BxSxHxK.shape[1]

    @property
    def ids_of_queries(self) -> jax.Array | None:
        """`[B, S]`, those given or those at the queries' positions; None without segments. Of NumPy ids that are known
        while tracing NumPy ids, so that what is computed from them alone is a constant of the program."""
        if self.segment_ids_BxT is None or self.q_segment_ids_BxS is not None:
            return self.q_segment_ids_BxS
        queries, keys = self.q_BxSxHxK.shape[1], self.k_BxTxGxK.shape[1]
        if self.offset_is_static:
            return self.segment_ids_BxT[:, self.q_offset : self.q_offset + queries]
        position = self.q_offset + jnp.arange(queries)
        ids = jnp.take(jnp.asarray(self.segment_ids_BxT), position.clip(0, keys - 1), axis=1)
        return jnp.where((position >= 0) & (position < keys), ids, NO_DOCUMENT)

    @property
    def every_query_sees_a_key(self) -> bool:
        """Whether that is certain while tracing: otherwise rows without a key have to be provided for."""
        if self.q_segment_ids_BxS is not None or not self.offset_is_static:
            return False
        if self.segment_ids_BxT is not None:
            return self.queries_are_keys  # its own key has its own id
        shape = self.shape
        beyond_the_keys = self.q_offset + shape.S - shape.T
        return self.q_offset >= 0 and (self.window is None or beyond_the_keys < self.window)


def check(call: AttentionCall) -> AttentionCall:
    """The call with its offset and scale filled in. float64 is taken here, and refused by what cannot compute in it.

    Raises:
      AttentionError: for the first argument found wrong.
    """
    _check_shapes(call)
    call = call.replace(q_offset=_offset(call))
    if call.window is not None and (not _is_int(call.window) or call.window < 1):
        raise AttentionError(
            "window", f"must be an int of at least 1 (1: each query sees its own key), not {call.window!r}"
        )
    for name in ("softcap", "scale"):
        value = getattr(call, name)
        number = isinstance(value, int | float | np.number) and math.isfinite(value) and value > 0
        if value is not None and not number:
            raise AttentionError(name, f"must be a positive Python number or None; got {_text(value)}")
    _check_distances(call)
    _check_turns(call)
    _check_segments(call)
    return call.replace(scale=call.shape.K**-0.5 if call.scale is None else float(call.scale))


def _check_shapes(call: AttentionCall) -> None:
    q, k, v = call.q_BxSxHxK, call.k_BxTxGxK, call.v_BxTxGxK
    for name, x in (("q_BxSxHxK", q), ("k_BxTxGxK", k), ("v_BxTxGxK", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise AttentionError(name, f"needs four axes, none empty: {name.removeprefix(name[:2])}; got {_text(x)}")
    shape = call.shape
    if (k.shape[0], k.shape[3]) != (shape.B, shape.K):
        raise AttentionError(
            "k_BxTxGxK",
            f"must agree with the queries in rows and head size, B={shape.B} and K={shape.K}; got {_text(k)}",
        )
    if shape.H % shape.G:
        raise AttentionError(
            "k_BxTxGxK", f"{shape.G} groups do not divide the {shape.H} heads of the queries: use a divisor"
        )
    if v.shape != k.shape:
        raise AttentionError("v_BxTxGxK", f"must have the shape of the keys, {list(k.shape)}; got {_text(v)}")
    if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
        raise AttentionError("q_BxSxHxK", f"is {q.dtype}: cast it to float32 or bfloat16")
    for name, x in (("k_BxTxGxK", k), ("v_BxTxGxK", v)):
        _check_type(call, name, x)


def _check_type(call: AttentionCall, name: str, x: jax.Array) -> None:
    dtype = call.q_BxSxHxK.dtype
    if x.dtype != dtype:
        raise AttentionError(name, f"is {x.dtype} and the queries are {dtype}: cast it to {dtype}")


def _offset(call: AttentionCall) -> int | jax.Array:
    offset = call.q_offset
    if offset is None:
        return call.shape.T - call.shape.S
    if _is_int(offset):
        return operator.index(offset)
    if not isinstance(offset, jax.Array | np.ndarray) or offset.shape != () or offset.dtype != jnp.int32:
        raise AttentionError("q_offset", f"must be an int or an int32 scalar array; got {_text(offset)}")
    return jnp.asarray(offset)


def _check_distances(call: AttentionCall) -> None:
    names, shape, r = ("r_NxHxK", "content_bias_HxK", "position_bias_HxK"), call.shape, call.r_NxHxK
    missing = [name for name in names if getattr(call, name) is None]
    if len(missing) == 3:
        return
    if missing:
        raise AttentionError(missing[0], f"is missing: relative attention needs {', '.join(names)} together")
    for name in names[1:]:
        x = getattr(call, name)
        if x.shape != (shape.H, shape.K) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise AttentionError(name, f"must be floats [{shape.H}, {shape.K}], heads by head size; got {_text(x)}")
    if r.ndim != 3 or r.shape[1:] != (shape.H, shape.K):
        raise AttentionError(
            "r_NxHxK", f"must be [N, {shape.H}, {shape.K}]: distances, heads, head size; got {_text(r)}"
        )
    _check_type(call, "r_NxHxK", r)
    # One more than the largest distance at which a key may be visible; T where the offset is only known at run time.
    needed = max(call.q_offset + shape.S, 1) if call.offset_is_static else shape.T
    needed = needed if call.window is None else min(needed, call.window)
    if r.shape[0] < needed:
        raise AttentionError(
            "r_NxHxK",
            f"has {r.shape[0]} rows, but keys up to distance {needed - 1} may be visible: "
            f"give at least {needed}, the farthest first",
        )


def _check_turns(call: AttentionCall) -> None:
    shape = call.shape
    turns = {"q_turn_2xSxK": (call.q_turn_2xSxK, shape.S), "k_turn_2xTxK": (call.k_turn_2xTxK, shape.T)}
    missing = [name for name, (x, _) in turns.items() if x is None]
    if len(missing) == 2:
        return
    if missing:
        raise AttentionError(missing[0], "is missing: queries and keys are rotated together")
    if call.r_NxHxK is not None:
        raise AttentionError("q_turn_2xSxK", "rotations and a relative term exclude each other: give one of them")
    for name, (x, length) in turns.items():
        if x.shape != (2, length, shape.K) or not jnp.issubdtype(x.dtype, jnp.floating) or shape.K % 2:
            raise AttentionError(
                name,
                f"must be floats [2, {length}, {shape.K}]: factors of a number and of its "
                f"partner half a head away, so K has to be even; got {_text(x)}",
            )


def _check_segments(call: AttentionCall) -> None:
    shape, segments, q_segments = call.shape, call.segment_ids_BxT, call.q_segment_ids_BxS
    if segments is None:
        if q_segments is not None:
            raise AttentionError("segment_ids_BxT", "is missing: the ids of the queries are compared with the keys'")
        return
    for name, ids, size in (("segment_ids_BxT", segments, shape.T), ("q_segment_ids_BxS", q_segments, shape.S)):
        if ids is not None and (ids.shape != (shape.B, size) or ids.dtype != jnp.int32):
            raise AttentionError(name, f"must be int32 {[shape.B, size]}; got {_text(ids)}")
    if q_segments is None and call.offset_is_static and not call.queries_are_keys:
        raise AttentionError(
            "q_segment_ids_BxS",
            f"is missing: with q_offset={call.q_offset} the {shape.S} queries are not "
            f"all among the {shape.T} keys, whose ids are in segment_ids_BxT",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _text(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)
