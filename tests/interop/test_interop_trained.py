"""A trained model is what lies in its folder: weights alone, of the checkpoint that was asked for."""

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.training.checkpoint import steps_in
from chinchilla_jax.training.loop import train


def test_a_run_directory_gives_its_weights_and_tokenizer(tmp_path, tiny_run):
    train(tiny_run, tmp_path / "run", keep=(2, 4), echo=lambda line: None)
    newest = open_model(tmp_path / "run")
    assert (newest.step, steps_in(tmp_path / "run" / "checkpoints")) == (4, [4, 2])
    earlier = open_model(tmp_path / "run", step=2, compute_dtype="bfloat16")
    assert earlier.step == 2 and earlier.config.train.compute_dtype == "bfloat16"
    assert newest.need_tokenizer().decode(newest.need_tokenizer().encode("what is it")) == "what is it"
    differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), newest.params, earlier.params)
    assert all(jax.tree.leaves(differ))
    with pytest.raises(ConfigError, match="no readable checkpoint of step 3; it has: 4, 2"):
        open_model(tmp_path / "run", step=3, echo=lambda line: None)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run directory"):
        open_model(tmp_path)
