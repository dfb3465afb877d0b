"""Tokenizers of many habits, made here: each a file, or a folder, that `open_tokenizer` opens."""

import io
import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from chinchilla_jax.data import open_tokenizer
from chinchilla_jax.interop.hf.sentencepiece import tokenizer_json

LINES = [f"the {noun} was {verb}, and ½ a café; {n} naïve cats\n" for n in range(30)
         for noun, verb in (("fox", "quick"), ("dog", "lazy"), ("BIRD", "東京"))]  # fmt: skip


def byte_level(path):
    """As GPT-2 and LLaMA 3: pieces of bytes; a file that would also add a beginning, cut off and pad."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|other|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(LINES, trainer)
    made.add_tokens(["naïve cats"])
    made.post_processor = processors.TemplateProcessing("<|endoftext|> $0", special_tokens=[("<|endoftext|>", 0)])
    made.enable_padding(length=50)
    made.enable_truncation(5)
    made.save(str(path))


def lower_casing(path):
    """A unigram model that normalises, adds a space, and knows few characters; its `</s>` is a piece like another."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(LINES, trainer)
    made.save(str(path))


def word_pieces(path):
    """As BERT: text is cleaned of spaces, cased down and cut at punctuation; no byte of it can be told from pieces."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"]))
    made.save(str(path))
    path.with_name("tokenizer_config.json").write_text('{"eos_token": {"content": "[SEP]"}, "bos_token": null}')


def sentence_piece(path, **settings):
    """A SentencePiece model of these settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, hard_vocab_limit=False, minloglevel=2, **settings
    )
    path.write_bytes(model.getvalue())


FOLDERS = {
    "byte level": byte_level,
    "lower casing": lower_casing,
    "word pieces": word_pieces,
    # As LLaMA 1 and 2.
    "llama": lambda path: sentence_piece(path, model_type="bpe", vocab_size=400, byte_fallback=True,
                                         normalization_rule_name="identity", remove_extra_whitespaces=False),
    # As T5: normalised, runs of spaces are one, and what is unknown has no bytes.
    "t5": lambda path: sentence_piece(path, model_type="unigram", vocab_size=90, normalization_rule_name="nmt_nfkc"),
}  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory, store):
    """The folder of each tokenizer, by what it is like."""
    made = {}
    for name, make in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp("tokenizer")
        make(made[name] / ("tokenizer.model" if name in ("llama", "t5") else "tokenizer.json"))
    made["converted"] = tmp_path_factory.mktemp("tokenizer")
    converted = tokenizer_json(made["llama"] / "tokenizer.model")
    (made["converted"] / "tokenizer.json").write_text(json.dumps(converted))
    return made | {"ours": store.path}


@pytest.fixture(scope="session", params=[*FOLDERS, "converted", "ours"])
def any_tokenizer(request, folders):
    """Each of them, open."""
    return open_tokenizer(folders[request.param])
