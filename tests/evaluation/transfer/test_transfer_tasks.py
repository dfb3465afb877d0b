"""Examples of tasks: their classes are right, models can read them, and a seed draws them again."""

import dataclasses
import re

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.transfer import digits, listops
from chinchilla_jax.evaluation.transfer.tasks import TASKS, make_rows, pieces_of

REDUCED = {
    "MAX": max,
    "MIN": min,
    "SM": lambda *values: sum(values) % 10,
    "MED": lambda *values: int(np.median(values)),
}


def reduced(text):
    """The value of a list as text: innermost lists are replaced by their value until a digit is left."""
    while "[" in text:
        text = re.sub(r"\[(\w+) ([0-9 ]+)\]", lambda match: str(REDUCED[match[1]](*map(int, match[2].split()))), text)
    return int(text)


def test_lists_are_worth_what_another_evaluator_says():
    drawn = listops.draw(np.random.default_rng(0), 2000)
    texts = [" ".join(listops.SYMBOLS[symbol] for symbol in symbols) for symbols, _ in drawn]
    assert [label for _, label in drawn] == [reduced(text) for text in texts]
    assert all(text.count("[") > 1 and len(text.split()) <= listops.LONGEST for text in texts)
    assert all(sum(operation in text for text in texts) > 500 for operation in listops.OPERATIONS)
    shares = np.bincount([label for _, label in drawn]) / 2000
    assert len(shares) == 10 and 0.05 < shares.min() and shares.max() < 0.2


@pytest.mark.parametrize(
    ("text", "value"), [("[MED 1 4 ]", 2), ("[MED 9 1 5 ]", 5), ("[SM 9 [MAX 2 8 ] [MIN 7 3 ] ]", 0)]
)
def test_lists_worked_by_hand(text, value):
    assert listops.value([listops.SYMBOLS.index(symbol) for symbol in text.split()]) == value


def test_pictures_look_like_their_digit_and_not_all_alike():
    drawn = digits.draw(np.random.default_rng(0), 1200)
    symbols, labels = np.array([symbols for symbols, _ in drawn]), np.array([label for _, label in drawn])
    rows = symbols.reshape(1200, digits.SIDE, digits.SIDE + 1)
    assert (rows[:, :, -1] == len(digits.SYMBOLS) - 1).all() and set(np.unique(rows[:, :, :-1])) == {0, 1, 2, 3}
    assert np.bincount(labels, minlength=10).min() > 60
    known, asked = symbols[:1000].astype(float), symbols[1000:].astype(float)
    nearest = ((asked[:, None] - known) ** 2).sum(-1).argmin(1)
    assert (labels[nearest] == labels[1000:]).mean() > 0.85
    assert len(np.unique(symbols, axis=0)) == 1200


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_the_symbols_after_the_token_that_begins_a_text(model, name):
    task, count = TASKS[name], 100
    rows, identities = make_rows(task, model, count, 7)
    width = rows.tokens.shape[1]
    assert rows.lengths.max() <= width <= model.config.data.seq_len and width - rows.lengths.max() < 16
    for tokens, length in zip(rows.tokens[:10], rows.lengths, strict=False):
        assert tokens[0] == model.begin and not tokens[length:].any()
        text = model.tokenizer.decode(tokens[1:length].tolist())
        assert re.fullmatch("(" + "|".join(map(re.escape, task.symbols)) + ")+", text)
    again, _ = make_rows(task, model, count, 7)
    other, _ = make_rows(task, model, count, 8)
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    assert not np.array_equal(rows.labels, other.labels)
    apart, found = make_rows(task, model, count, 7, without=identities)
    assert not found & identities and len(apart.labels) == count


def test_rows_go_on_with_the_first_after_the_last_and_get_as_wide_as_others(model):
    rows, _ = make_rows(TASKS["listops"], model, 5, 0)
    assert rows.slice(3, 7).labels.tolist() == rows.labels[[3, 4, 0, 1]].tolist()
    wide = rows.of_width(80)
    assert wide.tokens.shape == (5, 80) and not wide.tokens[:, rows.tokens.shape[1] :].any()
    assert wide.of_width(10).tokens.shape == (5, 80)


def test_a_model_that_cannot_read_a_task_is_refused(model):
    short = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, seq_len=64))
    with pytest.raises(ConfigError, match="seq_len: rows of 64 tokens.* too short for most examples of digits"):
        make_rows(TASKS["digits"], dataclasses.replace(model, config=short), 10, 0)
    with pytest.raises(ConfigError, match="has none; name one with --tokenizer"):
        make_rows(TASKS["digits"], dataclasses.replace(model, tokenizer=None), 10, 0)

    class Coarse:
        encode_all = staticmethod(lambda texts: [[2] if text in "+#" else [3, ord(text[-1])] for text in texts])

    with pytest.raises(ConfigError, match="tokenizer: writes '#' and '.' alike, so it cannot say digits"):
        pieces_of(TASKS["digits"]._replace(symbols=(".", "+", "#")), dataclasses.replace(model, tokenizer=Coarse()))
