"""Tables of text: what was written is read in order, however it is stored; what cannot be read is named."""

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from chinchilla_jax.config import DataConfig
from chinchilla_jax.data import DataError, TokenStore, prepare, store_path
from chinchilla_jax.data.sources import columns
from chinchilla_jax.data.sources.registry import fingerprint, open_source

ROWS = [f"row {n} é" if n % 7 else None for n in range(2500)]
STRING = pa.string()
KINDS = {
    "string": pa.string(), "large": pa.large_string(), "view": pa.string_view(), "bytes": pa.binary(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}  # fmt: skip


def quiet(_):
    """An `echo` that says nothing."""


def write(path, table, batch=600):
    """`table` in the format that the suffix says; `.arrows` is the stream format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=batch)
        return path
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def table_of(texts, kind=STRING):
    """A table with a number and a text in each row."""
    return pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string()).cast(kind)})


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_the_rows_of_every_kind_of_text_come_back_in_order(tmp_path, suffix, kind):
    path = write(tmp_path / f"a{suffix}", table_of(ROWS, kind))
    assert list(columns.texts(path, "text")) == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_a_field_inside_a_column_is_named_with_a_dot(tmp_path, suffix):
    pairs = pa.array([{"en": "one", "de": "eins"}, None, {"en": None, "de": "drei"}])
    path = write(tmp_path / f"a{suffix}", pa.table({"translation": pairs, "dotted.name": ["x", "y", "z"]}))
    assert list(columns.texts(path, "translation.en")) == ["one", None, None]
    assert list(columns.texts(path, "translation.de")) == ["eins", None, "drei"]
    assert list(columns.texts(path, "dotted.name")) == ["x", "y", "z"]


def test_subfolders_are_domains_and_rows_without_text_are_skipped_and_counted(tmp_path):
    for name in ("web/b.parquet", "web/a.parquet", "books/deep/c.parquet", ".hidden/d.parquet", "e.parquet"):
        write(tmp_path / name, table_of([name, None]))
    (tmp_path / "web" / "notes.txt").write_text("no table")
    said = []
    source = open_source(f"parquet:{tmp_path}", DataConfig(source=f"parquet:{tmp_path}"), said.append)
    loose = tmp_path.name
    assert list(source.documents()) == [
        ("books", "books/deep/c.parquet", None), (loose, "e.parquet", None), ("web", "web/a.parquet", None),
        ("web", "web/b.parquet", None),
    ]  # fmt: skip
    assert source.details == {"files": 4} and said == ["corpus: 4 rows without a text in column 'text' were skipped"]


def test_patterns_and_single_files(documents, tmp_path):
    for name in ("web/train-0.parquet", "web/test-0.parquet", "books/train-0.parquet"):
        write(tmp_path / name, table_of([name]))
    found = documents(f"parquet:{tmp_path}/*/train-*.parquet")
    assert found == [("books", "books/train-0.parquet", None), ("web", "web/train-0.parquet", None)]
    assert documents(f"parquet:{tmp_path}/web/t*.parquet")[0] == ("web", "web/test-0.parquet", None)
    unnamed = write(tmp_path / "x.parquet", table_of(["no suffix"])).rename(tmp_path / "dump")
    assert documents(f"parquet:{unnamed}") == [("dump", "no suffix", None)]
    one = write(tmp_path / "wiki-00003-of-00007.arrow", table_of(["x"]))
    assert documents(f"arrow:{one}") == [("wiki", "x", None)]


def test_no_more_than_a_few_rows_become_text_at_once(tmp_path, monkeypatch):
    """A row group and a record batch as large as the file are read in pieces."""
    monkeypatch.setattr(columns, "ROWS", 100)
    for suffix in (".parquet", ".arrow", ".arrows"):
        path = write(tmp_path / f"a{suffix}", table_of(ROWS), batch=len(ROWS))
        sizes = [len(part) for part in columns._parts(path, "text")]
        assert max(sizes) == 100 and sum(sizes) == len(ROWS)


def test_what_cannot_be_read_is_named(documents, tmp_path):
    path = write(tmp_path / "a.parquet", table_of(["x"]))
    with pytest.raises(DataError, match=r"a.parquet: no column 'body' \(it has id, text\); set data.text_field$"):
        documents(f"parquet:{path}", text_field="body")
    with pytest.raises(DataError, match=r"a.parquet: column 'id' is int64, not text \(text are: text\)"):
        documents(f"parquet:{path}", text_field="id")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        documents(f"parquet:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"no .arrow, .arrows, .feather, .ipc files there"):
        documents(f"arrow:{tmp_path}")
    with pytest.raises(DataError, match=r"\*.parquet: no .parquet, .pq files there"):
        documents(f"parquet:{tmp_path}/b*.parquet")
    latin = pa.table({"text": pa.array([b"fine", b"caf\xe9"], pa.binary())})
    with pytest.raises(DataError, match=r"b.parquet: column 'text' is not UTF-8 between rows 0 and"):
        documents(f"parquet:{write(tmp_path / 'b.parquet', latin)}")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_a_file_that_was_cut_off_is_named(documents, tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", table_of(ROWS))
    whole = path.read_bytes()
    for content in (whole[:-2000], b"", b"no table at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a{suffix}: unreadable after row \d+ .*; replace or remove it"):
            documents(f"{'parquet' if suffix == '.parquet' else 'arrow'}:{path}")


def test_compressed_record_batches_are_read(documents, tmp_path):
    feather.write_feather(table_of(ROWS), tmp_path / "a.feather", compression="zstd")
    assert [text for _, text, _ in documents(f"arrow:{tmp_path}")] == [row for row in ROWS if row]


def test_a_corpus_of_a_pattern_is_made_found_and_made_anew_when_a_file_changes(tmp_path):
    texts = [f"sentence number {n} about the weather in town {n % 9}" for n in range(80)]
    path = write(tmp_path / "in" / "web" / "a.parquet", table_of(texts[:40]))
    write(tmp_path / "in" / "books" / "a.parquet", table_of(texts[40:]))
    source = f"parquet:{tmp_path}/in/*/*.parquet"
    data = DataConfig(source=source, data_dir=str(tmp_path / "out"), vocab_size=310, seq_len=8)
    store = TokenStore(prepare(data, quiet))
    assert store.domains == ("books", "web") and store_path(data) == store.path
    assert [entry[0] for entry in fingerprint(source)] == ["books/a.parquet", "web/a.parquet"]
    write(path, table_of(texts[:41]))
    with pytest.raises(DataError, match="its files changed since"):
        store_path(data)
