"""The decoder of each family: what a logit depends on, and what must not change the function it computes."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.transformer import Transformer

LENGTH = 10
TOKENS = np.random.default_rng(0).permutation(LENGTH)[None].astype(np.int32)  # every position has a token of its own
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2]], np.int32)


def logits_of(model, **options):
    """A compiled function: parameters, tokens and perhaps documents -> logits."""
    return jax.jit(lambda *arguments: Transformer(model, **options).apply(*arguments)[0])


def dependence(model, weights, segment_ids=None):
    """Entry (t, i): whether the logits at t have any gradient with respect to the embedding read at position i.

    Only logits of tokens that are not in the row are looked at, so that a tied embedding counts as an input alone.
    """
    transformer = Transformer(model)
    mix = np.random.default_rng(1).standard_normal(model.vocab_size - LENGTH).astype(np.float32)

    def outputs(rows):
        table = jnp.asarray(weights["params"]["embedding"]).at[TOKENS[0]].set(rows)
        logits, *_ = transformer.apply({"params": {**weights["params"], "embedding": table}}, TOKENS, segment_ids)
        return logits[0, :, LENGTH:] @ mix

    gradient = jax.jit(jax.jacrev(outputs))(weights["params"]["embedding"][TOKENS[0]])
    assert gradient.shape == (LENGTH, LENGTH, model.d_model) and not np.isnan(gradient).any()
    return np.any(np.asarray(gradient) != 0, axis=-1)


def test_a_logit_depends_on_every_earlier_token_and_on_no_later_one(family, weights):
    np.testing.assert_array_equal(dependence(family, weights(family)), np.tri(LENGTH, dtype=bool))


def test_with_documents_a_logit_depends_on_the_earlier_tokens_of_its_own_alone(family, weights):
    same = DOCUMENTS[0][:, None] == DOCUMENTS[0][None, :]
    np.testing.assert_array_equal(dependence(family, weights(family), DOCUMENTS), np.tri(LENGTH, dtype=bool) & same)


def test_another_first_document_changes_later_ones_only_without_their_ids(kind, weights):
    params, apply = weights(kind), logits_of(kind)
    changed = TOKENS.copy()
    changed[0, :3] = [30, 31, 32]
    masked, masked_changed = apply(params, TOKENS, DOCUMENTS), apply(params, changed, DOCUMENTS)
    np.testing.assert_array_equal(masked[0, 3:], masked_changed[0, 3:])
    assert np.abs(masked[0, :3] - masked_changed[0, :3]).max(-1).min() > 0.01
    crossing = np.abs(apply(params, TOKENS) - apply(params, changed))[0, 3:].max(-1)
    assert crossing.min() > 1e-3


@pytest.mark.parametrize("position", ["relative", "rope", "xpos", "none"])
def test_with_relative_positions_a_packed_document_reads_as_it_would_alone(position, weights):
    model = ModelConfig(n_layers=2, d_model=24, n_heads=3, n_kv_heads=3, head_dim=6, d_ff=40, vocab_size=48,
                        position=position)  # fmt: skip
    params, apply = weights(model), logits_of(model)
    np.testing.assert_allclose(apply(params, TOKENS, DOCUMENTS)[:, 3:7], apply(params, TOKENS[:, 3:7]), atol=2e-5)


def stacked(params, n_layers):
    """Parameters of separate layers as those of scanned ones."""
    layers = [params["params"][f"layer_{i}"] for i in range(n_layers)]
    rest = {name: value for name, value in params["params"].items() if not name.startswith("layer_")}
    return {"params": {**rest, "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}}


def test_scanned_layers_are_the_same_function_as_separate_ones(kind, weights):
    separate = dataclasses.replace(kind, scan_layers=False)
    params = weights(separate)
    scanned = stacked(params, kind.n_layers)
    assert jax.tree.map(np.shape, scanned) == jax.tree.map(np.shape, weights(kind))
    expected, apply = logits_of(separate)(params, TOKENS, DOCUMENTS), logits_of(kind)
    np.testing.assert_allclose(apply(scanned, TOKENS, DOCUMENTS), expected, atol=1e-5)
    swapped = {"params": {**scanned["params"], "layers": jax.tree.map(lambda a: a[::-1], scanned["params"]["layers"])}}
    assert np.abs(apply(swapped, TOKENS, DOCUMENTS) - expected).max() > 0.01


def loss_and_gradient(model, **options):
    transformer = Transformer(model, **options)

    def loss(params, tokens):
        logits, *_ = transformer.apply(params, tokens, jnp.zeros_like(tokens))
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    return jax.jit(jax.value_and_grad(loss))


REMAT = ModelConfig(n_layers=2, d_model=24, n_heads=3, n_kv_heads=3, head_dim=6, d_ff=40, vocab_size=48)


@pytest.mark.parametrize(("remat", "scan"), [("full", True), ("dots", False), ("attention", True)])
def test_recomputing_activations_changes_neither_loss_nor_gradients(remat, scan, weights):
    model = dataclasses.replace(REMAT, scan_layers=scan, n_layers=2 if scan else 1)
    params = weights(model)
    loss, gradients = loss_and_gradient(model)(params, TOKENS)
    ours, our_gradients = loss_and_gradient(model, remat=remat)(params, TOKENS)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), our_gradients, gradients)


def test_full_recomputation_costs_more_than_that_of_all_but_the_products_with_weights(weights):
    model = dataclasses.replace(REMAT, scan_layers=False)
    params = weights(model)
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def flops(remat):
        return loss_and_gradient(model, remat=remat).lower(params, tokens).cost_analysis()["flops"]

    none, dots, full = (flops(remat) for remat in ("none", "dots", "full"))
    assert none < dots < full < none * 4 / 3


def count(jaxpr, what):
    """How many operations for which `what(operation)` there are in a program, a loop's once."""
    found = 0
    for operation in jaxpr.eqns:
        found += what(operation)
        for value in jax.tree.leaves(list(operation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr)):
            if isinstance(value, ClosedJaxpr | Jaxpr) and operation.primitive.name != "pallas_call":
                found += count(getattr(value, "jaxpr", value), what)
    return found


def is_forward_kernel(operation):
    return operation.primitive.name == "pallas_call" and "attention_forward" in str(operation.params)


def is_loop_over_keys(operation):
    return operation.primitive.name == "while"


# What is counted, and how often it is in forward and backward pass together if nothing is recomputed.
COUNTED = {"fused": (is_forward_kernel, 1), "blockwise": (is_loop_over_keys, 2)}


@pytest.mark.parametrize(("remat", "more"), [("none", 0), ("full", 1), ("attention", 0), ("dots", 0)])
@pytest.mark.parametrize("implementation", COUNTED)
def test_attention_is_computed_again_only_where_nothing_but_block_inputs_is_kept(implementation, remat, more):
    what, expected = COUNTED[implementation]
    model = dataclasses.replace(REMAT, attention=implementation)
    params = jax.eval_shape(Transformer(model).init, jax.random.key(0), TOKENS)
    program = jax.make_jaxpr(loss_and_gradient(model, remat=remat))(params, TOKENS)
    assert count(program.jaxpr, what) == expected + more


def test_computing_in_bfloat16_keeps_float32_weights_and_logits_and_stays_close(kind, weights):
    half = Transformer(kind, dtype=jnp.bfloat16)
    fresh = jax.eval_shape(half.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}
    params = weights(kind)
    logits = logits_of(kind, dtype=jnp.bfloat16)(params, TOKENS)
    exact = logits_of(kind)(params, TOKENS)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.05  # not zero: the products really are in bfloat16
    _, gradients = jax.eval_shape(loss_and_gradient(kind, dtype=jnp.bfloat16), params, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


COMBINATIONS = [
    # position, feed-forward, norm, biases, tied: every value of each option, not in the families' own combinations
    ("relative", "swiglu", "layernorm", "all", False),
    ("rope", "gelu", "layernorm", "gopher", True),
    ("learned", "swiglu", "rmsnorm", "none", True),
    ("xpos", "gelu", "layernorm", "all", True),
    ("none", "gelu", "rmsnorm", "all", False),
]


@pytest.mark.parametrize(("position", "feed_forward", "norm", "biases", "tied"), COMBINATIONS)
def test_fresh_weights_of_any_combination_predict_nearly_uniformly_and_every_weight_can_learn(
    position, feed_forward, norm, biases, tied
):
    model = ModelConfig(n_layers=1, d_model=32, n_heads=2, n_kv_heads=2, head_dim=12, d_ff=48, vocab_size=64,
                        max_position=LENGTH, position=position, feed_forward=feed_forward, norm=norm, biases=biases,
                        tie_embeddings=tied, scan_layers=False)  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 64, (3, LENGTH)).astype(np.int32)
    params = flax.linen.meta.unbox(jax.jit(Transformer(model).init)(jax.random.key(0), tokens))
    loss, gradients = loss_and_gradient(model)(params, tokens)
    assert abs(float(loss) - np.log(64)) < 1.0
    for path, gradient in flax.traverse_util.flatten_dict(gradients).items():
        assert np.isfinite(gradient).all(), path
        if path[-1] != "key_bias":  # softmax ignores what a key bias adds to a whole row
            assert np.abs(gradient).max() > 1e-7, path
