"""Tokens are drawn as the settings say: temperature first, then the likeliest k, then the likeliest mass p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.generation.sampling import GREEDY, Sampling, choose, keys_of, likely


def probabilities(row, sampling):
    return np.asarray(jax.nn.softmax(likely(jnp.log(jnp.asarray([row])), sampling)))[0]


@pytest.mark.parametrize(("sampling", "expected"), [
    (Sampling(), [0.5, 0.25, 0.125, 0.125]),
    (Sampling(temperature=0.5), np.array([16, 4, 1, 1]) / 22),
    (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
    (Sampling(top_k=3), [0.5, 0.25, 0.125, 0.125]),  # a tie of the third stays
    (Sampling(top_p=0.5), [1, 0, 0, 0]),  # the mass before the second is not less than p
    (Sampling(top_p=0.51), [2 / 3, 1 / 3, 0, 0]),
    (Sampling(top_p=1e-6), [1, 0, 0, 0]),
    (Sampling(temperature=0.5, top_p=0.75), [0.8, 0.2, 0, 0]),  # temperature first: 16/22 lie before the second
    (Sampling(top_k=2, top_p=0.6), [1, 0, 0, 0]),  # of the two likeliest, the first has two thirds
])  # fmt: skip
def test_what_a_token_is_drawn_by(sampling, expected):
    np.testing.assert_allclose(probabilities([0.5, 0.25, 0.125, 0.125], sampling), expected, atol=1e-6)


def test_draws_have_these_shares_and_greedy_is_the_likeliest():
    row = jnp.log(jnp.asarray([[0.5, 0.25, 0.125, 0.125]]))
    draws = choose(jnp.repeat(row, 4000, axis=0), Sampling(top_k=2), keys_of(0, 4000, 0))
    counts = np.bincount(draws, minlength=4)
    assert counts[2:].sum() == 0 and abs(counts[0] / 4000 - 2 / 3) < 4 * np.sqrt(2 / 9 / 4000)
    assert choose(row, GREEDY, keys_of(0, 1, 0)) == 0


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0)]
)
def test_impossible_settings_are_named(setting, value):
    with pytest.raises(ConfigError, match=setting):
        Sampling(**{setting: value})
