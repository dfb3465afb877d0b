"""The tokenizer loses nothing, counts bytes exactly and takes its ids from the model."""

import io

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from chinchilla_jax.data import DataError, open_tokenizer
from chinchilla_jax.data.tokenizers import train_tokenizer

ODD = ["", " ", "  two  spaces ", "\n\n\n", "\r\n\t", "\x00", "\ufeffmark", "\u2581", "a\u2581\u2581b \u2581", "ﬁ ½ Å",
       "e\u0301", "👩‍👩‍👧", "</s><s><unk><pad>", "<0x0A>", "العربية", "\U0010ffff"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(store):
    return store.tokenizer()


@pytest.mark.parametrize("text", ODD)
def test_odd_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(text=st.text() | st.text(alphabet=" \n\u2581ab<>/s0x1"))
def test_any_text_survives_and_its_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_counts(text, ids).sum() == len(text.encode())
    assert tokenizer.separator not in ids


def test_threads_do_not_change_the_result(tokenizer):
    texts = ["one and two", "a\u2581b", "", "three"] * 10
    assert tokenizer.encode_all(texts, threads=2) == [tokenizer.encode(text) for text in texts]


def test_training_twice_gives_the_same_pieces(tmp_path):
    texts = [f"some words {n} and more words {n * n}\n" for n in range(500)]
    first = train_tokenizer(texts, 300, tmp_path / "a.model")
    second = train_tokenizer(texts, 300, tmp_path / "b.model")
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != train_tokenizer(texts, 305, tmp_path / "c.model").fingerprint()


def test_vocabulary_too_large_for_the_text_is_said(tmp_path):
    with pytest.raises(DataError, match="vocab_size=5000 does not suit this text: Vocabulary size too high"):
        train_tokenizer(["only a few words here"], 5000, tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


def test_foreign_ids_come_from_the_model(foreign_model):
    tokenizer = open_tokenizer(foreign_model)
    assert (tokenizer.separator, tokenizer.control_pieces()) == (2, [1, 2])
    ids = tokenizer.encode("cats and dogs")
    assert tokenizer.decode(ids) == "cats and dogs"
    # The dummy space in front is a byte that the text does not have.
    assert tokenizer.byte_counts("cats and dogs", ids).sum() == len("cats and dogs")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_ids_are_those_of_the_library(folders, kind):
    ours = open_tokenizer(folders[kind])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folders[kind] / "tokenizer.model"))

    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(text=st.text(max_size=40).filter(lambda text: "\u2581" not in text))
    def same(text):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))

    same()


def test_the_picture_of_a_space_is_kept_where_parts_can_be_and_else_left_to_the_library(tokenizer, folders):
    assert tokenizer.decode(tokenizer.encode("a\u2581 b")) == "a\u2581 b"
    llama = open_tokenizer(folders["llama"])
    assert llama.decode(llama.encode("a\u2581b")) == "a b"  # and not `a b` with a space of each part


def test_models_that_treat_spaces_otherwise_have_other_fingerprints(tmp_path):
    found = set()
    for prefix in (True, False):
        for n in range(2):  # the trainer's notes in the file differ, as its name for the model
            path = tmp_path / f"{prefix}{n}.model"
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["aa bb cc"] * 9), model_prefix=str(path.with_suffix("")), vocab_size=20,
                model_type="char", hard_vocab_limit=False, add_dummy_prefix=prefix, minloglevel=2,
            )  # fmt: skip
            found.add(open_tokenizer(path).fingerprint())
    assert len(found) == 2


@pytest.mark.parametrize(("eos", "bos", "separator"), [(-1, 1, 1), (2, -1, 2)])
def test_separator_is_the_end_piece_else_the_beginning_piece(tmp_path, eos, bos, separator):
    assert open_tokenizer(_tiny_model(tmp_path, eos, bos)).separator == separator


def test_a_model_without_either_is_an_error(tmp_path):
    with pytest.raises(DataError, match="neither an end-of-text nor a beginning-of-text"):
        open_tokenizer(_tiny_model(tmp_path, -1, -1))


def test_missing_and_broken_models_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.model: no such tokenizer"):
        open_tokenizer(tmp_path / "nowhere.model")
    (tmp_path / "broken.model").write_bytes(b"this is no model")
    with pytest.raises(DataError, match="broken.model: not a SentencePiece model"):
        open_tokenizer(tmp_path / "broken.model")


def _tiny_model(folder, eos, bos):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["aa bb", "ab ba"]), model_writer=model, model_type="char", vocab_size=20, unk_id=0,
        hard_vocab_limit=False, eos_id=eos, bos_id=bos, minloglevel=2,
    )  # fmt: skip
    path = folder / "tiny.model"
    path.write_bytes(model.getvalue())
    return path
