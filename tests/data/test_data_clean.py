"""What is held out is not in training, and no document comes twice."""

import random
import re

import pytest

from chinchilla_jax.data import DataError, clean, grams
from chinchilla_jax.data.sources import registry


def quiet(_):
    """An `echo` that says nothing."""


def _words(seed, count=400):
    return " ".join(random.Random(seed).choices([f"word{n}" for n in range(3000)], k=count))


def _clean(tmp_path, documents, fraction):
    source = registry.Source("test", lambda: iter(registry.Document(*d) for d in documents), {})
    result = clean.clean(source, fraction, tmp_path / "cleaned", quiet)
    return result, lambda domain, split: set(clean.read_cleaned(tmp_path / "cleaned", domain, split))


def test_exact_duplicates_vanish_across_domains_and_splits_are_disjoint(tmp_path):
    texts = [_words(n) for n in range(100)]
    result, read = _clean(tmp_path, [("a", t) for t in texts] + [("b", t) for t in texts[:50]]
                          + [("b", _words(1000 + n)) for n in range(20)], 0.2)  # fmt: skip
    assert result["duplicates"] == 50
    parts = [read(domain, split) for domain in "ab" for split in ("train", "validation")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 120
    assert 5 < len(read("a", "validation")) < 40


def test_more_text_moves_no_document_to_the_other_side(tmp_path):
    few = [("a", _words(n)) for n in range(60)]
    _, read = _clean(tmp_path / "few", few, 0.3)
    _, read_more = _clean(tmp_path / "more", few + [("a", _words(n)) for n in range(60, 120)], 0.3)
    # The lowest hash is held out in any case; with this fraction it would have been anyway.
    assert read("a", "validation") <= read_more("a", "validation")
    assert read("a", "train") <= read_more("a", "train")


def test_held_out_text_that_training_repeats_is_dropped(tmp_path):
    originals = [_words(n) for n in range(200)]
    # The same words with another case, punctuation and ending, in another domain: no exact duplicate of anything.
    copies = [text.upper().replace(" ", ", ", 50) + " a new ending" for text in originals]
    result, read = _clean(tmp_path, [("a", t) for t in originals] + [("b", t) for t in copies], 0.2)
    assert result["duplicates"] == 0 and result["repeated_in_training"] > 20
    stems = {domain + split: {t.lower().replace(",", "")[:200] for t in read(domain, split)}
             for domain in "ab" for split in ("train", "validation")}  # fmt: skip
    trained, held_out = stems["atrain"] | stems["btrain"], stems["avalidation"] | stems["bvalidation"]
    assert held_out and not trained & held_out


def test_sharing_less_than_half_is_no_repetition(tmp_path):
    common = _words(0, 150)
    result, _ = _clean(tmp_path, [("a", f"{common} {_words(n, 400)}") for n in range(1, 80)], 0.3)
    assert result["repeated_in_training"] == 0


def test_every_domain_has_something_held_out(tmp_path):
    result, _ = _clean(tmp_path, [("a", _words(1)), ("a", _words(2)), ("b", _words(3)), ("b", _words(4))], 1e-9)
    assert all(counts["validation"]["documents"] == 1 for counts in result["domains"].values())


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "no text in it"), ([("a", "  \n")], "no text in it"), ([("a", "one")], "at least two different documents"),
     ([("a", "one two"), ("a", "one two")], "at least two different documents"),
     ([("a", "The same."), ("a", "the same")], "every held-out document repeats training text")],
)  # fmt: skip
def test_corpora_too_small_to_use_are_explained(tmp_path, documents, message):
    with pytest.raises(DataError, match=message):
        _clean(tmp_path, documents, 0.1)


def test_words_have_the_same_hash_in_any_text_and_grams_count_their_words():
    """By the definition: lower case, words as `\\w+` finds them, also beside letters that are not ASCII."""
    texts = ["Hello, world! hello_World 12", "na\u00efve HELLO \u00c9t\u00e9 world", "...", "x", "\u4e16\u754c hello"]
    known = {}
    for text in texts:
        words = re.findall(r"\w+", text.lower()) or [text]
        hashes = grams._word_hashes(text).tolist()
        assert len(hashes) == len(words)
        assert all(known.setdefault(word, number) == number for word, number in zip(words, hashes, strict=True))
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("words", [1, 2, 5, 12, 13, 14, 40])
def test_a_gram_is_a_polynomial_of_its_words(words):
    text = " ".join(f"word{n * n}" for n in range(words))
    hashes = [int(number) for number in grams._word_hashes(text)]
    size = min(words, grams.GRAM_WORDS)
    expected = [
        sum(h * grams._MULTIPLIER ** (size - 1 - k) for k, h in enumerate(hashes[i : i + size])) % 2**64
        for i in range(words - size + 1)
    ]
    assert grams.grams(text).tolist() == expected
