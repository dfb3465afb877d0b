"""Attention on a mesh is attention: outputs and gradients do not depend on how rows and heads are split."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.kernels.attention import attention, compute
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.model import positions
from chinchilla_jax.parallel import attention as module
from chinchilla_jax.parallel.attention import sharded_attention
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.rules import RULES, ShardingError
from chinchilla_jax.training.step import make_program
from tests.parallel.gradients import near, value_and_gradients

NAMES = {"q": "q_BxSxHxK", "k": "k_BxTxGxK", "v": "v_BxTxGxK", "r": "r_NxHxK", "u": "content_bias_HxK",
         "w": "position_bias_HxK"}  # fmt: skip
MESHES = [(8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4), (1, 2, 2, 2)]


def draw(rows=8, s=12, t=12, heads=4, groups=4, size=8, relative=True):
    """Arguments of one call, and a cotangent for its output and log-sum-exp."""
    rng = np.random.default_rng(0)
    shapes = {"q": (rows, s, heads, size), "k": (rows, t, groups, size), "v": (rows, t, groups, size)}
    if relative:
        shapes |= {"r": (t, heads, size), "u": (heads, size), "w": (heads, size)}
    arrays = {NAMES[name]: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    d_out = rng.standard_normal((rows, s, heads, size), np.float32)
    return arrays, (d_out, rng.standard_normal((rows, heads, s), np.float32))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("call", ["relative", "grouped, packed", "behind a memory"])
def test_outputs_and_gradients_are_those_of_one_device(mesh, call):
    shape, keywords = {}, {"implementation": "plain"}
    if call == "grouped, packed":
        shape = {"heads": 8, "relative": False}
        keywords["segment_ids_BxT"] = np.repeat([[0] * 5 + [1] * 7, [3] * 9 + [4] * 3], 4, axis=0).astype(np.int32)
    if call == "behind a memory":
        shape = {"t": 20}
        keywords |= {"q_offset": jnp.int32(8), "window": 11, "softcap": 3.0, "implementation": "blockwise"}
    arrays, cotangents = draw(**shape)
    expected = value_and_gradients(attention, arrays, cotangents, **keywords)
    found = value_and_gradients(sharded_attention(make_mesh(MeshConfig(*mesh))), arrays, cotangents, **keywords)
    near(found, expected)
    assert max(np.abs(gradient).max() for gradient in expected[1].values()) > 0.1


@pytest.mark.parametrize(("mesh", "groups"), [((1, 4, 2), 2), ((2, 2, 2), 4)])
def test_the_kernels_on_a_mesh_are_the_plain_form_on_one_device(mesh, groups):
    arrays, cotangents = draw(groups=groups, relative=groups == 4)
    ids = {"segment_ids_BxT": np.tile(np.arange(12, dtype=np.int32) // 7, (8, 1))}
    expected = value_and_gradients(attention, arrays, cotangents, implementation="plain", **ids)
    attend = sharded_attention(make_mesh(MeshConfig(*mesh)))
    near(value_and_gradients(attend, arrays, cotangents, implementation="fused", **ids), expected)


@pytest.mark.parametrize("architecture", ["chinchilla", "llama"])
def test_a_train_step_with_kernels_on_a_mesh_is_the_plain_one_on_one_device(sharded_config, architecture):
    tokens = np.random.default_rng(0).integers(0, 320, (2, 8, 17), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": np.ones((2, 8, 16), np.float32)}

    def loss_and_gradient(implementation, remat, *mesh):
        config = sharded_config(architecture, *mesh)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=implementation),
                                     train=dataclasses.replace(config.train, remat=remat))  # fmt: skip
        program = make_program(config, make_mesh(config.mesh))
        state = program.init(jax.random.key(0))
        state, metrics = program.step(state, jax.device_put(batch, program.batch_sharding), np.float32(1e-3))
        return jax.tree.map(np.asarray, (metrics, state.opt_state[1].mu))

    expected = loss_and_gradient("plain", "none", 1, 1, 1)
    found = loss_and_gradient("fused", "attention", 2, 2, 2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), found, expected)
    assert min(np.abs(moment).max() for moment in jax.tree.leaves(expected[1])) > 1e-5


@pytest.mark.parametrize("rows", [1, 6])
def test_rows_that_do_not_divide_are_computed_by_every_device(rows):
    arrays, cotangents = draw(rows=rows)
    expected = value_and_gradients(attention, arrays, cotangents)
    near(value_and_gradients(sharded_attention(make_mesh(MeshConfig(2, 2, 2))), arrays, cotangents), expected)


def test_each_device_computes_its_rows_and_heads_and_none_of_them_communicates(monkeypatch):
    seen = []

    def spy(call, implementation):
        seen.append([x.shape for x in (call.q_BxSxHxK, call.k_BxTxGxK, call.r_NxHxK, call.content_bias_HxK)])
        return compute(call, implementation)

    monkeypatch.setattr(module, "compute", spy)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    arrays, _ = draw(heads=4, groups=4)
    placed = {name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None)
                                   if x.ndim == 4 else PartitionSpec(*[None] * (x.ndim - 2), "tensor", None)))
              for name, x in arrays.items()}  # fmt: skip
    compiled = jax.jit(lambda x: sharded_attention(mesh)(**x)).lower(placed).compile()
    assert seen == [[(2, 12, 2, 8), (2, 12, 2, 8), (12, 2, 8), (2, 8)]]
    assert compiled.output_shardings.shard_shape((8, 12, 4, 8)) == (2, 12, 2, 8)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


def test_one_device_or_none_takes_the_op_itself():
    assert sharded_attention(make_mesh(MeshConfig(1, 1, 1))) is attention
    assert sharded_attention(jax.sharding.get_abstract_mesh()) is attention


@pytest.mark.parametrize(("mesh", "shape", "words"), [
    ((1, 2, 4), {"heads": 6, "groups": 6}, "6 heads do not divide over the 4 devices of mesh axis 'tensor'"),
    ((1, 2, 4), {"heads": 4, "groups": 2, "relative": False}, "2 groups of keys do not divide over the 4 devices"),
])  # fmt: skip
def test_heads_and_groups_that_do_not_divide_are_refused(mesh, shape, words):
    arrays, _ = draw(**shape)
    with pytest.raises(ShardingError, match=words):
        jax.eval_shape(sharded_attention(make_mesh(MeshConfig(*mesh))), **arrays)


def test_rules_that_split_heads_themselves_are_refused(monkeypatch):
    monkeypatch.setitem(RULES, "head_dim", "context")
    with pytest.raises(ShardingError, match="'head_dim' must not be split"):
        jax.eval_shape(sharded_attention(make_mesh(MeshConfig(2, 2, 2))), **draw()[0])


def test_a_call_that_is_wrong_is_refused_as_on_one_device():
    arrays, _ = draw()
    attend = sharded_attention(make_mesh(MeshConfig(2, 2, 2)))
    for change in ({"content_bias_HxK": None}, {"k_BxTxGxK": arrays["k_BxTxGxK"][:, :, :3]}, {"window": 0},
                   {"implementation": "flash"}, {"q_offset": np.float32(1)}):  # fmt: skip
        with pytest.raises(AttentionError) as expected:
            attention(**(arrays | change))
        with pytest.raises(AttentionError) as found:
            attend(**(arrays | change))
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("n", [9, 10], ids=["products of parts", "the weight gathered"])
def test_the_keys_of_distances_and_their_gradient_do_not_depend_on_the_way(n, monkeypatch):
    rng = np.random.default_rng(0)
    sinusoids, w = positions.sinusoids(jnp.arange(n), 32), rng.standard_normal((32, 12)).astype(np.float32)
    direction = rng.standard_normal((n, 12)).astype(np.float32)
    parts = []
    in_parts = module.project_in_parts
    monkeypatch.setattr(module, "project_in_parts", lambda *arrays: parts.append(n) or in_parts(*arrays))
    ours, pull = jax.vjp(lambda w: module.project(sinusoids, w, jnp.float32), w)
    expected, pull_expected = jax.vjp(lambda w: positions.project(sinusoids, w, jnp.float32), w)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(pull(direction)[0], pull_expected(direction)[0], atol=1e-5)
    assert parts == ([9] if n == 9 else [])
