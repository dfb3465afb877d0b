"""Attention: what a score is made of, what a query may see, and the positions."""

import dataclasses

import flax
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.attention import attend as attend_unjitted
from chinchilla_jax.model.positions import relative_shift, rotate, sinusoids

attend = jax.jit(attend_unjitted)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def attention_by_pairs(q, k, v, r=None, u=None, w=None, segments=None):
    """Attention in float64 from its definition: one query, one key, one head at a time."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    (batch, s, heads, size), (t, groups) = q.shape, k.shape[1:3]
    out = np.zeros(q.shape)
    for b, h, i in np.ndindex(batch, heads, s):
        g = h // (heads // groups)
        here = i + t - s
        keys = [j for j in range(here + 1) if segments is None or segments[b, j] == segments[b, here]]
        scores = []
        for j in keys:
            content = (q[b, i, h] + (0 if u is None else u[h])) @ k[b, j, g]
            position = 0 if r is None else (q[b, i, h] + w[h]) @ r[t - 1 - (here - j), h]
            scores.append((content + position) / np.sqrt(size))
        weights = np.exp(np.array(scores) - max(scores))
        out[b, i, h] = (weights / weights.sum()) @ v[b, keys, g]
    return out


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 1), (4, 9), (1, 6)])
def test_relative_attention_is_its_definition_for_every_pair(queries, keys):
    rng = np.random.default_rng(queries)
    batch, heads, size = 2, 3, 5
    q, k, v = (normal(rng, batch, n, heads, size) for n in (queries, keys, keys))
    r, u, w = normal(rng, keys, heads, size), normal(rng, heads, size), normal(rng, heads, size)
    ours = attend(q, k, v, r_TxHxK=r, u_HxK=u, w_HxK=w)
    np.testing.assert_allclose(ours, attention_by_pairs(q, k, v, r, u, w), atol=3e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 8)])
def test_plain_attention_is_its_definition_for_every_pair_and_group_of_heads(queries, keys, groups):
    rng = np.random.default_rng(groups)
    q, k, v = normal(rng, 2, queries, 4, 5), normal(rng, 2, keys, groups, 5), normal(rng, 2, keys, groups, 5)
    np.testing.assert_allclose(attend(q, k, v), attention_by_pairs(q, k, v), atol=3e-6)


def test_attention_stays_inside_a_document_also_behind_a_memory():
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 2, 5, 2, 4), normal(rng, 2, 8, 2, 4), normal(rng, 2, 8, 2, 4)
    r, u, w = normal(rng, 8, 2, 4), normal(rng, 2, 4), normal(rng, 2, 4)
    segments = np.array([[0, 0, 0, 0, 0, 1, 1, 2], [4, 4, 9, 9, 9, 9, 9, 9]])
    ours = attend(q, k, v, r_TxHxK=r, u_HxK=u, w_HxK=w, segment_ids_BxT=segments)
    np.testing.assert_allclose(ours, attention_by_pairs(q, k, v, r, u, w, segments), atol=3e-6)
    assert np.abs(ours - attend(q, k, v, r_TxHxK=r, u_HxK=u, w_HxK=w)).max() > 0.01


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(queries=st.integers(1, 9), memory=st.integers(0, 6), heads=st.integers(1, 2))
def test_the_shift_moves_each_distance_to_the_key_that_lies_so_far_back(queries, memory, heads):
    keys = queries + memory
    scores = np.arange(heads * queries * keys, dtype=np.float32).reshape(heads, queries, keys)
    shifted = np.asarray(relative_shift(scores))
    for h, i, j in np.ndindex(heads, queries, keys):
        distance = i + memory - j
        if distance >= 0:
            assert shifted[h, i, j] == scores[h, i, keys - 1 - distance]


def test_what_the_shift_leaves_above_the_diagonal_is_not_zero():
    shifted = np.asarray(relative_shift(np.arange(1.0, 17.0).reshape(4, 4)))
    assert np.count_nonzero(np.triu(shifted, 2)) == 3


SHAPE = ModelConfig(n_layers=1, d_model=24, n_heads=3, n_kv_heads=3, head_dim=10, d_ff=8)


def test_without_u_v_and_the_relative_projection_attention_is_the_plain_one():
    plain = Attention(dataclasses.replace(SHAPE, position="none"), jnp.float32)
    relative = Attention(SHAPE, jnp.float32)
    x = normal(np.random.default_rng(0), 2, 9, 24)
    weights = flax.linen.meta.unbox(jax.jit(relative.init)(jax.random.key(0), x))["params"]
    np.testing.assert_array_equal(weights["u"], 0)
    np.testing.assert_array_equal(weights["v"], 0)
    shared = {name: value for name, value in weights.items() if name not in ("relative", "u", "v")}
    without = {**weights, "relative": jnp.zeros_like(weights["relative"])}
    expected, apply = jax.jit(plain.apply)({"params": shared}, x), jax.jit(relative.apply)
    np.testing.assert_allclose(apply({"params": without}, x), expected, atol=1e-6)
    assert np.abs(apply({"params": weights}, x) - expected).max() > 0.01


@pytest.mark.parametrize("position", ["relative", "rope", "none"])
def test_heads_need_not_add_up_to_the_width(position):
    shape = dataclasses.replace(SHAPE, position=position)
    x = normal(np.random.default_rng(0), 2, 5, 24)
    module = Attention(shape, jnp.float32)
    out, weights = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert shape.d_attn == 30
    assert flax.linen.meta.unbox(weights)["params"]["output"].shape == (3, 10, 24)
    assert out.shape == (2, 5, 24)


def test_the_sinusoid_of_a_distance_is_all_sines_then_all_cosines():
    table = np.asarray(sinusoids(jnp.array([0, 1, 100]), 6))
    frequencies = np.array([1.0, 10000 ** (-2 / 6), 10000 ** (-4 / 6)])
    np.testing.assert_allclose(table[:, :3], np.sin(np.outer([0, 1, 100], frequencies)), atol=1e-5)
    np.testing.assert_allclose(table[:, 3:], np.cos(np.outer([0, 1, 100], frequencies)), atol=1e-5)


def test_a_rotation_keeps_lengths_and_makes_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = normal(rng, 1, 1, 2, 8), normal(rng, 1, 1, 2, 8)

    def product(i, j):
        return jnp.sum(rotate(q, jnp.array([i]), 10000.0) * rotate(k, jnp.array([j]), 10000.0), axis=-1)

    np.testing.assert_allclose(product(3, 1), product(12, 10), atol=1e-5)
    assert np.abs(product(3, 1) - product(3, 2)).max() > 0.01
    turned = rotate(q, jnp.array([7]), 10000.0)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(rotate(q, jnp.array([0]), 10000.0), q)


def test_a_rotation_turns_the_pair_i_and_half_plus_i_by_its_own_frequency():
    x = np.zeros((1, 1, 1, 8), np.float32)
    x[..., 2] = 1.0
    angle = 5 * 100.0 ** (-2 * 2 / 8)
    expected = np.zeros(8)
    expected[[2, 6]] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(rotate(x, jnp.array([5]), 100.0)[0, 0, 0], expected, atol=1e-6)


def test_scores_are_normalised_in_float32_when_computing_in_bfloat16():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(normal(rng, 1, 300, 1, 8), jnp.bfloat16) for _ in range(3))
    ours = attend(q, k, v)
    assert ours.dtype == jnp.bfloat16
    ones = attend(q, k, jnp.ones_like(v))  # the weights of 300 keys add up to one
    np.testing.assert_allclose(np.asarray(ones, np.float32), 1.0, atol=0.005)
    exact = attention_by_pairs(*(np.asarray(a, np.float32) for a in (q, k, v)))
    np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=0.03)
