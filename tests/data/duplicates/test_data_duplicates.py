"""Near duplicates share a key as often as MinHash says, and of those that share one the first is kept."""

import numpy as np
import pytest

from chinchilla_jax.data.duplicates import band_keys, later_copies, minhash
from chinchilla_jax.data.sharded.spill import KEYS


def _words(rng, count):
    return [f"word{n}" for n in rng.integers(0, 5000, count)]


def _pair(rng, same):
    """Two texts of 400 words whose first ones are the same."""
    words = _words(rng, 400)
    return " ".join(words), " ".join(words[:same] + _words(rng, 400 - same))


@pytest.mark.parametrize(("same", "least", "most"), [(395, 0.97, 1), (360, 0.5, 0.95), (250, 0, 0.1), (0, 0, 0)])
def test_how_often_two_texts_share_a_key_follows_from_their_jaccard_index(same, least, most):
    rng = np.random.default_rng(same)
    grams = max(same - 12, 0)
    jaccard = grams / (2 * 388 - grams)
    expected = 1 - (1 - jaccard**minhash.ROWS) ** minhash.BANDS
    assert least <= expected <= most  # the case is what it is meant to be
    pairs = [_pair(rng, same) for _ in range(100)]
    share = np.mean([bool(set(band_keys(a).tolist()) & set(band_keys(b).tolist())) for a, b in pairs])
    assert abs(share - expected) <= 4 * np.sqrt(max(expected * (1 - expected), 1e-4) / 100)


def test_case_and_punctuation_do_not_count_and_short_texts_have_keys():
    text = " ".join(_words(np.random.default_rng(0), 300))
    assert band_keys(text).tolist() == band_keys(text.upper().replace(" ", ", ")).tolist()
    for short in ("one", "\u4e16\u754c", "..."):
        assert len(set(band_keys(short).tolist())) == minhash.BANDS
    assert not set(band_keys("one").tolist()) & set(band_keys("two").tolist())


def test_the_parts_that_a_text_is_hashed_in_do_not_count(monkeypatch):
    text = " ".join(_words(np.random.default_rng(1), 300))
    whole = band_keys(text).tolist()
    monkeypatch.setattr(minhash, "_AT_ONCE", 7)
    assert band_keys(text).tolist() == whole


def test_later_copies_are_those_that_share_a_key_with_an_earlier_document_in_any_order_and_any_buckets():
    rng = np.random.default_rng(0)
    keys = np.array([(high, low, n) for n in range(300) for high, low in rng.integers(0, 12, (3, 2))], KEYS)
    first = {}
    for high, low, number in keys.tolist():
        first.setdefault((high, low), number)
    expected = sorted({number for high, low, number in keys.tolist() if first[high, low] < number})
    assert later_copies(rng.permutation(keys)).tolist() == expected
    buckets = [later_copies(keys[keys["high"] % 4 == bucket]) for bucket in range(4)]
    assert np.unique(np.concatenate(buckets)).tolist() == expected
    assert len(later_copies(keys[:0])) == 0
