"""Batches as a pure function of the position in training: the same tokens whatever the hosts, workers or restarts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from chinchilla_jax.data.mixture import MixtureIndex, resolve_mixture
from chinchilla_jax.data.store import TokenStore, segment_ids

Batch = dict[str, np.ndarray]


class Batches:
    """The training sequences of a store in the order of a mixture and a seed, and its validation sequences."""

    def __init__(self, store: TokenStore, mixture: str, seed: int, mask_documents: bool = False):
        """See `resolve_mixture` for the mixture. With `mask_documents` batches carry `segment_ids`."""
        self.store = store
        self.mask_documents = mask_documents
        self.weights: Mapping[str, float] = resolve_mixture(mixture, {d: store.tokens(d) for d in store.domains})
        self._domains = tuple(self.weights)
        self.index = MixtureIndex(list(self.weights.values()), [store.rows(d) for d in self._domains], seed)
        self._arrays = [store.array(d) for d in self._domains]
        self._last = np.asarray([store.rows(d) - 1 for d in self._domains])
        self._in_last = np.asarray([store.targets_in_last_row(d) for d in self._domains])

    def batch(self, first_sequence: int, n: int, rows: slice | np.ndarray | None = None) -> Batch:
        """Sequences `first_sequence` .. `first_sequence + n - 1` of training, or this host's `rows` of them.

        Returns:
          inputs, targets: int32 [n, S]; weights: float32 [n, S], 1 for real targets, 0 for the filling at the end of a
          domain; segment_ids: int32 [n, S], of the inputs, if `mask_documents`.
        """
        numbers = np.arange(first_sequence, first_sequence + n)
        domain, row, _ = self.index.locate(numbers if rows is None else numbers[rows])
        tokens = np.empty((len(domain), self.store.seq_len + 1), np.int32)
        for k, array in enumerate(self._arrays):
            (at,) = np.nonzero(domain == k)
            if len(at):
                tokens[at] = array[row[at]]
        real = np.where(row == self._last[domain], self._in_last[domain], self.store.seq_len)
        return self._assemble(tokens, real)

    def validation(self, domain: str, n: int, sequences: int | None = None) -> Iterator[Batch]:
        """Validation batches of `domain`, in the mixture or not, in the store's order: the same for every run and seed.

        Each has `n` sequences; the last is filled up with sequences of weight 0. Ends after `sequences` if given.
        """
        array = self.store.array(domain, "validation")
        count = len(array) if sequences is None else min(sequences, len(array))
        in_last = self.store.targets_in_last_row(domain, "validation")
        for start in range(0, count, n):
            tokens = np.full((n, self.store.seq_len + 1), self.store.separator, np.int32)
            real = np.zeros(n, np.int64)
            stop = min(start + n, count)
            tokens[: stop - start] = array[start:stop]
            real[: stop - start] = self.store.seq_len
            if stop == len(array):
                real[stop - start - 1] = in_last
            yield self._assemble(tokens, real)

    def _assemble(self, tokens: np.ndarray, real: np.ndarray) -> Batch:
        """Batch from tokens [n, S + 1], of which the first `real` [n] targets of each row count."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        weights = (np.arange(self.store.seq_len) < real[:, None]).astype(np.float32)
        batch = {"inputs": np.ascontiguousarray(inputs), "targets": np.ascontiguousarray(targets), "weights": weights}
        if self.mask_documents:
            batch["segment_ids"] = segment_ids(inputs, self.store.separator) * (weights > 0)
        return batch
