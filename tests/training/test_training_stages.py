"""A run of two stages, of which the second has more layers: stopped anywhere, it ends with the same bits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.ledger import count_run
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import restore_from
from chinchilla_jax.training.loop import Fork, Preempted, Stage, train
from chinchilla_jax.training.record.metrics import read_metrics
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.step import make_program

BORDER, END = 6, 10


def stack_twice(last, fresh):
    """The layers of the smaller model, each one twice; everything else as it is; moments afresh."""
    layers = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), last.params["layers"])
    return fresh.replace(step=last.step, params=last.params | {"layers": layers})


def quiet(line):
    """An `echo` that says nothing."""


@pytest.fixture(scope="module")
def first(small, changed):
    """Six steps of eight rows."""
    return changed(
        small,
        train={
            "train_tokens": BORDER * 8 * 32,
            "double_batch_at": 0.0,
            "log_every": 4,
            "eval_every": 3,
            "checkpoint_every": 4,
        },
    )


@pytest.fixture(scope="module")
def second(first, changed):
    """Four steps of sixteen rows, with twice the layers and rates of its own."""
    return changed(
        first,
        model={"n_layers": 4},
        optimizer={"peak_lr": 5e-3},
        train={"train_tokens": (END - BORDER) * 16 * 32, "batch_size": 16},
    )


@pytest.fixture(scope="module")
def then(second):
    return (Stage(second, enter=stack_twice),)


@pytest.fixture(scope="module")
def straight(first, then, tmp_path_factory):
    """The directory of the run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("stages")
    train(first, workdir, then=then, keep=(BORDER, END), echo=quiet)
    return workdir


def test_a_run_of_two_stages(first, second, straight, saved):
    records, result = read_metrics(straight), json.loads((straight / "result.json").read_text())
    assert [r["step"] for r in records if "loss" in r] == [4, 6, 8]
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6, 9, 10]
    tokens = {3: 3 * 256, 4: 4 * 256, 6: 6 * 256, 8: 6 * 256 + 2 * 512, 9: 6 * 256 + 3 * 512, 10: 6 * 256 + 4 * 512}
    assert all(r["tokens"] == tokens[r["step"]] for r in records)
    assert records[4]["lr"] == pytest.approx(5e-3 / 2), "the second step of the second stage's warm-up"
    one, other = count_run(first, 6 * 256), count_run(second, 4 * 512)
    assert (result["steps"], result["tokens"], result["params"]) == (10, 3584, other.parameters.total)
    assert result["flops_by_convention"] == {c: one.flops[c] + other.flops[c] for c in one.flops}
    assert [(s["steps"], s["tokens"], s["objective"]) for s in result["stages"]] == [
        (6, 6 * 256, "next_token"),
        (4, 4 * 512, "next_token"),
    ]
    assert [s["config_hash"] for s in result["stages"]] == [first.content_hash(), second.content_hash()]
    assert [s["enter"].rpartition(".")[2] for s in result["stages"]] == ["carry_on", "stack_twice"]
    state, position = saved(second, straight)
    assert (int(state.step), position.next_sequence) == (10, 6 * 8 + 4 * 16)


def test_the_second_stage_begins_with_what_is_made_of_the_first(first, second, straight):
    """The state that is saved at the border is the first stage's; each of its layers is there twice when it goes on."""
    course = Course(Stage(first), Stage(second, enter=stack_twice))
    assert [course.stages.index(course.at(step)) for step in (0, BORDER, BORDER + 1, END)] == [0, 0, 1, 1]
    smaller, larger = (make_program(config, make_mesh(config.mesh)) for config in (first, second))
    last, _ = restore_from(straight / "checkpoints", BORDER, lambda step: smaller.abstract, pytest.fail)
    grown = course.stages[1].first_state(larger, last)
    jax.tree.map(lambda x, a: (x.shape, x.sharding) == (a.shape, a.sharding) or pytest.fail(), grown, larger.abstract)
    query = np.asarray(grown.params["layers"]["attention"]["query"])
    np.testing.assert_array_equal(query[::2], query[1::2])
    np.testing.assert_array_equal(query[::2], last.params["layers"]["attention"]["query"])
    assert int(grown.step) == BORDER


@pytest.mark.parametrize("stop", [2, BORDER, BORDER + 1, 8])
def test_stopped_inside_and_at_the_border(stop, first, second, then, straight, stop_after, saved, said, tmp_path):
    stop_after(stop)
    with pytest.raises(Preempted, match=f"saved step {stop} of 10"):
        train(first, tmp_path, then=then, keep=(BORDER, END), echo=said)
    train(first, tmp_path, then=then, keep=(BORDER, END), echo=said)
    assert f"resuming at step {stop} of 10" in said.text
    assert (tmp_path / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, saved(second, tmp_path)[0], saved(second, straight)[0])


def test_a_directory_belongs_to_its_stages(first, second, then, straight, changed):
    with pytest.raises(ConfigError, match="other stages"):
        train(first, straight, echo=quiet)
    with pytest.raises(ConfigError, match="other stages"):
        train(first, straight, then=(Stage(changed(second, optimizer={"peak_lr": 1.0}), enter=stack_twice),))
    with pytest.raises(ConfigError, match="other stages"):
        train(first, straight, then=(dataclasses.replace(then[0], enter=lambda last, fresh: fresh),))


def test_what_the_stages_of_a_run_share(first, second, then, straight, changed, tmp_path):
    for section, values in (("data", {"mixture": "uniform"}), ("train", {"seed": 1}), ("mesh", {"data": 2})):
        with pytest.raises(ConfigError, match="the same data, mesh and train.seed"):
            train(first, tmp_path, then=(Stage(changed(second, **{section: values})),), echo=quiet)
    with pytest.raises(ConfigError, match="one stage each"):
        train(first, tmp_path, then=then, fork=Fork(straight, 2), echo=quiet)
    with pytest.raises(ConfigError, match="one stage each"):
        train(first, tmp_path, fork=Fork(straight, 2), echo=quiet)


def test_a_stage_that_says_nothing_goes_on_with_weights_and_moments(first, then, saved, tmp_path):
    """Two stages of one config are the steps of a constant rate in one."""
    flat = dataclasses.replace(
        first, optimizer=dataclasses.replace(first.optimizer, schedule="constant", warmup_steps=0)
    )
    half = dataclasses.replace(flat, train=dataclasses.replace(flat.train, train_tokens=3 * 256))
    train(flat, tmp_path / "one", echo=quiet)
    train(half, tmp_path / "two", then=(Stage(half),), echo=quiet)
    jax.tree.map(np.testing.assert_array_equal, *(saved(flat, tmp_path / run)[0] for run in ("one", "two")))
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
