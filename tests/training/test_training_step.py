"""The train step: pure, a token-weighted mean, float32 where it matters, compiled once per shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.model.parts import vectors
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.objective import Objective
from chinchilla_jax.training.optimizer import make_optimizer
from chinchilla_jax.training.step import TrainState, make_program, train_step


def random_batch(microbatches, rows=8, seed=0):
    """Rows of very unequal weight: the first of four microbatches has one target, the last has all."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 512, (rows, 33), dtype=np.int32)
    weights = (rng.random((rows, 32)) < np.arange(rows)[:, None] / rows).astype(np.float32)
    weights[:2] = 0.0
    weights[1, 3] = 1.0
    weights[6:] = 1.0
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    return {name: x.reshape(microbatches, -1, 32) for name, x in batch.items()}


@pytest.fixture(scope="module")
def program(small):
    return make_program(small, make_mesh(small.mesh))


def test_a_step_is_a_pure_function(program):
    """The same state and batch give the same bits, whatever ran in between."""

    def one_step(seed):
        state, metrics = program.step(program.init(jax.random.key(3)), random_batch(2, seed=seed), np.float32(1e-3))
        return jax.tree.map(np.asarray, (state, metrics))

    one, other, again = one_step(0), one_step(1), one_step(0)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert one[1]["loss"] != other[1]["loss"]


def test_the_state_is_donated(program):
    state = program.init(jax.random.key(0))
    new, _ = program.step(state, random_batch(2), np.float32(1e-3))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert int(new.step) == 1


def test_microbatches_give_the_token_weighted_mean(small, changed, program):
    """The first moment after one step is (1 - b1) times the gradient, as nothing is clipped."""
    config = changed(small, optimizer={"clip_norm": 1e9, "eps": 1.0})
    state = program.init(jax.random.key(0))
    step = jax.jit(functools.partial(train_step, config))
    (whole, whole_metrics), (parts, metrics) = (step(state, random_batch(m), np.float32(1e-3)) for m in (1, 4))
    assert metrics["weight"] == whole_metrics["weight"] == random_batch(1)["weights"].sum()
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], whole_metrics["grad_norm"], rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=1e-7)
    jax.tree.map(close, parts.opt_state[1].mu, whole.opt_state[1].mu)
    jax.tree.map(close, parts.params, whole.params)
    assert max(float(abs(m).max()) for m in jax.tree.leaves(whole.opt_state[1].mu)) > 1e-3
    sums = program.evaluate(state.params, state.extra, random_batch(4))
    mean_of_means = np.mean(sums["nll"] / sums["weight"])
    assert abs(mean_of_means - metrics["loss"]) > 1e-3, "the weights must be unequal for the test to mean anything"


def test_a_batch_without_targets_only_decays(program):
    state = program.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    new, metrics = program.step(state, random_batch(2) | {"weights": np.zeros((2, 4, 32), np.float32)}, np.float32(0.1))
    np.testing.assert_allclose(new.params["embedding"], before["embedding"] * (1 - 0.1 * 0.1), rtol=1e-5)
    np.testing.assert_array_equal(new.params["final_norm"]["gain"], before["final_norm"]["gain"])
    assert metrics["loss"] == metrics["weight"] == metrics["grad_norm"] == 0.0


def test_small_updates_reach_float32_masters_and_would_not_reach_bfloat16(small, changed):
    """w = 1 and an update of 1e-3: bfloat16 has nothing between 1 and 0.996."""

    class SlopeOne(Objective):
        def sums(self, config, model, params, extra, batch):
            loss = jnp.sum(params["w"].astype(jnp.bfloat16).astype(jnp.float32))
            return loss, {"nll": jnp.zeros(()), "weight": jnp.ones(())}

    config = changed(small, optimizer={"weight_decay": 0.0})
    step = jax.jit(functools.partial(train_step, config, objective=SlopeOne()))

    def after_100_steps(dtype):
        params = {"w": jnp.ones((1,), dtype)}
        state = TrainState(
            jnp.zeros((), jnp.int32), params, make_optimizer(config.optimizer, vectors(config.model)).init(params)
        )
        for _ in range(100):
            state, _ = step(state, {"rows": jnp.zeros((1,))}, 1e-3)
        return float(state.params["w"][0])

    assert after_100_steps(jnp.bfloat16) == 1.0
    assert after_100_steps(jnp.float32) == pytest.approx(0.9, abs=1e-4)


def test_weights_and_moments_are_float32_under_bfloat16_compute(small, changed):
    config = changed(small, train={"compute_dtype": "bfloat16"})
    state = make_program(config, make_mesh(config.mesh)).abstract
    types = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state[1].mu, state.opt_state[1].nu))}
    assert types == {jnp.dtype("float32")}


def test_runs_of_one_shape_share_a_program(small, changed, program):
    mesh = make_mesh(small.mesh)
    for change in (
        {"optimizer": {"peak_lr": 0.5, "schedule": "cooldown", "warmup_steps": 9, "final_lr_fraction": 0.0}},
        {"train": {"train_tokens": 10**9, "seed": 5, "log_every": 1, "eval_every": 0, "double_batch_at": 0.0}},
        {"train": {"checkpoint_every": 0, "eval_sequences": 7}, "data": {"mixture": "uniform", "data_dir": "there"}},
        {"train": {"keep_checkpoints": 9}},
    ):
        assert make_program(changed(small, **change), mesh) is program
    for change in (
        {"optimizer": {"b2": 0.99}},
        {"optimizer": {"clip_norm": 2.0}},
        {"optimizer": {"weight_decay": 0.0}},
        {"optimizer": {"z_loss": 0.0}},
        {"model": {"d_ff": 64}},
        {"train": {"compute_dtype": "bfloat16"}},
        {"train": {"remat": "full"}},
    ):
        assert make_program(changed(small, **change), mesh) is not program


def test_evaluation_sums_are_those_of_the_loss(program, small):
    state = program.init(jax.random.key(1))
    batch = random_batch(2)
    sums = program.evaluate(state.params, state.extra, batch)
    _, metrics = program.step(state, batch, np.float32(0.0))
    np.testing.assert_array_equal(sums["weight"], batch["weights"].sum((1, 2)))
    np.testing.assert_allclose(sums["nll"].sum() / sums["weight"].sum(), metrics["loss"], rtol=1e-6)
