"""Each mode trains what it says and nothing else, to the bit; the head sees the last token; a seed decides the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.evaluation.transfer.head import class_logits, joined, make_classifier, new_head
from chinchilla_jax.evaluation.transfer.tasks import TASKS, Rows, Task, make_rows
from chinchilla_jax.evaluation.transfer.train import MODES, batch_of, first_weights, fit, rate_at
from chinchilla_jax.training.step import model_of


@pytest.fixture(scope="module")
def rows(model):
    """Sixty-four lists."""
    return make_rows(TASKS["listops"], model, 64, 0)[0]


def after_two_steps(model, mode, rows):
    """(first weights, last weights, frozen ones before, frozen ones after), each by the path of a weight."""
    classifier = make_classifier(model.config, model.mesh)
    weights, frozen = first_weights(model, MODES[mode], 10, seed=0)
    before = jax.tree.map(np.array, (weights, frozen))
    state = classifier.init(weights)
    for step in range(2):
        weights, state, _ = classifier.step(weights, state, frozen, *rows.slice(32 * step, 32 * step + 32), 1e-3)
    return [flatten_dict(jax.tree.map(np.array, tree), sep="/") for tree in (before[0], weights, before[1], frozen)]


@pytest.mark.parametrize(("mode", "scanned"), [*((mode, True) for mode in MODES), ("embeddings", False)])
def test_a_mode_trains_what_it_says_and_the_rest_stays_to_the_bit(make_model, rows, mode, scanned):
    model = make_model(scan_layers=scanned)
    first, last, before, after = after_two_steps(model, mode, rows)
    whole = set(flatten_dict(model.params, sep="/"))
    norms = {path for path in whole if "_norm/" in path}
    assert norms and {"embedding", "position", "output"} < whole
    expected = {
        "scratch": whole - {"output", "output_bias"},
        "full": whole - {"output", "output_bias"},
        "frozen": norms | {"position"},
        "embeddings": norms | {"position", "embedding"},
        "random": norms | {"position", "embedding"},
    }[mode]
    trained = {path.removeprefix("body/") for path in first if path.startswith("body/")}
    assert trained == expected and set(before) == whole - expected
    assert {path for path in first if path.startswith("head/")} == {"head/kernel", "head/bias"}
    assert all(not np.array_equal(first[path], last[path]) for path in first)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_modes_begin_with_the_weights_that_they_say(model):
    own = flatten_dict(model.params, sep="/")

    def differing(mode, seed=0):
        weights, frozen = first_weights(model, MODES[mode], 10, seed)
        body = flatten_dict(joined(weights["body"], frozen), sep="/")
        assert set(body) == set(own)
        return {path for path in own if not np.array_equal(own[path], body[path])}

    drawn = {path for path, x in own.items() if np.ptp(x) > 0}
    assert differing("full") == differing("frozen") == set()
    assert differing("embeddings") == {"embedding"}
    assert differing("scratch") == differing("random") == drawn


@pytest.mark.parametrize("position", ["learned", "rope", "relative"])
def test_the_head_sees_the_last_token_after_the_final_norm_and_no_padding(make_model, rows, position):
    model = make_model(position=position)
    config, head = model.config, new_head(model.config, 10, jax.random.key(1))
    logits = functools.partial(class_logits, config, model.params, head)
    got = logits(jnp.asarray(rows.tokens[:4]), jnp.asarray(rows.lengths[:4]))
    for row in (0, 3):
        alone = jnp.asarray(rows.tokens[row : row + 1, : rows.lengths[row]])
        x_BxSxD, *_ = model_of(config).apply({"params": model.params}, alone, None, lambda x, *_: x)
        np.testing.assert_allclose(got[row], x_BxSxD[0, -1] @ head["kernel"] + head["bias"], atol=1e-5)
    padded = np.where(np.arange(rows.tokens.shape[1]) < rows.lengths[:4, None], rows.tokens[:4], 77)
    np.testing.assert_allclose(got, logits(jnp.asarray(padded), jnp.asarray(rows.lengths[:4])), atol=1e-5)


def last_symbol(rng, count):
    """A task that any model can do: which of two symbols ends the row?"""
    labels = rng.integers(2, size=count)
    return [([0, 1, int(label)], int(label)) for label in labels]


def test_a_seed_gives_the_same_result_again_and_another_one_another(model, rows):
    held_out = make_rows(TASKS["listops"], model, 64, 1)[0].of_width(rows.tokens.shape[1])
    run = functools.partial(fit, model, MODES["frozen"], 10, rows, held_out, held_out, 3, 1e-3)
    assert run(0) == run(0) and run(0).loss != run(1).loss
    assert run(0).trained == 16 * (2 * model.config.model.n_layers + 1) + 16 * 96  # gains, and positions


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_a_mode_learns_what_is_easy(model, mode):
    task = Task("last", ("a", "b"), 2, last_symbol)
    rows, held_out = (make_rows(task, model, count, key)[0] for key, count in enumerate((640, 100)))
    steps = []
    found = fit(model, MODES[mode], 2, rows, held_out, held_out, 40, 2e-2, 0, lambda: steps.append(1))
    assert found.test == found.validation > 0.95 and found.loss < 0.3 and len(steps) == 40


def test_what_is_beyond_the_last_batch_is_not_counted_twice(model):
    """Held-out rows that do not divide into batches: every one counts once."""
    rows = make_rows(Task("last", ("a", "b"), 2, last_symbol), model, 64, 0)[0]
    wrong = Rows(rows.tokens, rows.lengths, 1 - rows.labels)
    mixed = Rows(*(np.concatenate([a[:40], b[:1]]) for a, b in zip(rows, wrong, strict=True)))
    found = fit(model, MODES["full"], 2, rows, mixed, rows, 40, 2e-2, 0)
    assert found.test == 1.0 and found.validation == 40 / 41


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [rate_at(step, 100, 1.0) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True) and rate_at(0, 1, 1.0) == 1.0


@pytest.mark.long
def test_a_mesh_gives_what_one_device_gives(make_model, rows):
    one, many = make_model(), make_model(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_of(one) == batch_of(many) == 32
    held_out = rows.slice(0, 32)
    losses = [fit(model, MODES["full"], 10, rows, held_out, held_out, 3, 1e-2, 0).loss for model in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
