"""Experts on a mesh: the numbers are those of one device, wherever tokens and experts are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.model import grouped
from chinchilla_jax.parallel.experts import mix
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.rules import rules_of
from chinchilla_jax.training.step import make_program

DS_MOE = {"feed_forward": "ds_moe", "experts": 8, "attention_experts": 2}
TOP_K = {"feed_forward": "top_k_swiglu", "experts": 8, "active_experts": 3}


def changed(config, model, router_loss=0.1, **mesh):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        optimizer=dataclasses.replace(config.optimizer, router_loss=router_loss),
        mesh=MeshConfig(**mesh),
    )


def run(config):
    """Losses, router's losses and gradient norms of 4 steps; the last weights."""
    program = make_program(config, make_mesh(config.mesh))
    state, records = program.init(jax.random.key(0)), []
    for step in range(4):
        rows = np.random.default_rng(step).integers(0, 40, (2, 8, 17)).astype(np.int32)
        weights = np.ones((2, 8, 16), np.float32)
        weights[1, 5:, 4:] = 0.0
        batch = {"inputs": rows[..., :-1], "targets": (rows[..., :-1] * 7 + 3) % 40, "weights": weights}
        state, metrics = program.step(state, jax.device_put(batch, program.batch_sharding), np.float32(3e-3))
        records.append([float(metrics[name]) for name in ("loss", "router_loss", "grad_norm")])
    return np.array(records), jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope="module")
def single(sharded_config):
    """Each kind of model on one device."""
    base = sharded_config("llama", 1, 1, 1)
    return {kind: run(changed(base, model)) for kind, model in (("ds_moe", DS_MOE), ("top_k", TOP_K))}


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("ds_moe", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("top_k", {"expert": 8}),
        ("top_k", {"fsdp": 2, "expert": 2, "tensor": 2}),
        pytest.param("top_k", {"data": 2, "context": 2, "tensor": 2}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_run_with_experts_does_not_depend_on_the_mesh(sharded_config, single, kind, mesh):
    model = {"ds_moe": DS_MOE, "top_k": TOP_K}[kind]
    records, params = run(changed(sharded_config("llama", 1, 1, 1), model, **mesh))
    expected, expected_params = single[kind]
    np.testing.assert_allclose(records, expected, rtol=5e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), params, expected_params)
    assert np.ptp(expected[:, 1]) > 1e-3, "the router moves"


@pytest.mark.parametrize("mesh", [MeshConfig(expert=4), MeshConfig(data=2, expert=2, tensor=2)], ids=str)
@pytest.mark.parametrize("choice", ["even", "one device has all", "one expert has all"])
def test_the_exchange_gives_values_and_gradients_of_one_device_however_uneven(mesh, choice):
    experts, k = 8, 2
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 6, 16)).astype(np.float32)
    gates = rng.random((4, 6, k)).astype(np.float32)
    chosen = {
        "even": np.argsort(rng.random((4, 6, experts)))[..., :k],
        "one device has all": np.broadcast_to([1, 0], (4, 6, k)),
        "one expert has all": np.broadcast_to([5, 5], (4, 6, k)),
    }[choice].astype(np.int32)
    shapes = {"up": (experts, 16, 12), "up_bias": (experts, 12), "down": (experts, 12, 16)}
    w = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    pull = rng.normal(size=x.shape).astype(np.float32)

    def value_and_gradients(function):
        return jax.jit(jax.value_and_grad(lambda x, g, w: jnp.sum(pull * function(x, g, chosen, w)), argnums=(0, 1, 2)))

    expected = value_and_gradients(grouped.mix)(x, gates, w)
    with rules_of(mesh), jax.sharding.set_mesh(make_mesh(mesh)):
        found = value_and_gradients(mix)(x, gates, w)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-4), found, expected)


def test_experts_lie_on_the_devices_of_their_axis_and_everything_else_as_without_it(sharded_config):
    config = changed(sharded_config("llama", 1, 1, 1), TOP_K, fsdp=2, expert=2, tensor=2)
    program = make_program(config, make_mesh(config.mesh))
    layer = program.abstract.params["layers"]
    up, query = layer["feed_forward"]["up"], layer["attention"]["query"]
    assert up.sharding.shard_shape(up.shape) == (2, 8 // 2, 32 // 2, 8 // 2)
    assert query.sharding.shard_shape(query.shape) == (2, 32 // 2, 4 // 2, 8)
    assert program.batch_sharding.shard_shape((2, 8, 16)) == (2, 2, 16)
    assert str(config.mesh) == "1 x 2 x 2 x 1 x 2" and str(MeshConfig(2, 2, 2)) == "2 x 2 x 1 x 2"
    assert make_mesh(MeshConfig(2, 2, 2)).axis_names == ("data", "fsdp", "context", "tensor")


@pytest.mark.parametrize(
    ("model", "mesh", "key", "told"),
    [
        ({}, {"expert": 2}, "mesh.expert", "2, but model.feed_forward=swiglu has no experts to split over it"),
        (DS_MOE, {"expert": 2}, "mesh.expert", "feed_forward=ds_moe has no experts to split"),
        (DS_MOE | {"experts": 2}, {"tensor": 4}, "model.experts", "2 do not divide over mesh.tensor=4"),
        (TOP_K | {"experts": 4}, {"expert": 8}, "model.experts", "4 do not divide over mesh.expert=8"),
        (TOP_K | {"experts": 64}, {"tensor": 2}, "model.d_ff", "1 units of an expert"),
        (TOP_K, {"expert": 8, "data": 2}, "train.batch_size", "do not divide over mesh.data . mesh.fsdp . mesh.expert"),
    ],
)
def test_experts_that_do_not_divide_over_the_mesh_are_refused_by_name(sharded_config, model, mesh, key, told):
    with pytest.raises(ConfigError, match=told) as refusal:
        changed(sharded_config("llama", 1, 1, 1), model, router_loss=0.0, **mesh)
    assert refusal.value.key == key
