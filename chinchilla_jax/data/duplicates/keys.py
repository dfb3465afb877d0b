"""Documents that share a key, found by sorting."""

from __future__ import annotations

import numpy as np


def later_copies(keys: np.ndarray) -> np.ndarray:
    """uint64, sorted: the documents that share a key with an earlier one.

    `keys` [n] has the fields `high`, `low` (the key) and `id`, in any order; a document may have several keys. What is
    dropped is near to something earlier, which may itself be dropped for something earlier still: every chain ends in
    a document that is kept. Buckets of keys may be asked one by one, as no key is in two of them.
    """
    ordered = np.sort(keys, order=["high", "low", "id"])
    same = (ordered["high"][1:] == ordered["high"][:-1]) & (ordered["low"][1:] == ordered["low"][:-1])
    return np.unique(ordered["id"][1:][same & (ordered["id"][1:] != ordered["id"][:-1])])
