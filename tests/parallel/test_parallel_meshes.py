"""The mesh is a matter of speed: the numbers do not depend on it."""

import dataclasses

import jax
import numpy as np
import pytest

from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.step import make_program


def tokens(step):
    """A batch `[2, 8, 16]` of a language in which the next token is a function of the last."""
    rng = np.random.default_rng(step)
    rows = np.empty((2, 8, 17), np.int32)
    rows[..., 0] = rng.integers(0, 320, (2, 8))
    for s in range(16):
        rows[..., s + 1] = (rows[..., s] * 7 + 3) % 40
    weights = np.ones((2, 8, 16), np.float32)
    weights[1, 5:, 4:] = 0.0
    return {"inputs": rows[..., :-1], "targets": rows[..., 1:], "weights": weights}


def run(config):
    """Initial weights, losses and gradient norms of 20 steps, and the final state."""
    program = make_program(config, make_mesh(config.mesh))
    state, records = program.init(jax.random.key(0)), []
    initial = jax.tree.map(np.asarray, state.params)
    for step in range(20):
        batch = jax.device_put(tokens(step), program.batch_sharding)
        state, metrics = program.step(state, batch, np.float32(3e-3))
        records.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return initial, np.array(records), state


@pytest.fixture(scope="module", params=["chinchilla", "llama"])
def single(request, sharded_config):
    """An architecture and its run on one device."""
    return request.param, *run(sharded_config(request.param, 1, 1, 1))


@pytest.mark.parametrize(
    "mesh", [(1, 2, 2, 2), *(pytest.param(mesh, marks=pytest.mark.long) for mesh in ((2, 2, 2), (1, 8, 1)))]
)
def test_a_run_does_not_depend_on_the_mesh(sharded_config, single, mesh):
    architecture, expected_initial, expected, _ = single
    config = sharded_config(architecture, *mesh)
    initial, records, state = run(config)
    jax.tree.map(np.testing.assert_array_equal, initial, expected_initial)
    assert expected[-1, 0] < 0.8 * expected[0, 0], "the comparison needs a run that learns"
    np.testing.assert_allclose(records, expected, rtol=5e-5)
    placed = make_program(config, make_mesh(config.mesh)).abstract
    jax.tree.map(lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim) or pytest.fail(f"{x.sharding}"),
                 state, placed)  # fmt: skip


@pytest.mark.long
def test_nor_does_one_by_mup(sharded_config):
    """Rates by weight, and logits and scores that are divided, in parts of weights and of rows."""

    def by_mup(*mesh):
        config = sharded_config("llama", *mesh)
        model = dataclasses.replace(config.model, base_width=config.model.d_model // 2, output_scale=1.5)
        return dataclasses.replace(config, model=dataclasses.replace(model, base_head_dim=model.head_dim // 2))

    _, expected, _ = run(by_mup(1, 1, 1))
    _, records, _ = run(by_mup(1, 2, 2, 2))
    assert expected[-1, 0] < 0.8 * expected[0, 0] and not np.allclose(
        expected, run(sharded_config("llama", 1, 1, 1))[1]
    )
    np.testing.assert_allclose(records, expected, rtol=5e-5)
