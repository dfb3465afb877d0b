"""Scores of rows: they add up to the validation loss, and are those of logits in float64."""

import jax
import numpy as np
import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.data import Batches, TokenStore, prepare, store_path
from chinchilla_jax.evaluation.score import make_score
from chinchilla_jax.parallel.mesh import make_mesh, place
from chinchilla_jax.training import loss
from chinchilla_jax.training.evaluate import domain_sequences, evaluate
from chinchilla_jax.training.step import make_program, model_of

MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=512)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A config with a prepared store, and weights of no training."""
    data = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("data")), vocab_size=512, seq_len=32)
    prepare(data, lambda line: None)
    return RunConfig(MODEL, data=data, train=TrainConfig(batch_size=8, microbatches=2))


def on_devices(program, batch):
    return place(lambda rows=slice(None): {n: x[rows] for n, x in batch.items()}, (2, 4, 32), program.batch_sharding)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(2, 2, 2), MeshConfig(context=2, tensor=2)], ids=str)
def test_scores_add_up_to_the_validation_loss(run, mesh, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 512 * 32)  # several chunks to a microbatch
    config, devices = RunConfig(run.model, data=run.data, train=run.train, mesh=mesh), make_mesh(mesh)
    program, score = make_program(config, devices), make_score(config, devices)
    assert make_score(config, devices) is score
    params = program.init(jax.random.key(0)).params
    batches = Batches(TokenStore(store_path(run.data)), "proportional", 0)
    scored = []

    def sums(batch):
        scored.append(score(params, on_devices(program, batch)))
        return program.evaluate(params, {}, on_devices(program, batch))

    record = evaluate(batches, sums, 8, 20)
    assert all(s["log_likelihood"].shape == s["tokens"].shape == (2, 4) for s in scored)
    counts = domain_sequences(batches.weights, 20)
    domains = [domain for domain, count in counts.items() for _ in batches.validation(domain, 8, count)]
    for domain in batches.weights:
        of_domain = [s for s, d in zip(scored, domains, strict=True) if d == domain]
        nats = -sum(float(np.asarray(s["log_likelihood"], np.float64).sum()) for s in of_domain)
        tokens = sum(float(s["tokens"].sum()) for s in of_domain)
        assert nats / tokens == pytest.approx(record[f"validation_loss/{domain}"], rel=1e-6)


def test_each_row_has_its_own_and_what_is_masked_counts_for_nothing(run):
    program, score = (make(run, make_mesh(run.mesh)) for make in (make_program, make_score))
    params = program.init(jax.random.key(1)).params
    rng = np.random.default_rng(0)
    tokens, weights = rng.integers(0, 512, (8, 33), np.int32), rng.integers(0, 2, (8, 32)).astype(np.float32)
    weights[3] = 0.0
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    scores = jax.tree.map(lambda x: np.asarray(x).reshape(8), score(params, on_devices(program, batch)))
    logits = np.asarray(jax.jit(model_of(run).apply)({"params": params}, batch["inputs"])[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = (np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0] * weights).sum(1)
    np.testing.assert_allclose(scores["log_likelihood"], expected, rtol=1e-5)
    np.testing.assert_array_equal(scores["tokens"], weights.sum(1))
    assert scores["log_likelihood"][3] == scores["tokens"][3] == 0
