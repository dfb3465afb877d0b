"""The loss of a trained DS-MoE with fewer experts: all of them give what training evaluates."""

import dataclasses

import jax
import numpy as np
import pytest

from chinchilla_jax.config import (
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from chinchilla_jax.data import Batches, TokenStore, prepare, store_path
from chinchilla_jax.evaluation.experts import losses
from chinchilla_jax.model.experts import Selection
from chinchilla_jax.parallel.mesh import make_mesh, place
from chinchilla_jax.training.evaluate import evaluate
from chinchilla_jax.training.step import make_program

MODEL = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=512,
                    position="rope", feed_forward="ds_moe", experts=8, attention_experts=2)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config with a prepared store."""
    data = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("data")), vocab_size=512, seq_len=32)
    prepare(data, lambda line: None)
    train = TrainConfig(batch_size=16, microbatches=2, eval_sequences=64, train_tokens=10**6)
    return RunConfig(MODEL, OptimizerConfig(router_loss=0.01), data, MeshConfig(data=2, tensor=2), train)


def on_devices(program, batch):
    return place(lambda rows=slice(None): {n: x[rows] for n, x in batch.items()}, (2, 8, 32), program.batch_sharding)


def test_fewer_experts_cost_loss_and_all_of_them_none(config):
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh)
    batches = Batches(TokenStore(store_path(config.data)), "proportional", 0)
    state = program.init(jax.random.key(0))
    for step in range(60):
        batch = on_devices(program, batches.batch(16 * step, 16))
        state, _ = program.step(state, batch, np.float32(5e-3))
    expected = evaluate(batches, lambda b: program.evaluate(state.params, {}, on_devices(program, b)), 16, 64)
    every = [Selection(), Selection(top=8), Selection(top=4), Selection(top=1), Selection(above=0.9)]
    whole, top8, top4, top1, above = losses(config, mesh, state.params, batches, every)
    assert whole.record == expected
    loss = [row.record["validation_loss"] for row in (top8, top4, top1)]
    assert loss[0] == pytest.approx(expected["validation_loss"], abs=1e-6)
    assert loss[2] > loss[0] + 0.02
    assert [row.experts for row in (whole, top8, top4, top1)] == pytest.approx([1, 1, 0.5, 0.125])
    assert whole.attention_experts == top1.attention_experts == 1 and above.selection.above == 0.9
    assert 0.05 < above.experts < 0.95 and 0.2 < above.attention_experts < 1


def test_a_model_whose_experts_cannot_be_left_out_is_refused(config):

    sparse = dataclasses.replace(MODEL, feed_forward="top_k", attention_experts=1)
    with pytest.raises(ConfigError, match=r"^model.feed_forward: top_k has no experts that could be left out"):
        losses(dataclasses.replace(config, model=sparse), make_mesh(config.mesh), {}, None, [Selection()])
