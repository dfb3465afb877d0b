"""Which checkpoints stay, what happens to damaged ones, and restoring onto another mesh."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import Checkpoints, Position, restore_params
from chinchilla_jax.training.step import TrainState, make_program


def state_of(step):
    weights = jnp.arange(5000, dtype=jnp.float32) + step
    return TrainState(jnp.asarray(step, jnp.int32), {"w": weights}, (2.0 * weights,))


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))


def save(directory, losses):
    """A checkpoint of every step of `losses`; None where there was no evaluation."""
    checkpoints = Checkpoints(directory)
    for step, loss in losses.items():
        checkpoints.save(state_of(step), Position(step, 10 * step, bool(step % 2), [0.1, float(step)], 1.5), loss)
    checkpoints.close()


def steps_in(directory):
    return sorted(int(path.name.removeprefix("step_")) for path in directory.glob("step_*"))


def restore(directory, echo):
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(lambda step: ABSTRACT, echo)
    checkpoints.close()
    return restored


def test_what_was_saved_comes_back(tmp_path, said):
    save(tmp_path, {3: 2.5})
    state, position = restore(tmp_path, said)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
    assert position == Position(3, 30, True, [0.1, 3.0], 1.5)
    assert not said.text


def test_an_empty_directory_has_nothing_to_restore(tmp_path, said):
    assert restore(tmp_path / "none", said) is None and not said.text


def test_the_last_two_and_the_best_are_kept(tmp_path):
    save(tmp_path, {1: 4.0, 2: 3.0, 3: 5.0, 4: None, 5: 3.5})
    assert steps_in(tmp_path) == [2, 4, 5]
    save(tmp_path, {6: None, 7: 3.2})
    assert steps_in(tmp_path) == [2, 6, 7], "the best is still known after a restart"
    save(tmp_path, {8: 2.9, 9: None, 10: None})
    assert steps_in(tmp_path) == [8, 9, 10]


def test_a_step_that_is_there_is_left_alone(tmp_path, said):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1), Position(1))
    checkpoints.save(state_of(2), Position(1))
    checkpoints.close()
    assert int(restore(tmp_path, said)[0].step) == 1


def test_saving_survives_the_donation_of_what_is_saved(tmp_path, said):
    """The arrays are on their way to disk while later steps want to reuse their memory."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros((2048, 2048))}, ())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, Position(1))
    for _ in range(20):
        state = step(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(lambda step: abstract, said)
    checkpoints.close()
    assert not np.asarray(restored.params["w"]).any() and int(state.params["w"][0, 0]) == 20


def test_what_is_restored_can_be_donated(tmp_path, said):
    save(tmp_path, {1: None})
    state, _ = restore(tmp_path, said)
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGES = {
    "state deleted": lambda d: shutil.rmtree(d / "state"),
    "manifest deleted": lambda d: (d / "state" / "manifest.ocdbt").unlink(),
    "data deleted": lambda d: largest(d / "state").unlink(),
    "data truncated": lambda d: largest(d / "state").write_bytes(largest(d / "state").read_bytes()[:100]),
    "data flipped": lambda d: largest(d / "state").write_bytes(bytes(255 - b for b in largest(d).read_bytes())),
    "metadata emptied": lambda d: (d / "state" / "_METADATA").write_bytes(b""),
    "position deleted": lambda d: shutil.rmtree(d / "position"),
    "position emptied": lambda d: [p.write_bytes(b"") for p in (d / "position").iterdir()],
    "position of other data": lambda d: edit(d / "position" / "metadata", next_sequence=21),
    "position of another type": lambda d: edit(d / "position" / "metadata", losses="none"),
    "position of no run": lambda d: (d / "position" / "metadata").write_text("{}"),
    "all deleted": lambda d: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in d.iterdir()],
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax abandons
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, said, damage):
    save(tmp_path, {1: 2.0, 2: 1.0})
    DAMAGES[damage](tmp_path / "step_2")
    state, position = restore(tmp_path, said)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(1))
    assert position.step == 1
    assert said.text.count("\n") == 1 and "checkpoint of step 2 cannot be read" in said.text
    save(tmp_path, {2: 1.0})
    assert restore(tmp_path, said)[1].step == 2, "the step can be saved again"


def test_a_checkpoint_beyond_the_end_of_the_run_is_passed_over(tmp_path, said):
    save(tmp_path, {1: 2.0, 99: 1.0})
    checkpoints = Checkpoints(tmp_path)
    state, position = checkpoints.restore(lambda step: ABSTRACT, said, last_step=60)
    checkpoints.close()
    assert position.step == 1 and "checkpoint of step 99 cannot be read (the run ends with step 60)" in said.text


def test_a_checkpoint_that_cannot_be_read_is_not_destroyed(tmp_path, said):
    """A file system may have a bad minute, and the program may be the wrong one."""
    save(tmp_path, {1: 2.0, 2: 1.0})
    other = TrainState(ABSTRACT.step, {"x": ABSTRACT.params["w"]}, ABSTRACT.opt_state)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(lambda step: other, said) is None
    checkpoints.close()
    assert said.text.count("cannot be read") == 2 and steps_in(tmp_path) == []
    for step in (1, 2):
        (tmp_path / f"unreadable_step_{step}").rename(tmp_path / f"step_{step}")
    assert restore(tmp_path, said)[1].step == 2


def test_half_a_checkpoint_is_neither_read_nor_kept(tmp_path, said):
    """What a run killed while saving leaves behind."""
    save(tmp_path, {1: None, 2: None})
    (tmp_path / "step_2").rename(tmp_path / "step_2.orbax-checkpoint-tmp")
    (tmp_path / "step_2.orbax-checkpoint-tmp" / "commit_success.txt").unlink(missing_ok=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(lambda step: ABSTRACT, said)[1].step == 1 and not said.text
    for step in (2, 3):
        checkpoints.save(state_of(step), Position(step))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_2", "step_3"]


def test_restoring_onto_another_mesh_gives_equal_values(small, tmp_path, said):
    state = original = make_program(small, make_mesh(small.mesh)).init(jax.random.key(0))
    checkpoints = Checkpoints(tmp_path)
    for step, mesh in enumerate([(1, 8, 1), (2, 2, 2), (1, 1, 1), (8, 1, 1)]):
        checkpoints.save(state, Position(step))
        checkpoints.wait()
        abstract = make_program(small, make_mesh(MeshConfig(*mesh))).abstract
        state, _ = checkpoints.restore(lambda step, a=abstract: a, said)
        jax.tree.map(np.testing.assert_array_equal, state, original)
        jax.tree.map(lambda x, a: x.sharding == a.sharding or pytest.fail(f"{x.sharding}"), state, abstract)
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax abandons
def test_no_flipped_bit_is_trained_on(tmp_path, said):
    """Storage checks nothing that it gives back: a bit is noticed, or it was one that says nothing."""
    save(tmp_path / "whole", {1: 2.0, 2: 1.0})
    rng, unnoticed = np.random.default_rng(0), 0
    for trial in range(12):
        directory = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", directory)
        files = sorted(p for p in (directory / "step_2" / "state").rglob("d/*") if p.is_file() and p.stat().st_size)
        file = files[rng.integers(len(files))]
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        state, position = restore(directory, said)
        jax.tree.map(np.testing.assert_array_equal, state, state_of(position.step))
        unnoticed += position.step == 2
    assert unnoticed < 12, "the files are not those that hold the numbers"


def test_weights_alone_are_checked_too(tmp_path, said):
    save(tmp_path, {1: 2.0, 2: 1.0})
    abstract = {"w": ABSTRACT.params["w"]}
    assert restore_params(tmp_path, None, abstract, said)[1] == 2
    path = tmp_path / "step_2" / "position" / "metadata"
    edit(path, digests={"position": "", "arrays": {".params['w']": 0}})
    weights, step = restore_params(tmp_path, None, abstract, said)
    assert step == 1 and "['w'] is not what was saved" in said.text
    np.testing.assert_array_equal(weights["w"], state_of(1).params["w"])
