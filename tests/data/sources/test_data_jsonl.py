"""JSON lines: every line is a document, or is named with what is wrong."""

import gzip

import pytest

from chinchilla_jax.data import DataError


def test_json_lines_are_documents_and_files_domains(documents, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two\\nlines"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "three"}'))
    found = documents(f"jsonl:{tmp_path}", text_field="body")
    assert found == [("a", "one", None), ("a", "two\nlines", None), ("b", "three", None)]
    assert len(documents(f"jsonl:{tmp_path / 'a.jsonl'}", text_field="body")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [("{oops", "not valid JSON"), ('{"body": "x"}', "no text in field 'text' .it has body.; set data.text_field"),
     ('{"text": 3}', "no text in field"), ("[]", "no object"), ('{"text": "\\ud800"}', "surrogate")],
)  # fmt: skip
def test_a_bad_json_line_is_named_with_its_number(documents, tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"a.jsonl, line 2: .*{message}"):
        documents(f"jsonl:{tmp_path}")


def test_cut_off_gzip_files_are_named(documents, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}')[:-4])
    with pytest.raises(DataError, match="a.jsonl.gz: unreadable after line"):
        documents(f"jsonl:{tmp_path}")
    with pytest.raises(DataError, match="a.jsonl.gz: not a whole gzip file"):
        documents(f"text:{tmp_path}")
