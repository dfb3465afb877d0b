"""An objective of one's own is trained without a line of the package being changed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.model.transformer import logits
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import Checkpoints, Position
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.objective import NEXT_TOKEN, Objective
from chinchilla_jax.training.step import evaluate_step, make_program, train_step

SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True)
class Smoothed(Objective):
    """Next-token prediction with label smoothing; said to cost twice as much, so that the books show it."""

    smoothing: float = SMOOTHING

    def sums(self, config, model, params, extra, batch):
        def read_out(x_BxSxD, output_VxD, bias_V):
            log_p_BxSxV = jax.nn.log_softmax(logits(x_BxSxD, output_VxD, bias_V))
            label_BxS = jnp.take_along_axis(log_p_BxSxV, batch["targets"][..., None], -1)[..., 0]
            smoothed_BxS = (1 - self.smoothing) * label_BxS + self.smoothing * log_p_BxSxV.mean(-1)
            nll, weight = -jnp.sum(label_BxS * batch["weights"]), jnp.sum(batch["weights"])
            return -jnp.sum(smoothed_BxS * batch["weights"]), {"nll": nll, "weight": weight}

        return model.apply({"params": params}, batch["inputs"], batch.get("segment_ids"), read_out)[0]

    def flops(self, config, tokens):
        return {convention: 2 * flops for convention, flops in super().flops(config, tokens).items()}


class Averaged(Objective):
    """Next-token prediction that keeps a moving average of the weights."""

    def init_extra(self, config, params):
        return {"average": params}

    def next_extra(self, config, params, extra):
        return {"average": jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, extra["average"], params)}


class Counted(Objective):
    """Next-token prediction that sums up something besides, as a block with a load to balance does."""

    def sums(self, config, model, params, extra, batch):
        loss, sums = super().sums(config, model, params, extra, batch)
        return loss, sums | {"even_targets": jnp.sum(batch["targets"] % 2 == 0)}


@pytest.fixture(scope="module")
def brief(small, changed):
    """Eight steps, a checkpoint every three, one evaluation."""
    return changed(
        small,
        train={
            "train_tokens": 8 * 8 * 32,
            "double_batch_at": 0.0,
            "eval_every": 0,
            "log_every": 1,
            "checkpoint_every": 3,
        },
    )


def random_batch(seed=0):
    tokens = np.random.default_rng(seed).integers(0, 512, (8, 33), dtype=np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 32), np.float32)}
    return {name: x.reshape(2, 4, 32) for name, x in batch.items()}


def quiet(line):
    """An `echo` that says nothing."""


def test_a_run_of_a_toy_objective(brief, tmp_path):
    plain, toy = (
        train(brief, tmp_path / name, objective=objective, echo=quiet)
        for name, objective in (("plain", NEXT_TOKEN), ("smoothed", Smoothed()))
    )
    assert toy["flops_by_convention"] == {c: 2 * flops for c, flops in plain["flops_by_convention"].items()}
    assert plain["flops_by_convention"] == count_run(brief, 2048).flops
    assert toy["loss"] != plain["loss"] and toy["loss"] == pytest.approx(plain["loss"], rel=0.05)
    records = {n: json.loads((tmp_path / n / "config.json").read_text()) for n in ("plain", "smoothed")}
    assert records["smoothed"]["stages"][0]["objective"] == "Smoothed(smoothing=0.1)"
    assert "stages" not in records["plain"]
    assert records["plain"]["hash"] == plain["config_hash"] == brief.content_hash() != toy["config_hash"]
    for other in (NEXT_TOKEN, Smoothed(0.2)):
        with pytest.raises(ConfigError, match="another objective"):
            train(brief, tmp_path / "smoothed", objective=other, echo=quiet)


def test_gradients_are_those_of_the_objective_and_the_reported_loss_is_not(brief):
    batch, program = random_batch(), make_program(brief, make_mesh(brief.mesh))
    state = program.init(jax.random.key(0))
    new, metrics = jax.jit(lambda s: train_step(brief, s, batch, 1e-3))(state)
    toy, toy_metrics = jax.jit(lambda s: train_step(brief, s, batch, 1e-3, Smoothed()))(state)
    np.testing.assert_allclose(toy_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert abs(float(toy_metrics["grad_norm"] / metrics["grad_norm"]) - (1 - SMOOTHING)) < 0.05
    assert (np.asarray(new.params["embedding"]) != np.asarray(toy.params["embedding"])).any()
    sums = evaluate_step(brief, state.params, state.extra, batch, Smoothed())
    np.testing.assert_allclose(sums["nll"].sum() / sums["weight"].sum(), metrics["loss"], rtol=1e-6)


def test_what_is_summed_besides_is_reported_by_token_over_all_microbatches(brief):
    batch, program = random_batch(), make_program(brief, make_mesh(brief.mesh))
    state = program.init(jax.random.key(0))
    _, metrics = jax.jit(lambda s: train_step(brief, s, batch, 1e-3))(state)
    _, counted = jax.jit(lambda s: train_step(brief, s, batch, 1e-3, Counted()))(state)
    np.testing.assert_allclose(counted.pop("even_targets"), np.mean(batch["targets"] % 2 == 0), rtol=1e-6)
    assert counted.keys() == metrics.keys()
    np.testing.assert_array_equal(counted["loss"], metrics["loss"])


def test_what_an_objective_keeps_is_laid_out_like_what_it_was_made_of(brief, changed):
    config = changed(brief, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    abstract = make_program(config, make_mesh(config.mesh), Averaged()).abstract
    assert jax.tree.leaves(abstract.extra) and abstract.extra["average"] == abstract.params
    assert make_program(config, make_mesh(config.mesh)).abstract.extra == {}


def test_what_an_objective_keeps_is_saved_and_goes_on_to_the_bit(brief, stop_at, tmp_path):
    train(brief, tmp_path / "straight", objective=Averaged(), echo=quiet)
    stop_at(4)
    with pytest.raises(Preempted):
        train(brief, tmp_path / "stopped", objective=Averaged(), echo=quiet)
    train(brief, tmp_path / "stopped", objective=Averaged(), echo=quiet)
    program = make_program(brief, make_mesh(brief.mesh), Averaged())
    states = []
    for run in ("straight", "stopped"):
        checkpoints = Checkpoints(tmp_path / run / "checkpoints")
        states.append(jax.tree.map(np.asarray, checkpoints.restore(lambda step: program.abstract, pytest.fail)[0]))
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, *states)
    average, weights = states[0].extra["average"]["embedding"], states[0].params["embedding"]
    assert 0 < np.abs(average - weights).max() < 0.1


def test_a_state_that_holds_nothing_else_is_saved_as_before_there_was_a_place_for_it(brief, tmp_path, said):
    program = make_program(brief, make_mesh(MeshConfig()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(program.init(jax.random.key(0)), Position(1))
    checkpoints.wait()
    assert set(checkpoints._manager.item_metadata(1).state) == {"step", "params", "opt_state"}
    state, _ = checkpoints.restore(lambda step: program.abstract, said)
    checkpoints.close()
    assert state.extra == {} and not said.text


def test_equal_objectives_share_programs_and_others_do_not(brief):
    programs = [make_program(brief, make_mesh(brief.mesh), o) for o in (Smoothed(), Smoothed(0.1), Smoothed(0.2))]
    assert programs[0] is programs[1] and programs[0] is not programs[2]
    assert make_program(brief, make_mesh(brief.mesh), Counted()) is not make_program(brief, make_mesh(brief.mesh))
