"""Files of text: each is read in full or refused with a reason, and long files are cut well."""

import gzip
import json

import pyarrow
import pytest

from chinchilla_jax.data import DataError
from chinchilla_jax.data.sources.text import DOCUMENT_CHARACTERS, cut_document


def test_folders_are_domains(documents, tmp_path):
    root = tmp_path / "my texts"
    (root / "b c" / "deep").mkdir(parents=True)
    (root / "loose.txt").write_text("loose")
    (root / "b c" / "deep" / "x.rst").write_text("deep é")
    (root / ".hidden").write_bytes(b"\0")
    assert documents(f"text:{root}") == [("b_c", "deep é", None), ("my_texts", "loose", None)]


def test_long_files_are_cut_at_good_places_and_nothing_is_lost():
    text = "".join(f"Headword {n}\n   meaning\n\n   more\n\n" for n in range(2000))
    pieces = cut_document(text)
    assert "".join(pieces) == text and all(piece.startswith("Headword") for piece in pieces)
    assert cut_document("short") == ["short"]
    unbroken = cut_document("x" * 50_000)
    assert "".join(unbroken) == "x" * 50_000
    assert max(map(len, pieces + unbroken)) <= 2 * DOCUMENT_CHARACTERS


@pytest.mark.parametrize(("content", "message"), [(b"a\0b", "x.txt: a binary file"), (b"\xff\xfe", "x.txt: not UTF-8")])
def test_binary_files_are_named(documents, tmp_path, content, message):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(f"text:{tmp_path / 'texts'}")


def test_absent_and_empty_folders_are_named(documents, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        documents(f"text:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no text files"):
        documents(f"text:{tmp_path / 'empty'}")
    with pytest.raises(DataError, match="empty: no .jsonl"):
        documents(f"jsonl:{tmp_path / 'empty'}")


def test_shipped_text_is_about_a_megabyte_in_three_domains(documents, tmp_path):
    found = documents("shipped")
    assert {document.domain for document in found} == {"plays", "poems", "prose"}
    assert 0.9e6 < sum(len(document.text) for document in found) < 1.1e6
    assert json.dumps(found)


def test_json_lines_are_documents_and_files_domains(documents, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two\\nlines"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "three"}'))
    found = documents(f"jsonl:{tmp_path}", text_field="body")
    assert found == [("a", "one", None), ("a", "two\nlines", None), ("b", "three", None)]
    assert len(documents(f"jsonl:{tmp_path / 'a.jsonl'}", text_field="body")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [("{oops", "not valid JSON"), ('{"body": "x"}', "no text in field 'text' .it has body.; set data.text_field"),
     ('{"text": 3}', "field 'text' is 3, no text; fix or remove"), ('{"text": null}', "field 'text' is null, no text"),
     ("[" * 200_000, "not valid JSON"), ("[]", "no object"), ('{"text": "\\ud800"}', "surrogate")],
)  # fmt: skip
def test_a_bad_json_line_is_named_with_its_number(documents, tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"a.jsonl, line 2: .*{message}"):
        documents(f"jsonl:{tmp_path}")


def packed(path, lines):
    """JSON lines as the name of the file says."""
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(text)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def test_shards_of_a_corpus_are_found_by_the_names_they_have_and_are_one_domain(documents, tmp_path):
    packed(tmp_path / "c4" / "c4-train.00000-of-00002.json.gz", ["one"])
    packed(tmp_path / "c4" / "c4-train.00001-of-00002.json.gz", ["two"])
    packed(tmp_path / "c4" / "more" / "c4-train.00002.jsonl.zst", ["three"])
    packed(tmp_path / "books.jsonl.zst", ["four", "five"])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "c4" / "README.md").write_text("no lines of JSON")
    found = [(document.domain, document.text) for document in documents(f"jsonl:{tmp_path}")]
    assert found == [("books", "four"), ("books", "five"), ("c4", "one"), ("c4", "two"), ("c4", "three")]
    some = documents(f"jsonl:{tmp_path}/c4/*-of-00002.json.gz")
    assert [(document.domain, document.text) for document in some] == [("c4", "one"), ("c4", "two")]


def test_a_file_and_a_folder_are_not_one_domain(documents, tmp_path):
    packed(tmp_path / "web.jsonl", ["one"])
    packed(tmp_path / "web" / "a.jsonl", ["two"])
    with pytest.raises(DataError, match="two files or folders would both be the domain 'web'"):
        documents(f"jsonl:{tmp_path}")


def test_cut_off_files_are_named(documents, tmp_path):
    packed(tmp_path / "z" / "a.jsonl.zst", ["one"] * 50)
    content = (tmp_path / "z" / "a.jsonl.zst").read_bytes()
    (tmp_path / "z" / "a.jsonl.zst").write_bytes(content[:-4])
    with pytest.raises(DataError, match="a.jsonl.zst: unreadable after line"):
        documents(f"jsonl:{tmp_path / 'z'}")


def test_cut_off_gzip_files_are_named(documents, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}')[:-4])
    with pytest.raises(DataError, match="a.jsonl.gz: unreadable after line"):
        documents(f"jsonl:{tmp_path}")
    with pytest.raises(DataError, match="a.jsonl.gz: not a whole gzip file"):
        documents(f"text:{tmp_path}")
