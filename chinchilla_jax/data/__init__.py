"""Text to batches: where it comes from, how it is cut into tokens, and which tokens are in which step.

Preparing (`prepare`) is done once; training only reads the token store. `TokenStore.open(store_path(data))` and
`Batches(store, data.mixture, seed)` are all a training loop needs.
"""

from chinchilla_jax.data.batches import Batches
from chinchilla_jax.data.prepare import prepare, store_path
from chinchilla_jax.data.steps import DataError
from chinchilla_jax.data.store import TokenStore, segment_ids
from chinchilla_jax.data.tokenizer import Tokenizer

__all__ = ["Batches", "DataError", "TokenStore", "Tokenizer", "prepare", "segment_ids", "store_path"]
