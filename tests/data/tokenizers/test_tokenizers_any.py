"""What holds for tokenizers of every kind: no text makes a control piece, pieces of text add up, a copy is the same."""

import itertools
import pathlib
import shutil

import hypothesis
import hypothesis.strategies as st
import pytest

from chinchilla_jax.data import DataError, open_tokenizer

TEXTS = st.text(max_size=30) | st.text(alphabet=" \n\u2581abé½🙂</s>[SEP]|endoftx", max_size=30)
CONTROL = "</s> <s></s><unk>[SEP] a[SEP]b <|endoftext|><|other|>"


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(text=TEXTS)
def test_no_text_has_a_control_piece(any_tokenizer, text):
    for written in (text, text + CONTROL):
        ids = any_tokenizer.encode(written)
        assert not {any_tokenizer.separator, *any_tokenizer.control_pieces()} & set(ids)
        assert all(0 <= i < any_tokenizer.vocab_size for i in ids)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(prompt=TEXTS, text=TEXTS)
def test_pieces_of_text_add_up_to_what_tokens_add(any_tokenizer, prompt, text):
    before, new = any_tokenizer.encode(prompt), any_tokenizer.encode(text)
    whole, known = any_tokenizer.decode(before + new), any_tokenizer.decode(before)
    stream = any_tokenizer.decode_stream(before)
    found = [*map(stream.push, new), stream.flush()]
    hypothesis.assume(whole.startswith(known))  # not where what follows changes it
    assert known + "".join(found) == whole
    assert "\ufffd" in prompt + text or "\ufffd" not in "".join(found)


def test_what_stands_before_gives_context_though_its_last_tokens_have_no_text(folders):
    tokenizer = open_tokenizer(folders["word pieces"])
    before, new = tokenizer.encode("the 🙂"), tokenizer.encode("fox")
    stream = tokenizer.decode_stream(before + before[-1:] * 20)
    assert stream.push(new[0]) == " fox"


@pytest.mark.parametrize("text", ["four 東京 🚀🚀 and  a  café"])
def test_text_comes_as_soon_as_a_character_is_whole(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    stream = any_tokenizer.decode_stream()
    for n, token in enumerate(ids):
        assert not stream.push(token).endswith("\ufffd")
        shown = any_tokenizer.decode(ids[: n + 1])
        if shown and not shown.endswith("\ufffd"):
            assert stream.flush() == ""


def test_a_character_that_was_begun_before_comes_whole(folders):
    for name in ("byte level", "llama", "converted", "ours"):
        tokenizer = open_tokenizer(folders[name])
        ids = tokenizer.encode("a" + "🚀" * 12 + " end")
        whole, found = tokenizer.decode(ids), []
        for cut in range(len(ids)):
            stream = tokenizer.decode_stream(ids[:cut])
            found.append("".join([*map(stream.push, ids[cut:]), stream.flush()]))
        assert found[0] == whole and all(earlier.endswith(later) for earlier, later in itertools.pairwise(found))
        assert len(set(found)) >= 14 and whole.endswith(found[-1]) and found[-1]


def test_control_pieces_say_nothing(any_tokenizer):
    ids = any_tokenizer.encode("a cat")
    assert any_tokenizer.decode([*ids, any_tokenizer.separator]) == any_tokenizer.decode(ids)
    assert any_tokenizer.decode(any_tokenizer.control_pieces()) == ""


def test_a_copy_of_its_files_is_the_same_tokenizer(any_tokenizer, tmp_path):
    for name, path in any_tokenizer.files().items():
        shutil.copy(path, tmp_path / name)
    copy = open_tokenizer(tmp_path)
    assert copy.fingerprint() == any_tokenizer.fingerprint() and copy.separator == any_tokenizer.separator


def test_tokenizers_that_cut_otherwise_have_other_fingerprints(folders):
    assert len({open_tokenizer(folder).fingerprint() for folder in folders.values()}) == len(folders)


def test_names_and_ids_belong_together(any_tokenizer):
    name = any_tokenizer.piece_name(any_tokenizer.separator)
    assert any_tokenizer.piece_id(name) == any_tokenizer.separator in any_tokenizer.control_pieces()
    assert any_tokenizer.piece_id("no such piece") is None
    assert any_tokenizer.separator not in any_tokenizer.spare_pieces()


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.model", b"", "a.model: not a SentencePiece model"),
    ("a.model", b"junk", "a.model: not a SentencePiece model"),
    ("a.model", b"IQ== 0\nIg== 1\n", "a.model: a table of ranks .*; name the tokenizer.json"),
    ("a.json", b"{", "a.json: not valid JSON"),
    ("a.json", b"[]", "a.json: not a tokenizer.json: it has no `model`"),
    ("vocab.json", b'{"a": 0}', "it has no `model`; vocab.json and merges.txt alone"),
    ("a.json", b'{"model": {"type": "BPE"}}', "a.json: not a tokenizer.json that can be read"),
    ("nothing.json", None, "nothing.json: no such tokenizer; data.tokenizer is `train`, a SentencePiece .model"),
    ("folder", None, "folder: no such tokenizer"),
])  # fmt: skip
def test_what_is_no_tokenizer_is_named_in_one_line(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as raised:
        open_tokenizer(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_is_searched_for_a_model_that_can_be_used_and_then_for_the_json(folders, tmp_path):
    with pytest.raises(DataError, match="has no tokenizer: neither a tokenizer.model of SentencePiece nor a tokenizer"):
        open_tokenizer(tmp_path)
    shutil.copy(folders["byte level"] / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert open_tokenizer(tmp_path).path.name == "tokenizer.json"
    shutil.copy(folders["llama"] / "tokenizer.model", tmp_path)
    assert open_tokenizer(str(tmp_path)).path == pathlib.Path(tmp_path / "tokenizer.model")
