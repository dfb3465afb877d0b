"""Text to token ids and back. In: the path of a tokenizer of either kind. Out: a `Tokenizer` that the rest can use.

    tokenizer = open_tokenizer("llama/")        # a `.model` file, a `tokenizer.json`, or a folder with one of them
    tokenizer.decode(tokenizer.encode("What is it?"))

`base` says what a tokenizer is, `sentence_piece` and `hugging_face` are the kinds, `find` tells them apart.
"""

from chinchilla_jax.data.tokenizers.base import DecodeStream, Tokenizer
from chinchilla_jax.data.tokenizers.find import find_tokenizer, open_tokenizer
from chinchilla_jax.data.tokenizers.sentence_piece import TRAINER_VERSION, train_tokenizer

__all__ = ["TRAINER_VERSION", "DecodeStream", "Tokenizer", "find_tokenizer", "open_tokenizer", "train_tokenizer"]
