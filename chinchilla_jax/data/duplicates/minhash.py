"""MinHash of a document: near duplicates share a key, other documents hardly ever do.

Broder 1997; in bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4. Gopher (arXiv
2112.11446, appendix A.1) compares sets of 13-grams of words by their Jaccard index. Of two documents with index J one
band agrees with probability J^12, one of 16 bands with 1 - (1 - J^12)^16: 0.03 at J = 0.6, 0.68 at 0.8, 0.995 at 0.9.
"""

from __future__ import annotations

import numpy as np

from chinchilla_jax.data.grams import grams

BANDS, ROWS = 16, 12
_AT_ONCE = 128  # grams; their products fit a core's own cache
_RANDOM = np.random.Generator(np.random.Philox(key=1997)).integers(0, 1 << 64, (2, BANDS * ROWS), np.uint64)
_FACTORS, _SHIFTS = _RANDOM[0] | np.uint64(1), _RANDOM[1]
_MIX = np.uint64(0xD6E8FEB86659FD93)


def band_keys(text: str) -> np.ndarray:
    """uint64[BANDS]: a hash of the minima of each band; the number of the band is part of it."""
    hashes = _mixed(np.unique(grams(text)))
    lowest = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(hashes), _AT_ONCE):
        products = np.multiply.outer(hashes[start : start + _AT_ONCE], _FACTORS)
        products += _SHIFTS
        np.minimum(lowest, products.min(axis=0), out=lowest)
    keys = np.arange(BANDS, dtype=np.uint64)
    for row in lowest.reshape(BANDS, ROWS).T:
        keys = _mixed(keys + row)
    return keys


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each number well stirred; wraps round."""
    for _ in range(2):
        numbers = (numbers ^ (numbers >> np.uint64(32))) * _MIX
    return numbers ^ (numbers >> np.uint64(32))
