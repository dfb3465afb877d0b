"""Rows split over a context axis: attention and training are what they are on one device."""

import dataclasses
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.kernels.attention import attention, compute
from chinchilla_jax.model.positions import rotary, xpos
from chinchilla_jax.parallel import attention as module
from chinchilla_jax.parallel.attention import sharded_attention
from chinchilla_jax.parallel.context import _to_fair_shares, exchange_heads, gather_keys
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.rules import ShardingError
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight.program.program import read_program
from chinchilla_jax.training.machine.ahead import abstract_mesh, compile_train_step, lower_train_step
from tests.parallel.gradients import near, value_and_gradients
from tests.training.machine.test_training_ahead import CHINCHILLA, LLAMA, kernels, needs_compiler, run_of, scores

S, K = 32, 8
IDS = np.stack([np.searchsorted([3, 9, 21], np.arange(S), side="right"), np.arange(S) // 17]).astype(np.int32)
# Heads and groups: 8 divide over 4 context devices besides 2 of heads, so that they are exchanged; the others do not.
EXCHANGED, GATHERED = (8, 8), (6, 2)


def draw(heads, groups, relative=False, rows=2, s=S):
    """Arguments of one call, and a cotangent for its output and log-sum-exp."""
    rng = np.random.default_rng(0)
    shapes = {"q_BxSxHxK": (rows, s, heads, K), "k_BxTxGxK": (rows, s, groups, K), "v_BxTxGxK": (rows, s, groups, K)}
    if relative:
        shapes |= {"r_NxHxK": (s + 5, heads, K), "content_bias_HxK": (heads, K), "position_bias_HxK": (heads, K)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    d_out = rng.standard_normal((rows, s, heads, K), np.float32)
    return arrays, (d_out, rng.standard_normal((rows, heads, s), np.float32))


CALLS = {
    "plain": {},
    "relative": {},
    "rotary": {"q_turn_2xSxK": rotary(jnp.arange(S), K, 100.0), "k_turn_2xTxK": rotary(jnp.arange(S), K, 100.0)},
    "xpos": dict(zip(("q_turn_2xSxK", "k_turn_2xTxK"), xpos(jnp.arange(S), K, 100.0), strict=True)),
    "packed": {"segment_ids_BxT": IDS},
    "window and cap": {"window": 11, "softcap": 3.0, "segment_ids_BxT": IDS, "q_segment_ids_BxS": IDS[::-1]},
}


@pytest.mark.parametrize("mesh", [(1, 2, 2, 2), (1, 1, 2, 4)], ids=str)
@pytest.mark.parametrize(("heads", "call"), [
    (EXCHANGED, "plain"), (EXCHANGED, "relative"), (EXCHANGED, "xpos"), ((16, 8), "packed"),
    (GATHERED, "plain"), (GATHERED, "rotary"), ((6, 6), "relative"), (GATHERED, "packed"), (GATHERED, "window and cap"),
])  # fmt: skip
def test_outputs_and_gradients_are_those_of_one_device(mesh, heads, call):
    arrays, cotangents = draw(*heads, relative=call == "relative")
    keywords = CALLS[call] | {"implementation": "plain"}
    expected = value_and_gradients(attention, arrays, cotangents, **keywords)
    found = value_and_gradients(sharded_attention(make_mesh(MeshConfig(*mesh))), arrays, cotangents, **keywords)
    near(found, expected)
    assert min(np.abs(gradient).max() for gradient in expected[1].values()) > 0.1


@pytest.mark.parametrize("way", [exchange_heads, gather_keys], ids=lambda way: way.__name__)
def test_the_kernels_on_split_rows_are_the_plain_form_on_one_device(way):
    heads = EXCHANGED if way is exchange_heads else (3, 3)
    arrays, cotangents = draw(*heads, relative=True)
    ids = {"segment_ids_BxT": IDS}
    expected = value_and_gradients(attention, arrays, cotangents, implementation="plain", **ids)
    attend = sharded_attention(make_mesh(MeshConfig(1, 2, 1, 2)))
    near(value_and_gradients(attend, arrays, cotangents, implementation="fused", **ids), expected)


def seen_by_devices(heads, context):
    """Shapes of queries and keys of every call on each device, and the collectives of the program."""
    seen = []

    def spy(call, implementation):
        seen.append((call.q_BxSxHxK.shape[1:3], call.k_BxTxGxK.shape[1:3]))
        return compute(call, implementation)

    mesh = make_mesh(MeshConfig(context=context))
    place = NamedSharding(mesh, PartitionSpec(None, "context"))
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in draw(*heads)[0].items()}
    with mock.patch.object(module, "compute", spy):
        text = jax.jit(lambda x: sharded_attention(mesh)(**x)).lower(arrays).compile().as_text()
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return seen, {word for word in words if f"{word}(" in text}


def test_devices_that_exchange_heads_compute_whole_rows_of_their_own():
    assert seen_by_devices(EXCHANGED, 4) == ([((S, 2), (S, 2))], {"all-to-all"})


def test_devices_that_gather_keys_have_queries_from_the_start_and_from_the_end():
    early, late = ((S // 8, 6), (S // 2, 2)), ((S // 8, 6), (S, 2))
    assert seen_by_devices(GATHERED, 4) == ([early, late], {"all-gather", "collective-permute"})


@pytest.mark.parametrize("context", [2, 4, 8])
def test_queries_that_see_much_are_with_those_that_see_little(context):
    mesh = make_mesh(MeshConfig(context=context))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("context"), out_specs=PartitionSpec("context"))
    def shares(x):
        return jnp.concatenate(_to_fair_shares(x, "context", along=0))

    expected = [number for device in range(context) for number in (device, 2 * context - 1 - device)]
    np.testing.assert_array_equal(shares(np.arange(2 * context)), expected)


@pytest.mark.parametrize(("shape", "words"), [
    ((*EXCHANGED, 30), "rows of 30 tokens do not divide over the 4 devices of mesh axis 'context': .* multiple of 4"),
    ((*GATHERED, 36), "rows of 36 tokens .* 'context', two pieces on each: choose a multiple of 8"),
])  # fmt: skip
def test_rows_that_do_not_divide_are_refused(shape, words):
    heads, groups, s = shape
    with pytest.raises(ShardingError, match=words):
        jax.eval_shape(sharded_attention(make_mesh(MeshConfig(context=4))), **draw(heads, groups, s=s)[0])


@pytest.mark.parametrize(("first", "offset"), [(S - 8, None), (0, 3)], ids=["the last", "all, later"])
def test_queries_that_are_other_tokens_than_the_keys_are_computed_by_every_device(first, offset):
    arrays, (d_out, d_lse) = draw(*GATHERED)
    arrays["q_BxSxHxK"], cotangents = arrays["q_BxSxHxK"][:, first:], (d_out[:, first:], d_lse[..., first:])
    keywords = {"q_offset": None if offset is None else jnp.int32(offset), "implementation": "plain"}
    expected = value_and_gradients(attention, arrays, cotangents, **keywords)
    attend = sharded_attention(make_mesh(MeshConfig(context=4)))
    near(value_and_gradients(attend, arrays, cotangents, **keywords), expected)


SPLIT = {"heads": (CHINCHILLA, (1, 2, 1, 2), 1), "keys": (dataclasses.replace(LLAMA, n_heads=3, n_kv_heads=3),
         (1, 2, 1, 2), 2)}  # fmt: skip


@pytest.mark.parametrize("remat", ["none", "attention", "dots", "full"])
@pytest.mark.parametrize("way", SPLIT)
def test_a_step_lowers_and_the_forward_kernels_run_again_only_if_nothing_is_kept(way, remat):
    model, mesh, calls = SPLIT[way]
    config = run_of(model, *mesh, remat=remat)
    found = kernels(lower_train_step(config, abstract_mesh(config.mesh, "TPU v5 lite")).as_text())
    assert found == {"attention_forward": calls * (1 + (remat == "full")), "attention_backward": calls}


@pytest.mark.parametrize(("kind", "calls"), [("TPU v5 lite", 1), ("TPU v5", 2)])
def test_heads_are_not_exchanged_where_a_core_would_get_none(kind, calls):
    config = run_of(CHINCHILLA, 1, 2, 1, 2, batch_size=2)  # a row and a head each; a chip of v5p has two cores
    found = kernels(lower_train_step(config, abstract_mesh(config.mesh, kind)).as_text())
    assert found == {"attention_forward": calls, "attention_backward": calls}


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def test_a_step_compiles_to_kernels_of_whole_rows_and_exchanges(self):
        config = run_of(CHINCHILLA, 1, 2, 1, 2)
        mesh = topology_mesh("v5e:2x2", config.mesh)
        text = compile_train_step(config, mesh).as_text()
        assert kernels(text) == {"attention_forward": 1, "attention_backward": 1} and not scores(text)
        assert re.search(r"%attention_forward\S* = \(bf16\[4,512,128\]", text), "4 of 8 rows, 1 of 2 heads"
        exchanges = [c for c in read_program(text, dict(mesh.shape)).collectives
                     if c.kind == "all-to-all" and c.axes == ("context",)]  # fmt: skip
        # Of q, k, v and the output: forward, again in the backward pass, and their gradients.
        assert [(c.trips, c.bytes) for c in exchanges] == 12 * [(2, 4 * 256 * 256 * 2)]
