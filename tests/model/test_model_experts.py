"""Experts: DS-MoE and the sparse top-k layer against numpy, their routers' losses, and fewer experts."""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.ledger import count_active, count_parameters, forward_flops_per_sequence, train_flops_per_token
from chinchilla_jax.model.experts import (
    ATTENTION_USED,
    ROUTER_LOSS,
    USED,
    Selection,
    attention_experts,
    balance_loss,
    mutual_information_loss,
)
from chinchilla_jax.model.grouped import expert_rows, lay_out, mix
from chinchilla_jax.model.layers import Layer
from chinchilla_jax.model.parts import FEED_FORWARDS
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.objective import next_token_sums

SHAPE = ModelConfig(n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=64,
                    position="rope", biases="all", feed_forward="ds_moe", experts=4)  # fmt: skip
DS_MOE = dataclasses.replace(SHAPE, attention_experts=2, router_width=8)
TOP_K = dataclasses.replace(SHAPE, feed_forward="top_k", active_experts=2)
TOKENS = np.random.default_rng(0).integers(0, 64, (3, 10)).astype(np.int32)


def parameters(module, *inputs):
    """Parameters with biases and gains that are not 0 and 1."""
    shapes = flax.linen.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        return rng.normal(path[-1].key == "gain", 0.3, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def layer(model):
    """A feed-forward layer of the model by itself."""
    part = FEED_FORWARDS[model.feed_forward]
    return Layer(part, model, jnp.float32, {"select": (Selection(),), "mix": (mix,), "": ()}[part.takes])


def rows(model=SHAPE):
    return jax.random.normal(jax.random.key(5), (3, 10, model.d_model))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def apply(module, params, *inputs):
    return jax.jit(module.apply)({"params": params}, *inputs)


def test_ds_moe_adds_up_its_experts_outputs_by_their_shares():
    x = rows()
    params = parameters(layer(SHAPE), x)
    y, aux = apply(layer(SHAPE), params, x)
    w, x = jax.tree.map(np.float64, params), np.float64(x)
    shares = softmax(x @ w["router"])
    up, bias, down = w["up"].reshape(16, 4, 12), w["up_bias"].reshape(4, 12), w["down"].reshape(4, 12, 16)
    outputs = np.stack([gelu(x @ up[:, e] + bias[e]) @ down[e] for e in range(4)], axis=-1)
    np.testing.assert_allclose(y, 4 * (outputs * shares[..., None, :]).sum(-1) + w["down_bias"], atol=2e-5)
    mean = shares.mean((0, 1))
    expected = -(shares * np.log(shares)).sum(-1).mean() + (mean * np.log(mean)).sum()
    np.testing.assert_allclose(aux[ROUTER_LOSS], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["top_k", "top_k_swiglu"])
@pytest.mark.parametrize("generation", ["v5e", None], ids=["ragged", "tiles"])
@pytest.mark.parametrize("width", [0, 8])
def test_top_k_adds_up_the_experts_with_the_largest_shares_and_no_token_is_dropped(kind, generation, width):
    model, x = dataclasses.replace(TOP_K, feed_forward=kind, router_width=width), rows()
    params = parameters(layer(model), x)
    params["router"][:, 1] += 1.0  # uneven
    with compile_for(generation or "cpu"):
        y, aux = jax.jit(lambda params, x: layer(model).apply({"params": params}, x))(params, x)
    w, x = jax.tree.map(np.float64, params), np.float64(x)
    scores = gelu(x @ w["router"]) @ w["router_output"] if width else x @ w["router"]
    shares, expected, chosen = softmax(scores), np.zeros_like(x), np.zeros((3, 10, 4))
    for b, s in np.ndindex(3, 10):
        best = np.argsort(-shares[b, s])[:2]
        chosen[b, s, best] = 0.5
        for e in best:
            h = x[b, s] @ w["up"][e] + w["up_bias"][e]
            if kind == "top_k_swiglu":
                g = x[b, s] @ w["gate"][e] + w["gate_bias"][e]
                h = g / (1 + np.exp(-g)) * h
            else:
                h = gelu(h)
            expected[b, s] += shares[b, s, e] / shares[b, s, best].sum() * (h @ w["down"][e])
    np.testing.assert_allclose(y, expected + w["down_bias"], atol=5e-5)
    np.testing.assert_allclose(aux[ROUTER_LOSS], 4 * (chosen.mean((0, 1)) * shares.mean((0, 1))).sum(), atol=1e-5)


def test_both_grouped_products_have_the_gradients_of_a_product_with_every_expert():
    x, expert = rows().reshape(30, 16), jax.random.randint(jax.random.key(2), (60,), 0, 3)  # of 4: one has no rows
    expert = expert.at[7].set(4)  # a row of no expert
    every_weight = parameters(layer(TOP_K), rows())
    w = {name: every_weight[name] for name in ("up", "up_bias", "down")}
    pull = jax.random.normal(jax.random.key(3), (60, 16))

    def every(x, w):
        x = jnp.repeat(x, 2, axis=0)
        h = jax.nn.gelu(jnp.einsum("ad,edf->aef", x, w["up"]) + w["up_bias"])
        return jnp.einsum("aef,efd,ae->ad", h, w["down"], jax.nn.one_hot(expert, 4))

    def pulled(function):
        return jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(pull * function(x, w)), argnums=(0, 1)))(x, w)

    expected = pulled(every)
    for generation in ("v5e", "cpu"):
        with compile_for(generation):
            found = pulled(lambda x, w: expert_rows(x, expert, w))
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-4, atol=2e-4), found, expected)
    assert not np.any(found[1][1]["up"][3]), "an expert without tokens has no gradient"


@pytest.mark.parametrize("tile", [1, 4])
def test_rows_of_an_expert_lie_together_and_none_is_lost(tile):
    expert = np.array([2, 0, 3, 2, 2, 0, 5, 2, 3, 2], np.int32)  # of 5; 1 and 4 have none, 5 is nobody
    to = jax.tree.map(np.asarray, lay_out(jnp.asarray(expert), 5, tile))
    placed = to.place_A[expert < 5]
    assert len(set(placed)) == 9 and placed.max() < len(to.row_M) <= to.place_A[6]
    np.testing.assert_array_equal(to.row_M[placed], np.flatnonzero(expert < 5))
    assert sorted(to.row_M)[9:] == [10] * (len(to.row_M) - 9)
    np.testing.assert_array_equal(to.expert_T[placed // tile], expert[expert < 5])
    np.testing.assert_array_equal(to.sizes_E, [-(-n // tile) * tile for n in (2, 0, 5, 2, 0)])


def test_one_expert_is_the_dense_layer_to_the_bit():
    one, dense = dataclasses.replace(SHAPE, experts=1), dataclasses.replace(SHAPE, feed_forward="gelu", experts=1)
    x = rows()
    params = parameters(layer(one), x)
    expected, _ = apply(layer(dense), {name: w for name, w in params.items() if name != "router"}, x)
    np.testing.assert_array_equal(apply(layer(one), params, x)[0], expected)


def test_shares_of_one_in_attention_give_grouped_query_attention():
    params = parameters(Transformer(DS_MOE), TOKENS)
    plain = dataclasses.replace(DS_MOE, attention_experts=1)
    attention = params["layers"]["attention"]
    even = {**attention, "router_output": 0 * attention["router_output"]}  # shares of 1 / N, times N
    without = {name: w for name, w in attention.items() if not name.startswith("router")}

    def logits(model, attention):
        tree = {**params, "layers": {**params["layers"], "attention": attention}}
        return apply(Transformer(model), tree, TOKENS)[0]

    np.testing.assert_allclose(logits(DS_MOE, even), logits(plain, without), atol=1e-5)
    assert np.abs(logits(DS_MOE, attention) - logits(plain, without)).max() > 0.01


def test_a_head_is_weighed_by_the_expert_of_its_index_and_every_group_of_keys_has_each_expert():
    model = dataclasses.replace(SHAPE, n_heads=6, n_kv_heads=2, attention_experts=3)
    x, w = rows(), {"router": jax.random.normal(jax.random.key(1), (16, 3))}
    found, _ = attention_experts(jnp.ones((3, 10, 6, 8)), x, w, model, Selection())
    shares = softmax(np.asarray(x @ w["router"]))
    np.testing.assert_allclose(found, np.repeat(3 * shares[..., [0, 1, 2, 0, 1, 2], None], 8, axis=-1), rtol=1e-4)
    some, aux = attention_experts(jnp.ones((3, 10, 6, 8)), x, w, model, Selection(above=0.9))
    np.testing.assert_allclose(some, np.where(found > 0.9, found, 0), rtol=1e-6)
    np.testing.assert_allclose(aux[ATTENTION_USED], (3 * shares > 0.9).mean(), rtol=1e-6)


@pytest.mark.parametrize("model", [SHAPE, DS_MOE], ids=["feed-forward", "and attention"])
def test_the_top_experts_as_many_as_there_are_give_what_training_computes(model):
    params = parameters(Transformer(model), TOKENS)
    expected, _, sums = apply(Transformer(model), params, TOKENS)
    found, _, counted = apply(Transformer(model, select=Selection(top=4)), params, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert USED not in sums and counted[USED] == model.n_layers
    fewer, _, counted = apply(Transformer(model, select=Selection(top=1)), params, TOKENS)
    np.testing.assert_allclose(counted[USED], model.n_layers / 4, rtol=1e-6)
    assert np.abs(fewer - expected).max() > 0.01


def test_the_top_experts_keep_their_shares_and_a_threshold_is_of_shares_times_experts():
    shares = jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_array_equal(Selection(top=2).feed_forward(shares)[0], jnp.array([0, 0.4, 0, 0.3]))
    assert (Selection(top=2).feed_forward(shares)[1] > 0).sum() == 2, "of equal shares not more than asked for"
    np.testing.assert_array_equal(Selection(top=2).attention(shares), shares)
    np.testing.assert_array_equal(Selection(above=0.9).attention(shares)[0], jnp.array([0, 0.4, 0, 0.3]))
    np.testing.assert_array_equal(Selection(above=0.48).feed_forward(shares), shares.at[0, 0].set(0))
    assert Selection().feed_forward(shares) is shares
    for impossible in ({"top": -1}, {"above": -0.1}, {"above": float("nan")}):
        with pytest.raises(ValueError, match="may be below 0, or not a number"):
            Selection(**impossible)


def test_the_loss_of_the_router_at_its_extremes():
    even = jnp.full((2, 4, 8), 1 / 8)
    sure = jax.nn.one_hot(jnp.arange(8).reshape(2, 4), 8)
    one = jax.nn.one_hot(jnp.zeros((2, 4), jnp.int32), 8)
    for shares, expected in ((even, 0.0), (sure, -math.log(8)), (one, 0.0)):
        np.testing.assert_allclose(mutual_information_loss(shares), expected, atol=1e-6)
        assert np.isfinite(jax.grad(mutual_information_loss)(shares)).all()
    # Over all rows, not the mean of each row's loss: each row alone has one expert.
    rows = jax.nn.one_hot(jnp.repeat(jnp.arange(2), 4).reshape(2, 4), 2)
    np.testing.assert_allclose(mutual_information_loss(rows), -math.log(2), atol=1e-6)
    chosen = jnp.arange(8).reshape(2, 4, 1)
    np.testing.assert_allclose(balance_loss(sure, chosen), 1.0, atol=1e-6)
    np.testing.assert_allclose(balance_loss(one, 0 * chosen), 8.0, atol=1e-6)


@pytest.mark.parametrize("model", [DS_MOE, TOP_K], ids=["ds_moe", "top_k"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_gradient_of_a_router_by_finite_differences(model, alpha):
    params = parameters(Transformer(model), TOKENS)
    batch = {"inputs": TOKENS, "targets": (3 * TOKENS + 1) % 64, "weights": np.ones(TOKENS.shape, np.float32)}

    @jax.jit
    def loss(params):
        return next_token_sums(Transformer(model), params, batch, router_loss=alpha)[0] / TOKENS.size

    gradients = jax.jit(jax.grad(loss))(params)["layers"]
    for module in ("attention", "feed_forward") if model is DS_MOE else ("feed_forward",):
        for name in [n for n in gradients[module] if n.startswith("router")]:
            gradient = np.asarray(gradients[module][name])
            along = gradient / np.linalg.norm(gradient)
            step, values = 2e-3, []
            for sign in (1, -1):
                w = params["layers"][module][name] + sign * step * along
                moved = {**params["layers"], module: {**params["layers"][module], name: w}}
                values.append(float(loss({**params, "layers": moved})))
            measured = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(measured, np.linalg.norm(gradient), rtol=0.02, atol=2e-4)


def test_the_loss_of_the_router_is_minimised_and_not_reported_as_nats_of_a_token():
    params = parameters(Transformer(DS_MOE), TOKENS)
    weights = np.ones(TOKENS.shape, np.float32)
    weights[2, 5:] = 0
    batch = {"inputs": TOKENS, "targets": TOKENS, "weights": weights}
    step = jax.jit(functools.partial(next_token_sums, Transformer(DS_MOE)), static_argnames="router_loss")
    plain, sums = step(params, batch)
    with_router, same = step(params, batch, router_loss=0.1)
    _, _, aux = apply(Transformer(DS_MOE), params, TOKENS)
    assert sums["nll"] == same["nll"] == plain and sums["weight"] == 25
    np.testing.assert_allclose(with_router - plain, 0.1 * 25 * aux[ROUTER_LOSS], rtol=1e-3)
    np.testing.assert_allclose(sums[ROUTER_LOSS], 25 * aux[ROUTER_LOSS], rtol=1e-5)


def test_experts_that_a_token_does_not_choose_have_no_gradient_and_all_of_a_ds_moe_have_one():
    one = rows()[:1, :1]
    for model, learning in ((TOP_K, 2), (SHAPE, 4)):
        params = parameters(layer(model), one)
        added = jax.jit(jax.grad(lambda p, model=model: jnp.sum(layer(model).apply({"params": p}, one)[0])))
        up = added(params)["up"]
        by_expert = up if model is TOP_K else up.reshape(16, 4, 12).swapaxes(0, 1)
        assert np.any(by_expert, axis=(1, 2)).sum() == learning


def test_experts_of_a_sparse_model_are_counted_and_priced_by_those_that_a_token_meets():
    dense = dataclasses.replace(SHAPE, feed_forward="gelu", experts=1, biases="none")
    sparse = dataclasses.replace(TOP_K, biases="none")
    everything = dataclasses.replace(SHAPE, biases="none")
    routers = 2 * 16 * 4
    n = count_parameters(dense).total
    assert count_parameters(sparse).total == count_parameters(everything).total == n + routers
    assert count_active(everything) == n + routers
    assert count_active(sparse) == n + routers - 2 * 2 * (16 * 48) // 2
    for model in (sparse, everything):
        assert train_flops_per_token(model, 32, "6nd") == 6 * count_active(model)
    flops = {m.feed_forward: forward_flops_per_sequence(m, 32, "executed") for m in (dense, sparse, everything)}
    assert flops["ds_moe"]["feed_forward"] == flops["gelu"]["feed_forward"] + 2 * 32 * routers
    assert flops["top_k"]["feed_forward"] == flops["gelu"]["feed_forward"] / 2 + 2 * 32 * routers
    half = forward_flops_per_sequence(sparse, 32, "appendix_f")["feed_forward"]
    assert half == forward_flops_per_sequence(dense, 32, "appendix_f")["feed_forward"] / 2


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"feed_forward": "gelu"}, "experts", "4, but feed_forward=gelu has no experts; use feed_forward=ds_moe"),
        ({"feed_forward": "swiglu", "experts": 1, "active_experts": 1}, "active_experts", "has no experts"),
        ({"experts": 5}, "experts", "must divide d_ff=48, the width of all experts together, got 5"),
        ({"active_experts": 2}, "active_experts", "must be 0, got 2: ds_moe trains all experts"),
        ({"feed_forward": "top_k", "active_experts": 5}, "active_experts", "must not be above experts=4, got 5"),
        ({"attention_experts": 4}, "attention_experts", "must divide the 2 query heads of a group of keys"),
        ({"feed_forward": "gelu", "experts": 1, "router_width": 8}, "router_width", "no experts"),
    ],
)
def test_impossible_experts_are_refused_by_name(changes, key, told):
    with pytest.raises(ConfigError, match=told) as refusal:
        dataclasses.replace(SHAPE, **changes)
    assert refusal.value.key == key
