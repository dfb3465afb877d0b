"""Weights go out and come back to the bit, a run's as other people's; what a format cannot say is refused by name."""

import dataclasses
import json
import weakref

import jax
import numpy as np
import pytest

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.data import open_tokenizer
from chinchilla_jax.interop import convert
from chinchilla_jax.interop.convert import export_model, import_model
from chinchilla_jax.interop.folder import open_weights
from chinchilla_jax.interop.hf.families import FAMILIES
from chinchilla_jax.interop.safetensors import Planned, write_tensors
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.presets import preset
from chinchilla_jax.training.checkpoint import Checkpoints, Position
from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record.directory import take_directory
from chinchilla_jax.training.stages import course_of
from chinchilla_jax.training.step import make_program
from tests.interop.test_interop_hf import FIXTURES, HF, expected, logits_of, read_all


def silent(line):
    del line


def begun(config, folder):
    """The directory of a run that has saved its first state."""
    course = course_of(config)
    take_directory(course, course.ledger(), folder, "content")
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(make_program(config, make_mesh(config.mesh)).init(jax.random.key(1)), Position())
    checkpoints.close()


def same(ours, theirs):
    """Every tensor to the bit, whatever its type."""
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", HF)
def test_what_comes_in_goes_out_the_same_to_the_bit(tmp_path, name):
    import_model(FIXTURES / name, tmp_path / "ours", silent)
    again = open_weights(tmp_path / "ours")
    assert again.kind == "chinchilla_jax" and again.model == open_weights(FIXTURES / name).model
    export_model(tmp_path / "ours", tmp_path / "back", echo=silent)
    same(read_all(tmp_path / "back"), read_all(FIXTURES / name))
    there = json.loads((FIXTURES / name / "config.json").read_text())
    here = json.loads((tmp_path / "back" / "config.json").read_text())
    assert here["torch_dtype"] == here["dtype"] == there["dtype"]
    assert {key: here[key] for key in ("architectures", "model_type", "eos_token_id", "bos_token_id")} == {
        key: there[key] for key in ("architectures", "model_type", "eos_token_id", "bos_token_id")
    }
    assert open_weights(tmp_path / "back").model == again.model


def test_an_imported_model_computes_as_the_folder_it_came_from(tmp_path):
    ids, logits = expected("mixtral")
    import_model(FIXTURES / "mixtral", tmp_path / "ours", silent)
    np.testing.assert_allclose(logits_of(open_model(tmp_path / "ours"), ids), logits, atol=3e-5)


@pytest.mark.parametrize(("changes", "format"), [
    (dict(position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False, n_kv_heads=1), "llama"),
    (dict(position="learned", norm="layernorm", biases="all"), "gpt2"),
    (dict(position="rope", feed_forward="top_k_swiglu", biases="none", experts=2, active_experts=1), "mixtral"),
    (dict(scan_layers=False), "chinchilla_jax"),
])  # fmt: skip
def test_a_run_goes_out_and_is_opened_again_to_the_bit(tmp_path, tiny_run, changes, format):
    model = dataclasses.replace(tiny_run.model, **changes)
    begun(dataclasses.replace(tiny_run, model=model), tmp_path / "run")
    said = []
    export_model(tmp_path / "run", tmp_path / "out", echo=said.append)
    assert said[0].startswith(f"as {format}")
    run, out = open_model(tmp_path / "run"), open_model(tmp_path / "out")
    assert open_weights(tmp_path / "out").kind == format
    jax.tree.map(np.testing.assert_array_equal, run.params, out.params)
    assert open_tokenizer(tmp_path / "out" / "tokenizer.model").fingerprint() == run.need_tokenizer().fingerprint()


def test_a_finished_run_is_exported_with_its_losses_and_its_tokenizer_in_both_forms(tmp_path, tiny_run):
    from tokenizers import Tokenizer

    result = train(tiny_run, tmp_path / "run", echo=silent)
    export_model(tmp_path / "run", tmp_path / "out", echo=silent)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "| D, tokens of the run | 1,024 |" in card
    assert f"{result['loss']:.4f}" in card and f"{result['flops_by_convention']['executed']:.4g}" in card
    ours, theirs = open_model(tmp_path / "run").need_tokenizer(), Tokenizer.from_file(f"{tmp_path}/out/tokenizer.json")
    text = (FIXTURES / "make_fixtures.py").read_text() + "\n\t 你好  🙂 end"
    assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert theirs.decode(ours.encode("to be,\n  or not")) == "to be,\n  or not"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == ours.separator


@pytest.mark.parametrize(("name", "format", "told"), [
    ("gpt3-xl", "gpt2", "model.head_dim: .*24 heads of 128 are 3072 wide, must be d_model=2048"),
    ("gpt3-13b", "gpt2", "model.head_dim: .*must be d_model=5140"),
    ("chinchilla-70b", "llama", "model.position: .*position=relative .must be rope"),
    ("llama-65b", "gpt2", "model.position: .*must be learned.*model.norm=rmsnorm"),
])  # fmt: skip
def test_a_model_that_a_format_cannot_say_is_refused_by_its_settings(name, format, told):
    with pytest.raises(ConfigError, match=told):
        convert._chosen(preset(name).model, format, silent)


def test_settings_that_change_the_numbers_belong_to_no_other_format():
    plain = dict(position="rope", feed_forward="swiglu", biases="none")
    assert not FAMILIES["llama"].cannot_say(ModelConfig(**plain))
    for changes in (dict(output_scale=2.0), dict(base_width=32), dict(attention_experts=2, n_kv_heads=1),
                    dict(n_heads=3, n_kv_heads=3)):  # fmt: skip
        assert FAMILIES["llama"].cannot_say(ModelConfig(**plain | changes)), changes


def test_numbers_may_be_narrower_and_files_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr("chinchilla_jax.interop.safetensors.LIMIT", 30_000)
    export_model(FIXTURES / "grouped_tied", tmp_path / "out", dtype="bfloat16", echo=silent)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("out/*.safetensors"))
    assert len(files) == 2 and set(index["weight_map"].values()) == set(files)
    assert files[0] == "model-00001-of-00002.safetensors" and not (tmp_path / "out/model.safetensors").exists()
    wide, narrow = read_all(FIXTURES / "grouped_tied"), read_all(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in narrow.values())
    for name, array in wide.items():
        np.testing.assert_array_equal(narrow[name], array.astype(narrow[name].dtype))


def test_a_tensor_is_let_go_before_the_next_is_made(tmp_path):
    made = []

    def make():
        assert all(reference() is None for reference in made)
        array = np.ones((3, 2), np.float32)
        made.append(weakref.ref(array))
        return array

    write_tensors(tmp_path, [Planned(name, (3, 2), np.dtype(np.float32), make) for name in "abc"], silent)
    assert len(made) == len(read_all(tmp_path)) == 3


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise OSError("disk full")

    monkeypatch.setattr(convert.card, "text", fail)
    with pytest.raises(OSError):
        export_model(FIXTURES / "gpt2", tmp_path / "out", echo=silent)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is there already"):
        export_model(FIXTURES / "gpt2", tmp_path / "out", echo=silent)
    with pytest.raises(UsageError, match="--format is one of"):
        export_model(FIXTURES / "gpt2", tmp_path / "new", format="t5", echo=silent)
    with pytest.raises(ConfigError, match="step"):
        export_model(FIXTURES / "gpt2", tmp_path / "new", step=3, echo=silent)
