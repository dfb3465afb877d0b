"""Blockwise attention keeps no S x T array, and leaves out what nobody sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels.blockwise import blockwise_attention
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.kernels.plain import plain_attention
from tests.kernels.cases import ARGUMENTS, with_arguments

BLOCKWISE, PLAIN = with_arguments(blockwise_attention), with_arguments(plain_attention)


def largest_array(jaxpr):
    """Elements of the largest value anywhere in a program, loops included."""
    largest = 0
    for equation in jaxpr.eqns:
        largest = max([largest, *(v.aval.size for v in equation.outvars)])
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                largest = max(largest, largest_array(inner))
    return largest


def gradient_program(form, length):
    """Forward and backward of one row, relative, windowed only by causality, as a jaxpr."""
    heads, size = 2, 64
    x = {name: jax.ShapeDtypeStruct((1, length, heads, size), np.float32) for name in ("q", "k", "v")}
    x |= {"r": jax.ShapeDtypeStruct((length, heads, size), np.float32)}
    x |= {name: jax.ShapeDtypeStruct((heads, size), np.float32) for name in ("u", "w")}
    ids = jnp.zeros((1, length), jnp.int32)

    def loss(x):
        named = {ARGUMENTS[name]: array for name, array in x.items()}
        out, lse = form(**named, segment_ids_BxT=ids, return_lse=True)
        return out.sum() + lse.sum()

    return jax.make_jaxpr(jax.grad(loss))(x).jaxpr


def test_memory_grows_with_the_length_and_not_with_its_square():
    half, whole = (largest_array(gradient_program(BLOCKWISE, length)) for length in (4096, 8192))
    assert whole <= 2 * half
    assert whole < 8192**2 / 32
    assert largest_array(gradient_program(PLAIN, 8192)) >= 8192**2  # the measure sees one that is there


def test_temporary_memory_of_the_compiled_gradient_is_linear_in_the_length():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 32), np.float32)
        gradient = jax.grad(lambda q, k, v: BLOCKWISE(q, k, v).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.1 * temporaries(4096) < 8192**2  # bytes: a quarter of the scores of one head


@pytest.mark.parametrize("traced", [False, True])
def test_keys_in_the_future_and_outside_the_window_are_not_even_read(traced):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 1, 8), np.float32) for n in (20, 160, 160))
    offset = jnp.int32(64) if traced else 64
    call = functools.partial(with_arguments(blockwise_attention, block=16), q_offset=offset, window=20)
    outputs = jax.jit(lambda *qkv: [x(jnp.ones_like(qkv[0])) if callable(x) else x for x in jax.vjp(call, *qkv)])
    expected = outputs(q, k, v)
    for x in (k, v):
        x[:, :32], x[:, 96:] = np.nan, np.nan  # queries 64 to 83 see keys 45 to 83: blocks 2 to 5
    for found, exact in zip(jax.tree.leaves(outputs(q, k, v)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("block", [1, 1000])
def test_the_size_of_a_block_changes_rounding_alone(block):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 40, 2, 8), np.float32) for _ in range(3))
    np.testing.assert_allclose(with_arguments(blockwise_attention, block=block)(q, k, v), PLAIN(q, k, v), atol=2e-6)


def test_a_block_holds_something():
    x = jnp.ones((1, 4, 1, 8))
    with pytest.raises(AttentionError, match="^block: "):
        with_arguments(blockwise_attention, block=0)(x, x, x)
