"""Sizes that are alike at equal loss, FLOPs or tokens: which of them it is comes out."""

import numpy as np
import pytest

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.trajectories import series
from chinchilla_jax.evaluation.trajectories.match import AXES, match, matches, rows
from chinchilla_jax.evaluation.trajectories.series import Series, Trajectories

SLOPES = np.random.default_rng(0).uniform(0.2, 2.0, 300)


def pair(alike):
    """A small and a large run whose tokens' losses depend on nothing but the axis `alike`, each in its own way."""
    k = np.arange(20)
    axes = {  # steps of the logarithm by which the large run is ahead of the small one: -4, 2 and 5
        "small": {"loss": 5.0 - 0.1 * k, "flops": 1e9 * 1.2**k, "tokens": 1e5 * 1.2**k},
        "large": {"loss": 5.0 - 0.1 * (k - 4), "flops": 1e9 * 1.2 ** (k + 2), "tokens": 1e5 * 1.2 ** (k + 5)},
    }
    runs = []
    for params, (name, values) in enumerate(axes.items(), start=1):
        position = {"loss": (5.0 - values["loss"]) / 0.1}.get(alike, np.log(values[alike]) / np.log(1.2))
        nats = (4.0 + SLOPES - 0.01 * np.outer(position, SLOPES)).astype(np.float32)
        runs.append(Series(name, params, k, values["tokens"], values["flops"], values["loss"], nats))
    return runs


@pytest.mark.parametrize("alike", AXES)
def test_runs_are_alike_where_it_was_planted_and_as_far_apart_as_the_shift_elsewhere(alike):
    small, large = pair(alike)
    found = match(small, large)
    shift = {"loss": -4, "flops": 2, "tokens": 5}
    # By loss checkpoint 4 of the large run is 0 of the small one, by tokens 14 is 19: from 4 to 14 there are all three.
    assert list(found.at) == list(range(4, 15))
    for axis in AXES:
        expected = 0.01 * abs(shift[axis] - shift[alike]) * SLOPES.mean()
        np.testing.assert_allclose(found.distance[axis], expected, atol=1e-6)
        np.testing.assert_allclose(found.correlation[axis], 1.0, atol=1e-3)


def test_a_loss_that_rises_again_is_matched_where_it_was_first():
    small, large = pair("flops")
    loss = np.array([*small.loss[:10], *small.loss[5:15]])
    found = match(_with(small, loss=loss), large)
    there = large.loss[found.at]
    first = [int(np.flatnonzero(np.isclose(loss, value))[0]) for value in there]
    expected = [np.abs(small.nats[i] - large.nats[j]).mean() for i, j in zip(first, found.at, strict=True)]
    np.testing.assert_allclose(found.distance["loss"], expected, rtol=1e-6)


def _with(run, **changes):
    return Series(**{**vars(run), **changes})


def test_runs_that_have_nothing_in_common_are_told():
    small, large = pair("loss")
    with pytest.raises(UsageError, match="large has no checkpoint whose loss, FLOPs and tokens small had too"):
        match(small, _with(large, flops=1e6 * large.flops))
    both = Trajectories(np.zeros(300, np.int32), np.full(300, 1 / 300), (small, _with(large, params=small.params)))
    with pytest.raises(UsageError, match="runs of two sizes"):
        matches(both)


def test_a_file_gives_back_what_was_saved_and_another_is_refused(tmp_path):
    both = Trajectories(np.arange(300, dtype=np.int32), np.full(300, 1 / 300), tuple(pair("tokens")))
    series.save(tmp_path / "t.npz", both)
    again = series.load(tmp_path / "t.npz")
    assert rows(matches(again)) == rows(matches(both)) and [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    np.testing.assert_array_equal(again.targets, both.targets)
    for content in (b"", b"PK\x03\x04", (tmp_path / "t.npz").read_bytes()[:-200]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad.npz: holds no trajectories .* `trajectories collect`") as error:
            series.load(tmp_path / "bad.npz")
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UsageError, match="other.npz: holds no trajectories"):
        series.load(tmp_path / "other.npz")
