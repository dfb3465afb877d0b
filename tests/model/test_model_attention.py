"""The attention module: what it hands to the op, and the positions."""

import dataclasses

import flax
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention, turn
from chinchilla_jax.model import positions
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.cache import empty_cache
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.model.positions import sinusoids
from chinchilla_jax.model.transformer import Transformer


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def rotate(x, where, theta):
    return turn(x, positions.rotary(where, x.shape[-1], theta))


def xpos(q, k, where, theta):
    q_turn, k_turn = positions.xpos(where, q.shape[-1], theta)
    return turn(q, q_turn), turn(k, k_turn)


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
    (expected, _), apply = jax.jit(plain.apply)({"params": shared}, x), jax.jit(relative.apply)
    np.testing.assert_allclose(apply({"params": without}, x)[0], expected, atol=1e-6)
    assert np.abs(apply({"params": weights}, x)[0] - expected).max() > 0.01


@pytest.mark.parametrize("name", ["plain", "blockwise"])
def test_the_config_says_which_implementation_the_given_function_is_to_use(name):
    calls = []

    def attend(q, k, v, *, implementation, **keywords):
        calls.append(implementation)
        return attention(q, k, v, implementation=implementation, **keywords)

    x = normal(np.random.default_rng(0), 2, 5, 24)
    module = Attention(dataclasses.replace(SHAPE, attention=name), jnp.float32, attend)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    out, _ = jax.eval_shape(module.apply, weights, x)
    assert calls == [name, name] and out.shape == x.shape


@pytest.mark.parametrize("position", ["relative", "rope", "xpos", "none"])
def test_heads_need_not_add_up_to_the_width(position):
    shape = dataclasses.replace(SHAPE, position=position)
    x = normal(np.random.default_rng(0), 2, 5, 24)
    module = Attention(shape, jnp.float32)
    (out, _), weights = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
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


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(seed=st.integers(0, 99), position=st.integers(-300, 300), distance=st.integers(0, 400))
def test_xpos_is_the_rotation_with_a_decay_that_depends_on_the_distance_alone(seed, position, distance):
    """Pair i of a product fades by zeta_i^(distance / 512), zeta_i = (2i / K + 0.4) / 1.4, wherever it is taken."""
    q, k = normal(np.random.default_rng(seed), 2, 1, 1, 2, 8)
    here, there = jnp.array([position]), jnp.array([position - distance])

    def pairs(q, k):
        products = np.asarray(q, np.float64) * np.asarray(k, np.float64)
        return products.reshape(-1, 2, 4).sum(1)

    turned = xpos(q, k, here, 100.0)[0], xpos(q, k, there, 100.0)[1]
    decay = ((np.arange(4) / 4 + 0.4) / 1.4) ** (distance / 512)
    expected = decay * pairs(rotate(q, here, 100.0), rotate(k, there, 100.0))
    np.testing.assert_allclose(pairs(*turned), expected, atol=2e-4)


def test_scores_of_xpos_do_not_depend_on_where_positions_are_counted_from():
    q, k = normal(np.random.default_rng(0), 2, 2, 700, 1, 8)
    scores = [jnp.einsum("bshk,bthk->bst", *xpos(q, k, jnp.arange(700) - start, 1e4)) for start in (0, 350)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_scores_of_random_vectors_fade_with_the_distance_in_xpos_and_not_under_rotation_alone():
    """Their variance is a sum over pairs: 2 zeta_i^(2 distance / 512) each, and 2 each without zeta."""
    q, k = normal(np.random.default_rng(0), 2, 1, 1, 4000, 16)
    zeta = (np.arange(8) / 8 + 0.4) / 1.4
    for distance in (0, 512, 2048):
        here, there = jnp.array([distance // 2]), jnp.array([-distance // 2])
        faded = jnp.sum(xpos(q, k, here, 1e4)[0] * xpos(q, k, there, 1e4)[1], -1)
        plain = jnp.sum(rotate(q, here, 1e4) * rotate(k, there, 1e4), -1)
        assert np.mean(faded**2) == pytest.approx(np.sum(2 * zeta ** (2 * distance / 512)), rel=0.1)
        assert np.mean(plain**2) == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize(("position", "scan"), [*((name, True) for name in POSITIONS), ("relative", False)])
def test_token_by_token_with_a_cache_the_logits_are_those_of_the_whole_row(position, scan, weights):
    """Six tokens at once, then one by one, in a cache with more room than there are tokens."""
    model = ModelConfig(n_layers=2, d_model=24, n_heads=4, n_kv_heads=4 if position == "relative" else 2, head_dim=6,
                        d_ff=40, vocab_size=48, max_position=16, position=position, scan_layers=scan)  # fmt: skip
    params, tokens = weights(model), np.random.default_rng(0).integers(0, 48, (2, 10)).astype(np.int32)
    apply = jax.jit(lambda tokens, cache: Transformer(model).apply(params, tokens, cache=cache))
    expected, nothing, _ = apply(tokens, None)
    assert nothing is None
    cache, found = empty_cache(model, rows=2, capacity=13, dtype=jnp.float32), []
    for start, stop in ((0, 6), (6, 7), (7, 8), (8, 9), (9, 10)):
        logits, cache, _ = apply(tokens[:, start:stop], cache)
        found.append(logits)
    assert cache.length == 10
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=2e-5)
    later, _, _ = apply(tokens[:, 9:], cache._replace(length=cache.length - 2))
    assert np.abs(later[:, 0] - expected[:, 9]).max() > 1e-3, "the same token two positions before"
