"""What a proposition teaches: one position of its row; what is reported of text and labels is told apart."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import prepare
from chinchilla_jax.method import Growth, GrowthStage
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.tools.parity import main, parity_propositions
from chinchilla_jax.training.evaluate import evaluate
from chinchilla_jax.training.labels import NAMES, of_step
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.objective import NEXT_TOKEN
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.start import open_batches
from chinchilla_jax.training.step import make_program, model_of

WEIGHT, SHARE = 3.0, 0.25


def quiet(line):
    """An `echo` that says nothing."""


@pytest.fixture(scope="module")
def taught(small, tmp_path_factory, changed):
    """Twelve steps of `small` with propositions for a quarter of the rows, of which a few are in every batch."""
    file = tmp_path_factory.mktemp("teacher") / "parity.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in parity_propositions(300, 3, seed=0)))
    data = dict(teacher=str(file), teacher_share=SHARE, teacher_weight=WEIGHT)
    train = {"train_tokens": 12 * 8 * 32, "double_batch_at": 0.0, "eval_every": 6}
    config = changed(small, data=data, train=train)
    prepare(config.data, quiet)
    return config


@pytest.fixture(scope="module")
def batches(taught):
    return open_batches(taught)


@pytest.fixture(scope="module")
def params(taught):
    """Weights far enough from their first values for every token to matter."""
    params = make_program(taught, make_mesh(taught.mesh)).init(jax.random.key(3)).params
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.fixture(scope="module")
def gradient(taught):
    """Gradients of what a step minimises, for a batch `[B, S]`."""

    def objective(params, batch):
        return NEXT_TOKEN.sums(taught, model_of(taught), params, {}, batch)[0]

    return jax.jit(jax.grad(objective))


def log_p(config, params, batch):
    """Log-probabilities `[B, S, V]` in float64, by numpy from the logits."""
    logits = model_of(config).apply({"params": params}, batch["inputs"], batch.get("segment_ids"))[0]
    logits = np.asarray(logits, np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reference(config, params, batch):
    """Nats per token of the text, nats per label, share of labels that are right, and how many."""
    scores, at = log_p(config, params, batch), batch["other_labels"] >= 0
    nats = -np.take_along_axis(scores, batch["targets"][..., None], -1)[..., 0]
    other = -np.take_along_axis(scores, np.maximum(batch["other_labels"], 0)[..., None], -1)[..., 0]
    text = (batch["weights"] > 0) & ~at
    return nats[text].sum() / max(1, text.sum()), nats[at].mean(), (nats < other)[at].mean(), at.sum()


def rows_of(batch, kind):
    """The rows of a batch that are propositions, or the others."""
    rows = (batch["other_labels"] >= 0).any(axis=1)
    return {name: values[rows if kind == "propositions" else ~rows] for name, values in batch.items()}


def assert_same(one, two, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


def test_a_proposition_has_a_gradient_through_its_label_alone(taught, batches, params, gradient):
    batch = {name: values[:4] for name, values in rows_of(batches.batch(0, 32), "propositions").items()}
    at = batch["other_labels"] >= 0
    expected = gradient(params, batch)
    other_targets = batch | {"targets": np.where(at, batch["targets"], 7)}
    after = np.cumsum(at, axis=1) - at > 0
    other_filling = batch | {"inputs": np.where(after, 9, batch["inputs"])}
    for changed_batch in (other_targets, other_filling):
        assert_same(gradient(params, changed_batch), expected, atol=1e-6, rtol=1e-5)
    wrong = gradient(params, batch | {"targets": np.where(at, batch["other_labels"], batch["targets"])})
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (wrong, expected)), strict=True)) > 0.1

    def by_hand(params):
        logits = model_of(taught).apply({"params": params}, batch["inputs"])[0]
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        nats += taught.optimizer.z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
        return WEIGHT * jnp.sum(jnp.where(at, nats, 0.0))

    assert_same(expected, jax.jit(jax.grad(by_hand))(params), atol=2e-4, rtol=2e-4)


def test_with_weights_of_one_everywhere_it_is_the_loss_of_the_next_token(taught, batches, params):
    batch = batches.batch(0, 8)
    batch["weights"] = np.ones_like(batch["weights"])
    text = {name: values for name, values in batch.items() if name != "other_labels"}
    sums = [NEXT_TOKEN.sums(taught, model_of(taught), params, {}, b) for b in (batch, text)]
    assert sums[0][0] == sums[1][0] and sums[0][1]["nll"] == sums[1][1]["nll"]
    assert float(sums[0][1]["weight"]) == batch["weights"].size
    assert set(sums[0][1]) - set(sums[1][1]) == set(NAMES)


def test_what_a_step_reports_is_told_apart(taught, batches, params):
    config = dataclasses.replace(taught, train=dataclasses.replace(taught.train, batch_size=32))
    batch = batches.batch(0, 32)
    program = make_program(config, make_mesh(config.mesh))
    state = program.init(jax.random.key(0)).replace(params=jax.tree.map(jnp.copy, params))
    parts = {name: jnp.asarray(values.reshape(2, 16, 32)) for name, values in batch.items()}
    _, metrics = program.step(state, parts, np.float32(0.0))
    text_loss, (nll, right, labels) = of_step(metrics, WEIGHT)
    expected = reference(config, params, batch)
    assert (right / labels, labels) == pytest.approx(expected[2:]) and labels > 4
    assert (text_loss, nll / labels) == pytest.approx(expected[:2], rel=2e-5)
    whole = (batch["weights"].sum() - WEIGHT * labels, WEIGHT * labels)
    assert float(metrics["loss"]) == pytest.approx(np.dot(whole, expected[:2]) / sum(whole), rel=2e-5)


@pytest.mark.parametrize("kind", ["propositions", "text"])
def test_a_step_of_one_kind_alone(taught, batches, params, kind):
    batch = rows_of(batches.batch(0, 64), kind)
    batch = {name: values[:8].reshape(2, 4, 32) for name, values in batch.items()}
    program = make_program(taught, make_mesh(taught.mesh))
    state = program.init(jax.random.key(0)).replace(params=jax.tree.map(jnp.copy, params))
    _, metrics = program.step(state, jax.tree.map(jnp.asarray, batch), np.float32(0.0))
    text_loss, (nll, right, labels) = of_step(metrics, WEIGHT)
    if kind == "text":
        assert (nll, right, labels) == (0.0, 0, 0) and text_loss == pytest.approx(float(metrics["loss"]), rel=1e-9)
    else:
        assert labels == 8 and np.isnan(text_loss) and nll / 8 == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.long
def test_the_mesh_changes_nothing(taught, batches):
    """Tokens of a row, rows, widths and the vocabulary split over devices."""
    batch = {name: values.reshape(2, 8, 32) for name, values in batches.batch(0, 16).items()}
    found = []
    for layout in (MeshConfig(), MeshConfig(1, 2, 2, 2)):
        config = dataclasses.replace(taught, mesh=layout)
        program = make_program(config, make_mesh(layout))
        state, placed = program.init(jax.random.key(0)), jax.device_put(batch, program.batch_sharding)
        state, metrics = program.step(state, placed, np.float32(1e-2))
        sums = program.evaluate(state.params, state.extra, placed)
        found.append({name: np.asarray(value) for name, value in metrics.items()})
        found[-1] |= {f"{name} of an evaluation": np.asarray(value) for name, value in sums.items()}
    assert found[0].keys() == found[1].keys() >= set(NAMES)
    assert_same(found[0], found[1], rtol=1e-4)


def test_an_evaluation_has_the_text_as_ever_and_the_labels_apart(taught, batches, params):
    program = make_program(taught, make_mesh(taught.mesh))

    def sums(batch):
        return program.evaluate(params, {}, {name: jnp.asarray(v[None]) for name, v in batch.items()})

    record = evaluate(batches, sums, 8, 24)
    plain = dataclasses.replace(taught, data=dataclasses.replace(taught.data, teacher_share=0.0))
    without = evaluate(open_batches(plain), sums, 8, 24)
    assert record.keys() - without.keys() == {"teacher_loss", "teacher_accuracy"}
    assert {name: record[name] for name in without} == pytest.approx(without, rel=1e-6)
    (held_out,) = batches.validation_of_teacher(24, 24)
    _, nats, right, _ = reference(taught, params, held_out)
    assert (record["teacher_loss"], record["teacher_accuracy"]) == pytest.approx((nats, right), rel=1e-5)


@pytest.fixture(scope="module")
def run(taught, tmp_path_factory):
    """The directory of its run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("taught")
    train(taught, workdir, echo=quiet)
    return workdir


def test_a_run_says_what_it_learned_from_whom(taught, run, batches):
    result, records = json.loads((run / "result.json").read_text()), read_metrics(run)
    labels = sum(int((batches.batch(8 * step, 8)["other_labels"] >= 0).sum()) for step in range(12))
    assert (result["labels"], result["label_row_tokens"], result["tokens"]) == (labels, 32 * labels, 12 * 8 * 32)
    steps = [r for r in records if "validation_loss" not in r]
    assert [r["step"] for r in steps] == [4, 8, 12] and all(0 <= r["teacher_accuracy"] <= 1 for r in steps)
    assert all(r.keys() >= {"teacher_loss", "teacher_accuracy"} for r in records)
    assert result["loss"] == result["validation"]["validation_loss"] != result["validation"]["teacher_loss"]


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_run_stopped_between_two_lines_goes_on_to_the_bit(taught, run, stop, stop_at, saved, tmp_path):
    stop_at(stop)
    with pytest.raises(Preempted):
        train(taught, tmp_path, echo=quiet)
    train(taught, tmp_path, echo=quiet)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, saved(taught, tmp_path)[0], saved(taught, run)[0])


def test_a_share_of_nothing_is_a_run_without_a_teacher_to_the_bit(taught, changed, saved, tmp_path):
    plain = changed(taught, data={"teacher": "", "teacher_share": 0.0})
    nothing = changed(taught, data={"teacher_share": 0.0})
    results = [train(config, tmp_path / name, echo=quiet) for config, name in ((plain, "plain"), (nothing, "nothing"))]
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("plain", "nothing"))
    assert one == two and b"teacher" not in one
    assert results[0].keys() == results[1].keys() and "labels" not in results[0]
    jax.tree.map(np.testing.assert_array_equal, *(saved(plain, tmp_path / n)[0] for n in ("plain", "nothing")))


@pytest.mark.long
def test_a_model_that_grows_has_a_teacher_too(taught, tmp_path):
    smaller = GrowthStage(share=0.5, n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, d_ff=16)
    config = dataclasses.replace(taught, method=Growth(stages=(smaller,), ramp=0.5))
    result = train(config, tmp_path, echo=quiet)
    assert result["labels"] > 0
    assert all(0 < r["teacher_loss"] for r in read_metrics(tmp_path)) and "teacher_accuracy" in result["validation"]


@pytest.mark.long
def test_parity_is_learned_and_hardly_at_the_cost_of_the_text(tmp_path):
    """Half of the rows are propositions; beside it a plain run whose steps have the other half and nothing else."""
    file = tmp_path / "parity.jsonl"
    main([str(file)])
    text = DataConfig(source="shipped", data_dir=str(tmp_path), vocab_size=512, seq_len=32, validation_fraction=0.1)
    with_teacher = dataclasses.replace(text, teacher=str(file), teacher_share=0.5, teacher_weight=8.0)
    model = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512,
                        scan_layers=False)  # fmt: skip
    optimizer = OptimizerConfig(peak_lr=3e-3, warmup_steps=50, b2=0.99)
    results, records = {}, {}
    for name, data, batch_size in (("plain", text, 16), ("teacher", with_teacher, 32)):
        tokens = 1000 * batch_size * data.seq_len
        train_config = TrainConfig(train_tokens=tokens, batch_size=batch_size, eval_every=100, eval_sequences=512)
        prepare(data, quiet)
        results[name] = train(RunConfig(model, optimizer, data, train=train_config), tmp_path / name, echo=quiet)
        records[name] = [r for r in read_metrics(tmp_path / name) if "validation_loss" in r]
    accuracies = [r["teacher_accuracy"] for r in records["teacher"]]
    print(f"accuracy every 100 steps: {', '.join(f'{a:.3f}' for a in accuracies)}")
    losses = {name: result["loss"] for name, result in results.items()}
    print(f"loss of the text: {losses}, {losses['teacher'] / losses['plain'] - 1:+.2%}")
    assert 0.35 < accuracies[0] < 0.65 and min(accuracies[-3:]) > 0.9
    assert losses["teacher"] < 1.02 * losses["plain"] and losses["plain"] < 3.4
