"""Bytes are those of the text as it was, however a tokenizer changes it, and wherever rows cut it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from chinchilla_jax.data import TokenStore, open_tokenizer
from chinchilla_jax.data import store as store_module
from chinchilla_jax.data.steps import Progress

# Wide, decomposed, compatible, unknown and unseen characters, spaces of all kinds, names of control pieces.
ODD = " \n\t\r\u00a0\u3000\u2581\u200b\0abtheÉéé½ﬁＡİẞ🙂👩‍👩‍👧東京\u0301\u0308\ufeff\ufffd\U0010ffff</s>[SEP]"
TEXTS = st.text(max_size=30) | st.text(alphabet=ODD, max_size=30)
WORDS = st.lists(st.text(alphabet="abtheÉé½ﬁＡİ🙂東京", min_size=1, max_size=5), min_size=1, max_size=4)


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    counts = any_tokenizer.byte_counts(text, ids)
    assert counts.shape == (len(ids) + 1,) and counts.min() >= 0
    assert counts.sum() == len(text.encode())


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(before=WORDS, after=WORDS)
def test_the_bytes_of_the_first_tokens_are_those_of_the_text_they_stand_for(any_tokenizer, before, after):
    first, text = " ".join(before), " ".join(before + after)
    ids, part = any_tokenizer.encode(text), any_tokenizer.encode(first)
    hypothesis.assume(ids[: len(part)] == part)
    assert any_tokenizer.byte_counts(text, ids)[: len(part)].sum() == len(first.encode())


@pytest.mark.parametrize(("kind", "text", "pieces", "sizes"), [
    ("llama", "the fox", ["▁the", "▁fox"], [3, 4, 0]),
    ("llama", "é🙂", ["▁", "é", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"], [0, 2, 1, 1, 1, 1, 0]),
    ("byte level", "🙂", None, [1, 1, 1, 1, 0]),
    ("word pieces", "  The  FOX ", ["the", "fox"], [5, 5, 1]),
    ("word pieces", "the 🙂", ["the", "[UNK]"], [3, 5, 0]),
    ("word pieces", " ", [], [1]),
    ("lower casing", "½ İx", ["▁1", "⁄", "2", "▁", "i", "<unk>", "x"], [2, 0, 0, 1, 2, 0, 1, 0]),
    ("t5", "½ the 🙂🙂", ["▁1", "⁄", "2", "▁", "t", "h", "e", "▁", "<unk>"], [0, 0, 2, 1, 1, 1, 1, 1, 8, 0]),
    ("t5", "the  \t ", ["▁", "t", "h", "e"], [0, 1, 1, 1, 4]),
    ("llama", "a\u2581\u2581", ["▁a", "▁", "▁"], [1, 3, 3, 0]),
])  # fmt: skip
def test_bytes_go_to_the_token_that_has_the_text(folders, kind, text, pieces, sizes):
    tokenizer = open_tokenizer(folders[kind])
    ids = tokenizer.encode(text)
    assert pieces in (None, [tokenizer.piece_name(i) for i in ids])
    assert tokenizer.byte_counts(text, ids).tolist() == sizes


@pytest.mark.parametrize("seq_len", [1, 5])
def test_rows_have_the_bytes_of_the_documents_whatever_the_tokenizer(any_tokenizer, tmp_path, seq_len):
    texts = ["", "the fox, ½ 🙂", "  lazy\u3000DOG\u200b ", ODD, "</s>", "e\u0301" * 5, " "] * 3
    path = tmp_path / "words.train.npy"
    for split in store_module.SPLITS:
        batches = iter([texts[:4], [], texts[4:]])
        store_module.write_rows(path.with_name(f"words.{split}.npy"), batches, any_tokenizer, seq_len,
                                Progress(print, ""))  # fmt: skip
    store_module.finish_store(tmp_path, any_tokenizer, seq_len, {}, ["words"])
    store = TokenStore(tmp_path, any_tokenizer)
    assert store.row_bytes("words").sum() == store.text_bytes("words") == sum(len(text.encode()) for text in texts)
    if seq_len == 1:  # each row is a token: each document's are its own
        ends = np.flatnonzero(store.array("words")[:, 1] == store.separator)
        sums = np.add.reduceat(store.row_bytes("words"), np.append(0, ends[:-1] + 1))
        assert sums.tolist() == [len(text.encode()) for text in texts]
