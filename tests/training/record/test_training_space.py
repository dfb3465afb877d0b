"""A full disk is told in a line, before anything is begun on it, and the run may be started again."""

import collections
import errno
import shutil

import jax.numpy as jnp
import pytest

from chinchilla_jax.base.errors import PREEMPTED
from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record import space
from chinchilla_jax.training.record.space import NoRoom, check_room, faults_told

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: a disk with so much room."""
    return lambda count: monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(0, 0, count))


def test_what_does_not_fit_is_not_begun(tmp_path, free):
    state = {"w": jnp.zeros(1000), "moments": (jnp.zeros(1000, jnp.bfloat16),)}
    free(2 * 6000 + space.LOGS)
    check_room(tmp_path / "not" / "there" / "yet", state, checkpoints=2)
    free(2 * 6000 + space.LOGS - 1)
    with pytest.raises(NoRoom, match="no room for a checkpoint .0.3 MB are needed and 0.3 MB are free") as told:
        check_room(tmp_path, state, checkpoints=2)
    assert str(tmp_path) in str(told.value) and told.value.exit_code == PREEMPTED


def test_a_bucket_is_not_asked(bucket_folder, free):
    free(0)
    check_room(bucket_folder / "run", {"w": jnp.zeros(8)}, checkpoints=2)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "has no quota left"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "cannot be written to"),
        (ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"), "is full"),
    ],
)
def test_whoever_meets_a_full_disk_it_is_told_as_one(tmp_path, error, told):
    with pytest.raises(NoRoom, match=f"its disk {told}"), faults_told(tmp_path):
        raise RuntimeError("a writer failed") from error
    with pytest.raises(ValueError, match="other"), faults_told(tmp_path):
        raise ValueError("other")


def test_a_run_whose_disk_fills_keeps_its_last_checkpoint_and_goes_on_once_there_is_room(tiny_run, changed, tmp_path):
    config = changed(tiny_run, train={"checkpoint_every": 1})
    enough, asked = shutil.disk_usage(tmp_path), []

    def filling(folder):
        asked.append(folder)
        return enough if len(asked) < 4 else enough._replace(free=0)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoRoom):
        patch.setattr(space.shutil, "disk_usage", filling)
        train(config, tmp_path, echo=lambda line: None)
    assert not (tmp_path / "result.json").exists() and (tmp_path / "checkpoints" / "step_2").is_dir()
    said = []
    assert train(config, tmp_path, echo=said.append)["loss"] > 0
    assert any("resuming at step 2" in line for line in said)
