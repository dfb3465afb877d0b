"""What the tables say of replicates of a law, of what fits no server, and of what lies beyond the runs."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.serving.cost import Traffic, server_of
from chinchilla_jax.scaling.answers.serving.experts import Mixture, Setting, bounded_cost, bounded_loss, loss_optimal
from chinchilla_jax.scaling.answers.serving.findings import findings
from chinchilla_jax.scaling.answers.serving.law import ExpertsLaw
from chinchilla_jax.scaling.answers.serving.tables import Question, at_bounded_cost, at_bounded_loss, find, optimal
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.read.runs import FitRefused

CONSTANTS = {"A": 120.0, "B": 0.11, "C": 250.0, "F": 1.3, "alpha": 0.28, "beta": 0.6, "gamma": 0.27, "d": 0.0}
CONSTANTS |= {"E_start": 1.8, "E_max": 300.0}
DRAWS, FLOPS = 24, 6e21


@pytest.fixture(scope="module")
def law():
    rng = np.random.default_rng(0)
    boot = {name: CONSTANTS[name] * np.exp(0.2 * rng.standard_normal(DRAWS)) for name in ("B", "beta")}
    ranges = {"experts": (1.0, 8.0), "D/N": (1.0, 30.0)}
    return ExpertsLaw("planted", form("routed_served"), CONSTANTS, (), boot, ranges)


def setting_of(law, largest=None):
    return Setting(law.loss, Mixture(), Traffic(161.0, 338.0), server_of("v5e", largest=largest))


def test_intervals_and_votes_are_those_of_every_replicate_searched_by_itself(law):
    setting, question = setting_of(law), Question(FLOPS, (1, 4, 16), 1)
    found = find(setting, question, law.replicates(100))
    assert len(found.drawn) == DRAWS
    costs, losses, cheapest, best = [], [], [], []
    for b, beta in zip(law.boot["B"], law.boot["beta"], strict=True):
        drawn = dataclasses.replace(law, constants=CONSTANTS | {"B": b, "beta": beta})
        alone = setting_of(drawn)
        dense = loss_optimal(alone, 1, FLOPS)
        by_loss = {e: bounded_loss(alone, e, FLOPS, dense.loss) for e in (1, 4, 16)}
        by_cost = {e: bounded_cost(alone, e, FLOPS, dense.cost) for e in (1, 4, 16)}
        costs.append(by_loss[16].cost / dense.cost)
        losses.append(by_cost[16].loss)
        cheapest.append(min(by_loss, key=lambda e: by_loss[e].cost))
        best.append(min(by_cost, key=lambda e: by_cost[e].loss))
    told, also = at_bounded_loss(found, law), at_bounded_cost(found, law)
    assert told.rows[2]["cost, of reference, 95%"] == pytest.approx(interval(np.array(costs), 0.95))
    assert also.rows[2]["loss, 95%"] == pytest.approx(interval(np.array(losses), 0.95))
    for answer, winners in ((told, cheapest), (also, best)):
        winner = answer.notes[0].split(": ")[1].split(" at")[0]
        winner = 1 if winner == "the dense model" else int(winner.split()[0])
        assert f"so many experts in {winners.count(winner)} of {DRAWS} replicates" in answer.notes[0]


def test_what_lies_beyond_the_runs_or_fits_no_server_is_said(law):
    found = find(setting_of(law, largest=4), Question(FLOPS, (1, 4, 32), 1))
    told = optimal(found, law, "chip-hours")
    assert [row["experts"] for row in told.rows if np.isinf(row["cost"])] == ["32"]
    assert "Too large for the memory of 4 chips: 32 experts" in told.notes
    assert "Beyond the runs, whose experts is 1 to 8: 32 experts" in told.notes
    over_trained = [str(e) for e, c in found.under.cheaper.items() if c.tokens / c.params > 30]
    assert (
        f"Beyond the runs, whose D/N is 1 to 30: {', '.join(over_trained)} experts" in at_bounded_loss(found, law).notes
    )
    assert not any("replicates" in note for note in at_bounded_loss(found, law).notes)
    with pytest.raises(FitRefused, match="do not fit 4 v5e chips"):
        find(setting_of(law, largest=4), Question(FLOPS, (1,), 32))


def test_findings_speak_only_of_what_was_asked(law):
    some, all_of_them = (findings(find(setting_of(law), Question(FLOPS, e, 1))) for e in ((1, 2), (1, 4, 8, 16)))
    assert [note.split(":")[0] for note in some.notes] == [
        "Lowest loss of loss-optimal mixtures at equal cost",
        "Best at a bounded cost",
        "Best at a bounded loss",
    ]
    assert len(all_of_them.notes) == 7 and all("the paper" in note for note in all_of_them.notes)
