"""Patches of tokens: what goes in, what is predicted, and that a patch of one token is plain training to the bit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import DataConfig, ModelConfig, RunConfig
from chinchilla_jax.methods.patch import NextPatch
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.objective import NEXT_TOKEN
from chinchilla_jax.training.step import init_state, make_program, model_of
from tests.training.test_training_objective import random_batch

MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=512)
CONFIG = RunConfig(MODEL, data=DataConfig(vocab_size=512, seq_len=32))


def sums_and_gradients(objective, batch, config=CONFIG):
    params = nn.unbox(init_state(config, jax.random.key(0))).params

    def summed(params):
        return objective.sums(config, model_of(config), params, {}, batch)

    return jax.jit(jax.value_and_grad(summed, has_aux=True))(params)


def rows(seed=0, length=32):
    tokens = np.random.default_rng(seed).integers(0, 512, (2, length + 1), dtype=np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((2, length), np.float32)}


def test_patches_of_one_token_are_plain_training_to_the_bit():
    (plain, patch) = (sums_and_gradients(objective, rows()) for objective in (NEXT_TOKEN, NextPatch(1)))
    jax.tree.map(np.testing.assert_array_equal, plain, patch)


def test_two_patches_by_hand():
    """The mean of the first three embeddings predicts tokens 4 to 6; that of the next three, token 7 alone."""
    batch = rows(length=6)
    tokens = np.concatenate([batch["inputs"], batch["targets"][:, -1:]], axis=1)
    (loss, sums), _ = sums_and_gradients(NextPatch(3), batch)
    params = nn.unbox(init_state(CONFIG, jax.random.key(0))).params
    seen = []

    def embeddings(table_VxD, tokens_BxS):
        return jnp.asarray(np.asarray(table_VxD)[np.asarray(batch["inputs"])].reshape(2, 2, 3, 16).mean(2))

    def read_out(x_BxTxD, output_VxD, bias_V):
        seen.append(np.asarray(x_BxTxD @ output_VxD.T + bias_V, np.float64))

    model_of(CONFIG).clone(lookup=embeddings).apply({"params": params}, batch["inputs"], None, read_out)
    log_p = seen[0] - np.log(np.exp(seen[0]).sum(-1, keepdims=True))
    nats = [-log_p[b, 0, tokens[b, 3:6]].sum() - log_p[b, 1, tokens[b, 6]] for b in range(2)]
    np.testing.assert_allclose(loss, sum(nats), rtol=1e-6)
    assert float(sums["weight"]) == 2 * 4


@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_target_from_the_second_patch_on_counts_once(size):
    numbers = np.arange(1, 33, dtype=np.float32)[None]
    told = np.asarray(NextPatch(size).of_next(jnp.asarray(numbers)))
    assert told.shape == (1, 32 // size, size)
    assert sorted(told[told > 0]) == list(numbers[0, size - 1 :])
    assert list(told[0, 0]) == list(numbers[0, size - 1 : 2 * size - 1])


def test_a_weight_of_zero_takes_its_target_out():
    batch = rows()
    (_, whole), _ = sums_and_gradients(NextPatch(4), batch)
    batch["weights"][:, 20:] = 0.0
    (_, half), _ = sums_and_gradients(NextPatch(4), batch)
    assert float(half["weight"]) == 2 * (20 - 3) < float(whole["weight"]) == 2 * (32 - 3)


def test_a_patch_belongs_to_the_document_of_its_last_token():
    """Tokens before a border in the same patch's document do not reach the loss after it, and the others do."""
    batch = rows() | {"segment_ids": np.repeat([[0] * 14 + [1] * 18], 2, axis=0).astype(np.int32)}
    batch["weights"][:, :19] = 0.0
    (before, _), _ = sums_and_gradients(NextPatch(4), batch)
    for position, matters in ((11, False), (12, True), (15, True)):
        other = batch | {"inputs": batch["inputs"].copy()}
        other["inputs"][:, position] += 1
        (after, _), _ = sums_and_gradients(NextPatch(4), other)
        assert (after != before) == matters, position


def test_a_step_of_patches_is_the_same_on_eight_devices():
    wide = dataclasses.replace(MODEL, n_heads=4, n_kv_heads=4)
    losses = []
    for axes in ({}, {"fsdp": 2, "context": 2, "tensor": 2}):
        sections = {"model": dataclasses.asdict(wide), "mesh": axes, "data": {"vocab_size": 512, "seq_len": 32}}
        config = RunConfig.from_dict(sections | {"train": {"batch_size": 8, "microbatches": 2}})
        program = make_program(config, make_mesh(config.mesh), NextPatch(4))
        batch = {name: jax.device_put(x, program.batch_sharding) for name, x in random_batch().items()}
        _, metrics = program.step(program.init(jax.random.key(0)), batch, np.float32(1e-3))
        losses.append([float(metrics[name]) for name in ("loss", "grad_norm", "weight")])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.long
def test_the_loss_of_routers_counts_with_patches_as_with_tokens():
    model = dataclasses.replace(MODEL, feed_forward="top_k", experts=4, active_experts=2)
    losses = []
    for factor in (0.0, 0.1):
        optimizer = dataclasses.replace(CONFIG.optimizer, router_loss=factor)
        config = dataclasses.replace(CONFIG, model=model, optimizer=optimizer)
        (loss, sums), _ = sums_and_gradients(NextPatch(4), rows(), config)
        losses.append(float(loss))
    assert losses[1] - losses[0] == pytest.approx(0.1 * float(sums["router_loss"]), rel=1e-3)
    assert float(sums["nll"]) == pytest.approx(losses[0], rel=1e-6)
