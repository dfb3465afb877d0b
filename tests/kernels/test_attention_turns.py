"""Rotated queries and keys: inside every implementation it is as if they had been rotated before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels.attention import attention, turn
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.model.positions import rotary, xpos

IMPLEMENTATIONS = ("plain", "blockwise", "fused")


def drawn(queries, keys, heads, groups, size, dtype=jnp.float32):
    normal = np.random.default_rng(0).standard_normal
    shapes = ((2, queries, heads, size), (2, keys, groups, size), (2, keys, groups, size), (2, queries, heads, size))
    return [jnp.asarray(normal(shape), dtype) for shape in shapes]


def tables(kind, queries, keys, size):
    where = jnp.arange(keys)
    q_turn, k_turn = xpos(where - keys // 2, size, 100.0) if kind == "xpos" else (rotary(where, size, 100.0),) * 2
    return q_turn[:, keys - queries :], k_turn


def value_and_gradients(attend, q, k, v, d_out):
    def weighted(q, k, v):
        out = attend(q, k, v)
        return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


def error(ours, exact):
    ours, exact = np.asarray(ours, np.float64), np.asarray(exact, np.float64)
    return np.linalg.norm(ours - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("kind", "queries", "keys", "heads", "groups", "size", "settings"), [
    ("rope", 130, 130, 2, 1, 64, {}),
    ("xpos", 60, 200, 2, 2, 96, {"window": 90}),
    ("rope", 100, 100, 1, 1, 256, {"softcap": 5.0}),
])  # fmt: skip
def test_rotating_inside_is_rotating_before(implementation, kind, queries, keys, heads, groups, size, settings):
    *arrays, d_out = drawn(queries, keys, heads, groups, size)
    q_turn, k_turn = tables(kind, queries, keys, size)

    def before(q, k, v):
        return attention(turn(q, q_turn), turn(k, k_turn), v, implementation="plain", **settings)

    inside = functools.partial(attention, q_turn_2xSxK=q_turn, k_turn_2xTxK=k_turn, implementation=implementation,
                               **settings)  # fmt: skip
    for ours, exact in zip(value_and_gradients(inside, *arrays, d_out), value_and_gradients(before, *arrays, d_out),
                           strict=True):  # fmt: skip
        assert error(ours, exact) < 2e-6


def test_gradients_do_not_flow_into_the_tables():
    q, k, v, _ = drawn(20, 20, 1, 1, 8)
    table = rotary(jnp.arange(20), 8, 100.0)

    def total(table):
        return jnp.sum(attention(q, k, v, q_turn_2xSxK=table, k_turn_2xTxK=table, implementation="plain"))

    np.testing.assert_array_equal(jax.grad(total)(table), 0)


@pytest.mark.parametrize(("argument", "change"), [
    ("k_turn_2xTxK", {"k_turn_2xTxK": None}),
    ("q_turn_2xSxK", {"q_turn_2xSxK": np.zeros((2, 19, 8), np.float32)}),
    ("k_turn_2xTxK", {"k_turn_2xTxK": np.zeros((2, 20, 8), np.int32)}),
    ("q_turn_2xSxK", {"r_NxHxK": np.zeros((20, 1, 8), np.float32), "content_bias_HxK": np.zeros((1, 8), np.float32),
                      "position_bias_HxK": np.zeros((1, 8), np.float32)}),
])  # fmt: skip
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tables_that_do_not_fit_are_refused_by_name(argument, change, implementation):
    q, k, v, _ = drawn(20, 20, 1, 1, 8)
    table = np.zeros((2, 20, 8), np.float32)
    keywords = {"q_turn_2xSxK": table, "k_turn_2xTxK": table} | change
    with pytest.raises(AttentionError) as refusal:
        attention(q, k, v, implementation=implementation, **keywords)
    assert refusal.value.argument == argument
