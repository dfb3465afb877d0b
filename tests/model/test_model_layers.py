"""Weights, products, norms and feed-forward: each against its formula in numpy."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.layers import Layer, dense, dense_transposed
from chinchilla_jax.model.parts import FEED_FORWARDS, NORMS
from chinchilla_jax.model.transformer import Transformer


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [4, 9], ids=["narrower", "wider"])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("transposed", [False, True], ids=["x @ w", "x @ w.T"])
def test_the_product_with_a_weight_has_the_gradient_of_automatic_differentiation(transposed, shape, width):
    rng = np.random.default_rng(0)
    x, w, direction = normal(rng, *shape), normal(rng, 6, width), normal(rng, *shape[:-1], width)
    if transposed:
        ours, pull = jax.vjp(dense_transposed, x, w.T)
        expected, pull_expected = jax.vjp(lambda x, w: x @ w.T, x, w.T)
    else:
        ours, pull = jax.vjp(dense, x, w)
        expected, pull_expected = jax.vjp(lambda x, w: x @ w, x, w)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    for gradient, gradient_expected in zip(pull(direction), pull_expected(direction), strict=True):
        assert gradient.shape == gradient_expected.shape
        np.testing.assert_allclose(gradient, gradient_expected, atol=1e-5)


@pytest.mark.parametrize("product", [dense, dense_transposed])
def test_the_product_with_a_weight_keeps_the_compute_type_in_both_directions(product):
    x, w = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 4), jnp.bfloat16)
    y, pull = jax.vjp(product, x, w)
    assert {y.dtype, *(gradient.dtype for gradient in pull(y))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_a_norm_is_its_formula(kind):
    rng = np.random.default_rng(0)
    x, gain, bias = 0.01 * normal(rng, 2, 3, 8) + 0.02, normal(rng, 8), normal(rng, 8)
    weights = {"gain": gain} | ({"bias": bias} if kind == "layernorm" else {})
    ours = Layer(NORMS[kind], ModelConfig(d_model=8, norm_eps=1e-4), jnp.float32).apply({"params": weights}, x)
    centre, offset = (x.mean(-1, keepdims=True), bias) if kind == "layernorm" else (0.0, 0.0)
    expected = (x - centre) / np.sqrt(((x - centre) ** 2).mean(-1, keepdims=True) + 1e-4) * gain + offset
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_norm_rounds_once_when_computing_in_bfloat16():
    x = jnp.asarray(3 * normal(np.random.default_rng(0), 4, 64), jnp.bfloat16)
    weights = {"params": {"gain": normal(np.random.default_rng(1), 64)}}
    norm = NORMS["rmsnorm"]
    half = Layer(norm, ModelConfig(), jnp.bfloat16).apply(weights, x)
    full = Layer(norm, ModelConfig(), jnp.float32).apply(weights, x.astype(jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(half, np.float32), np.asarray(full.astype(jnp.bfloat16), np.float32))


@pytest.mark.parametrize("biases", ["none", "all"])
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_the_feed_forward_is_its_formula(kind, biases):
    rng = np.random.default_rng(0)
    weights = {"up": normal(rng, 8, 12), "down": normal(rng, 12, 8)}
    zero = {"up_bias": 0.0, "down_bias": 0.0, "gate_bias": 0.0}
    if kind == "swiglu":
        weights["gate"] = normal(rng, 8, 12)
    if biases == "all":
        weights |= {f"{name}_bias": normal(rng, weights[name].shape[1]) for name in list(weights)}
    w = {**zero, **weights}
    x = normal(rng, 2, 3, 8)
    shape = ModelConfig(d_model=8, d_ff=12, biases=biases)
    ours, aux = Layer(FEED_FORWARDS[kind], shape, jnp.float32).apply({"params": weights}, x)
    assert aux == {}
    h = x @ w["up"] + w["up_bias"]
    if kind == "swiglu":
        g = x @ w["gate"] + w["gate_bias"]
        h = g / (1 + np.exp(-g)) * h
    else:
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(ours, h @ w["down"] + w["down_bias"], atol=2e-5)


@pytest.fixture(scope="module")
def fresh():
    """A shape of the Gopher family with 8 layers, and its initial weights by name."""
    model = ModelConfig(n_layers=8, d_model=64, n_heads=4, n_kv_heads=4, head_dim=24, d_ff=200, vocab_size=300)
    init = jax.jit(Transformer(model).init)
    weights = flax.linen.meta.unbox(init(jax.random.key(0), np.zeros((1, 4), np.int32)))["params"]
    attention_output = weights["layers"]["attention"].pop("output")
    by_name = {path[-1]: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(weights).items()}
    return model, {**by_name, "attention_output": np.asarray(attention_output)}


def test_matrices_start_with_variance_one_over_fan_in_and_residual_outputs_with_less(fresh):
    model, weights = fresh
    residual = 1 / math.sqrt(2 * model.n_layers)
    expected = {name: 1 / math.sqrt(64) for name in ("embedding", "query", "key", "value", "relative", "up")}
    expected |= {"attention_output": residual / math.sqrt(4 * 24), "down": residual / math.sqrt(200)}
    for name, deviation in expected.items():
        assert weights[name].std() == pytest.approx(deviation, rel=0.03), name
        assert abs(weights[name].mean()) < 0.05 * deviation, name


def test_layers_start_different_from_each_other(fresh):
    _, weights = fresh
    for name in ("query", "key", "value", "relative", "attention_output", "up", "down"):
        layers = weights[name].reshape(8, -1)
        assert np.abs(np.corrcoef(layers) - np.eye(8)).max() < 0.1, name


def test_biases_start_at_zero_and_gains_at_one(fresh):
    _, weights = fresh
    for name in ("u", "v", "up_bias", "down_bias", "output_bias"):
        assert not weights[name].any(), name
    assert (weights["gain"] == 1).all()


def test_every_weight_names_an_axis_for_each_of_its_dimensions(family):
    boxed = jax.eval_shape(Transformer(family).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, flax.linen.Partitioned))
    assert boxes and all(isinstance(box, flax.linen.Partitioned) for box in boxes)
    for box in boxes:
        assert len(box.names) == box.value.ndim
        assert box.value.dtype == jnp.float32
    assert any(box.names[0] == "layers" and box.value.shape[0] == family.n_layers for box in boxes)
