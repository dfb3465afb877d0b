"""Which documents of a corpus come twice, exactly or nearly. In: keys of each document. Out: the numbers to drop.

What is kept depends on nothing but the documents and their order in the source: of those that share a key the one that
comes first, whatever the number of shards, buckets or workers.
"""

from chinchilla_jax.data.duplicates.keys import later_copies as later_copies
from chinchilla_jax.data.duplicates.minhash import band_keys as band_keys
