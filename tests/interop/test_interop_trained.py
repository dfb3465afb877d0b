"""A trained model is what lies in its folder: weights alone, of the checkpoint that was asked for."""

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.interop.convert import export_model, import_model
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.training.checkpoint import steps_in
from chinchilla_jax.training.loop import train
from tests.interop.test_interop_hf import FIXTURES, copied


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


def test_other_peoples_texts_begin_and_end_with_the_tokens_that_they_name(tmp_path):
    plain = open_model(FIXTURES / "grouped_tied")
    assert (plain.begin, plain.ends) == (1, (2,))
    folder = copied("grouped_tied", tmp_path / "chat", eos_token_id=[2, 9])
    assert open_model(folder).ends == (2, 9)
    (folder / "generation_config.json").write_text('{"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": null}')
    import_model(folder, tmp_path / "ours", lambda line: None)
    for chat in (folder, tmp_path / "ours"):
        assert (open_model(chat).begin, open_model(chat).ends) == (7, (8, 9))
    (folder / "generation_config.json").write_text('{"eos_token_id": null, "bos_token_id": 3}')
    assert (open_model(folder).begin, open_model(folder).ends) == (3, (2, 9))
    unsaid = open_model(copied("grouped_tied", tmp_path / "unsaid", eos_token_id=None, bos_token_id=None))
    assert (unsaid.begins, unsaid.ends_with) == (None, ())


@pytest.mark.parametrize("value", [96, -1, "2", True, [2, 1.5]])
def test_what_is_no_token_ends_no_text(tmp_path, value):
    with pytest.raises(ConfigError, match="^eos_token_id: .* is no token of a vocabulary of 96 .in .*config.json"):
        open_model(copied("grouped_tied", tmp_path / "model", eos_token_id=value))


def test_texts_of_an_exported_run_begin_and_end_as_those_of_the_run(tmp_path, tiny_run):
    train(tiny_run, tmp_path / "run", echo=lambda line: None)
    export_model(tmp_path / "run", tmp_path / "out", echo=lambda line: None)
    run, out = open_model(tmp_path / "run"), open_model(tmp_path / "out")
    assert (run.begin, run.ends) == (out.begin, out.ends) == (out.begins, out.ends_with)
