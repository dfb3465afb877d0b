"""Peers are asked without the truth, what they answer before they fail counts, and figures are those of the answers."""

import ast
import sys

import numpy as np
import pytest

from chinchilla_jax.scaling.read.runs import Run
from tests.benchmarks import peer_questions, peers, prediction
from tests.benchmarks.peer_runners import exchange

FAKE = """
import os, sys
sys.path.insert(0, FOLDER)
from exchange import serve
def method(case):
    if case["budget"] == 2.0:
        raise ValueError("no optimum at 2.5e+19\\nand more")
    if case["budget"] == 3.0:
        os._exit(7)
    return {"loss": 2.02, "params": 1e9, "low": 1.9, "high": 2.1}
serve("fake", {"law": method}, {"optimum": lambda case: ("law", 1.0), "loss": lambda case: ("law", None)})
"""
KNOWN = [("t", "next, largest", (1.1e9, 2.0)), ("t", "next, largest", (1e9, 2.0)), ("t", "next, largest", (1e9, 2.0))]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of a peer that answers one case, refuses the second, and dies at the third."""
    runner = tmp_path_factory.mktemp("peer") / "fake.py"
    runner.write_text(FAKE.replace("FOLDER", repr(str(peers.RUNNERS))))
    return peers.run_peer(sys.executable, runner, [{"budget": c} for c in (1.0, 2.0, 3.0)], 60.0)


def test_what_was_answered_before_a_crash_counts(answers):
    lines = answers
    assert [line.get("case") for line in lines] == [None, None, 0, 1, None]
    assert lines[-1]["ended"].startswith("ended with code 7")
    assert lines[0]["how"] == "law" and lines[1]["failure"] == "law gave nothing"


def test_failures_are_counted_and_named_and_figures_are_of_the_other_cases(answers):
    rows, failures = peers.table(answers, KNOWN, "next, largest")
    assert failures == {("law", "ValueError: no optimum at #"): 1, ("law", "no answer: its process ended before"): 1}
    assert rows["law"].split()[:7] == ["1/3", "1.00%", "1.00%", "100%", "100%", "100%", "4.95%"]


def test_an_answer_that_is_no_number_is_a_failure():
    assert exchange.attempt(lambda: {"loss": float("nan"), "low": None}) == {"failure": "loss is nan"}
    assert exchange.attempt(lambda: {"loss": 2.0, "low": None}).keys() == {"loss", "low", "seconds"}


def test_a_peer_that_does_not_end_is_ended(tmp_path):
    runner = tmp_path / "slow.py"
    runner.write_text("import time; time.sleep(60)")
    (line,) = peers.run_peer(sys.executable, runner, [], 0.5)
    assert "ended with code -9" in line["ended"]


def test_who_has_answered_is_not_asked_again(tmp_path):
    answers = [[{"case": 0}], [{"case": 1}]]
    assert [peers.kept(tmp_path / "answers", "a peer", lambda: answers.pop(0)) for _ in range(2)] == [[{"case": 0}]] * 2
    assert peers.kept(None, "a peer", lambda: answers.pop(0)) == [{"case": 1}]


def test_a_method_without_loss_or_interval_has_dashes():
    answer = {"loss": None, "params": 1e9, "low": None, "high": None, "seconds": 2.0}
    assert peers.row([(answer, (2e9, 2.0))], 1).split() == ["1/1", "-", "-", "-", "0%", "-", "-", "2.00"]
    assert peers.row([], 4).split() == ["0/4", *["-"] * 7]


def test_no_python_that_is_new_enough_is_said():
    with pytest.raises(peers.CannotRun, match="needs Python 99.0 or newer; name one by --python"):
        peers.interpreter((99, 0), ["no-such-python", sys.executable])
    assert peers.interpreter((3, 8), ["no-such-python", sys.executable]) == sys.executable


def test_every_question_is_one_of_those_asked_of_all():
    keys = set(peer_questions.QUESTIONS)
    for _, _, runner in peers.PEERS.values():
        tree = ast.parse((peers.RUNNERS / runner).read_text(encoding="utf-8"))
        (named,) = (
            n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n).startswith("QUESTIONS =")
        )
        keys |= {key.value for key in named.keys}
    assert keys == set(exchange.QUESTIONS)


def test_cases_are_those_of_the_prediction_benchmark_without_the_truth():
    asked, known = peers.cases()
    assert {kind for _, kind, _ in known} == set(prediction.BRIEF) and len(asked) == len(known) > 40
    assert all(set(case) == {"budget", "per_token", "runs", "near"} for case in asked)
    assert all(case["budget"] > max(row[4] for row in case["runs"]) for case in asked)
    assert all(0 < len(case["near"]) <= len(case["runs"]) for case in asked)
    assert {prediction.family(table) for table, _, _ in known} == set(prediction.FAMILIES.values())


def test_near_runs_are_within_5_percent_and_the_two_sizes_on_either_side():
    losses = np.array([3.0, 2.5, 2.06, 2.0, 2.04, 2.2, 2.9])
    runs = [Run(f"{i}", 10.0**i, 1e10, 1e19, loss, 1e19) for i, loss in enumerate(losses)]
    assert [run.name for run in prediction.near(runs)] == ["1", "2", "3", "4", "5"]
    flat = [Run(f"{i}", 10.0**i, 1e10, 1e19, loss, 1e19) for i, loss in enumerate(1.9 + losses / 100)]
    assert prediction.near(flat) == flat


def test_gains_compare_only_cases_that_both_answer(capsys):
    of = ("next, largest", "Figure 4")
    errors = {(of[0], method, words): {} for method in prediction.METHODS for words in prediction.FAMILIES.values()}
    errors |= {("4 -> 4x", *key[1:]): {} for key in errors}
    errors[of[0], "approach 3", of[1]] = {("t", 1.0): 0.02, ("t", 2.0): 0.03}
    errors[of[0], "Skaling", of[1]] = {("t", 2.0): 0.01, ("t", 3.0): 0.05}
    prediction.gains(errors)
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("Skaling ") and "%" in text)
    assert line.split() == ["Skaling", "3.00%", "1/1", "-", "-"]
