"""Preparing does each step once, shares what it can and resumes where it was interrupted."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.data import DataError, TokenStore, builder, prepare, store_path
from chinchilla_jax.data import store as store_module
from chinchilla_jax.data.sources import registry


def quiet(_):
    """An `echo` that says nothing."""


WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


def _texts(seed, count=40):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 120)) + f" {seed} {n}\n" for n in range(count)]


@pytest.fixture
def small(tmp_path):
    """A config of a small text folder with the domains a and b."""
    for seed, domain in enumerate("ab"):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for n, text in enumerate(_texts(seed)):
            (tmp_path / "texts" / domain / f"{n}.txt").write_text(text)
    return DataConfig(source=f"text:{tmp_path / 'texts'}", data_dir=str(tmp_path / "data"), vocab_size=330, seq_len=16,
                      validation_fraction=0.1)  # fmt: skip


def test_the_store_path_is_found_once_prepared_and_not_before(small):
    with pytest.raises(DataError, match="python -m chinchilla_jax data --config="):
        store_path(small)
    with pytest.raises(DataError, match="python -m chinchilla_jax data --config="):
        store_path(dataclasses.replace(small, source="auto"))
    path = prepare(small, quiet)
    assert store_path(small) == path
    with pytest.raises(DataError, match="seq_len=17; prepare it first"):
        store_path(dataclasses.replace(small, seq_len=17))


def test_the_original_text_may_be_gone_when_training(small):
    path = prepare(small, quiet)
    shutil.rmtree(small.source.removeprefix("text:"))
    assert store_path(small) == path


def test_another_length_shares_corpus_and_tokenizer(small, monkeypatch):
    prepare(small, quiet)
    monkeypatch.setattr(registry, "open_source", _must_not_run)
    monkeypatch.setattr("sentencepiece.SentencePieceTrainer.train", _must_not_run)
    path = prepare(dataclasses.replace(small, seq_len=8), quiet)
    assert TokenStore(path).seq_len == 8 and path != store_path(small)


def test_changed_text_is_another_corpus(small, tmp_path):
    first = prepare(small, quiet)
    (tmp_path / "texts" / "a" / "new.txt").write_text("A text that was not there before, nor anything like it.")
    with pytest.raises(DataError, match="its files changed since"):
        store_path(small)
    assert prepare(small, quiet) != first


@pytest.mark.parametrize("interrupted", ["build_domain", "write_rows", "finish_store"])
def test_an_interrupted_preparation_resumes_with_what_is_missing(small, tmp_path, monkeypatch, interrupted):
    undisturbed = TokenStore(prepare(dataclasses.replace(small, data_dir=str(tmp_path / "other")), quiet))
    module = builder if interrupted == "build_domain" else store_module
    original, calls = getattr(module, interrupted), []

    def second_call_fails(*arguments):
        calls.append(arguments)
        if len(calls) == (1 if interrupted == "finish_store" else 2):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, interrupted, second_call_fails)
        with pytest.raises(KeyboardInterrupt):
            prepare(small, quiet)
    with pytest.raises(DataError):
        store_path(small)
    done = len(calls) - 1
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, interrupted, lambda *arguments: (calls.append(arguments), original(*arguments))[1])
        resumed = TokenStore(prepare(small, quiet))
    if interrupted == "write_rows":
        assert len(calls) == 4 - done
    for domain in undisturbed.domains:
        for split in store_module.SPLITS:
            assert np.array_equal(resumed.array(domain, split), undisturbed.array(domain, split))
    leftovers = [path for path in (tmp_path / "data").rglob("*") if "partial" in path.name or "incomplete" in path.name]
    assert not leftovers and not list((tmp_path / "data").rglob("cleaned"))


def test_auto_records_its_choice_and_keeps_to_it(tmp_path, monkeypatch):
    data = DataConfig(source="auto", data_dir=str(tmp_path), vocab_size=512, seq_len=64)
    monkeypatch.setattr(registry, "first_source_that_works", lambda *_: ("shipped", ["debian: no", "pypi: no"]))
    path = prepare(data, quiet)
    assert TokenStore(path).source["passed_over"] == ["debian: no", "pypi: no"]
    assert TokenStore(path).source["source"] == "shipped"
    monkeypatch.setattr(registry, "first_source_that_works", _must_not_run)
    assert prepare(data, quiet) == store_path(data) == path


def test_a_ready_tokenizer_is_used_as_it_is(small, foreign_model):
    data = dataclasses.replace(small, tokenizer=str(foreign_model))
    store = TokenStore(prepare(data, quiet))
    assert store.separator == 2 and store_path(data) == store.path
    with pytest.raises(ConfigError, match="data.vocab_size: .* pieces"):
        prepare(dataclasses.replace(data, vocab_size=100), quiet)


def test_a_prepared_tfds_dataset_is_a_source(small, tmp_path):
    prepare(small, quiet)
    (corpus,) = (tmp_path / "data" / "corpus").glob("text_*")
    again = dataclasses.replace(small, source=f"tfds:{builder.NAME}", data_dir=str(tmp_path / "again"))
    shutil.copytree(corpus / builder.NAME, tmp_path / "again" / builder.NAME)
    store, copy = TokenStore(store_path(small)), TokenStore(prepare(again, quiet))
    assert copy.domains == ("a", "b")
    for domain in "ab":
        for split in store_module.SPLITS:
            assert copy.tokens(domain, split) == store.tokens(domain, split)
    one = dataclasses.replace(again, source=f"tfds:{builder.NAME}/b", mixture="b=1")
    assert TokenStore(prepare(one, quiet)).domains == ("b",)
    with pytest.raises(DataError, match="no feature 'body' .it has id, text.; set data.text_field"):
        prepare(dataclasses.replace(one, text_field="body"), quiet)


def test_an_unknown_tfds_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match="tfds:no_such_set: not prepared in"):
        prepare(DataConfig(source="tfds:no_such_set", data_dir=str(tmp_path)), quiet)


def test_the_corpus_says_what_it_is(small, tmp_path):
    prepare(small, quiet)
    (path,) = (tmp_path / "data" / "corpus").glob("*/corpus.json")
    description = json.loads(path.read_text())
    assert description["source"] == small.source and set(description["domains"]) == {"a", "b"}
    assert description["duplicates"] == 0 and description["passed_over"] == []


def test_text_is_prepared_without_tensorflow(data):
    import sys

    assert store_path(data) and "tensorflow" not in sys.modules


def _must_not_run(*_, **__):
    raise AssertionError("ran again")
