"""Which calls of attention are well formed, and what do the arguments left out stand for?

Every implementation calls `check` first, so that all of them refuse the same calls with the same words.
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
    """B rows, S queries, T keys, H heads that share G groups of keys, K numbers a head; N distances or None."""

    B: int
    S: int
    T: int
    H: int
    G: int
    K: int
    N: int | None

    @property
    def heads_per_group(self) -> int:
        """Head h reads group `h // heads_per_group`."""
        return self.H // self.G


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A checked call, its defaults filled in.

    `q_offset` is a Python int, or an int32 scalar array where it is only known at run time; `q_segment_ids_BxS` is
    None if and only if no segments were given. `every_query_sees_a_key` is True only where that is certain before
    running: otherwise empty rows have to be provided for.
    """

    shape: Shape
    q_offset: int | jax.Array
    scale: float
    q_segment_ids_BxS: jax.Array | None
    every_query_sees_a_key: bool

    @property
    def offset_is_static(self) -> bool:
        """Whether `q_offset` is known while tracing."""
        return isinstance(self.q_offset, int)


def check(q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, *, r_NxHxK: jax.Array | None = None,
          u_HxK: jax.Array | None = None, w_HxK: jax.Array | None = None, q_turn_2xSxK: jax.Array | None = None,
          k_turn_2xTxK: jax.Array | None = None, segment_ids_BxT: jax.Array | None = None,
          q_segment_ids_BxS: jax.Array | None = None, q_offset: int | jax.Array | None = None,
          window: int | None = None, softcap: float | None = None, scale: float | None = None,
          float64: bool = False) -> Arguments:  # fmt: skip
    """Checks the arguments of `attention.attention`, which documents them, and resolves those left out.

    Args:
      float64: whether the implementation takes float64 besides float32 and bfloat16.

    Raises:
      AttentionError: for the first argument found wrong.
    """
    shape = _shape(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, float64)
    offset = _offset(q_offset, shape)
    if window is not None and (not _is_int(window) or window < 1):
        raise AttentionError("window", f"must be an int of at least 1 (1: each query sees its own key), not {window!r}")
    _positive("softcap", softcap)
    _positive("scale", scale)
    shape = dataclasses.replace(shape, N=_distances(r_NxHxK, u_HxK, w_HxK, q_BxSxHxK, shape, offset, window))
    _turns(q_turn_2xSxK, k_turn_2xTxK, shape)
    q_segments = _segments(segment_ids_BxT, q_segment_ids_BxS, shape, offset)
    return Arguments(
        shape=shape, q_offset=offset, scale=shape.K**-0.5 if scale is None else float(scale),
        q_segment_ids_BxS=q_segments,
        every_query_sees_a_key=_sees_a_key(shape, offset, window, segment_ids_BxT, q_segment_ids_BxS),
    )  # fmt: skip


def distances_that_matter(shape: Shape, q_offset: int | jax.Array, window: int | None) -> int:
    """The least N: one more than the largest distance at which a key may be visible, T assumed if traced."""
    farthest = max(q_offset + shape.S, 1) if isinstance(q_offset, int) else shape.T
    return farthest if window is None else min(farthest, window)


def _shape(q, k, v, float64: bool) -> Shape:
    for name, x in (("q_BxSxHxK", q), ("k_BxTxGxK", k), ("v_BxTxGxK", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise AttentionError(name, f"needs four axes, none empty: {name.removeprefix(name[:2])}; got {_text(x)}")
    (b, s, h, size), (t, g) = q.shape, k.shape[1:3]
    if (k.shape[0], k.shape[3]) != (b, size):
        raise AttentionError("k_BxTxGxK", f"must agree with the queries in rows and head size, B={b} and K={size}; got "
                             f"{_text(k)}")  # fmt: skip
    if h % g:
        raise AttentionError("k_BxTxGxK", f"{g} groups do not divide the {h} heads of the queries: use a divisor")
    if v.shape != k.shape:
        raise AttentionError("v_BxTxGxK", f"must have the shape of the keys, {list(k.shape)}; got {_text(v)}")
    known = (jnp.float32, jnp.bfloat16, jnp.float64) if float64 else (jnp.float32, jnp.bfloat16)
    if q.dtype not in known:
        plain = "" if float64 or q.dtype != jnp.float64 else ', or use implementation="plain"'
        raise AttentionError("q_BxSxHxK", f"is {q.dtype}: cast it to float32 or bfloat16{plain}")
    for name, x in (("k_BxTxGxK", k), ("v_BxTxGxK", v)):
        if x.dtype != q.dtype:
            raise AttentionError(name, f"is {x.dtype} and the queries are {q.dtype}: cast it to {q.dtype}")
    return Shape(b, s, t, h, g, size, None)


def _offset(q_offset, shape: Shape) -> int | jax.Array:
    if q_offset is None:
        return shape.T - shape.S
    if _is_int(q_offset):
        return operator.index(q_offset)
    if not isinstance(q_offset, jax.Array | np.ndarray) or q_offset.shape != () or q_offset.dtype != jnp.int32:
        raise AttentionError("q_offset", f"must be an int or an int32 scalar array; got {_text(q_offset)}")
    return jnp.asarray(q_offset)


def _distances(r, u, w, q, shape: Shape, offset, window) -> int | None:
    given = {"r_NxHxK": r, "u_HxK": u, "w_HxK": w}
    missing = [name for name, x in given.items() if x is None]
    if len(missing) == 3:
        return None
    if missing:
        raise AttentionError(missing[0], f"is missing: relative attention needs {', '.join(given)} together")
    for name, x in (("u_HxK", u), ("w_HxK", w)):
        if x.shape != (shape.H, shape.K) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise AttentionError(name, f"must be floats [{shape.H}, {shape.K}], heads by head size; got {_text(x)}")
    if r.ndim != 3 or r.shape[1:] != (shape.H, shape.K):
        raise AttentionError("r_NxHxK", f"must be [N, {shape.H}, {shape.K}]: distances, heads, head size; got "
                             f"{_text(r)}")  # fmt: skip
    if r.dtype != q.dtype:
        raise AttentionError("r_NxHxK", f"is {r.dtype} and the queries are {q.dtype}: cast it to {q.dtype}")
    needed = distances_that_matter(shape, offset, window)
    if r.shape[0] < needed:
        raise AttentionError("r_NxHxK", f"has {r.shape[0]} rows, but keys up to distance {needed - 1} may be visible: "
                             f"give at least {needed}, the farthest first")  # fmt: skip
    return r.shape[0]


def _turns(q_turn, k_turn, shape: Shape) -> None:
    given = {"q_turn_2xSxK": (q_turn, shape.S), "k_turn_2xTxK": (k_turn, shape.T)}
    missing = [name for name, (x, _) in given.items() if x is None]
    if len(missing) == 2:
        return
    if missing:
        raise AttentionError(missing[0], "is missing: queries and keys are rotated together")
    if shape.N is not None:
        raise AttentionError("q_turn_2xSxK", "rotations and a relative term exclude each other: give one of them")
    for name, (x, length) in given.items():
        if x.shape != (2, length, shape.K) or not jnp.issubdtype(x.dtype, jnp.floating) or shape.K % 2:
            raise AttentionError(name, f"must be floats [2, {length}, {shape.K}]: factors of a number and of its "
                                 f"partner half a head away, so K has to be even; got {_text(x)}")  # fmt: skip


def _segments(segments, q_segments, shape: Shape, offset) -> jax.Array | None:
    if segments is None:
        if q_segments is not None:
            raise AttentionError("segment_ids_BxT", "is missing: the ids of the queries are compared with the keys'")
        return None
    _check_ids("segment_ids_BxT", segments, (shape.B, shape.T))
    if q_segments is not None:
        _check_ids("q_segment_ids_BxS", q_segments, (shape.B, shape.S))
        return jnp.asarray(q_segments)
    if not isinstance(offset, int):
        position = offset + jnp.arange(shape.S)
        own = jnp.take(jnp.asarray(segments), position.clip(0, shape.T - 1), axis=1)
        return jnp.where((position >= 0) & (position < shape.T), own, NO_DOCUMENT)
    if not 0 <= offset <= shape.T - shape.S:
        raise AttentionError("q_segment_ids_BxS", f"is missing: with q_offset={offset} the {shape.S} queries are not "
                             f"all among the {shape.T} keys, whose ids are in segment_ids_BxT")  # fmt: skip
    return jnp.asarray(segments)[:, offset : offset + shape.S]


def _check_ids(name: str, ids, shape: tuple[int, int]) -> None:
    if ids.shape != shape or ids.dtype != jnp.int32:
        raise AttentionError(name, f"must be int32 {list(shape)}; got {_text(ids)}")


def _sees_a_key(shape: Shape, offset, window, segments, q_segments) -> bool:
    if not isinstance(offset, int) or q_segments is not None:
        return False
    among_the_keys = 0 <= offset <= shape.T - shape.S
    if segments is not None:
        return among_the_keys  # its own key has its own id
    last = offset + shape.S - 1
    return offset >= 0 and (window is None or last - (shape.T - 1) < window)


def _positive(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int | float | np.number) or not (math.isfinite(value) and value > 0):
        raise AttentionError(name, f"must be a positive Python number or None; got {_text(value)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _text(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)
