"""Text by the difference of two models: each of them alone at the ends, equation 3 of the paper between."""

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.score import make_nats
from chinchilla_jax.evaluation.trajectories.contrast import contrast, contrast_tokens, mixed_log_p
from chinchilla_jax.generation.decode import generate
from chinchilla_jax.generation.sampling import GREEDY, Sampling
from chinchilla_jax.interop.trained import open_model

PROMPTS = [[5, 300, 17, 40], [9, 8]]


@pytest.fixture(scope="module")
def models(kept_runs):
    return [open_model(folder) for folder in kept_runs]


def tokens_of(models, factors, sampling, count=12):
    return np.stack([t for t, _ in contrast_tokens(*models, PROMPTS, count, factors, sampling, seed=3)], axis=1)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, top_p=0.9)], ids=["greedy", "drawn"])
def test_one_factor_of_nothing_leaves_the_other_model_alone(models, sampling):
    for factors, model in (((1.0, 0.0), models[0]), ((0.0, 1.0), models[1])):
        alone = np.stack(list(generate(model, PROMPTS, 12, sampling, seed=3)), axis=1)
        np.testing.assert_array_equal(tokens_of(models, factors, sampling), alone)
    assert (tokens_of(models, (1.0, -1.0), sampling) != tokens_of(models, (-1.0, 1.0), sampling)).any()


def test_probabilities_are_those_of_the_paper():
    logits = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)
    p_s, p_l = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    for one, other in ((1.0, -1.0), (-1.0, 1.0), (0.5, 0.5), (1.0, -0.3)):
        mixed = np.where(one * p_s + other * p_l > 0, one * p_s + other * p_l, 0.0)
        found = np.exp(np.asarray(mixed_log_p(logits[0], logits[1], (one, other))))
        np.testing.assert_allclose(found, mixed / mixed.sum(-1, keepdims=True), atol=1e-6)
    same = np.exp(np.asarray(mixed_log_p(logits[1], logits[1], (1.0, -1.0))))
    np.testing.assert_allclose(same, p_l, rtol=1e-5)


def test_losses_are_those_of_the_whole_text(models):
    steps = list(contrast_tokens(*models, PROMPTS[:1], 10, (1.0, -1.0)))
    text = np.array([*PROMPTS[0], *(int(tokens[0]) for tokens, _ in steps)], np.int32)
    row = np.resize(text, 33)
    batch = {"inputs": row[None, None, :-1], "targets": row[None, None, 1:]}
    for number, model in enumerate(models):
        nats = np.asarray(make_nats(model.config, model.mesh)(model.params, batch))[0, 0]
        expected = nats[len(PROMPTS[0]) - 1 : len(text) - 1]
        np.testing.assert_allclose([nats_2xB[number, 0] for _, nats_2xB in steps], expected, atol=2e-4)
    small, large = (np.mean([nats_2xB[i, 0] for _, nats_2xB in steps]) for i in (0, 1))
    assert small < large, "the small model likes better what it is drawn for"


def test_texts_and_models_of_other_tokens(models, kept_runs, capsys):
    found = contrast(*models, ["The", "A"], new_tokens=6)
    assert len(found) == 2 and all(text.nats[0] > 0 for text in found)
    assert cli.main(["trajectories", "contrast", *map(str, kept_runs), "The", "--new_tokens=6"]) == 0
    assert f"The{found[0].text}" in capsys.readouterr().out

    class Other:
        source, need_tokenizer = "there", lambda self: self
        fingerprint = staticmethod(lambda: "other")

    with pytest.raises(ConfigError, match=r"^tokenizer: .* and there have different ones"):
        contrast(models[0], Other(), ["The"], new_tokens=6)
