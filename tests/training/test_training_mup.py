"""muP: what each weight is drawn with and learns at, by the rules of its authors; activations keep their size."""

import dataclasses
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, ModelConfig, OptimizerConfig
from chinchilla_jax.model.parts import FEED_FORWARDS, block_weights, end_weights, rates
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.optimizer import make_optimizer
from chinchilla_jax.training.step import init_state, make_program
from tests.benchmarks import coordinates

BASE = {"base_width": 64}
TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12)


def declared(model):
    """Every weight by the end of its path."""
    blocks = {(module, name): w for module, group in block_weights(model).items() for name, w in group.items()}
    return blocks | {(name,): w for name, w in end_weights(model).items()}


def by_the_rules(path, base, wide, at_base):
    """(Factor on Adam's learning rate, standard deviation) of microsoft/mup for a weight of these shapes.

    A side is infinite if it differs between the two. Two of them: the rate goes with one over the factor of the input
    side, and the deviation with one over its root, as any initialisation by fan-in. One: the rate stays, and so does
    the deviation, whether an initialisation by the number of rows (embeddings) or a readout that is rescaled by the
    root of the factor.
    """
    infinite = [small != large for small, large in zip(base, wide, strict=True)]
    assert sum(infinite) <= 2 or path[-1] in ("query", "key", "value", "relative", "output")
    factor = math.prod(wide[:-1]) / math.prod(base[:-1]) if path == ("attention", "output") else wide[0] / base[0]
    matrix = sum(infinite) >= 2
    return (1 / factor, at_base / math.sqrt(factor)) if matrix else (1.0, at_base)


@pytest.mark.parametrize("width", [64, 192, 512])
@pytest.mark.parametrize("family", coordinates.FAMILIES)
def test_rates_and_deviations_are_those_of_its_authors(family, width):
    base = declared(coordinates.shape(family, 64, mup=False))
    wide = declared(model := coordinates.shape(family, width, mup=True))
    factors = rates(model)
    assert base.keys() == wide.keys()
    for path, weight in wide.items():
        rate, deviation = by_the_rules(path, base[path].shape, weight.shape, base[path].deviation)
        assert factors.get(path, 1.0) == weight.rate == pytest.approx(rate), path
        assert weight.deviation == pytest.approx(deviation), path
    assert not factors if width == 64 else len(factors) >= 6


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_no_matrix_of_a_layer_keeps_its_rate(kind):
    """Also of a kind that comes later: a weight declared without `matrix` would be trained too fast when wide."""
    model = ModelConfig(d_model=256, d_ff=512, n_heads=8, n_kv_heads=8, feed_forward=kind, base_width=64)
    slow = {name: w.rate for group in block_weights(model).values() for name, w in group.items() if w.deviation}
    assert set(slow.values()) == {0.25}


@pytest.mark.parametrize("family", coordinates.FAMILIES)
def test_at_its_base_width_it_is_the_standard_program_and_start(small, changed, family):
    plain = changed(small, model=dataclasses.asdict(coordinates.shape(family, 64, mup=False)) | {"vocab_size": 512})
    base = dataclasses.replace(plain, model=dataclasses.replace(plain.model, base_width=64, base_head_dim=16))
    assert base.model.base_width == 64
    states = [jax.jit(lambda key, c=c: init_state(c, key).params)(jax.random.key(0)) for c in (plain, base)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    texts = []
    for config in (plain, base):
        program = make_program(config, make_mesh(config.mesh))
        shape = (1, config.train.batch_size, config.data.seq_len)
        batch = {
            "inputs": jnp.zeros(shape, jnp.int32),
            "targets": jnp.zeros(shape, jnp.int32),
            "weights": jnp.ones(shape),
        }
        texts.append(program.step.lower(program.abstract, batch, np.float32(0.1)).as_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_step_moves_every_weight_at_its_own_rate_and_decays_all_at_one(small, changed, scan_layers):
    model = dataclasses.replace(coordinates.shape("llama", 256, mup=True), vocab_size=512, scan_layers=scan_layers)
    config = changed(small, model=dataclasses.asdict(model))
    params = jax.tree.map(
        lambda x: jnp.ones(x.shape), jax.eval_shape(lambda: init_state(config, jax.random.key(0)).params)
    )
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5, clip_norm=1e9, eps=1e-30), set(), rates(model))
    step = jax.jit(lambda: optimizer.update(params, optimizer.init(params), params)[0])
    moved = {}
    for path, update in jax.tree_util.tree_leaves_with_path(flax.linen.meta.unbox(step())):
        names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        moved[names[-2:] if len(names) > 1 else names] = float(update.min()), float(update.max())
    matrices = {("attention", name) for name in ("query", "key", "value", "output")}
    matrices |= {("feed_forward", name) for name in ("up", "gate", "down")}
    for path, update in moved.items():
        assert update == pytest.approx([0.5 + (0.25 if path in matrices else 1.0)] * 2), path
    assert matrices | {("output",), ("embedding",)} <= moved.keys()


def test_the_readout_is_divided_by_the_widening_and_the_temperature():
    plain = coordinates.shape("gopher", 128, mup=False)
    wide = dataclasses.replace(plain, **BASE, output_scale=0.5)
    params = jax.jit(Transformer(plain).init)(jax.random.key(0), TOKENS)
    params = jax.tree.map(lambda x: x + 0.1, flax.linen.meta.unbox(params))
    bias = params["params"]["output_bias"]
    full, part = (jax.jit(Transformer(c).apply)(params, TOKENS)[0] - bias for c in (plain, wide))
    np.testing.assert_allclose(part, full / 4.0, rtol=1e-5, atol=1e-5)


def test_scores_of_wider_heads_are_divided_by_their_width():
    """Scores by sqrt(16) / 64 instead of 1 / sqrt(64): as if queries were half as long."""
    wide = coordinates.shape("llama", 256, mup=True)
    assert (wide.head_dim, wide.base_head_dim, wide.attention_scale) == (64, 16, 1 / 16)
    plain = dataclasses.replace(wide, base_head_dim=0)
    assert plain.attention_scale is None
    params = flax.linen.meta.unbox(jax.jit(Transformer(plain).init)(jax.random.key(0), TOKENS))
    half = jax.tree_util.tree_map_with_path(lambda path, w: w / 2 if path[-1].key == "query" else w, params)
    np.testing.assert_allclose(
        jax.jit(Transformer(wide).apply)(params, TOKENS)[0],
        jax.jit(Transformer(plain).apply)(half, TOKENS)[0],
        atol=1e-6,
    )


def test_init_scale_multiplies_every_matrix_and_nothing_else():
    model = coordinates.shape("gpt3", 128, mup=True)
    for path, weight in declared(dataclasses.replace(model, init_scale=0.25)).items():
        assert weight == declared(model)[path]._replace(deviation=0.25 * declared(model)[path].deviation)


@pytest.mark.parametrize(
    ("values", "key", "told"),
    [
        ({"base_head_dim": 16}, "base_head_dim", "belongs to muP: set base_width"),
        (
            {"base_width": 32, "base_head_dim": 8},
            "base_head_dim",
            "0 where wider models have more heads of 32, or .* = 16",
        ),
        ({"base_width": -1}, "base_width", "not negative"),
        ({"init_scale": 0.0}, "init_scale", "positive"),
        ({"output_scale": math.inf}, "output_scale", "positive and finite"),
    ],
)
def test_what_does_not_go_together_is_refused(values, key, told):
    with pytest.raises(ConfigError, match=told) as refused:
        ModelConfig(**values)
    assert refused.value.key == key


def slopes(family, mup):
    models = [coordinates.shape(family, width, mup) for width in (64, 192, 512)]
    return coordinates.slopes(models, coordinates.over_widths(models, lr=0.01, seeds=4))


@pytest.mark.parametrize("family", ["llama", pytest.param("gopher", marks=pytest.mark.long)])
def test_activations_keep_their_size_as_the_width_grows(family):
    found = slopes(family, mup=True)
    assert len(found) == 6 and all(abs(slope) < 0.1 for slope in found.values()), found


@pytest.mark.long
def test_without_it_they_grow():
    assert max(slopes("gopher", mup=False).values()) > 0.3
