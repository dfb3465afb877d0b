"""The price of a served token: against a reference written out apart from it, in one unit, and monotone."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.base.chips import CHIPS, GIB
from chinchilla_jax.scaling.answers.serving.cost import (
    Served,
    Traffic,
    cheapest,
    cost_of,
    requests,
    scaled_to,
    server_of,
    throughput,
)
from chinchilla_jax.scaling.answers.serving.experts import Mixture
from chinchilla_jax.scaling.read.runs import FitRefused

TRAFFIC = Traffic(500.0, 200.0)
SERVER = server_of("v5e")
SIZES = np.geomspace(1e8, 3e11, 4000)


def per_token(experts, params, chips, batch, traffic=TRAFFIC):
    """Chip-hours of one output token of top-2 experts of bfloat16 on v5e, one request after the other."""
    dense, expert = params * 2 / 3, params / 3
    used = 1 if experts == 1 else 2
    # LLaMA 7B, 13B, 33B and 65B: width, layers, parameters.
    shapes = [(4096, 32, 6738415616), (5120, 40, 13015864320), (6656, 60, 32528943616), (8192, 80, 65285660672)]
    mu = np.prod([width * layers / n ** (2 / 3) for width, layers, n in shapes]) ** 0.25
    width_times_layers = mu * params ** (2 / 3)

    def forward(tokens, cached_tokens):
        read = 2 * dense + 2 * expert * experts * (1 - (1 - used / experts) ** tokens)
        read += cached_tokens * 2 * 2 * width_times_layers
        seconds = max(2 * (dense + used * expert) * tokens / (chips * 197e12), read / (chips * 0.819e12))
        # A ring of `chips`, two sums a layer, two bytes a value, four links of 50 GB/s.
        return seconds + 2 * (chips - 1) / chips * tokens * 2 * 2 * width_times_layers / (4 * 50e9)

    seconds = forward(batch, batch * (traffic.prompt + traffic.output / 2))
    ended = batch / traffic.output
    seconds += forward(traffic.prompt * ended, 0) if ended > 1 else ended * forward(traffic.prompt, 0)
    return chips * seconds / batch / 3600


@pytest.mark.parametrize(
    ("experts", "params", "chips"), [(1, 7e9, 1.0), (8, 3e9, 4.0), (32, 2e10, 64.0), (4, 1e9, 2.0)]
)
@pytest.mark.parametrize("share", [0.002, 0.3, 1.0])
def test_cost_equals_a_reference_written_apart(experts, params, chips, share):
    model = Mixture().served(params, experts)
    batch = float(requests(model, TRAFFIC, SERVER, chips)) * share
    cost = cost_of(throughput(model, TRAFFIC, SERVER, chips, batch), SERVER, chips)
    assert cost == pytest.approx(1e6 * per_token(experts, params, chips, batch), rel=1e-9)


def test_memory_is_filled_with_weights_and_caches_to_the_byte():
    model = Mixture().served(7e9, 8)
    batch = requests(model, TRAFFIC, SERVER, 16.0)
    assert model.weights == pytest.approx(2 * 7e9 * (2 / 3 + 8 / 3))
    assert model.weights + batch * model.cache * 600.0 == pytest.approx(16 * CHIPS["v5e"].hbm * GIB)


def test_one_unit_throughout():
    """Bytes counted in another unit, everywhere, change no answer."""
    model = Mixture().served(np.geomspace(1e8, 1e11, 7), 16)
    halved = dataclasses.replace(
        model, **{name: getattr(model, name) / 2 for name in ("always", "routed", "cache", "exchanged")}
    )
    server = dataclasses.replace(
        SERVER, **{name: getattr(SERVER, name) / 2 for name in ("memory", "bandwidth", "links")}
    )
    one, other = cheapest(model, TRAFFIC, SERVER), cheapest(halved, TRAFFIC, server)
    for field in dataclasses.fields(one):
        assert getattr(one, field.name) == pytest.approx(getattr(other, field.name), rel=1e-12), field.name


def test_experts_touched_are_those_of_tokens_that_choose_for_themselves():
    rng, experts, tokens = np.random.default_rng(0), 8, 5
    chosen = rng.random((20_000, tokens, experts)).argsort(-1)[..., :2].reshape(20_000, -1)
    touched = np.mean([len(set(row)) for row in chosen.tolist()]) / experts
    model = Served(*(np.array(v) for v in (0.0, 1.0, 2 / experts, 1.0, 1.0, 1.0)))
    assert model.touched(np.array(tokens)) == pytest.approx(touched, rel=0.01)


@pytest.mark.parametrize("experts", [1, 4, 32])
@pytest.mark.parametrize("chips", [8.0, 64.0])
def test_cost_falls_with_the_batch_up_to_what_memory_holds(experts, chips):
    model = Mixture().served(5e9, experts)
    batches = np.geomspace(1.0, requests(model, TRAFFIC, SERVER, chips), 500)
    cost = cost_of(throughput(model, TRAFFIC, SERVER, chips, batches), SERVER, chips)
    assert (np.diff(cost) < 0).all()
    assert cheapest(model, TRAFFIC, dataclasses.replace(SERVER, largest=int(chips))).cost <= cost[-1]


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e"])
@pytest.mark.parametrize("experts", [1, 8, 32])
def test_cost_rises_with_size_and_the_batch_jumps_only_where_the_chips_change(chip, experts):
    found = cheapest(Mixture().served(SIZES, experts), TRAFFIC, server_of(chip))
    fits = np.isfinite(found.cost)
    assert fits[: fits.sum()].all(), "what fits is smaller than what does not"
    cost, chips, batch = found.cost[fits], found.chips[fits], found.batch[fits]
    assert (np.diff(cost) > 0).all() and (batch >= 1).all()
    more = np.diff(chips) > 0
    assert (np.diff(chips) >= 0).all() and more.sum() > 3
    assert (np.diff(batch)[more] > 0).all() and (np.diff(batch)[~more] < 0).all()


def test_cheapest_is_the_least_over_the_chips_tried_one_by_one():
    for experts, params in ((1, 3e8), (8, 7e9), (32, 6e10)):
        model, costs = Mixture().served(params, experts), {}
        for chips in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0):
            batch = requests(model, TRAFFIC, SERVER, chips)
            if batch >= 1:
                costs[chips] = 1e6 * per_token(experts, params, chips, float(batch))
        found = cheapest(model, TRAFFIC, SERVER)
        assert found.chips == min(costs, key=costs.get) and found.cost == pytest.approx(min(costs.values()))


def test_more_experts_more_output_and_a_higher_price_cost_more():
    costs = [float(cheapest(Mixture().served(5e9, e), TRAFFIC, SERVER).cost) for e in (1, 2, 4, 8, 16, 32)]
    assert costs == sorted(costs) and len(set(costs)) == 6
    model = Mixture().served(5e9, 8)
    longer = [float(cheapest(model, Traffic(p, 200.0), SERVER).cost) for p in (100.0, 500.0, 2000.0)]
    assert longer == sorted(longer)
    dear = cheapest(model, TRAFFIC, server_of("v5e", price=2.5))
    assert dear.cost == pytest.approx(2.5 * costs[3]) and dear.chips == cheapest(model, TRAFFIC, SERVER).chips


def test_a_stated_throughput_scales_every_cost_alike():
    model = Mixture().served(7e9, 1)
    batch = requests(model, TRAFFIC, SERVER, 8.0)
    server = scaled_to(SERVER, model, TRAFFIC, 3000.0, 8.0)
    assert throughput(model, TRAFFIC, server, 8.0, batch) == pytest.approx(3000.0)
    models = Mixture().served(np.geomspace(1e8, 1e11, 9), 8)
    ratio = cheapest(models, TRAFFIC, server).cost / cheapest(models, TRAFFIC, SERVER).cost
    assert ratio == pytest.approx(np.full(9, 1 / server.efficiency)) and server.efficiency < 1


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: server_of("v5"), "chip"),
        (lambda: server_of("v2"), "chip"),
        (lambda: server_of("v5e", price=0.0), "question"),
        (lambda: server_of("v5e", largest=0), "question"),
        (lambda: Traffic(0.0, 10.0), "question"),
        (lambda: Traffic(10.0, np.inf), "question"),
        (lambda: scaled_to(SERVER, Mixture().served(7e9, 1), TRAFFIC, 1e9, 8.0), "throughput"),
        (lambda: scaled_to(SERVER, Mixture().served(7e10, 1), TRAFFIC, 10.0, 1.0), "throughput"),
    ],
)
def test_what_cannot_serve_is_refused(ask, reason):
    with pytest.raises(FitRefused) as refused:
        ask()
    assert refused.value.reason == reason


def test_a_chip_whose_links_are_not_known_serves_alone():
    assert server_of("v7x").counts.tolist() == [1.0] and server_of("v5e", largest=100).counts.max() == 64
