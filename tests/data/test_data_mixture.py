"""Mixtures: what the weights are, and the order of rows they lead to."""

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import mixture
from chinchilla_jax.data.mixture import PERIOD, MixtureIndex


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 97, 1000, 4096, 65537])
def test_every_epoch_visits_each_row_once_in_another_order(rows):
    index = MixtureIndex([1.0], [rows], seed=3)
    _, row, epoch = index.locate(np.arange(3 * rows))
    assert np.array_equal(epoch, np.repeat([0, 1, 2], rows))
    orders = row.reshape(3, rows)
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(rows))
    if rows > 16:
        assert not np.array_equal(orders[0], orders[1])
        assert abs(np.corrcoef(orders[0], np.arange(rows))[0, 1]) < 4 / rows**0.5


def test_every_epoch_of_a_mixed_domain_visits_each_row_once():
    index = MixtureIndex([0.7, 0.2, 0.1], [500, 30, 7], seed=1)
    domain, row, epoch = index.locate(np.arange(2 * PERIOD))
    for d, rows in enumerate([500, 30, 7]):
        for e in range(3):
            assert np.array_equal(np.sort(row[(domain == d) & (epoch == e)]), np.arange(rows))


def test_proportions_are_exact_in_each_period_and_close_in_between():
    weights = np.array([0.45, 0.3, 0.1, 0.1, 0.04, 0.01])
    domain, _, _ = MixtureIndex(weights, [1000] * 6, seed=0).locate(np.arange(2 * PERIOD))
    for period in domain.reshape(2, PERIOD):
        assert np.all(np.abs(np.bincount(period) - weights * PERIOD) < 1)
    for stop in (100, 1000, 12345):
        assert np.all(np.abs(np.bincount(domain[:stop], minlength=6) - weights * stop) <= 2)


def test_the_rarest_domain_still_has_a_turn():
    index = MixtureIndex([1e9, 1.0, 1.0], [5, 5, 5], seed=0)
    assert list(index.counts) == [PERIOD - 2, 1, 1]


def test_locating_is_pure_and_pointwise():
    index, again = (MixtureIndex([0.6, 0.4], [101, 57], seed=9) for _ in range(2))
    together = np.stack(index.locate(np.arange(1000)))
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(np.stack(again.locate(shuffled)), together[:, shuffled])
    assert np.array_equal(np.stack([np.concatenate(again.locate([i])) for i in range(50)]).T, together[:, :50])
    other = np.stack(MixtureIndex([0.6, 0.4], [101, 57], seed=10).locate(np.arange(1000)))
    assert not np.array_equal(other, together)


def test_a_billion_rows_need_no_permutation_in_memory():
    rows = 1_000_000_007
    index = MixtureIndex([0.5, 0.5], [rows, 3], seed=0)
    domain, row, _ = index.locate(np.arange(200_000) + 10**12)
    row = row[domain == 0]
    assert row.min() >= 0 and row.max() < rows and len(np.unique(row)) == len(row)
    assert abs(row.mean() / rows - 0.5) < 0.01


TOKENS = {"docs": 300, "prose": 100, "reference": 600}


def test_weights_of_each_form():
    assert mixture.resolve_mixture("proportional", TOKENS) == {"docs": 0.3, "prose": 0.1, "reference": 0.6}
    assert mixture.resolve_mixture("uniform", TOKENS) == dict.fromkeys(TOKENS, 1 / 3)
    assert mixture.resolve_mixture("docs=3, prose=1", TOKENS) == {"docs": 0.75, "prose": 0.25}
    assert mixture.resolve_mixture("docs=0,prose=2", TOKENS) == {"prose": 1.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [("web=1", "absent: web"), ("docs", "unknown mixture 'docs'"), ("docs=x", "'docs=x' in"), ("docs=-1", ">= 0"),
     ("docs=1,docs=2", "twice"), ("docs=0", "any weight"), ("docs=nan", ">= 0"),
     ("llama", "needs the domains CommonCrawl, C4, .*; the store has docs, prose, reference")],
)  # fmt: skip
def test_bad_mixtures_are_explained(spec, message):
    with pytest.raises(ConfigError, match=message):
        mixture.resolve_mixture(spec, TOKENS)


@pytest.mark.parametrize("preset", mixture.PRESETS)
def test_published_proportions_sum_to_one(preset):
    assert sum(mixture.preset_weights(preset).values()) == pytest.approx(1.0, abs=1e-12)


def test_presets_match_the_domains_of_a_store_whatever_their_case():
    tokens = {name.lower(): 10 for name in mixture.preset_weights("massivetext-chinchilla")} | {"extra": 5}
    weights = mixture.resolve_mixture("massivetext-chinchilla", tokens)
    assert weights["massiveweb"] == pytest.approx(0.45) and "extra" not in weights


def test_chinchilla_epochs_are_the_printed_ones():
    # Table A1 at 1.4e12 tokens. Wikipedia is 3.5 by arithmetic and 3.40 in print: its 4e9 tokens are a rounded figure.
    computed = mixture.preset_epochs("massivetext-chinchilla", 1.4e12)
    for row in mixture.preset_table("massivetext-chinchilla"):
        printed = float(row["printed_epochs"])
        assert computed[row["domain"]] == pytest.approx(printed, abs=0.101 if row["domain"] == "Wikipedia" else 0.0051)


def test_gopher_sees_no_domain_twice_but_wikipedia():
    computed = mixture.preset_epochs("massivetext-gopher", 300e9)
    assert {domain for domain, epochs in computed.items() if epochs > 1} == {"Wikipedia"}
    assert computed["Wikipedia"] == pytest.approx(1.5)


def test_llama_repeats_little_but_wikipedia_and_books():
    # Unique tokens follow from the printed epochs, so those come back by construction; the prose says the rest.
    computed = mixture.preset_epochs("llama", 1.4e12)
    assert {domain for domain, epochs in computed.items() if epochs > 1.5} == {"Wikipedia", "Books"}
