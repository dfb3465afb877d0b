"""What a run refuses, what it leaves behind, and what its numbers mean."""

import json
import math
import signal

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.ledger import count_run
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training import loop, start
from chinchilla_jax.training.loop import Diverged, Signals, train
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.schedule import steps_of
from chinchilla_jax.training.step import make_program, model_of


def quiet(_):
    """An `echo` that says nothing."""


@pytest.fixture(scope="module")
def brief(small, changed):
    """Eight steps and one evaluation, of every validation sequence."""
    return changed(
        small,
        train={
            "train_tokens": 8 * 8 * 32,
            "double_batch_at": 0.0,
            "eval_every": 0,
            "eval_sequences": 10**6,
            "checkpoint_every": 0,
            "log_every": 1,
        },
    )


@pytest.fixture(scope="module")
def finished(brief, tmp_path_factory):
    """The directory of that run."""
    workdir = tmp_path_factory.mktemp("finished")
    train(brief, workdir, facts={"name": "brief", "budget": 1e9}, echo=quiet)
    return workdir


# --- What is left behind ---


def test_a_result(brief, finished):
    result = json.loads((finished / "result.json").read_text())
    ledger = count_run(brief, 2048)
    assert (result["name"], result["budget"], result["steps"], result["tokens"]) == ("brief", 1e9, 8, 2048)
    assert result["params"] == ledger.parameters.total and result["flops_by_convention"] == ledger.flops
    assert result["loss"] == result["validation"]["validation_loss"]
    assert result["bits_per_byte"] == result["validation"]["bits_per_byte"]
    assert (result["config_hash"], result["devices"], result["diverged"]) == (brief.content_hash(), 1, False)
    assert result["seconds"] == pytest.approx(sum(result["time"].values()), rel=1e-9)
    assert result["device_hours"] == pytest.approx(result["seconds"] / 3600, rel=1e-9)
    assert json.loads((finished / "ledger.json").read_text()) == ledger.to_dict()
    config = json.loads((finished / "config.json").read_text())
    assert config["config"] == brief.to_dict() and config["hash"] == brief.content_hash()
    assert not list(finished.rglob("*.tmp"))


def test_a_finished_run_is_returned_without_work(brief, finished, monkeypatch, said):
    monkeypatch.setattr(loop, "make_program", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(start, "TokenStore", lambda *_, **__: pytest.fail("opened the data"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert train(brief, finished, echo=said) == json.loads((finished / "result.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_metrics_of_every_step(brief, finished):
    records = read_metrics(finished)
    steps = [r for r in records if "loss" in r]
    assert [(r["step"], r["tokens"]) for r in steps] == [(step, 256 * step) for step in range(1, 9)]
    rates = [loop.learning_rate(brief.optimizer, steps_of(brief), step) for step in range(8)]
    assert [r["lr"] for r in steps] == [float(np.float32(rate)) for rate in rates]
    assert all(r["grad_norm"] > 0 for r in steps)
    assert "validation_loss" in records[-1] and records[-1]["step"] == 8


def test_a_sparse_run_logs_its_router_and_evaluates_the_loss_of_tokens_alone(brief, finished, changed, tmp_path):
    sparse = {"feed_forward": "top_k", "experts": 4, "active_experts": 1}
    config = changed(brief, model=sparse, optimizer={"router_loss": 0.1})
    train(config, tmp_path, echo=quiet)
    *steps, evaluation = read_metrics(tmp_path)
    assert all(1.9 <= row["router_loss"] < 8.0 for row in steps), "1 in each of two layers, if loads are even"
    assert "router_loss" not in evaluation and not any("router_loss" in row for row in read_metrics(finished))
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["params"] - ledger["params_active"] == 2 * 3 * (2 * 16 * 8 + 8), "three experts of four in each layer"
    assert ledger["flops"]["6nd"] == 6 * ledger["params_active"] * ledger["tokens"]


def test_a_logged_loss_is_the_mean_since_the_last_line(brief, finished, changed, tmp_path):
    train(changed(brief, train={"log_every": 3}), tmp_path, echo=quiet)
    losses = [r["loss"] for r in read_metrics(finished) if "loss" in r]
    assert [r["loss"] for r in read_metrics(tmp_path) if "loss" in r] == [sum(losses[:3]) / 3, sum(losses[3:6]) / 3]


def test_losses_are_those_of_steps_made_by_hand(brief, finished):
    """The loop adds nothing to init, batches and step."""
    program = make_program(brief, make_mesh(brief.mesh))
    batches = Batches(TokenStore(store_path(brief.data)), brief.data.mixture, brief.train.seed)
    state, losses = program.init(jax.random.key(brief.train.seed)), []
    for step in range(8):
        batch = {name: x.reshape(2, 4, 32) for name, x in batches.batch(8 * step, 8).items()}
        rate = loop.learning_rate(brief.optimizer, steps_of(brief), step)
        state, metrics = program.step(state, batch, np.float32(rate))
        losses.append(float(metrics["loss"]))
    assert [r["loss"] for r in read_metrics(finished) if "loss" in r] == losses


def test_runs_that_differ_in_budget_share_compilations(brief, finished, changed, tmp_path):
    """A doubled batch is one more shape, and only for the step."""
    program = make_program(brief, make_mesh(brief.mesh))

    def compiled():
        return program.step._cache_size(), program.evaluate._cache_size(), program.init._cache_size()

    jax.clear_caches()
    counts = []
    for name, optimizer, more in (
        ("one", {}, {}),
        ("two", {"peak_lr": 3e-4, "warmup_steps": 1, "schedule": "cooldown"}, {"train_tokens": 1536}),
        ("three", {}, {"seed": 9, "eval_every": 2, "checkpoint_every": 3}),
        ("four", {}, {"double_batch_at": 0.5}),
        ("five", {}, {"double_batch_at": 0.25, "seed": 3}),
    ):
        train(changed(brief, optimizer=optimizer, train={"eval_sequences": 8} | more), tmp_path / name, echo=quiet)
        counts.append(compiled())
    assert counts == [(1, 1, 1), (1, 1, 1), (1, 1, 1), (2, 1, 1), (2, 1, 1)]


# --- Evaluation ---


def test_domains_combine_to_the_mixture(brief, finished):
    store = TokenStore(store_path(brief.data))
    weights = Batches(store, brief.data.mixture, 0).weights
    record = json.loads((finished / "result.json").read_text())["validation"]
    loss = sum(weights[d] * record[f"validation_loss/{d}"] for d in weights)
    assert record["validation_loss"] == pytest.approx(loss, rel=1e-12)
    bytes_per_token = {d: store.text_bytes(d, "validation") / store.tokens(d, "validation") for d in weights}
    for domain in weights:
        expected = record[f"validation_loss/{domain}"] / math.log(2) / bytes_per_token[domain]
        assert record[f"bits_per_byte/{domain}"] == pytest.approx(expected, rel=1e-9)
    per_byte = loss / math.log(2) / sum(weights[d] * bytes_per_token[d] for d in weights)
    assert record["bits_per_byte"] == pytest.approx(per_byte, rel=1e-9)


def test_validation_loss_is_that_of_the_saved_weights(brief, finished, saved):
    """Over all rows at once, without batches or their filling."""
    state, _ = saved(brief, finished)
    store = TokenStore(store_path(brief.data))
    record = json.loads((finished / "result.json").read_text())["validation"]
    for domain in store.domains:
        rows = np.asarray(store.array(domain, "validation"), np.int32)
        logits = np.asarray(jax.jit(model_of(brief).apply)({"params": state.params}, rows[:, :-1])[0], np.float64)
        nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
        tokens = store.tokens(domain, "validation")
        assert nll.ravel()[:tokens].mean() == pytest.approx(record[f"validation_loss/{domain}"], rel=1e-6)


# --- Refusals ---


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"optimizer": {"peak_lr": 0.5}}, r"optimizer.peak_lr: 0.01 there, 0.5 here"),
        ({"train": {"seed": 4}, "model": {"d_ff": 64}}, r"model.d_ff: 32 there, 64 here, train.seed: 0 there, 4 here"),
    ],
)
def test_the_directory_of_another_config(brief, finished, changed, change, names):
    with pytest.raises(ConfigError, match=names):
        train(changed(brief, **change), finished, echo=quiet)


def test_another_mesh_may_go_on(brief, changed, said, monkeypatch, tmp_path):
    config = changed(brief, train={"checkpoint_every": 4, "eval_sequences": 8})
    whole = train(config, tmp_path / "whole", echo=quiet)
    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda o, b, step: rate(o, b, step) if step < 6 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "parts", echo=quiet)
    monkeypatch.setattr(loop, "learning_rate", rate)
    parts = train(changed(config, mesh={"data": 2, "fsdp": 2}), tmp_path / "parts", echo=said)
    assert "mesh.data: 1 there, 2 here" in said.text and "resuming at step 4 of 8" in said.text
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5) and parts["devices"] == 4


def test_a_tokenizer_larger_than_the_model(brief, monkeypatch, tmp_path):
    opened = TokenStore(store_path(brief.data))
    opened.vocab_size = 513
    monkeypatch.setattr(start, "TokenStore", lambda *_, **__: opened)
    with pytest.raises(ConfigError, match="512 is less than the tokenizer's 513") as raised:
        train(brief, tmp_path, echo=quiet)
    assert raised.value.key == "model.vocab_size"


def test_sequences_of_another_length(brief, changed, monkeypatch, tmp_path):
    monkeypatch.setattr(start, "store_path", lambda data: store_path(brief.data))
    with pytest.raises(ConfigError, match="64, but the token store in .* holds sequences of 32") as raised:
        train(changed(brief, data={"seq_len": 64}), tmp_path, echo=quiet)
    assert raised.value.key == "data.seq_len"


def test_more_devices_than_there_are(brief, changed, tmp_path):
    config = changed(brief, train={"batch_size": 32, "train_tokens": 10**4}, mesh={"data": 16})
    with pytest.raises(ConfigError, match="needs 16 devices, 8 cpu") as raised:
        train(config, tmp_path, echo=quiet)
    assert raised.value.key == "mesh"


# --- Divergence ---


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(small, changed, saved, tmp_path):
    config = changed(small, optimizer={"peak_lr": 1e7}, train={"checkpoint_every": 1, "double_batch_at": 0.0})
    with pytest.raises(Diverged, match="at step .* Lower optimizer.peak_lr=10000000.0"):
        train(config, tmp_path, echo=quiet)
    assert not (tmp_path / "result.json").exists()
    state, position = saved(config, tmp_path)
    assert position.step >= 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    records = read_metrics(tmp_path)
    assert all(math.isfinite(value) for record in records for value in record.values())
    with pytest.raises(Diverged):
        train(config, tmp_path, echo=quiet)


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}, {"grad_norm": math.nan}])
def test_a_number_that_is_not_finite_is_never_saved(small, changed, saved, monkeypatch, tmp_path, bad):
    config = changed(small, train={"checkpoint_every": 1, "double_batch_at": 0.0})
    make = make_program

    def poisoned(*args):
        program = make(*args)

        def step(state, batch, lr):
            number = int(state.step)
            state, metrics = program.step(state, batch, lr)
            return state, metrics | {name: np.float32(value) for name, value in bad.items() if number == 6}

        return program._replace(step=step)

    monkeypatch.setattr(loop, "make_program", poisoned)
    with pytest.raises(Diverged, match="at step 7"):
        train(config, tmp_path, echo=quiet)
    assert saved(config, tmp_path)[1].step == 6 and not (tmp_path / "result.json").exists()


# --- Signals ---


@pytest.fixture
def ctrl_c_interrupts():
    """As at a terminal; a test run started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not(ctrl_c_interrupts):
    with Signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
