"""What share of training each domain gets, and which row of which domain each training sequence is.

The order is pure arithmetic, without state, in constant time per sequence. Domains repeat in a fixed pattern of 65536
sequences that holds the mixture exactly and spreads each domain evenly, so any stretch of training is close to the
mixture too. Within a domain, sequence n of it is row `permutation(n mod rows)` of epoch `n div rows`, with a new
permutation every epoch. The permutation is a Feistel network, so a store of a billion rows needs no more memory than
one of ten.
"""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError

_TABLES = pathlib.Path(__file__).parent / "mixtures"
PRESETS = {"massivetext-chinchilla": "massivetext", "massivetext-gopher": "massivetext", "llama": "llama"}

PERIOD = 1 << 16
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S33 = (np.uint64(n) for n in (30, 27, 31, 33))


def preset_table(preset: str) -> list[dict[str, str]]:
    """The published rows behind `preset`, as text: domain, unique_tokens, a proportion per preset, printed_epochs."""
    if preset not in PRESETS:
        raise ConfigError("data.mixture", f"unknown preset {preset!r}; one of {', '.join(PRESETS)}")
    lines = files.read_text(_TABLES / f"{PRESETS[preset]}.csv").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def preset_weights(preset: str) -> dict[str, float]:
    """Published sampling proportion per domain; they sum to 1."""
    return {row["domain"]: float(row[preset]) for row in preset_table(preset)}


def preset_epochs(preset: str, tokens: float) -> dict[str, float]:
    """Epochs over each published domain when `tokens` are drawn in the preset's proportions."""
    rows = preset_table(preset)
    total = sum(preset_weights(preset).values())
    return {row["domain"]: tokens * float(row[preset]) / total / float(row["unique_tokens"]) for row in rows}


def resolve_mixture(mixture: str, train_tokens: Mapping[str, int]) -> dict[str, float]:
    """Weights of the domains to draw from, summing to 1. Domains of a preset match those at hand whatever their case.

    Args:
      mixture: `proportional`, `uniform`, a preset, or `domain=weight,domain=weight`; see `DataConfig`.

    Raises:
      ConfigError: not such an expression, or a domain the store does not have; lists both sides.
    """
    if mixture == "proportional":
        weights = {domain: float(tokens) for domain, tokens in train_tokens.items()}
    elif mixture == "uniform":
        weights = dict.fromkeys(train_tokens, 1.0)
    elif mixture in PRESETS:
        present = {domain.lower(): domain for domain in train_tokens}
        published = preset_weights(mixture)
        _check_domains(mixture, published, [d for d in published if d.lower() not in present], train_tokens)
        weights = {present[domain.lower()]: weight for domain, weight in published.items()}
    elif "=" in mixture:
        weights = _parse(mixture)
        _check_domains(mixture, weights, [d for d in weights if d not in train_tokens], train_tokens)
    else:
        known = f"proportional, uniform, {', '.join(PRESETS)}, or domain=weight,domain=weight"
        raise ConfigError("data.mixture", f"unknown mixture {mixture!r}; one of {known}")
    weights = {domain: weight for domain, weight in weights.items() if weight > 0}
    total = sum(weights.values())
    if not total:
        raise ConfigError("data.mixture", f"{mixture!r} gives no domain any weight")
    return {domain: weights[domain] / total for domain in sorted(weights)}


def _check_domains(mixture: str, needed: Iterable[str], absent: list[str], present: Iterable[str]) -> None:
    if absent:
        both = f"needs the domains {', '.join(needed)}; the store has {', '.join(present)}"
        raise ConfigError("data.mixture", f"{mixture!r} {both}; absent: {', '.join(absent)}")


def _parse(mixture: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in mixture.split(","):
        domain, _, value = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not domain or not 0 <= weight < math.inf:
            raise ConfigError("data.mixture", f"{part!r} in {mixture!r} is not domain=weight with a weight >= 0")
        if domain in weights:
            raise ConfigError("data.mixture", f"{mixture!r} lists {domain!r} twice")
        weights[domain] = weight
    return weights


class MixtureIndex:
    """The order in which the rows of several domains are visited; a function of (weights, rows, seed) alone."""

    def __init__(self, weights: Sequence[float], rows_per_domain: Sequence[int], seed: int):
        """`weights` are shares of sequences, positive, of any sum; rounded to multiples of 1/65536. Rows: 1 to 2**62.

        Another seed gives another order with the same proportions.
        """
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
        left = [math.isqrt(n - 1) + 1 for n in rows_per_domain]
        self._left = np.asarray(left, np.uint64)
        self._right = np.asarray([-(-n // a) for n, a in zip(rows_per_domain, left, strict=True)], np.uint64)

    def locate(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Domain, row and epoch (from 0) of sequences `i`; int64, the shape of `i`, as is each result."""
        i = np.asarray(i, np.int64)
        period, slot = np.divmod(i, PERIOD)
        domain = self._pattern[slot]
        epoch, offset = np.divmod(period * self.counts[domain] + self._rank[slot], self._rows[domain])
        return domain, self._permute(domain, epoch, offset), epoch

    def turns(self, domain: int, sequences: int) -> int:
        """How many of the first `sequences` are of this domain."""
        periods, rest = divmod(sequences, PERIOD)
        return periods * int(self.counts[domain]) + int(np.count_nonzero(self._pattern[:rest] == domain))

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
