"""What is compiled of the settings that may fit, in which order, follows from what fits."""

from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.preflight.choose import Tried, fastest, try_in_order
from chinchilla_jax.preflight.search import Estimate, with_setting


def tried(estimate, seconds):
    return Tried(estimate, seconds is not None, 1.0, seconds, "")


def candidate(memory, seconds=1.0, remat="none", microbatches=1):
    return Estimate(with_setting(RunConfig(), MeshConfig(), microbatches, remat), memory, seconds)


def test_compiling_stops_when_enough_fit_and_the_fastest_wins():
    order = [candidate(1, 1.0, "none"), candidate(1, 2.0, "dots"), candidate(1, 3.0, "full")]
    seconds = {"none": 5.0, "dots": 4.0, "full": 1.0}
    found = try_in_order(order, 2, lambda one: tried(one, seconds[one.config.train.remat]))
    assert [t.estimate.config.train.remat for t in found] == ["none", "dots"]
    assert fastest(found).estimate.config.train.remat == "dots"


def test_what_needs_as_much_as_a_setting_that_did_not_fit_is_not_compiled():
    order = [candidate(10), candidate(12, remat="dots"), candidate(5, remat="full")]
    asked = []

    def compile_one(one):
        asked.append(one.config.train.remat)
        return tried(one, 1.0 if one.config.train.remat == "full" else None)

    found = try_in_order(order, 3, compile_one)
    assert asked == ["none", "full"] and [t.seconds for t in found] == [None, 1.0]
    assert fastest(found) is found[1] and fastest(found[:1]) is None


def test_more_microbatches_are_not_compiled_where_fewer_fit():
    order = [candidate(4, microbatches=2), candidate(3, microbatches=4), candidate(3, remat="full")]
    found = try_in_order(order, 3, lambda one: tried(one, 1.0))
    settings = [t.estimate.config.train for t in found]
    assert [(train.remat, train.microbatches) for train in settings] == [("none", 2), ("full", 1)]
