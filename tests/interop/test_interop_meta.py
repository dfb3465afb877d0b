"""The files of the LLaMA release, read without torch: joined, in this code's order; what is no tensor is refused."""

import json
import pickle
import shutil
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.interop.convert import export_model, import_model
from chinchilla_jax.interop.first import first_weights
from chinchilla_jax.interop.folder import open_weights
from chinchilla_jax.interop.layout import WeightsError
from chinchilla_jax.interop.pth import read_pth
from chinchilla_jax.interop.trained import open_model
from tests.interop.pth_files import _text, tensor, write_pth, write_zip
from tests.interop.test_interop_hf import FIXTURES, copied, expected, logits_of

META = ("meta_columns", "meta_rows")


def silent(line):
    del line


def joined(name="meta_rows"):
    """The tensors of a folder, whole, and its params."""
    tensors = open_weights(FIXTURES / name).tensors
    return {key: tensors.rows(key) for key in tensors.shapes}, json.loads((FIXTURES / name / "params.json").read_text())


def written(folder, shards, params):
    """A folder of these files."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for number, arrays in enumerate(shards):
        write_pth(folder / f"consolidated.{number:02d}.pth", arrays)
    return folder


@pytest.mark.parametrize("name", META)
def test_the_logits_are_those_of_the_model_that_was_cut(name):
    ids, logits = expected(name)
    trained = open_model(FIXTURES / name, compute_dtype="float32")
    assert trained.config.model.vocab_size == 96 and trained.config.model.d_ff == 48
    np.testing.assert_allclose(logits_of(trained, ids), logits, atol=3e-5)


@pytest.mark.parametrize("name", META)
def test_a_mesh_gives_the_same_parameters_and_an_import_the_same_model(tmp_path, name):
    whole = open_model(FIXTURES / name)
    shared = open_model(FIXTURES / name, mesh=MeshConfig(fsdp=2, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, whole.params, shared.params)
    import_model(FIXTURES / name, tmp_path / "ours", silent)
    jax.tree.map(np.testing.assert_array_equal, whole.params, open_model(tmp_path / "ours").params)
    export_model(FIXTURES / name, tmp_path / "hf", echo=silent)
    assert open_weights(tmp_path / "hf").kind == "llama"
    jax.tree.map(np.testing.assert_array_equal, whole.params, open_model(tmp_path / "hf").params)
    first = first_weights(FIXTURES / name, silent)
    assert first.model == whole.config.model


def test_of_keys_that_several_files_hold_one_copy_is_taken(tmp_path):
    tensors, params = joined()
    shards = []
    for rank in range(4):
        cut = {}
        for name, array in tensors.items():
            axis = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            pieces, of = (2, rank // 2) if name.endswith(("wk.weight", "wv.weight")) else (4, rank)
            cut[name] = array if array.ndim == 1 else np.split(array, pieces, axis)[of]
        shards.append(cut)
    found = open_weights(written(tmp_path / "four", shards, params))
    for name, array in tensors.items():
        np.testing.assert_array_equal(found.tensors.rows(name), array)
        np.testing.assert_array_equal(found.tensors.rows(name, 1, 3), array[1:3])
    shards[1]["layers.1.attention.wk.weight"] = shards[2]["layers.1.attention.wk.weight"]
    with pytest.raises(WeightsError, match="consolidated.01.pth and consolidated.00.pth should hold the same keys"):
        open_weights(written(tmp_path / "other", shards, params))


@pytest.mark.parametrize("kind", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_a_tensor_is_read_as_it_is_stored_views_and_strides_too(tmp_path, kind):
    storage = np.arange(24).astype(kind)
    word = {"float16": "Half", "float32": "Float", "bfloat16": "BFloat16"}[np.dtype(kind).name]
    turned = tensor("0", f"torch\n{word}Storage", 24, (4, 5), (1, 4), offset=4)
    write_pth(tmp_path / "file", {"plain": storage.reshape(4, 6)}, turned=turned)
    found = read_pth(tmp_path / "file")
    np.testing.assert_array_equal(found["plain"].rows(1, 3), storage.reshape(4, 6)[1:3])
    np.testing.assert_array_equal(found["turned"].rows(0, 4), storage[4:].reshape(5, 4).T)
    np.testing.assert_array_equal(found["turned"].rows(2, 4), storage[4:].reshape(5, 4).T[2:])
    assert found["turned"].dtype == kind


def test_numbers_are_found_beyond_four_gigabytes(tmp_path):
    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    write_pth(tmp_path / "small", {"a": array})
    with open(tmp_path / "large", "wb") as file, zipfile.ZipFile(tmp_path / "small") as small:
        file.seek(5 * 2**30)  # a hole, which takes no room on disk
        with zipfile.ZipFile(file, "w") as large:
            for entry in small.infolist():
                large.writestr(entry.filename, small.read(entry))
    found = read_pth(tmp_path / "large")["a"]
    assert found.begin > 5 * 2**30
    np.testing.assert_array_equal(found.rows(1, 4), array[1:])


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_would_call_something_is_refused_by_its_name(tmp_path, protocol, nested, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    for function, told in ((os.system, r"(posix|os)\.system"), (eval, r"(builtins|__builtin__)\.eval")):
        call = Calls(function, "open('hostile', 'w')" if function is eval else "touch hostile")
        value = {"a": {"b": ({"c": call},)}} if nested else call
        write_zip(tmp_path / "file", {"data.pkl": pickle.dumps(value, protocol)})
        with pytest.raises(WeightsError, match=rf"file is damaged or .*: it asks for {told}, which"):
            read_pth(tmp_path / "file")
    assert not (tmp_path / "hostile").exists()


CALLS_SYSTEM = b"cposix\nsystem\n(" + _text("touch hostile") + b"tR"
STATE = b"ctorch._utils\n_rebuild_tensor_v2\n}b"


@pytest.mark.parametrize(("instructions", "told"), [
    (CALLS_SYSTEM, "posix.system, which is refused"),
    (b"(iposix\nsystem\n", "the instruction INST is not"),
    (b"(" + _text("x") + b"cposix\nsystem\n" + b"o", "posix.system"),
    (b"\x82\x01", "the instruction EXT1 is not"),
    (b"ctorch._utils\n_rebuild_parameter\n", "torch._utils._rebuild_parameter, which is refused"),
    (b"ctorch\nDoubleStorage\n", "torch.DoubleStorage, which is refused"),
    (STATE, "sets attributes of something else"),
    (b"ccollections\nOrderedDict\n(" + _text("a") + b"tR", "calls something else"),
    (b"ctorch\nFloatStorage\n)R", "calls something else"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "in another way than torch does"),
    (_text("x") + b"Q", "refers to something else than storages"),
    (_text("a tensor, really"), "is no dictionary of tensors"),
    (b"h\x07", "damaged or holds more"),
    (tensor("0", "torch\nFloatStorage", 8, (4, 3), (3, 1)), "bad does not lie within its storage, data/0"),
    (tensor("0", "torch\nFloatStorage", 80, (4, 3), (3, 1)), "bad does not lie within its storage"),
    (tensor("0", "torch\nFloatStorage", 8, (4, 2), (2, 1), offset=1), "bad does not lie within its storage"),
    (tensor("0", "torch\nFloatStorage", 8, (4, 2), (-2, 1)), "in another way than torch does"),
    (tensor("9", "torch\nFloatStorage", 8, (4, 2), (2, 1)), "lacks archive/data/9"),
    (tensor("../x", "torch\nFloatStorage", 8, (4, 2), (2, 1)), "lacks archive/data/../x"),
])  # fmt: skip
def test_what_is_no_tensor_of_the_file_is_refused(tmp_path, monkeypatch, instructions, told):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "file", {"a": np.zeros((4, 2), np.float32)}, bad=instructions)
    with pytest.raises(WeightsError) as raised:
        read_pth(tmp_path / "file")
    assert told in str(raised.value) and str(tmp_path / "file") in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "hostile").exists()


def test_a_file_cut_off_anywhere_is_refused_by_its_name(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "meta_rows", folder)
    path = folder / "consolidated.01.pth"
    content = path.read_bytes()
    for length in (0, 3, 500, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="consolidated.01.pth is (no zip archive|damaged)"):
            open_weights(folder)


def test_entries_that_are_compressed_or_elsewhere_are_refused(tmp_path):
    path = tmp_path / "file"
    for entries, told in (
        ({"data.pkl": b"\x80\x02}."}, "compressed"),
        ({"version": b"3"}, "there is none"),
        ({"data.pkl": b"\x80\x02}."} | {"byteorder": b"big"}, "big-endian"),
    ):
        write_zip(path, entries, zipfile.ZIP_DEFLATED if told == "compressed" else zipfile.ZIP_STORED)
        with pytest.raises(WeightsError, match=told):
            read_pth(path)
    write_pth(path, {"a": np.zeros((4, 2), np.float32)})
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("archive/data/0").header_offset
    content = bytearray(path.read_bytes())
    content[at] = 0
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="data/0 does not lie where the archive says"):
        read_pth(path)


def test_files_that_are_missing_or_of_another_model_are_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "meta_rows", folder)
    (folder / "consolidated.01.pth").rename(folder / "kept")
    with pytest.raises(WeightsError, match=r"\(consolidated.00 to 00\): tok_embeddings.weight is \[48, 32\], but"):
        open_weights(folder)
    (folder / "kept").rename(folder / "consolidated.02.pth")
    with pytest.raises(WeightsError, match="consolidated.01.pth: no such file; of consolidated.NN.pth the folder has"):
        open_weights(folder)
    (folder / "consolidated.02.pth").unlink()
    shutil.copy(FIXTURES / "meta_columns" / "consolidated.01.pth", folder)
    with pytest.raises(WeightsError, match=r"01.pth: tok_embeddings.weight is not as in .*00.pth: \[48, 32\]"):
        open_weights(folder)
    write_pth(folder / "consolidated.01.pth", {"tok_embeddings.weight": np.zeros((48, 32), ml_dtypes.bfloat16)})
    with pytest.raises(WeightsError, match="consolidated.01.pth and .*00.pth hold other tensors, as layers.0"):
        open_weights(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(WeightsError, match="consolidated.00.pth: no such file; .* has none"):
        open_weights(folder)


@pytest.mark.parametrize(("changes", "error", "told"), [
    ({"n_layers": 3}, WeightsError, "lacks 9 tensors: layers.2.attention.wk"),
    ({"n_heads": 5}, ConfigError, "^n_heads: 5 does not divide dim=32"),
    ({"n_kv_heads": 4}, WeightsError, r"attention.wk.weight is \[16, 32\], but its model needs \[32, 32\]"),
    ({"vocab_size": 100}, WeightsError, r"is \[96, 32\], but its model needs \[100, 32\]"),
    ({"norm_eps": None}, ConfigError, "^norm_eps: is missing .in .*params.json"),
    ({"dim": "32"}, ConfigError, "^dim: '32' is no int"),
    ({"vision_chunk_size": 448}, ConfigError, "^vision_chunk_size: 448: unknown"),
    ({"quantization_args": {}}, ConfigError, "^quantization_args"),
])  # fmt: skip
def test_params_that_do_not_fit_are_refused_by_name(tmp_path, changes, error, told):
    with pytest.raises(error, match=told):
        open_weights(copied("meta_rows", tmp_path / "model", **changes))


@pytest.mark.parametrize(("changes", "theta", "scaling", "length"), [
    ({"rope_theta": None}, 10000.0, "", 4096),
    ({"rope_theta": None, "norm_eps": 1e-6}, 10000.0, "", 2048),
    ({"rope_theta": 500000}, 500000.0, "", 8192),
    ({"use_scaled_rope": True}, 500000.0, "llama3 8.0 1.0 4.0 8192.0", 131072),
    ({"use_scaled_rope": True, "rope_scaling_factor": 32}, 500000.0, "llama3 32.0 1.0 4.0 8192.0", 131072),
])  # fmt: skip
def test_positions_and_context_are_those_of_the_release_with_such_settings(tmp_path, changes, theta, scaling, length):
    model = open_weights(copied("meta_rows", tmp_path / "model", ffn_dim_multiplier=1.3, **changes)).model
    assert (model.rope_theta, model.rope_scaling, model.max_position) == (theta, scaling, length)


def test_an_output_that_is_the_embedding_is_stored_once(tmp_path):
    tensors, params = joined()
    tied = tensors | {"output.weight": tensors["tok_embeddings.weight"]}
    both = open_weights(written(tmp_path / "both", [tied], params))
    tied.pop("output.weight")
    one = open_weights(written(tmp_path / "one", [tied], params))
    assert both.model == one.model and one.model.tie_embeddings
    assert not open_weights(FIXTURES / "meta_rows").model.tie_embeddings


def test_texts_begin_and_end_as_the_tokenizer_beside_the_weights_says(tmp_path, tiny_run):
    from chinchilla_jax.data import TokenStore, store_path

    folder = copied("meta_rows", tmp_path / "model")
    assert open_model(folder).begins is None
    words = TokenStore(store_path(tiny_run.data)).tokenizer()
    shutil.copy(words.path, folder / "tokenizer.model")
    assert open_weights(folder).config["bos_token_id"] == words.piece_id("<s>") == 3
    assert open_weights(folder).config["eos_token_id"] == words.separator
    lines = "".join(f"{letter}== {rank}\n" for rank, letter in enumerate(("IQ", "Ig", "Iw")))
    (folder / "tokenizer.model").write_text(lines)
    found = open_weights(folder).config
    assert (found["bos_token_id"], found["eos_token_id"]) == (3, [4, 11, 12])
