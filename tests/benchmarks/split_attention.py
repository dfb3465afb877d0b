"""What does one of several devices compute of attention to a row that is split over them? Builders for the meter.

bf16, batch 1, causal, with gradients; `devices` share a row of `seq` tokens. What the kernels are told at run time on a
real device (where its queries stand) is a constant here, or the meter could not follow them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.kernels import attention, fused
from tests.benchmarks import our_attention
from tests.benchmarks.public_attention import program, useful_flops


def heads(seq: int, head_dim: int, heads: int, devices: int, device: int, relative: bool) -> dict:
    """Whole rows of a part of the heads, `context.exchange_heads`: the same for every device."""
    build = our_attention.relative if relative else our_attention.plain
    return build(seq, head_dim, heads // devices)


def keys(seq: int, head_dim: int, heads: int, devices: int, device: int, relative: bool) -> dict:
    """Two pieces of the queries and all keys that some device may need for them, `context.gather_keys`."""
    size = seq // (2 * devices)

    def attend(early, late, k, v, r=None, u=None, w=None):
        return [_queries(q, k[:, : pieces * size], v[:, : pieces * size], r, u, w, start=piece * size)
                for q, piece, pieces in ((early, device, devices), (late, 2 * devices - 1 - device, 2 * devices))
                ]  # fmt: skip

    return _program(attend, (size, size, seq, seq), head_dim, heads, devices, seq, relative)


def contiguous(seq: int, head_dim: int, heads: int, devices: int, device: int, relative: bool) -> dict:
    """The device's own tokens as queries and all keys: the last device has the most to do."""
    size = seq // devices

    def attend(q, k, v, r=None, u=None, w=None):
        return _queries(q, k, v, r, u, w, start=device * size)

    return _program(attend, (size, seq, seq), head_dim, heads, devices, seq, relative)


def ring_start(seq: int, head_dim: int, heads: int, devices: int, device: int, relative: bool) -> dict:
    """Keys go round in a ring instead, pieces i and 2c - 1 - i of queries and keys staying together; plain only. These
    are the device's own: both pieces with themselves, and the late queries with the early keys."""
    size = seq // (2 * devices)

    def attend(q, k, v):
        both = our_attention.attention(q, k, v, return_lse=True, implementation="fused")
        return both, our_attention.attention(q[1:], k[:1], v[:1], q_offset=size, return_lse=True,
                                             implementation="fused")  # fmt: skip

    return _program(attend, (size, size, size), head_dim, heads, devices, seq, relative, rows=2)


def ring_turn(seq: int, head_dim: int, heads: int, devices: int, device: int, relative: bool) -> dict:
    """One of the `devices - 1` turns that follow: two pairs of pieces that see each other whole. Merging the results of
    all turns is not in it."""
    size = seq // (2 * devices)

    def attend(q, k, v):
        return our_attention.attention(q, k, v, q_offset=size, return_lse=True, implementation="fused")

    return _program(attend, (size, size, size), head_dim, heads, devices, seq, relative, rows=2)


def _queries(q, k, v, r, u, w, start: int):
    with _known_at_run_time_only(start):
        return our_attention.attention(q, k, v, r_NxHxK=r, content_bias_HxK=u, position_bias_HxK=w, q_offset=start,
                                       implementation="fused")  # fmt: skip


@contextlib.contextmanager
def _known_at_run_time_only(start: int) -> Iterator[None]:
    """The fused op takes a given offset for one that it cannot plan with, but its tables are constants."""

    def check(*arrays, **named):
        return real_check(*arrays, **named).replace(q_offset=np.int32(start))

    def schedule(*arguments):
        with jax.ensure_compile_time_eval():
            return tuple(np.asarray(table) for table in real_schedule(*arguments))

    real_check, real_schedule = attention.check, fused.schedule
    with mock.patch.object(attention, "check", check), mock.patch.object(fused, "schedule", schedule):
        yield


def _program(attend, lengths: tuple[int, ...], head_dim: int, heads: int, devices: int, seq: int, relative: bool,
             rows: int = 1) -> dict:  # fmt: skip
    shapes = tuple(jax.ShapeDtypeStruct((rows, length, heads, head_dim), jnp.bfloat16) for length in lengths)
    if relative:
        bias = jax.ShapeDtypeStruct((heads, head_dim), jnp.bfloat16)
        shapes += (jax.ShapeDtypeStruct((seq, heads, head_dim), jnp.bfloat16), bias, bias)
    return program(attend, shapes, useful_flops(seq, head_dim, heads, True) / devices, True)
