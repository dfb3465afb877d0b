"""Adam and AdamW against their papers, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chinchilla_jax.config import OptimizerConfig
from chinchilla_jax.model.parts import vectors
from chinchilla_jax.training.optimizer import make_optimizer
from chinchilla_jax.training.step import init_state

SHAPES = {
    "layers": {
        "attention": {"query": (3, 4), "u": (2, 2), "v": (2, 2), "value": (3, 4), "output_bias": (4,)},
        "norm": {"gain": (3,), "bias": (3,)},
    },
    "embedding": (5, 3),
    "output_bias": (5,),
}
DECAYED = {"query", "value", "embedding"}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: scale * rng.standard_normal(s), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def by_hand(config, params, gradients, rate):
    """Weights after a step for each of `gradients`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names, weights = [path[-1].key for path, _ in leaves], [leaf for _, leaf in leaves]
    m, v = [0.0 * w for w in weights], [0.0 * w for w in weights]
    for t, gradient in enumerate(map(jax.tree.leaves, gradients), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        for i, g in enumerate(gradient):
            g = g * min(1.0, config.clip_norm / norm)
            m[i] = config.b1 * m[i] + (1 - config.b1) * g
            v[i] = config.b2 * v[i] + (1 - config.b2) * g**2
            update = (m[i] / (1 - config.b1**t)) / (np.sqrt(v[i] / (1 - config.b2**t)) + config.eps)
            decay = config.weight_decay * weights[i] if names[i] in DECAYED else 0.0
            weights[i] = weights[i] - rate * (update + decay)
    return jax.tree.unflatten(structure, weights)


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(weight_decay=0.0, clip_norm=1e9),
        OptimizerConfig(weight_decay=0.0, clip_norm=3.0, b1=0.8, b2=0.99, eps=1e-2),
        OptimizerConfig(weight_decay=0.3, clip_norm=3.0),
        OptimizerConfig(weight_decay=0.0),
    ],
)
def test_steps_are_those_of_the_paper(config):
    params = random_tree(0)
    gradients = [random_tree(seed, scale) for seed, scale in ((1, 1.0), (2, 10.0), (3, 0.01), (4, 1.0))]
    expected = by_hand(config, params, gradients, rate=0.05)
    optimizer = make_optimizer(config, {"gain", "bias", "u", "v", "output_bias"})
    ours = jax.tree.map(np.float32, params)
    state = optimizer.init(ours)

    @jax.jit
    def step(ours, state, gradient):
        updates, state = optimizer.update(gradient, state, ours)
        return optax.apply_updates(ours, jax.tree.map(lambda u: -0.05 * u, updates)), state

    for gradient in gradients:
        ours, state = step(ours, state, jax.tree.map(np.float32, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, expected)


def test_clipping_scales_the_whole_gradient():
    """The first moment is (1 - b1) times what is left of the gradient."""
    optimizer = make_optimizer(OptimizerConfig(clip_norm=2.0, b1=0.5), set())
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}

    def moment(a, b):
        gradient = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        return jax.tree.map(np.asarray, optimizer.update(gradient, optimizer.init(params), params)[1][1].mu)

    long = moment([30.0, 0.0], [40.0])
    np.testing.assert_allclose(long["a"], [0.5 * 1.2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(long["b"], [0.5 * 1.6], rtol=1e-6)
    short = moment([0.3, 0.0], [0.4])
    np.testing.assert_allclose(short["a"], [0.15, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        {"biases": "gopher", "position": "relative"},
        {"biases": "all", "norm": "layernorm", "position": "learned"},
        {"biases": "none", "position": "rope", "feed_forward": "swiglu", "tie_embeddings": False, "scan_layers": False},
    ],
)
def test_of_real_models_the_matrices_decay_and_nothing_else(small, changed, model):
    """With gradients of zero, what moves is what decays."""
    config = changed(small, model=model)
    shapes = jax.eval_shape(lambda: init_state(config, jax.random.key(0)).params)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), vectors(config.model))

    @jax.jit
    def updates():
        params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
        return optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]

    kinds = {"matrix": set(), "vector": set()}
    for path, update in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, updates())):
        name = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
        kinds["matrix" if update.flat[0] == pytest.approx(0.1) else "vector"].add(name)
        assert float(np.ptp(update)) == 0.0
    assert kinds["matrix"] <= {
        "embedding",
        "position",
        "output",
        "query",
        "key",
        "value",
        "relative",
        "up",
        "gate",
        "down",
    }
    assert kinds["vector"] <= {"gain", "bias", "u", "v"} | {
        f"{n}_bias" for n in ("query", "key", "value", "output", "up", "gate", "down")
    }
    assert {"embedding", "query", "value", "output", "up", "down"} <= kinds["matrix"] and "gain" in kinds["vector"]
