"""What is one call of attention, and which calls are well formed?

A call is made and checked once, where attention is entered, and passed on. So every implementation refuses the same
calls with the same words, and none of them checks again.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# `[B, S, H, K]`, or with `return_lse` a pair of it and `[B, H, S]`: the caller knows which, a type checker does not.
Attended = Any
NO_DOCUMENT = -(2**31)  # the id of queries that do not stand among the keys: equal to no id


class AttentionError(ValueError):
    """A call that attention cannot serve: `argument` is the name of what to change, the message says to what."""

    def __init__(self, argument: str, message: str):
        super().__init__(f"{argument}: {message}")
        self.argument = argument


class Shape(NamedTuple):
    """B rows, S queries, T keys, H heads that share G groups of keys, K numbers a head."""

    B: int
    S: int
    T: int
    H: int
    G: int
    K: int


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """Arrays and settings of one call. B rows, S queries, T keys, H heads, G groups of keys, K numbers a head.

    `check` makes it. Inside `shard_map` the arrays are replaced by a device's parts of them, which need no other check.

    Head h reads group h // (H / G) of keys and values. `q_turn` and `k_turn` rotate queries and keys first, as
    `attention.turn` does (the fused kernel on the chip); they are given both or not at all, not with r, and get no
    gradients. r and the biases are given together or not at all.
    """

    q_BxSxHxK: jax.Array  # float32 or bfloat16 (or float64, for the plain form)
    k_BxTxGxK: jax.Array  # keys, values and r have the type of the queries
    v_BxTxGxK: jax.Array
    # Projected sinusoids, row c for the distance N - 1 - c: the farthest first. N is at least `min(q_offset + S,
    # window)`, or `min(T, window)` if q_offset is traced; distances beyond count as r = 0.
    r_NxHxK: jax.Array | None = None
    content_bias_HxK: jax.Array | None = None
    position_bias_HxK: jax.Array | None = None
    q_turn_2xSxK: jax.Array | None = None
    k_turn_2xTxK: jax.Array | None = None
    segment_ids_BxT: jax.Array | None = None  # int32; attention stays inside equal ids
    q_segment_ids_BxS: jax.Array | None = None  # those of the queries; default the ids at their positions
    # Position of the first query: int, or an int32 scalar array for decoding with a cache. May be negative, or T and
    # more. `check` fills in T - S if it is not given.
    q_offset: int | jax.Array = 0
    window: int | None = None  # how many keys a query sees at most, its own included
    softcap: float | None = None  # bound on the size of a score (Gemma 2, Gemma Team 2024, section 2)
    scale: float = 1.0  # of the scores; `check` fills in K ** -0.5 if it is not given
    return_lse: bool = False  # whether the log-sum-exp of each query's scores, differentiable, is returned too

    def replace(self, **changes: Any) -> AttentionCall:
        """The call with other arrays or settings, by name; they are not checked."""
        return dataclasses.replace(self, **changes)

    def of_queries(self, first: int, stop: int) -> AttentionCall:
        """The same keys, and only queries `first : stop`."""
        names = ("q_BxSxHxK", "q_turn_2xSxK", "q_segment_ids_BxS")
        with_ids = self.replace(q_segment_ids_BxS=self.ids_of_queries)
        return with_ids._cut(names, first, stop).replace(q_offset=self.q_offset + first)

    def of_keys(self, first: int, stop: int) -> AttentionCall:
        """The same queries, with their ids, and only keys `first : stop`."""
        names = ("k_BxTxGxK", "v_BxTxGxK", "k_turn_2xTxK", "segment_ids_BxT")
        with_ids = self.replace(q_segment_ids_BxS=self.ids_of_queries)
        return with_ids._cut(names, first, stop).replace(q_offset=self.q_offset - first)

    def _cut(self, names: tuple[str, ...], first: int, stop: int) -> AttentionCall:
        """Cuts the named arrays along their second axis, as far as they are given."""
        return self.replace(**{name: x[:, first:stop] for name, x in self.arrays.items() if name in names})

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
        return self.offset_is_static and 0 <= self.q_offset <= self.shape.T - self.shape.S

    @property
    def ids_of_queries(self) -> jax.Array | None:
        """`[B, S]`, those given or those at the queries' positions; None without segments. Of NumPy ids that are known
        while tracing NumPy ids, so that what is computed from them alone is a constant of the program."""
        if self.segment_ids_BxT is None or self.q_segment_ids_BxS is not None:
            return self.q_segment_ids_BxS
        shape = self.shape
        if self.offset_is_static:
            return self.segment_ids_BxT[:, self.q_offset : self.q_offset + shape.S]
        position = self.q_offset + jnp.arange(shape.S)
        ids = jnp.take(jnp.asarray(self.segment_ids_BxT), position.clip(0, shape.T - 1), axis=1)
        return jnp.where((position >= 0) & (position < shape.T), ids, NO_DOCUMENT)

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


def check(*arrays: jax.Array, q_offset: Any = None, scale: Any = None, **named: Any) -> AttentionCall:
    """The call of these arguments, which are fields of `AttentionCall` in their order or by name.

    Without a `q_offset` the last query stands at the last key; without a `scale` it is K ** -0.5. float64 passes, and
    is refused by what cannot compute in it.

    Raises:
      AttentionError: for the first argument found wrong.
    """
    call = AttentionCall(*arrays, **named)
    _refuse(_faults_of_shapes(call))
    shape = call.shape
    offset = shape.T - shape.S if q_offset is None else q_offset
    offset = operator.index(offset) if _is_int(offset) else offset
    call = call.replace(q_offset=offset, scale=shape.K**-0.5 if scale is None else scale)
    for faults in (_faults_of_numbers, _faults_of_distances, _faults_of_turns, _faults_of_segments):
        _refuse(faults(call))
    offset = offset if call.offset_is_static else jnp.asarray(offset)
    return call.replace(q_offset=offset, scale=float(call.scale))


# Whether something is wrong, with which argument, and what to change. Each may rely on those before it.
_Faults = Iterator[tuple[bool, str, str]]


def _refuse(faults: _Faults) -> None:
    for wrong, argument, message in faults:
        if wrong:
            raise AttentionError(argument, message)


def _faults_of_shapes(call: AttentionCall) -> _Faults:
    q, k, v, r = call.q_BxSxHxK, call.k_BxTxGxK, call.v_BxTxGxK, call.r_NxHxK
    for name, x in (("q_BxSxHxK", q), ("k_BxTxGxK", k), ("v_BxTxGxK", v)):
        yield x.ndim != 4 or 0 in x.shape, name, f"needs four axes, none empty: {name[2:]}; got {_text(x)}"
    shape = call.shape
    agree = f"must agree with the queries in rows and head size, B={shape.B} and K={shape.K}; got {_text(k)}"
    yield (k.shape[0], k.shape[3]) != (shape.B, shape.K), "k_BxTxGxK", agree
    divide = f"{shape.G} groups do not divide the {shape.H} heads of the queries: use a divisor"
    yield shape.H % shape.G != 0, "k_BxTxGxK", divide
    yield v.shape != k.shape, "v_BxTxGxK", f"must have the shape of the keys, {list(k.shape)}; got {_text(v)}"
    known = q.dtype in (jnp.float32, jnp.bfloat16, jnp.float64)
    yield not known, "q_BxSxHxK", f"is {q.dtype}: cast it to float32 or bfloat16"
    for name, x in (("k_BxTxGxK", k), ("v_BxTxGxK", v), ("r_NxHxK", q if r is None else r)):
        yield x.dtype != q.dtype, name, f"is {x.dtype} and the queries are {q.dtype}: cast it to {q.dtype}"


def _faults_of_numbers(call: AttentionCall) -> _Faults:
    at, window = call.q_offset, call.window
    scalar = isinstance(at, jax.Array | np.ndarray) and at.shape == () and at.dtype == jnp.int32
    yield not (_is_int(at) or scalar), "q_offset", f"must be an int or an int32 scalar array; got {_text(at)}"
    one = f"must be an int of at least 1 (1: each query sees its own key), not {window!r}"
    yield window is not None and (not _is_int(window) or window < 1), "window", one
    for name, x in (("softcap", call.softcap), ("scale", call.scale)):
        number = x is None or (isinstance(x, int | float | np.number) and math.isfinite(x) and x > 0)
        yield not number, name, f"must be a positive Python number or None; got {_text(x)}"


def _faults_of_distances(call: AttentionCall) -> _Faults:
    u, w, r, shape = call.content_bias_HxK, call.position_bias_HxK, call.r_NxHxK, call.shape
    yield from _together("relative attention", r_NxHxK=r, content_bias_HxK=u, position_bias_HxK=w)
    if r is None or u is None or w is None:
        return
    for name, x in (("content_bias_HxK", u), ("position_bias_HxK", w)):
        fits = x.shape == (shape.H, shape.K) and jnp.issubdtype(x.dtype, jnp.floating)
        yield not fits, name, f"must be floats [{shape.H}, {shape.K}], heads by head size; got {_text(x)}"
    rows = f"must be [N, {shape.H}, {shape.K}]: distances, heads, head size; got {_text(r)}"
    yield r.ndim != 3 or r.shape[1:] != (shape.H, shape.K), "r_NxHxK", rows
    # One more than the largest distance at which a key may be visible; T where the offset is only known at run time.
    needed = max(call.q_offset + shape.S, 1) if call.offset_is_static else shape.T
    needed = needed if call.window is None else min(needed, call.window)
    more = f"has {r.shape[0]} rows, but keys up to distance {needed - 1} may be visible: give at least {needed}"
    yield r.shape[0] < needed, "r_NxHxK", f"{more}, the farthest first"


def _faults_of_turns(call: AttentionCall) -> _Faults:
    q_turn, k_turn, shape = call.q_turn_2xSxK, call.k_turn_2xTxK, call.shape
    yield from _together("rotation", q_turn_2xSxK=q_turn, k_turn_2xTxK=k_turn)
    if q_turn is None or k_turn is None:
        return
    both = "rotations and a relative term exclude each other: give one of them"
    yield call.r_NxHxK is not None, "q_turn_2xSxK", both
    for name, x, length in (("q_turn_2xSxK", q_turn, shape.S), ("k_turn_2xTxK", k_turn, shape.T)):
        fits = x.shape == (2, length, shape.K) and jnp.issubdtype(x.dtype, jnp.floating) and shape.K % 2 == 0
        halves = "factors of a number and of its partner half a head away, so K has to be even"
        yield not fits, name, f"must be floats [2, {length}, {shape.K}]: {halves}; got {_text(x)}"


def _faults_of_segments(call: AttentionCall) -> _Faults:
    shape, ids, q_ids = call.shape, call.segment_ids_BxT, call.q_segment_ids_BxS
    alone = "is missing: the ids of the queries are compared with the keys'"
    yield ids is None and q_ids is not None, "segment_ids_BxT", alone
    for name, x, size in (("segment_ids_BxT", ids, shape.T), ("q_segment_ids_BxS", q_ids, shape.S)):
        fits = x is None or (x.shape == (shape.B, size) and x.dtype == jnp.int32)
        yield not fits, name, f"must be int32 {[shape.B, size]}; got {_text(x)}"
    outside = f"with q_offset={call.q_offset} the {shape.S} queries are not all among the {shape.T} keys"
    unknown = ids is not None and q_ids is None and call.offset_is_static and not call.queries_are_keys
    yield unknown, "q_segment_ids_BxS", f"is missing: {outside}, whose ids are in segment_ids_BxT"


def _together(what: str, **arrays: jax.Array | None) -> _Faults:
    """All of them are given, or none."""
    for name, x in arrays.items():
        some = any(other is not None for other in arrays.values())
        yield x is None and some, name, f"is missing: {what} needs {', '.join(arrays)} together"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _text(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)
