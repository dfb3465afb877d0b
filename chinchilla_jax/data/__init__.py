"""Text to batches. In: a `DataConfig`. Out: the tokens of every step, the same whatever the hosts or restarts.

`sources/` yields documents, `clean` and `builder` make a corpus of them, `tokenizers` and `store` a token store;
`mixture` says which row comes when, `batches` reads it. Preparing (`prepare`) is done once; training only
reads the store: `TokenStore(store_path(data))` and `Batches(store, data.mixture, seed)` are all that it needs.
`teacher` has propositions that are true or false, as one more domain.
"""

from chinchilla_jax.data.batches import Batches
from chinchilla_jax.data.prepare import prepare, store_path
from chinchilla_jax.data.steps import DataError
from chinchilla_jax.data.store import TokenStore, segment_ids
from chinchilla_jax.data.teacher import Teacher
from chinchilla_jax.data.tokenizers import Tokenizer, open_tokenizer

__all__ = [
    "Batches",
    "DataError",
    "Teacher",
    "TokenStore",
    "Tokenizer",
    "open_tokenizer",
    "prepare",
    "segment_ids",
    "store_path",
]
