"""Other people's weights give their numbers: logits of transformers, whatever the spelling, type, files and mesh."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig, ModelConfig
from chinchilla_jax.interop.folder import open_weights
from chinchilla_jax.interop.hf.families import FAMILIES
from chinchilla_jax.interop.layout import WeightsError
from chinchilla_jax.interop.load import load_params
from chinchilla_jax.interop.safetensors import SafetensorsFolder
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.step import make_program

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
HF = ("grouped_tied", "scaled", "biases", "gpt2", "mixtral")


def expected(name):
    """Token ids, and the logits that transformers gives for them in float32."""
    arrays = np.load(FIXTURES / name / "expected.npz", allow_pickle=False)
    return arrays["ids"], arrays["logits"]


def logits_of(trained, ids):
    model = Transformer(trained.config.model)
    return jax.jit(model.apply)({"params": trained.params}, ids)[0]


def copied(name, to, **changes):
    """A copy of a fixture whose config.json has these values; None takes a key out."""
    shutil.copytree(FIXTURES / name, to)
    path = to / ("params.json" if name.startswith("meta") else "config.json")
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return to


@pytest.mark.parametrize("name", HF)
def test_the_logits_are_those_of_transformers(name):
    ids, logits = expected(name)
    trained = open_model(FIXTURES / name, compute_dtype="float32")
    assert trained.step == 0 and trained.tokenizer is None
    np.testing.assert_allclose(logits_of(trained, ids), logits, atol=3e-5)


def test_without_its_scaling_the_logits_are_others(tmp_path):
    ids, logits = expected("scaled")
    theta = {"rope_theta": 1e4, "rope_type": "default"}
    plain = open_model(copied("scaled", tmp_path / "plain", rope_parameters=theta))
    assert np.abs(logits_of(plain, ids) - logits).max() > 0.1


@pytest.mark.parametrize(("name", "scan", "mesh"), [
    ("scaled", True, MeshConfig(fsdp=2, tensor=2)),
    ("mixtral", True, MeshConfig(expert=2, tensor=2)),
    ("gpt2", False, MeshConfig(data=2, context=2)),
])  # fmt: skip
def test_any_mesh_and_piece_gives_the_same_parameters(name, scan, mesh):
    whole = open_model(FIXTURES / name)
    shared = open_model(FIXTURES / name, mesh=mesh)
    config = dataclasses.replace(shared.config, model=dataclasses.replace(shared.config.model, scan_layers=scan))
    abstract = make_program(config, make_mesh(mesh)).abstract.params
    found = open_weights(FIXTURES / name)
    pieces = load_params(found.tensors, found.names, config.model, abstract, piece=1)
    for layer in range(2):
        for module in ("attention", "feed_forward"):
            for weight, array in whole.params["layers"][module].items():
                of = pieces["layers"] if scan else pieces[f"layer_{layer}"]
                got = of[module][weight][layer] if scan else of[module][weight]
                np.testing.assert_array_equal(got, array[layer])
                np.testing.assert_array_equal(shared.params["layers"][module][weight], array)
    np.testing.assert_array_equal(pieces["embedding"], whole.params["embedding"])
    kernel = pieces["layers" if scan else "layer_0"]["attention"]["query"]
    assert not kernel.sharding.is_fully_replicated


def test_both_spellings_of_rotary_positions_and_types_are_read(tmp_path):
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    older = copied("scaled", tmp_path / "older", rope_parameters=None, rope_theta=10000, dtype=None,
                   rope_scaling={"type": "llama3", **numbers}, torch_dtype="bfloat16")  # fmt: skip
    assert open_weights(older).model == open_weights(FIXTURES / "scaled").model
    assert open_weights(older).compute_dtype == "bfloat16"
    both = copied("scaled", tmp_path / "both", rope_theta=10000.0)
    assert open_weights(both).model == open_weights(older).model
    none = copied("grouped_tied", tmp_path / "none", rope_parameters=None)
    assert (open_weights(none).model.rope_theta, open_weights(none).model.rope_scaling) == (10000.0, "")


@pytest.mark.parametrize(("changes", "told"), [
    ({"sliding_window": 16}, "^sliding_window: 16 is not supported"),
    ({"hidden_act": "gelu"}, "^hidden_act: 'gelu' is not supported; only 'silu'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "^rope_type: 'yarn' is not supported; only default"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "^rope_type: 'dynamic'"),
    ({"rope_parameters": {"factor": 2.0}}, "^rope_type: is missing beside factor"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "^rope_scaling: llama3 has no low_freq_factor"),
    ({"rope_theta": 9.0}, "^rope_theta: is said twice, as 9.0 and 10000.0"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "^rope_scaling: and rope_parameters say different things"),
    ({"attention_multiplier": 0.5}, "^attention_multiplier: 0.5: unknown, it may change what is computed"),
    ({"quantization_config": {"bits": 4}}, "^quantization_config"),
    ({"model_type": "qwen2_moe"}, "^model_type: 'qwen2_moe' is not supported; only llama"),
    ({"hidden_size": None}, "^hidden_size: is missing"),
    ({"hidden_size": "32"}, "^hidden_size: '32' is no int"),
    ({"num_attention_heads": 5, "head_dim": None}, "^num_attention_heads: 5 does not divide hidden_size=32"),
    ({"layer_types": ["sliding_attention"] * 2}, "^layer_types"),
])  # fmt: skip
def test_what_a_config_says_and_this_code_cannot_do_is_refused_by_name(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        open_weights(copied("scaled", tmp_path / "changed", **changes))


@pytest.mark.parametrize(("changes", "told"), [
    ({"num_hidden_layers": 3}, "lacks 9 tensors: model.layers.2.input_layernorm.weight, .* and 6 more"),
    ({"num_hidden_layers": 1}, "has, beside those of the model, 9 tensors: model.layers.1"),
    ({"intermediate_size": 40}, r"mlp.\w+_proj.weight is \[48, 32\], but its model needs \[40, 32\]"),
    ({"vocab_size": 100}, r"embed_tokens.weight is \[96, 32\], but its model needs \[100, 32\]"),
    ({"tie_word_embeddings": False}, "lacks 1 tensor: lm_head.weight"),
    ({"attention_bias": True}, "lacks 8 tensors: model.layers.0.self_attn.k_proj.bias"),
])  # fmt: skip
def test_tensors_that_are_not_those_of_the_config_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(WeightsError, match=told):
        open_weights(copied("grouped_tied", tmp_path / "changed", **changes))


def saved(folder, tensors):
    """Rewrites the file of a folder by the public library."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")


def read_all(folder):
    """Every tensor as the public library reads it."""
    from safetensors.numpy import load_file

    return {name: array for path in sorted(folder.glob("*.safetensors")) for name, array in load_file(path).items()}


def test_older_files_of_gpt2_and_llama_hold_buffers_and_other_prefixes(tmp_path):
    folder = copied("gpt2", tmp_path / "gpt2")
    tensors = {name.removeprefix("transformer."): array for name, array in read_all(folder).items()}
    saved(folder, tensors | {"h.0.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.uint8))})
    ids, logits = expected("gpt2")
    np.testing.assert_allclose(logits_of(open_model(folder), ids), logits, atol=3e-5)
    folder = copied("grouped_tied", tmp_path / "llama")
    tensors, buffer = read_all(folder), {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    saved(folder, tensors | buffer)
    open_weights(folder)
    saved(folder, tensors | {"rotary_emb.inv_freq": np.ones(4, np.float32)})
    with pytest.raises(WeightsError, match="beside those of the model, 1 tensor: rotary_emb.inv_freq"):
        open_weights(folder)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path):
    folder = copied("grouped_tied", tmp_path / "model")
    tensors = read_all(folder)
    saved(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    open_weights(folder)
    saved(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    with pytest.raises(ConfigError, match="^tie_word_embeddings: true, but lm_head.weight is not"):
        open_weights(folder)


def test_files_are_read_as_the_public_library_reads_them():
    for name in HF:
        found, public = SafetensorsFolder(FIXTURES / name), read_all(FIXTURES / name)
        assert found.shapes == {key: array.shape for key, array in public.items()}
        for key, array in public.items():
            np.testing.assert_array_equal(found.rows(key), array)
            np.testing.assert_array_equal(found.rows(key, 1, 3), array[1:3])
            assert found.dtype(key) == array.dtype


@pytest.mark.parametrize(("damage", "told"), [
    (lambda content: content[:-4], "bytes, its header says"),
    (lambda content: content + b"1234", "bytes, its header says"),
    (lambda content: content[:20], "its header would have"),
    (lambda content: b"", "its header would have 0 bytes"),
    (lambda content: content.replace(b"F32", b"F64", 1), "does not lie where the header says"),
    (lambda content: content.replace(b'"dtype"', b'"dtyp_"', 1), "KeyError|dtype"),
])  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, damage, told):
    folder = copied("grouped_tied", tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=told):
        open_weights(folder)


def test_an_index_must_be_that_of_its_files(tmp_path):
    folder = copied("biases", tmp_path / "model")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    for file, told in (("../x.safetensors", "same folder"), ("other.safetensors", "no such file")):
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {name: file}}))
        with pytest.raises(WeightsError, match=told):
            open_weights(folder)


def test_other_files_and_types_are_named(tmp_path):
    folder = copied("grouped_tied", tmp_path / "model")
    tensors = read_all(folder)
    saved(folder, tensors | {"model.norm.weight": np.ones(32, np.int8)})
    with pytest.raises(WeightsError, match="model.norm.weight holds I8"):
        open_weights(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="it has pytorch_model.bin, which is not read: convert it"):
        open_weights(folder)


def test_scaled_frequencies_belong_to_rope():
    for position in ("xpos", "relative", "none"):
        with pytest.raises(ConfigError, match="nothing to scale"):
            ModelConfig(position=position, rope_scaling="linear 2")
    for text, told in (
        ("linear", "expected 'linear FACTOR'"), ("linear -1", "all positive"),
        ("llama3 8 4 1 64", "low_freq_factor must be below"), ("yarn 2", "unknown value 'yarn'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            ModelConfig(position="rope", rope_scaling=text)


@pytest.mark.parametrize("name", HF)
def test_a_config_that_is_written_is_read_as_the_same_model(name):
    found = open_weights(FIXTURES / name)
    family = FAMILIES[found.kind]
    assert not family.cannot_say(found.model)
    assert family.model_of(family.write(found.model), "there") == found.model
