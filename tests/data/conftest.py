"""What the data tests share: the shipped text, prepared once."""

import io

import pytest
import sentencepiece

from chinchilla_jax.config import DataConfig
from chinchilla_jax.data import TokenStore, prepare
from chinchilla_jax.data.sources.registry import open_source


def quiet(_):
    """An `echo` that says nothing."""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The config of a prepared store of the shipped text."""
    config = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("data")), vocab_size=512, seq_len=32)
    prepare(config, quiet)
    return config


@pytest.fixture
def documents(tmp_path):
    """`documents(source, **settings)`: all documents of a source."""

    def read(source, **settings):
        data = DataConfig(source=source, data_dir=str(tmp_path), **settings)
        return list(open_source(source, data, quiet).documents())

    return read


@pytest.fixture(scope="session")
def store(data):
    """That store, open."""
    return TokenStore(prepare(data, quiet))


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory):
    """A SentencePiece model of other habits: unigram, padding absent, text start 1, text end 2, a dummy space first."""
    model = io.BytesIO()
    lines = [f"a sentence about {animal} and {other}" for animal in ("cats", "dogs", "birds") for other in "abcdefgh"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="unigram", vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("foreign") / "foreign.model"
    path.write_bytes(model.getvalue())
    return path
