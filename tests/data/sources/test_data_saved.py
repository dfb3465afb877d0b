"""Datasets saved by the library of Hugging Face, in each of its folders, are read without it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chinchilla_jax.data import DataError


def write_stream(path, texts):
    """The Arrow stream format, which the library saves in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": texts})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def save_to_disk(folder, shards, **state):
    """A folder as `Dataset.save_to_disk` makes it; a list of texts a shard."""
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        write_stream(folder / name, texts)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None} | state
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))


def write_parquet(path, *texts):
    """A Parquet file with these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)


def test_a_saved_dataset_is_read_in_the_order_of_its_state(documents, tmp_path):
    save_to_disk(tmp_path / "wiki", [["one", "two"], ["three"]], _split="train")
    (tmp_path / "wiki" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (1, 0)], "_split": "test"})
    )
    assert documents(f"hf:{tmp_path / 'wiki'}") == [("wiki", text, None) for text in ("three", "one", "two")]


def test_of_a_saved_dictionary_validation_is_held_out_and_comes_first(documents, tmp_path):
    root = tmp_path / "my set"
    for split in ("train", "test", "validation"):
        save_to_disk(root / split, [[split]], _split=split)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "validation"]}))
    assert documents(f"hf:{root}") == [("my_set", "validation", "validation"), ("my_set", "train", "train")]
    assert documents(f"hf:{root / 'test'}") == [("test", "test", None)]
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert documents(f"hf:{root}") == [("my_set", "train", None)]


def test_what_the_loader_keeps_is_read(documents, tmp_path):
    for name in ("my-wiki-train-00000-of-00002", "my-wiki-train-00001-of-00002", "my-wiki-test", "cache-1234"):
        write_stream(tmp_path / f"{name}.arrow", [name])
    assert documents(f"hf:{tmp_path}") == [
        ("my-wiki", "my-wiki-test", "validation"),
        ("my-wiki", "my-wiki-train-00000-of-00002", "train"), ("my-wiki", "my-wiki-train-00001-of-00002", "train"),
    ]  # fmt: skip


@pytest.mark.parametrize("root", ["books", "datasets--org--books/snapshots/0123"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001-ab12.parquet"], [None] * 2),
        (["en/train-00000-of-00001.parquet", "de/train-00000-of-00001.parquet"], ["de", "en"]),
        (["en/train/0000.parquet", "en/train/0001.parquet", "en/test/0000.parquet"], ["en"] * 3),
        (["000_00001.parquet", "part-00000-ab12.snappy.parquet"], [None] * 2),
    ],
    ids=["splits", "configurations", "numbered", "bare"],
)
def test_repositories_of_parquet_are_read(documents, tmp_path, root, names, expected):
    for name in names:
        write_parquet(tmp_path / root / name, name)
    folder = root.split("/")[0]
    found = documents(f"hf:{tmp_path / folder}")
    assert [document.domain for document in found] == [domain or folder for domain in expected]
    assert sorted(document.text for document in found) == sorted(names)
    for _, text, split in found:
        held_out = any("valid" in name or "test" in name for name in names)
        assert split == (("train" if "train" in text else "validation") if held_out else None)


def test_what_is_no_dataset_is_named(documents, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder; hf: needs the folder of a dataset"):
        documents(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no Hugging Face dataset: it has neither state.json, dataset_dict"):
        documents(f"hf:{tmp_path / 'empty'}")
    save_to_disk(tmp_path / "old", [["x"]], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="old: rows are in the order of an index beside them"):
        documents(f"hf:{tmp_path / 'old'}")
    save_to_disk(tmp_path / "cut", [["x"]])
    (tmp_path / "cut" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="data-00000-of-00001.arrow: unreadable after row 0"):
        documents(f"hf:{tmp_path / 'cut'}")
    (tmp_path / "cut" / "state.json").write_text("{")
    with pytest.raises(DataError, match="state.json: missing or damaged"):
        documents(f"hf:{tmp_path / 'cut'}")
    for split in ("train_sft", "test_sft"):
        write_parquet(tmp_path / "chat" / "data" / f"{split}-00000-of-00001.parquet", "x")
    with pytest.raises(DataError, match=r"no split train \(there are test_sft, train_sft\); name the folder of one"):
        documents(f"hf:{tmp_path / 'chat'}")
    save_to_disk(tmp_path / "fine", [["x"]])
    with pytest.raises(DataError, match=r"no column 'body' \(it has text\); set data.text_field"):
        documents(f"hf:{tmp_path / 'fine'}", text_field="body")
