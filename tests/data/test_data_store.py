"""The token store holds every token once, counts bytes exactly and notices damage."""

import itertools
import json
import shutil

import numpy as np
import pytest
import sentencepiece

from chinchilla_jax.data import DataError, TokenStore, open_tokenizer, segment_ids
from chinchilla_jax.data import store as store_module
from chinchilla_jax.data.steps import Progress

TEXTS = [["one\n", "two and a\u2581half"], [], ["", "three " * 40], ["four"]]


def _write(path, texts, tokenizer, seq_len):
    path.mkdir(exist_ok=True)
    for split in store_module.SPLITS:
        store_module.write_rows(path / f"words.{split}.npy", iter(texts), tokenizer, seq_len, Progress(print, ""))
    store_module.finish_store(path, tokenizer, seq_len, {"source": "test"}, ["words"])
    return TokenStore(path, tokenizer)


@pytest.mark.parametrize("seq_len", [1, 4, 7, 32, 1000])
def test_every_token_is_predicted_exactly_once(tmp_path, store, seq_len):
    tokenizer = store.tokenizer()
    written = _write(tmp_path / "store", TEXTS, tokenizer, seq_len)
    stream = [tokenizer.separator]
    for text in (text for batch in TEXTS for text in batch):
        stream += [*tokenizer.encode(text), tokenizer.separator]
    array = written.array("words")
    assert np.array_equal(array[1:, 0], array[:-1, -1])
    targets = array[:, 1:].reshape(-1)[: written.tokens("words")]
    assert array[0, 0] == stream[0] and list(targets) == stream[1:]
    assert 1 <= written.targets_in_last_row("words") <= seq_len


@pytest.mark.parametrize("seq_len", [1, 8, 1000])
def test_bytes_of_the_rows_are_the_bytes_of_the_text(tmp_path, store, seq_len):
    written = _write(tmp_path / "store", TEXTS, store.tokenizer(), seq_len)
    size = sum(len(text.encode()) for batch in TEXTS for text in batch)
    assert written.text_bytes("words") == written.row_bytes("words").sum() == size


def test_each_row_of_the_shipped_text_has_the_bytes_of_its_pieces(store):
    model = sentencepiece.SentencePieceProcessor(model_file=str(store.path / "tokenizer.model"))
    pieces = [model.id_to_piece(i).replace("\u2581", " ").encode() for i in range(store.vocab_size)]
    sizes = np.array([1 if model.is_byte(i) else len(pieces[i]) for i in range(store.vocab_size)])
    sizes[[i for i in range(store.vocab_size) if model.is_control(i)]] = 0
    for domain, split in itertools.product(store.domains, store_module.SPLITS):
        found = sizes[store.array(domain, split)[:, 1:]].sum(1)
        assert np.array_equal(store.row_bytes(domain, split), found)
        assert found.sum() == store.text_bytes(domain, split)


def test_a_foreign_tokenizer_serves_and_its_extra_bytes_are_not_counted(tmp_path, foreign_model):
    tokenizer = open_tokenizer(foreign_model)
    written = _write(tmp_path / "store", [["cats and dogs", "birds"]], tokenizer, 4)
    assert written.separator == 2 and written.array("words")[0, 0] == 2
    assert written.text_bytes("words") == 18


def test_segments_count_from_one_and_start_at_separators():
    rows = np.array([[9, 5, 6, 9, 5], [5, 9, 9, 6, 6]])
    assert segment_ids(rows, 9).tolist() == [[1, 1, 1, 2, 2], [1, 2, 3, 3, 3]]
    assert segment_ids(rows, 9).dtype == np.int32


@pytest.fixture
def copy(tmp_path, store):
    """A copy of the shipped store, to damage."""
    return shutil.copytree(store.path, tmp_path / "copy")


def test_another_tokenizer_is_refused(copy, foreign_model):
    with pytest.raises(DataError, match="made with tokenizer .*foreign.model is"):
        TokenStore(copy, open_tokenizer(foreign_model))
    shutil.copy(foreign_model, copy / "tokenizer.model")
    with pytest.raises(DataError, match="tokenizer.model: is tokenizer"):
        TokenStore(copy).tokenizer()


def test_a_cut_off_file_is_named(copy):
    path = copy / "plays.train.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="plays.train.npy: missing or cut off"):
        TokenStore(copy)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="plays.train.npy: missing or cut off"):
        TokenStore(copy)
    path.unlink()
    with pytest.raises(DataError, match="plays.train.npy: missing or cut off"):
        TokenStore(copy)


def test_rows_of_another_shape_are_named(copy):
    np.save(copy / "plays.train.npy", np.zeros((3, 33), np.uint16))
    with pytest.raises(DataError, match=r"plays.train.npy: has shape \(3, 33\), store.json says"):
        TokenStore(copy)


def test_unfinished_unreadable_and_future_stores_are_refused(copy):
    description = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(DataError, match="store.json: format 99"):
        TokenStore(copy)
    (copy / "store.json").write_text("{")
    with pytest.raises(DataError, match="store.json: not valid JSON"):
        TokenStore(copy)
    (copy / "store.json").unlink()
    with pytest.raises(DataError, match="store.json: no such file"):
        TokenStore(copy)


@pytest.mark.parametrize(("change", "words"), [
    (lambda d: d.pop("separator"), "'separator' is missing"),
    (lambda d: d.pop("domains"), "'domains' is missing"),
    (lambda d: d.update(seq_len="32"), "'seq_len' is '32'"),
    (lambda d: d.update(domains={}), "it has no domains"),
    (lambda d: d.update(domains=["plays"]), r"'domains' is \['plays'\]"),
    (lambda d: d["domains"].update(plays=None), "no count 'rows' of plays.train"),
    (lambda d: d["domains"]["poems"].pop("validation"), "no count 'rows' of poems.validation"),
    (lambda d: d["domains"]["poems"]["train"].update(tokens="many"), "no count 'tokens' of poems.train"),
])  # fmt: skip
def test_a_damaged_description_is_refused_with_what_is_wrong(copy, change, words):
    description = json.loads((copy / "store.json").read_text())
    change(description)
    (copy / "store.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=f"store.json: damaged, {words}; delete the folder"):
        TokenStore(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\0"], ids=["empty", "list", "null", "binary"])
def test_a_description_that_is_none_is_refused(copy, content):
    (copy / "store.json").write_bytes(content)
    with pytest.raises(DataError, match=r"store.json: (not valid JSON|format None)"):
        TokenStore(copy)


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_tokenizer_that_is_no_model_is_refused(copy, content):
    (copy / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match="tokenizer.model: not a SentencePiece model"):
        TokenStore(copy, check_tokenizer=True)


def test_an_unknown_domain_lists_the_known_ones(store):
    with pytest.raises(DataError, match="no domain 'web'; it has plays, poems, prose"):
        store.array("web")
