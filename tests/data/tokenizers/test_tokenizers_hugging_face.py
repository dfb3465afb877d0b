"""A `tokenizer.json` gives the ids of the library that reads it, and nothing that the file would add to a batch."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers

from chinchilla_jax.data import DataError, open_tokenizer

KINDS = ("byte level", "lower casing", "word pieces", "converted")
TEXT = "The quick café — 東京 🚀🚀, x = [1,\n\t2];\n\n  naïve cats"


def library(folder):
    """The library's own reading of the file, without what is for batches."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_the_library(folders, kind):
    ours, theirs = open_tokenizer(folders[kind]), library(folders[kind])

    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(text=st.text(max_size=40).filter(lambda text: not set(text) & set("<[")))  # no control pieces
    def same(text):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids and ours.decode(ids) == theirs.decode(ids)

    same()
    assert ours.encode_all([TEXT, "", TEXT]) == [ours.encode(TEXT), ours.encode(""), ours.encode(TEXT)]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_text_are_those_of_the_library(folders, kind):
    ours, theirs = open_tokenizer(folders[kind]), library(folders[kind])
    stream, reference = ours.decode_stream(), tokenizers.decoders.DecodeStream(skip_special_tokens=True)
    ids = ours.encode(TEXT)
    assert [stream.push(i) for i in ids] == [reference.step(theirs, i) or "" for i in ids]


def test_the_file_adds_nothing_around_a_text_and_cuts_nothing_off(folders):
    folder = folders["byte level"]
    batch = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a few words more than fit")
    assert batch.ids[0] == 0 and len(batch.ids) == 50
    assert open_tokenizer(folder).decode(open_tokenizer(folder).encode("a few words more than fit")).endswith("fit")


def test_a_sentence_piece_model_and_its_converted_form_agree(folders):
    model, converted = (open_tokenizer(folders[kind]) for kind in ("llama", "converted"))

    @hypothesis.settings(deadline=None, max_examples=100)
    @hypothesis.given(text=st.text(max_size=40).filter(lambda text: not set(text) & set("\u2581\0<")))
    def same(text):
        assert model.encode(text) == converted.encode(text)

    same()
    assert (model.separator, model.vocab_size) == (converted.separator, converted.vocab_size)


def changed(folder, to, change=lambda said: None, **beside):
    """A copy of a tokenizer's file, changed, with these files beside it, open."""
    said = json.loads((folder / "tokenizer.json").read_text())
    change(said)
    (to / "tokenizer.json").write_text(json.dumps(said))
    for name, content in beside.items():
        (to / f"{name}.json").write_text(json.dumps(content))
    return open_tokenizer(to)


def test_what_ends_a_text_is_said_beside_the_file_or_known_by_its_name(folders, tmp_path):
    folder = folders["byte level"]
    assert changed(folder, tmp_path).eos == 0
    assert changed(folder, tmp_path, special_tokens_map={"eos_token": {"content": "<|other|>"}}).eos == 1
    both = changed(folder, tmp_path, tokenizer_config={"eos_token": "<|endoftext|>", "bos_token": "<|other|>"})
    assert (both.eos, both.bos, both.separator) == (0, 1, 0)
    only = changed(folders["lower casing"], tmp_path, tokenizer_config={"eos_token": None, "bos_token": "<s>"},
                   special_tokens_map={"eos_token": None})  # fmt: skip
    assert only.piece_name(only.bos) == "<s>" and only.piece_name(only.separator) == "</s>"


def test_a_file_that_tells_no_end_is_refused_with_what_to_write_where(folders, tmp_path):
    def nameless(said):
        said["added_tokens"] = []

    with pytest.raises(DataError, match=r'; name it in .*/tokenizer_config.json: {"eos_token": "..."}'):
        changed(folders["byte level"], tmp_path, nameless)
    with pytest.raises(DataError, match="tokenizer_config.json: eos_token '<eot>' is no piece of tokenizer.json"):
        changed(folders["byte level"], tmp_path, tokenizer_config={"eos_token": "<eot>"})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer_config.json: not valid JSON"):
        open_tokenizer(tmp_path)


def test_an_end_that_the_file_does_not_call_special_is_one(folders, tmp_path):
    def plain(said):
        for token in said["added_tokens"]:
            token["special"] = False

    tokenizer = changed(folders["byte level"], tmp_path, plain)
    assert tokenizer.separator not in tokenizer.encode("one<|endoftext|>two")
    assert tokenizer.decode([*tokenizer.encode("one"), 0]) == "one"


def test_ids_may_leave_gaps_and_rows_without_a_piece_have_no_text(folders, tmp_path):
    tokenizer = changed(folders["byte level"], tmp_path, lambda said: said["model"]["vocab"].update(far=500))
    assert tokenizer.vocab_size == 501
    assert tokenizer.decode([*tokenizer.encode("one"), 499, 700]) == "one" and tokenizer.piece_name(499) == ""


def test_the_fingerprint_is_of_how_text_is_cut(folders, tmp_path):
    folder = folders["byte level"]
    same = changed(folder, tmp_path, lambda said: said.update(padding=None, truncation=None, post_processor=None))
    assert same.fingerprint() == open_tokenizer(folder).fingerprint()
    other = changed(folder, tmp_path, lambda said: said.update(normalizer={"type": "Lowercase"}))
    assert other.fingerprint() != same.fingerprint()


def test_a_copy_has_what_says_where_a_text_ends(folders):
    assert set(open_tokenizer(folders["word pieces"]).files()) == {"tokenizer.json", "tokenizer_config.json"}
    assert set(open_tokenizer(folders["byte level"]).files()) == {"tokenizer.json"}
