"""Batches as a pure function of the position in training: the same tokens whatever the hosts, workers or restarts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from chinchilla_jax.data.mixture import MixtureIndex, resolve_mixture
from chinchilla_jax.data.store import TokenStore, segment_ids
from chinchilla_jax.data.teacher import Teacher

Batch = dict[str, np.ndarray]


class Batches:
    """The training sequences of a store in the order of a mixture and a seed, and its validation sequences."""

    def __init__(
        self,
        store: TokenStore,
        mixture: str,
        seed: int,
        mask_documents: bool = False,
        teacher: Teacher | None = None,
    ):
        """See `resolve_mixture` for the mixture of the text.

        With `mask_documents` batches carry `segment_ids`. A `teacher` is one more domain, whose rows are propositions;
        batches carry `other_labels` then.
        """
        self.store, self.teacher = store, teacher
        self.mask_documents = mask_documents
        self.weights: Mapping[str, float] = resolve_mixture(mixture, {d: store.tokens(d) for d in store.domains})
        domains = tuple(self.weights)
        shares = list(self.weights.values())
        self._arrays = [store.array(d) for d in domains]
        in_last = [store.targets_in_last_row(d) for d in domains]
        self._propositions = len(domains)  # the number of their domain
        if teacher:
            shares = [(1.0 - teacher.share) * share for share in shares] + [teacher.share]
            self._arrays.append(teacher.array())
            in_last.append(0)  # not read: where the label is differs from row to row
        self.index = MixtureIndex(shares, [len(array) for array in self._arrays], seed)
        self._last = np.asarray([len(array) - 1 for array in self._arrays])
        self._in_last = np.asarray(in_last)

    def batch(self, first_sequence: int, n: int, rows: slice | np.ndarray | None = None) -> Batch:
        """Sequences `first_sequence` .. `first_sequence + n - 1` of training, or this host's `rows` of them.

        Returns:
          inputs, targets: int32 [n, S]; weights: float32 [n, S], 1 for real targets, 0 for the filling at the end of a
          domain; segment_ids: int32 [n, S], of the inputs, if `mask_documents`. Of a proposition only the label has a
          weight, that of the teacher; other_labels: int32 [n, S], the label that it is not, -1 at other targets.
        """
        numbers = np.arange(first_sequence, first_sequence + n)
        domain, row, _ = self.index.locate(numbers if rows is None else numbers[rows])
        tokens = np.empty((len(domain), self.store.seq_len + 1), np.int32)
        for k, array in enumerate(self._arrays):
            (at,) = np.nonzero(domain == k)
            if len(at):
                tokens[at] = array[row[at]]
        real = np.where(row == self._last[domain], self._in_last[domain], self.store.seq_len)
        return self._assemble(tokens, real, np.flatnonzero(domain == self._propositions))

    def propositions(self, sequences: int) -> int:
        """How many of the first `sequences` of training are propositions."""
        return self.index.turns(self._propositions, sequences) if self.teacher else 0

    def validation(self, domain: str, n: int, sequences: int | None = None) -> Iterator[Batch]:
        """Validation batches of `domain`, in the mixture or not, in the store's order: the same for every run and seed.

        Each has `n` sequences; the last is filled up with sequences of weight 0. Ends after `sequences` if given.
        """
        array = self.store.array(domain, "validation")
        in_last = self.store.targets_in_last_row(domain, "validation")
        return self._held_out(array, in_last, n, sequences)

    def validation_of_teacher(self, n: int, sequences: int | None = None) -> Iterator[Batch]:
        """Validation batches of propositions, as `validation` makes them; there must be a teacher."""
        assert self.teacher, "no teacher"
        return self._held_out(self.teacher.array("validation"), None, n, sequences)

    def _held_out(self, array: np.ndarray, in_last: int | None, n: int, sequences: int | None) -> Iterator[Batch]:
        """Batches of rows in their order. `in_last` targets of the last row count; None where rows are propositions."""
        count = len(array) if sequences is None else min(sequences, len(array))
        for start in range(0, count, n):
            tokens = np.full((n, self.store.seq_len + 1), self.store.separator, np.int32)
            real = np.zeros(n, np.int64)
            stop = min(start + n, count)
            tokens[: stop - start] = array[start:stop]
            real[: stop - start] = self.store.seq_len
            if stop == len(array) and in_last is not None:
                real[stop - start - 1] = in_last
            yield self._assemble(tokens, real, np.arange(stop - start if in_last is None else 0))

    def _assemble(self, tokens: np.ndarray, real: np.ndarray, propositions: np.ndarray) -> Batch:
        """Batch from tokens [n, S + 1], of which the first `real` [n] targets of each row count.

        The rows `propositions` are those, and their last real target is the label.
        """
        if self.teacher:
            real[propositions] = self.teacher.targets(tokens[propositions])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        weights = (np.arange(self.store.seq_len) < real[:, None]).astype(np.float32)
        batch = {"inputs": np.ascontiguousarray(inputs), "targets": np.ascontiguousarray(targets), "weights": weights}
        if self.mask_documents:
            batch["segment_ids"] = segment_ids(inputs, self.store.separator) * (weights > 0)
        if self.teacher:
            self.teacher.mark(batch, propositions, real[propositions])
        return batch
