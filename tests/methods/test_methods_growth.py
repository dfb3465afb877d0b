"""A model that grows computes what it did, in every dimension; and at the end it is an ordinary model of its shape."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import DataConfig, ModelConfig, RunConfig
from chinchilla_jax.methods import units
from chinchilla_jax.methods.growth import Grow, MaskedNextToken, fold
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.stages import Stage
from chinchilla_jax.training.step import TrainState, init_state, make_program

SMALL = ModelConfig(n_layers=2, d_model=16, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=32, vocab_size=300)
FAMILIES = {
    "gopher": SMALL,
    "gopher_unrolled": dataclasses.replace(SMALL, scan_layers=False),
    "llama": dataclasses.replace(SMALL, position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False,
                                 n_kv_heads=2),
    "gpt3": dataclasses.replace(SMALL, position="learned", norm="layernorm", biases="all", max_position=32),
}  # fmt: skip
# Grouped keys grow by whole groups, and by more query heads in each group.
HEADS = {"llama": {"n_heads": 9, "n_kv_heads": 3}}
LARGER = {
    "feed_forward": {"d_ff": 48},
    "heads": {"n_heads": 6, "n_kv_heads": 6},
    "layers": {"n_layers": 5},
    "width": {"d_model": 48},
    "all": {"d_ff": 48, "n_heads": 6, "n_kv_heads": 6, "n_layers": 5, "d_model": 48},
}
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 16))
long = pytest.mark.long
# Each family in all dimensions at once, one family in one at a time.
GROWN = [
    (family, dimension) if dimension == "all" or family == "llama" else pytest.param(family, dimension, marks=long)
    for family in FAMILIES
    for dimension in LARGER
]


def larger(family, dimension):
    """The shape that a family's small model grows into."""
    heads = HEADS.get(family, {}) if dimension in ("heads", "all") else {}
    return dataclasses.replace(FAMILIES[family], **LARGER[dimension] | heads)


@functools.cache
def state_of(model, seed=0, noise=0.0):
    """A fresh state, on top of it normal numbers with this deviation."""
    config = RunConfig(model=model, data=DataConfig(vocab_size=300, seq_len=16))
    state = jax.jit(lambda key: nn.unbox(init_state(config, key)))(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda x: x + np.float32(noise) * rng.standard_normal(x.shape, np.float32), state.params)
    return state.replace(params=noisy)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    return model.apply({"params": params}, TOKENS)[0]


def masked_logits(small, large, params, mask, how="interleave"):
    """What the larger model computes while its mask has this value."""
    extra = {"done": jnp.int32(round(mask * 100)), "steps": jnp.int32(100)}
    config = RunConfig(model=large, data=DataConfig(vocab_size=300, seq_len=16))
    model, folded = MaskedNextToken(small, how).masked(config, Transformer(large), params, extra)
    return logits(model, folded)


@pytest.mark.parametrize(("family", "dimension"), GROWN)
def test_logits_stay_the_same_whatever_the_new_weights_are(family, dimension):
    small, large = FAMILIES[family], larger(family, dimension)
    before, fresh = state_of(small), state_of(large, 1, noise=3.0)
    grown = Grow(small, large, "interleave", 4)(before, fresh)
    assert jax.tree.map(jnp.shape, grown.params) == jax.tree.map(jnp.shape, fresh.params)
    expected = logits(Transformer(small), before.params)
    np.testing.assert_allclose(masked_logits(small, large, grown.params, 0.0), expected, atol=1e-5)
    assert np.abs(logits(Transformer(large), grown.params) - expected).max() > 0.1, "without the mask they would not"


@pytest.mark.parametrize("family", [name if name == "gopher" else pytest.param(name, marks=long) for name in FAMILIES])
def test_all_dimensions_one_after_the_other(family):
    """Each growth begins while the units of the one before still say nothing."""
    small, params = FAMILIES[family], state_of(FAMILIES[family]).params
    expected = logits(Transformer(small), params)
    for dimension in ("feed_forward", "layers", "heads", "width"):
        shape = larger(family, dimension)
        grown = {name: max(getattr(shape, name), getattr(small, name)) for name in LARGER["all"]}
        large = dataclasses.replace(small, **grown)
        fresh = state_of(large, 1, noise=3.0)
        params = Grow(small, large, "interleave", 1).weights(params, fresh.params)
        np.testing.assert_allclose(masked_logits(small, large, params, 0.0), expected, atol=1e-5)
        silent = fold(params, small, large, "interleave", jnp.float32(0.0))
        params, small = jax.tree.map(lambda old, x: x, params, _without_shares(silent)), large
    assert vars(small) == vars(larger(family, "all"))


def _without_shares(tree):
    return {name: _without_shares(x) if isinstance(x, dict) else x for name, x in tree.items() if name != "share"}


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_end_of_the_ramp_it_is_the_ordinary_model(family):
    small, large = FAMILIES[family], larger(family, "all")
    grown = Grow(small, large, "interleave", 4)(state_of(small), state_of(large, 1))
    expected = logits(Transformer(large), grown.params)
    np.testing.assert_allclose(masked_logits(small, large, grown.params, 1.0), expected, atol=2e-5)


def test_in_between_the_model_is_in_between():
    small, large = SMALL, larger("gopher", "all")
    grown = Grow(small, large, "interleave", 4)(state_of(small), state_of(large, 1))
    start, *way = (masked_logits(small, large, grown.params, mask) for mask in (0.0, 0.01, 0.3, 0.6, 1.0))
    moved = [float(np.abs(x - start).mean()) for x in way]
    assert moved == sorted(moved) and 0.0 < moved[0] < 0.05 * moved[-1]


def test_leading_rows_for_the_projection_of_distances_would_change_the_logits(monkeypatch):
    """The control: rows of old frequencies anywhere but at every second row of each half are those of others."""
    small, large = SMALL, dataclasses.replace(SMALL, d_model=32)
    expected = logits(Transformer(small), state_of(small).params)
    strided = units._old_at
    monkeypatch.setattr(units, "_old_at", lambda name, *rest: np.arange(16) if (name, rest[0]) == ("relative", 0)
                        else strided(name, *rest))  # fmt: skip
    grown = Grow(small, large, "interleave", 4)(state_of(small), state_of(large, 1))
    assert np.abs(masked_logits(small, large, grown.params, 0.0) - expected).max() > 0.1


@pytest.mark.parametrize("how, sources, copies", [
    ("interleave", [0, 0, 1, 1, 1], [False, True, False, True, True]),
    ("stack", [0, 1, 0, 1, 1], [False, False, True, True, True]),
])  # fmt: skip
def test_new_layers_are_copies(how, sources, copies):
    assert [list(part) for part in units.layer_sources(2, 5, how)] == [sources, copies]
    small, large = SMALL, larger("gopher", "layers")
    before = state_of(small)
    grown = Grow(small, large, how, 4)(before, state_of(large, 1))
    up = before.params["layers"]["feed_forward"]["up"]
    np.testing.assert_array_equal(grown.params["layers"]["feed_forward"]["up"], up[np.array(sources)])
    expected = logits(Transformer(small), before.params)
    np.testing.assert_allclose(masked_logits(small, large, grown.params, 0.0, how), expected, atol=1e-5)


def test_moments_follow_their_weights_and_begin_at_zero_for_new_ones():
    small, large = SMALL, larger("gopher", "all")
    before = state_of(small)
    adam = before.opt_state[1]
    marked = adam._replace(count=jnp.int32(7), mu=jax.tree.map(jnp.ones_like, adam.mu),
                           nu=jax.tree.map(lambda x: 2 * jnp.ones_like(x), adam.nu))  # fmt: skip
    grown = Grow(small, large, "interleave", 4)(
        TrainState(jnp.int32(9), before.params, (before.opt_state[0], marked, *before.opt_state[2:])), state_of(large)
    )
    after = grown.opt_state[1]
    assert (int(grown.step), int(after.count)) == (9, 7)
    for moments, value in ((after.mu, 1.0), (after.nu, 2.0)):
        numbers = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(moments)])
        assert set(np.unique(numbers)) == {0.0, value}
        old = sum(x.size for x in jax.tree.leaves(before.params))
        assert np.count_nonzero(numbers) == old
        assert not moments["layers"]["feed_forward"]["up"][1].any(), "a copied layer"


def test_new_units_get_no_gradient_while_nothing_reads_them():
    small, large = SMALL, larger("gopher", "feed_forward")
    params = Grow(small, large, "interleave", 4)(state_of(small), state_of(large, 1)).params

    def loss(params):
        folded = fold(params, small, large, "interleave", jnp.float32(0.0))
        return jnp.sum(Transformer(large).apply({"params": folded}, TOKENS)[0] ** 2)

    up = np.asarray(jax.jit(jax.grad(loss))(params)["layers"]["feed_forward"]["up"])
    assert np.abs(up[..., :32]).min() > 0 and not up[..., 32:].any()


@pytest.mark.long
def test_growing_and_the_step_after_it_are_the_same_on_eight_devices():
    """In width, heads, feed-forward width and layers, with the large arrays of both models split."""
    large = dataclasses.replace(SMALL, d_model=32, d_ff=64, n_heads=8, n_kv_heads=8, n_layers=4)
    results = []
    for axes in ({}, {"fsdp": 2, "context": 2, "tensor": 2}):
        configs = [
            RunConfig.from_dict({"model": dataclasses.asdict(model), "mesh": axes, "train": {"batch_size": 8},
                                 "data": {"vocab_size": 300, "seq_len": 32}}) for model in (SMALL, large)
        ]  # fmt: skip
        mesh = make_mesh(configs[0].mesh)
        ramp = Stage(configs[1], MaskedNextToken(SMALL, "interleave"), Grow(SMALL, large, "interleave", 4))
        small, program = make_program(configs[0], mesh), make_program(configs[1], mesh, ramp.objective)
        state = ramp.first_state(program, small.init(jax.random.key(0)))
        shardings = jax.tree.map(lambda x: x.sharding, (state, program.abstract))
        assert jax.tree.all(jax.tree.map(lambda x, y: x == y, *shardings))
        tokens = np.random.default_rng(0).integers(0, 300, (1, 8, 33), dtype=np.int32)
        batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": np.ones((1, 8, 32), np.float32)}
        batch = {name: jax.device_put(x, program.batch_sharding) for name, x in batch.items()}
        told = []
        for _ in range(3):
            state, metrics = program.step(state, batch, np.float32(1e-2))
            told += [float(metrics["loss"]), float(metrics["grad_norm"])]
        results.append(told)
    np.testing.assert_allclose(*results, rtol=2e-5)
