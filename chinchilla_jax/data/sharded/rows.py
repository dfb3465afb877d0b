"""A stream of tokens in many files, read as the rows of one array."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.data.steps import DataError


class ShardedRows:
    """Row i is tokens i*S .. i*S + S of the files one after another; the last one is filled up with separators.

    A file is mapped when a row of it is first asked for, so opening costs one look at each file.
    """

    def __init__(self, paths: Sequence[pathlib.Path], sizes: Sequence[int], seq_len: int, separator: int):
        """`sizes` are the tokens of each file (.npy, one axis).

        Raises:
          DataError: a file is missing or cut off; names it.
        """
        self._paths, self._sizes = list(paths), list(sizes)
        self._begins = np.cumsum([0, *sizes])
        self._seq_len, self._separator = seq_len, separator
        self._maps: dict[int, np.ndarray] = {}
        # The stream begins with a separator that is in no file; every token of the files is a target.
        self.shape = (-(-int(self._begins[-1]) // seq_len), seq_len + 1)
        for path, size in zip(paths, sizes, strict=True):
            if not files.exists(path) or files.stamp(path)[0] < 2 * size:
                raise self._damaged(path, "missing or cut off")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """int32 [S + 1] or [rows, S + 1]; negative numbers and steps as in numpy."""
        if isinstance(rows, int | np.integer):
            return self._row(range(len(self))[int(rows)])
        numbers = range(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows).tolist()
        return np.array([self[number] for number in numbers], np.int32).reshape(len(numbers), self.shape[1])

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self._row, range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _row(self, number: int) -> np.ndarray:
        row = np.full(self.shape[1], self._separator, np.int32)
        place, filled = number * self._seq_len - 1, 0
        if not number:
            place, filled = -1, 1
        shard = int(np.searchsorted(self._begins, place + filled, side="right")) - 1
        while filled < len(row) and shard < len(self._paths):
            at = place + filled - int(self._begins[shard])
            part = self._shard(shard)[at : at + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1
        return row

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = self._paths[shard]
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise self._damaged(path, f"missing or cut off ({error})") from None
            if array.shape != (self._sizes[shard],):
                raise self._damaged(path, f"has shape {array.shape}, not {self._sizes[shard]} tokens")
            self._maps[shard] = array
        return self._maps[shard]

    @staticmethod
    def _damaged(path: pathlib.Path, what: str) -> DataError:
        return DataError(f"{path}: {what}; delete its folder and prepare the data again")
