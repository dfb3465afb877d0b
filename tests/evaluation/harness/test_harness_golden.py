"""Scores equal those of the harness's own Hugging Face backend, question by question (`golden/make_golden.py`)."""

import json
import pathlib

import numpy as np
import pytest

from chinchilla_jax.evaluation.harness.evaluate import Tasks, evaluate
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.evaluation.harness.suites import Asked
from chinchilla_jax.interop.trained import open_model

FOLDER = pathlib.Path(__file__).parent / "golden"
WEIGHTS = FOLDER.parents[2] / "interop" / "fixtures" / "grouped_tied"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture(scope="module")
def model():
    return open_model(WEIGHTS, tokenizer=FOLDER / "tokenizer.model", compute_dtype="float32")


@pytest.mark.parametrize(("kind", "share"), [("plain", True), ("begun", True), ("plain", False)])
def test_scores_equal_those_of_the_hugging_face_backend(model, kind, share, monkeypatch):
    monkeypatch.chdir(FOLDER)  # where the tasks look for their files
    golden = GOLDEN[kind]
    scorer = Scorer(model, begin=kind == "begun", share=share)
    tasks = Tasks(list(golden["answers"]), include=FOLDER)
    for name, expected in golden["answers"].items():
        (answered,) = evaluate(scorer, tasks, Asked(name, 2)).values()
        assert answered.record["questions"] == len(expected) and answered.record["by"] == "lm-eval 0.4.13"
        for question, answers in zip(answered.questions, expected, strict=True):
            for ours, theirs in zip(question["resps"], answers, strict=True):
                _same(ours[0], theirs[0])
        for metric, value in golden["results"][name].items():
            named, _, key = metric.partition(",")
            assert key == "none" and answered.record["metrics"][named] == pytest.approx(value, rel=1e-5)
            assert (f"{named}_stderr" in answered.record["metrics"]) == (named in ("acc", "acc_norm", "exact_match"))


def _same(ours, theirs):
    if isinstance(theirs, list):
        assert ours[1] == theirs[1]
        ours, theirs = ours[0], theirs[0]
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-6)
