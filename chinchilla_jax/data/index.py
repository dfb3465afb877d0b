"""Which row of which domain the i-th training sequence is: pure arithmetic, no state, constant time per sequence.

Domains repeat in a fixed pattern of 65536 sequences that holds the mixture exactly and spreads each domain evenly, so
any stretch of training is close to the mixture too. Within a domain, sequence n of it is row `permutation(n mod rows)`
of epoch `n div rows`, with a new permutation every epoch. The permutation is a Feistel network, so a store of a
billion rows needs no more memory than one of ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PERIOD = 1 << 16
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S33 = (np.uint64(n) for n in (30, 27, 31, 33))


class MixtureIndex:
    """The order in which the rows of several domains are visited; a function of (weights, rows, seed) alone."""

    def __init__(self, weights: Sequence[float], rows_per_domain: Sequence[int], seed: int):
        """Lays out the pattern.

        Args:
          weights: share of sequences per domain; positive, of any sum. Rounded to multiples of 1/65536.
          rows_per_domain: number of rows of each, at least 1 and below 2**62.
          seed: another seed gives another order with the same proportions.
        """
        if len(weights) != len(rows_per_domain) or not len(weights):
            raise ValueError(f"needs one weight per domain, got {len(weights)} for {len(rows_per_domain)} domains")
        if min(weights) <= 0 or min(rows_per_domain) < 1:
            raise ValueError(f"weights and rows must be positive, got {list(weights)} and {list(rows_per_domain)}")
        self.counts = _apportion(np.asarray(weights, np.float64))
        self._seed = np.uint64((seed + int(_GOLDEN)) % 2**64)
        rng = np.random.Generator(np.random.Philox(key=seed))
        # A domain's k-th turn falls at a random point of the k-th of its equal shares of the period.
        when = np.concatenate([(np.arange(c) + rng.random(c)) / c for c in self.counts])
        which = np.repeat(np.arange(len(self.counts)), self.counts)
        self._pattern = which[np.argsort(when, kind="stable")]
        self._rank = np.empty(PERIOD, np.int64)
        for domain, count in enumerate(self.counts):
            self._rank[self._pattern == domain] = np.arange(count)
        self._rows = np.asarray(rows_per_domain, np.int64)
        self._left = np.asarray([math.isqrt(int(n) - 1) + 1 for n in rows_per_domain], np.uint64)
        self._right = np.asarray([-(-int(n) // int(a)) for n, a in zip(self._rows, self._left, strict=True)]).astype(
            np.uint64
        )

    def locate(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Domain, row and epoch (from 0) of sequences `i`; int64, the shape of `i`, as is each result."""
        i = np.asarray(i, np.int64)
        period, slot = np.divmod(i, PERIOD)
        domain = self._pattern[slot]
        epoch, offset = np.divmod(period * self.counts[domain] + self._rank[slot], self._rows[domain])
        return domain, self._permute(domain, epoch, offset), epoch

    def _permute(self, domain: np.ndarray, epoch: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """A bijection of 0..rows-1 for each (seed, domain, epoch).

        The Feistel network permutes left * right >= rows values; those that land beyond `rows` go through again until
        they do not, which keeps it a bijection. As left * right - rows < left, hardly any do.
        """
        key = _mix(_mix(_mix(self._seed) + domain.astype(np.uint64)) + epoch.astype(np.uint64))
        left, right, rows = self._left[domain], self._right[domain], self._rows[domain]
        value = _feistel(offset.astype(np.uint64), left, right, key).astype(np.int64)
        while (outside := value >= rows).any():
            again = _feistel(value[outside].astype(np.uint64), left[outside], right[outside], key[outside])
            value[outside] = again.astype(np.int64)
        return value


def _apportion(weights: np.ndarray) -> np.ndarray:
    """int64 counts that sum to the period: largest remainders, but at least one turn each."""
    exact = weights / weights.sum() * PERIOD
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := PERIOD - counts.sum()) > 0:
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    while counts.sum() > PERIOD:
        counts[np.argmax(counts)] -= 1
    return counts


def _feistel(value: np.ndarray, left: np.ndarray, right: np.ndarray, key: np.ndarray) -> np.ndarray:
    a, b = value // right, value % right
    for step in range(0, _ROUNDS, 2):
        a = (a + _mix(key + np.uint64(step) + (b << _S33)) % left) % left
        b = (b + _mix(key + np.uint64(step + 1) + (a << _S33)) % right) % right
    return a * right + b


def _mix(x: np.ndarray) -> np.ndarray:
    """64 bits in, 64 well-stirred bits out (the finaliser of SplitMix64); wraps round."""
    with np.errstate(over="ignore"):
        x = x * _GOLDEN + _GOLDEN
        x = (x ^ (x >> _S30)) * _MIX_1
        x = (x ^ (x >> _S27)) * _MIX_2
        return x ^ (x >> _S31)
