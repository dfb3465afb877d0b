"""The table of logical axes, and that a state is laid out as it says."""

import dataclasses
import math

import jax
import jax.extend
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.rules import MESH_AXES, RULES, ShardingError, check_split, partition_spec
from chinchilla_jax.training.machine.ahead import train_step_arguments
from chinchilla_jax.training.step import make_program

WIDTH = ("fsdp", "context")
VECTORS = ("gain", "bias", "u", "v")


@pytest.mark.parametrize("architecture", ["chinchilla", "llama"])
def test_moments_lie_as_their_weights(sharded_config, architecture):
    """Where the weights lie is in `goldens/`."""
    config = sharded_config(architecture, 2, 2, 2)
    abstract = make_program(config, make_mesh(config.mesh)).abstract
    adam = abstract.opt_state[1]
    params, mu, nu = (jax.tree.map(lambda x: x.sharding.spec, tree) for tree in (abstract.params, adam.mu, adam.nu))
    assert params == mu == nu
    assert abstract.step.sharding.spec == adam.count.sharding.spec == P()


@pytest.mark.parametrize("architecture", ["chinchilla", "llama"])
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 2, 2, 2)])
def test_no_matrix_is_replicated(sharded_config, architecture, mesh):
    config = sharded_config(architecture, *mesh)
    abstract = make_program(config, make_mesh(config.mesh)).abstract
    matrices = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((abstract.params, abstract.opt_state)):
        name = getattr(path[-1], "key", "count")
        if name not in VECTORS and name != "count" and not name.endswith("_bias"):
            matrices += 1
            held = math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert held * math.prod(mesh[1:]) == leaf.size, f"{jax.tree_util.keystr(path)}: {held} of {leaf.size}"
    assert matrices == 3 * {"chinchilla": 8, "llama": 9}[architecture]


def test_batches_are_split_over_data_and_fsdp(sharded_config):
    config = sharded_config("llama", 2, 2, 2)
    sharding = make_program(config, make_mesh(config.mesh)).batch_sharding
    assert sharding.shard_shape((2, 8, 16)) == (2, 2, 16)


def test_rows_are_split_over_the_context_axis(sharded_config):
    config = sharded_config("llama", 1, 2, 1, 4)
    sharding = make_program(config, make_mesh(config.mesh)).batch_sharding
    assert sharding.shard_shape((2, 8, 16)) == (2, 4, 4)


def test_axes_that_want_the_same_mesh_axis():
    with pytest.raises(ShardingError, match="'heads' and 'mlp' both map to mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"))
    with pytest.raises(ShardingError, match="'batch' and 'embed' both map to mesh axis 'fsdp'"):
        partition_spec(("batch", "embed"))
    with pytest.raises(ShardingError, match="'embed' and 'embed'"):
        partition_spec(("embed", "embed"))


def test_an_axis_without_a_rule():
    with pytest.raises(ShardingError, match="'width' has no rule; known: .*embed"):
        partition_spec(("embed", "width"))


def test_axes_without_a_name_are_not_split():
    assert partition_spec((None, "embed", None)) == P(None, WIDTH, None)
    assert partition_spec(()) == P()


def test_the_table_names_mesh_axes_only():
    for axes in RULES.values():
        assert set((axes,) if isinstance(axes, str) else axes or ()) <= set(MESH_AXES)


def test_a_mesh_has_its_axes_in_order():
    mesh = make_mesh(MeshConfig(2, 1, 4))
    assert mesh.axis_names == ("data", "fsdp", "context", "tensor")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "context": 1, "tensor": 4}
    assert list(mesh.devices.ravel()) == jax.devices()[:8]


def test_a_mesh_larger_than_the_machine():
    with pytest.raises(ConfigError, match="4 x 8 x 1 x 2 needs 64 devices, 8 cpu") as raised:
        make_mesh(MeshConfig(4, 8, 2))
    assert raised.value.key == "mesh"


def test_a_large_array_that_is_held_twice_is_an_error():
    mesh = make_mesh(MeshConfig(1, 2, 2))

    def state(**axes):
        return {name: jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=NamedSharding(mesh, partition_spec(names)))
                for name, names in axes.items()}  # fmt: skip

    check_split(state(up=("embed", "mlp"), down=("mlp", "embed")), mesh)
    with pytest.raises(ShardingError, match=r"'position'.*4 MiB, 50% of the state, would be held by 2 devices"):
        check_split(state(up=("embed", "mlp"), position=(None, "embed")), mesh)
    with pytest.raises(ShardingError, match="held by 4 devices"):
        check_split(state(up=("embed", "mlp"), gain=(None, "norm")), mesh)
    small = jax.ShapeDtypeStruct((8,), "float32", sharding=NamedSharding(mesh, P()))
    check_split({"gain": small}, mesh)


@pytest.mark.parametrize("remat", ["none", "attention", "dots", "full"])
def test_whole_weights_are_not_kept_for_the_backward_pass_but_gathered_again(sharded_config, remat):
    config = sharded_config("llama", 1, 4, 2)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, remat=remat))
    mesh = make_mesh(config.mesh)
    arguments = train_step_arguments(config, mesh)
    gathers = []

    def look(jaxpr):
        for operation in jaxpr.eqns:
            if operation.primitive.name == "sharding_constraint":
                (x,) = operation.outvars
                gathers.append((x.aval.shape, operation.params["sharding"].spec))
            for inner in jax.extend.core.jaxprs_in_params(operation.params):
                look(inner)

    look(make_program(config, mesh).step.trace(*arguments).jaxpr.jaxpr)
    m = config.model
    assert gathers.count(((m.d_ff, m.d_model), P("tensor", None))) == 2


def with_rules(config, *rules):
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=rules))


def test_a_config_can_split_weights_over_the_data_axis_too_and_trains_the_same(sharded_config):
    config = sharded_config("chinchilla", 2, 2, 1)
    changed = with_rules(config, "embed=data+fsdp", "mlp=")
    mesh = make_mesh(config.mesh)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 8, 17)).astype(np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": np.ones((2, 8, 16), np.float32)}
    results = []
    for one, width, inner in ((config, WIDTH, "tensor"), (changed, ("data", "fsdp"), None)):
        program = make_program(one, mesh)
        assert program.abstract.params["layers"]["feed_forward"]["up"].sharding.spec == P(None, width, inner)
        state = program.init(jax.random.key(0))
        for _ in range(4):
            state, metrics = program.step(state, batch, np.float32(1e-2))
            results.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        assert state.params["embedding"].sharding.spec == P("tensor", width)
    np.testing.assert_allclose(results[:4], results[4:], rtol=5e-5)
    assert results[3][0] < 0.95 * results[0][0], "the comparison needs a run that learns"
    assert partition_spec(("embed",)) == P(WIDTH), "the rules of a config are in force for its programs alone"


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("mlp=fsdp", "'mlp' and 'embed' both map to mesh axis 'fsdp'"),
        ("embd=fsdp", r"unknown logical axis 'embd' \(did you mean 'embed'\?\); one of microbatch, batch, length"),
        ("head_dim=data", "'head_dim' must not be split"),
    ],
)
def test_rules_of_a_config_that_collide_or_are_for_no_axis_are_refused(sharded_config, rule, told):
    config = with_rules(sharded_config("llama", 2, 2, 2), rule)
    with pytest.raises(ConfigError, match=told) as refusal:
        make_program(config, make_mesh(config.mesh)).init.lower(jax.random.key(0))
    assert refusal.value.key == "mesh.rules"
