"""What happens at the edges of what attention is for: no keys, positions outside, tables too large, unknown chips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.kernels.tiles import compile_for, tpu_generation

IMPLEMENTATIONS = ("plain", "blockwise", "fused")


def drawn(queries, keys):
    normal = np.random.default_rng(0).standard_normal
    return [jnp.asarray(normal((1, length, 1, 32)), jnp.float32) for length in (queries, keys, keys)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_log_sum_exp_of_no_keys_has_no_gradient_whatever_is_made_of_it(implementation):
    def squares(arrays):
        lse = attention(*arrays, q_offset=-3, return_lse=True, implementation=implementation)[1]
        return jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0) ** 2)

    def infinite(arrays):
        return jnp.sum(attention(*arrays, q_offset=-3, return_lse=True, implementation=implementation)[1] ** 2)

    arrays = drawn(10, 10)
    expected = jax.jit(jax.grad(squares))(arrays)
    for ours, exact in zip(jax.jit(jax.grad(infinite))(arrays), expected, strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("offset", [-4, 25])
def test_queries_outside_the_keys_belong_to_no_document_of_theirs(implementation, offset):
    q, k, v = drawn(20, 30)
    ids = np.repeat(np.arange(3, dtype=np.int32), 10)[None]
    attend = functools.partial(attention, segment_ids_BxT=ids, implementation=implementation)
    out = jax.jit(lambda offset: attend(q, k, v, q_offset=offset))(jnp.int32(offset))
    position = offset + np.arange(20)
    outside = (position < 0) | (position >= 30)
    own = np.where(outside, 99, ids[0, position.clip(0, 29)]).astype(np.int32)[None]
    expected = attend(q, k, v, q_offset=offset, q_segment_ids_BxS=own)
    assert outside.any() and not outside.all()
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_array_equal(out[0, outside], 0)


def test_lists_of_tiles_that_do_not_fit_scalar_memory_are_refused_by_name():
    array = jax.ShapeDtypeStruct((64, 32768, 1, 128), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((64, 32768), jnp.int32)
    with compile_for("v5e"), pytest.raises(AttentionError, match="segment_ids_BxT.*scalar memory.*fewer rows"):
        jax.eval_shape(lambda q, ids: attention(q, q, q, segment_ids_BxT=ids, implementation="fused"), array, ids)


def test_a_generation_that_does_not_exist_is_refused():
    with pytest.raises(AttentionError, match="v99.*v4, v5e, v5p, v6e, v7x"), compile_for("v99"):
        pass
    with compile_for("NVIDIA H100"):
        assert tpu_generation() is None
