"""Scores are those of logits in float64, whichever way rows are put together, and of what mesh."""

import functools

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.evaluation.harness import scorer as module
from chinchilla_jax.evaluation.harness.pairs import Pair, encode_pairs, within
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.generation.text import continue_texts
from chinchilla_jax.training.step import model_of

PARTS = ["The King", " of France is", " wise", " not at all of that opinion", "\n\nHAMLET.", " To be, or", " a", "b"]


def reference(model, pair, length):
    """The sum of log-likelihoods and whether all tokens are the likeliest, a window at a time."""
    total, greedy = 0.0, True
    for part in within(pair, length):
        log_p = log_softmax(model, part.context + part.continuation)
        for place, token in enumerate(part.continuation, len(part.context) - 1):
            total += log_p[place, token]
            greedy &= bool(log_p[place].argmax() == token)
    return total, greedy


@functools.cache
def _apply(config):
    return jax.jit(model_of(config).apply)


def log_softmax(model, tokens):
    """Float64, of each place of a row; what comes after it is never seen."""
    ids = np.zeros((1, 64), np.int32)
    ids[0, : len(tokens)] = tokens[:64]
    logits = np.asarray(_apply(model.config)({"params": model.params}, ids)[0][0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pairs_of(rng, contexts):
    """Options of each context: one or many, one token long or long, and some that the model would write."""
    made = []
    for size, options, longest in contexts:
        context = tuple(map(int, rng.integers(4, 512, size)))
        for _ in range(options):
            made.append(Pair(context, tuple(map(int, rng.integers(4, 512, rng.integers(1, longest + 1))))))
    return made


SIZES = ((1, 5, 3), (20, 2, 1), (33, 3, 9), (40, 20, 2), (60, 2, 5), (5, 2, 30), (70, 3, 4), (50, 1, 80))
MESHES = [
    ("rope", None),
    ("relative", None),
    ("relative", MeshConfig(fsdp=2, context=2, tensor=2)),
    *(pytest.param(kind, None, marks=pytest.mark.long) for kind in ("learned", "xpos")),
]


@pytest.mark.parametrize(("position", "mesh"), MESHES, ids=str)
def test_scores_are_those_of_logits_in_float64(talking, position, mesh, monkeypatch):
    monkeypatch.setattr(module, "_MOST_OPTIONS", 8)
    model = talking(position, mesh)
    scorer = Scorer(model, batch_tokens=256)
    pairs = pairs_of(np.random.default_rng(0), SIZES)
    on_one = talking(position)
    likeliest = int(log_softmax(on_one, pairs[7].context)[len(pairs[7].context) - 1].argmax())
    pairs.append(Pair(pairs[7].context, (likeliest,)))
    scores = scorer.scores(pairs)
    expected = [reference(on_one, pair, scorer.length) for pair in pairs]
    np.testing.assert_allclose([score.log_likelihood for score in scores], [total for total, _ in expected], atol=2e-4)
    assert [score.greedy for score in scores] == [greedy for _, greedy in expected] and scores[-1].greedy


def test_shared_contexts_give_what_whole_rows_give_and_compile_once_for_a_bucket(talking):
    model = talking()
    rng = np.random.default_rng(1)
    shared, apart = Scorer(model), Scorer(model, share=False)

    def compare(sizes):
        """Scores both ways; returns how many programs there are after it."""
        pairs = pairs_of(rng, sizes)
        found, expected = (np.array([score.log_likelihood for score in s.scores(pairs)]) for s in (shared, apart))
        np.testing.assert_allclose(found, expected, atol=2e-4)
        return shared._programs.more._cache_size(), shared._programs.rows._cache_size()

    # The second lot has other lengths of the same buckets.
    assert compare(((33, 4, 8),) * 5) == compare(((40, 3, 6), (50, 3, 7), (55, 4, 5), (34, 4, 5), (35, 3, 4)))


def test_pairs_are_cut_where_the_harness_cuts_them(talking):
    model = talking()
    encode = model.tokenizer.encode
    texts = [("The King", " of France"), ("The King ", "of France"), ("", "The King"), ("  ", "King"), ("To b", "e")]
    pairs = encode_pairs(model, texts)
    assert all(pair.context[0] == model.begin and pair.continuation for pair in pairs)
    assert pairs[0] == pairs[1] == Pair((model.begin, *encode("The King")), tuple(encode(" of France")))
    assert pairs[2] == Pair((model.begin,), tuple(encode("The King")))
    assert pairs[3].context == (model.begin,) and model.tokenizer.decode(pairs[3].continuation) == "  King"
    plain = encode_pairs(model, texts, begin=False)
    assert plain[0].context == pairs[0].context[1:] and plain[2] == pairs[2]


def test_windows_cover_every_token_once_and_see_all_that_fits():
    for before in (1, 3, 9):
        for after in (1, 5, 8, 9, 17, 24):
            pair = Pair(tuple(range(before)), tuple(range(before, before + after)))
            parts = list(within(pair, 8))
            assert sum((part.continuation for part in parts), ()) == pair.continuation
            for part in parts:
                read = len(part.context) + len(part.continuation) - 1
                last = part.continuation[-1]
                assert read == min(8, last) and part.context and part.context[-1] == part.continuation[0] - 1


def test_texts_are_written_as_the_verb_generate_writes_them(talking):
    model = talking(seq_len=64)
    prompts = ["The King of", "To be, or not to", "a"]
    expected = continue_texts(model, prompts, new_tokens=12)
    assert Scorer(model).write(prompts, 12) == expected
    cut = expected[0][4:6]
    assert Scorer(model).write(prompts[:1], 12, stop=[cut]) == [expected[0][: expected[0].index(cut)]]
    long = "The King of France and all of his men. " * 20
    assert Scorer(model).write([long], 12)[0]
    with pytest.raises(ConfigError, match="new_tokens"):
        Scorer(model).write(["a"], 64)
