"""Questions of held-out text are grounded in it, and their metrics are what their scores say; the verb keeps them."""

import json
import math
from pathlib import Path

import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import TokenStore, store_path
from chinchilla_jax.evaluation.harness.scorer import Score
from chinchilla_jax.evaluation.record import kept
from chinchilla_jax.evaluation.tasks import heldout
from chinchilla_jax.evaluation.tasks.ask import ask
from chinchilla_jax.evaluation.tasks.named import made_here
from chinchilla_jax.evaluation.tasks.question import Choice, Ending, Given, Passage, Task, Written
from chinchilla_jax.training.loop import train


@pytest.fixture(scope="module")
def given(tiny_run):
    return Given(heldout.of_store(store_path(tiny_run.data)), limit=30)


def test_documents_are_those_of_the_store(tiny_run, given):
    store, documents = TokenStore(store_path(tiny_run.data)), list(given.heldout())
    size = sum(store.text_bytes(domain, "validation") for domain in store.domains)
    assert sum(len(text.encode()) for text in documents) == size and all(documents)


def test_questions_stand_in_the_text_and_are_the_same_every_time(given):
    tasks = {task.name: task.make(given) for task in heldout.TASKS}
    assert tasks == {task.name: task.make(given) for task in heldout.TASKS}
    everything = "\0".join(given.heldout())
    for question in tasks["heldout_last_word"]:
        assert f"{question.context} {question.ending}" in everything and len(question.context.split()) >= 30
    for ending, choice in zip(tasks["heldout_last_word"], tasks["heldout_cloze"], strict=True):
        assert choice.context == ending.context and choice.options[choice.answer] == ending.ending
        assert len({option.lower() for option in choice.options}) == 4
    answers = [question.answer for question in tasks["heldout_cloze"]]
    assert {0, 1, 2, 3} == set(answers)


class Told:
    """Scores as they are told."""

    length = 64

    def __init__(self, **scores):
        self.scores = scores

    def scores_of(self, texts):
        return [Score(*self.scores[continuation.strip()]) for _, continuation in texts]

    def log_likelihoods(self, texts):
        return [self.scores[text] for text in texts]

    def write(self, prompts, new_tokens, stop):
        return [self.scores[prompt] for prompt in prompts]


def of(task, *questions):
    return Task(task, lambda given: questions, "acc")


def test_metrics_are_those_of_the_scores():
    told = Told(a=(-1.0, True), bbbb=(-2.0, False), c=(-5.0, False))
    record, each = ask(told, of("t", Choice("x", ("a", "bbbb"), 1), Choice("x", ("a", "c"), 0)), Given())
    assert record["metrics"]["acc"] == 0.5 and record["metrics"]["acc_norm"] == 1.0 and record["questions"] == 2
    assert record["metrics"]["acc_stderr"] == 0.5 and each[0]["log_likelihoods"] == [-1.0, -2.0]
    record, _ = ask(told, of("t", Ending("x", "a"), Ending("x", "c")), Given())
    assert record["metrics"]["acc"] == 0.5 and record["metrics"]["perplexity"] == pytest.approx(math.exp(3.0))
    record, _ = ask(Told(ab=-math.log(16.0), c=-math.log(2.0)), of("t", Passage("ab"), Passage("c")), Given())
    assert record["metrics"]["bits_per_byte"] == pytest.approx(5 / 3)
    record, _ = ask(Told(p="yes", q="no"), of("t", Written("p", "yes".__eq__), Written("q", "yes".__eq__)), Given())
    assert record["metrics"]["exact_match"] == 0.5
    assert ask(told, of("t", Ending("x", "a"), Ending("x", "c")), Given(limit=1)).record["questions"] == 1
    with pytest.raises(ConfigError, match="no text for a single"):
        ask(told, of("empty"), Given())


def test_a_family_names_all_of_its_tasks(given):
    assert [task.name for task in made_here(["heldout"], given)[0]] == [task.name for task in heldout.TASKS]
    tasks, others = made_here(["hellaswag", "heldout_cloze", "heldout_none"], given)
    assert [task.name for task in tasks] == ["heldout_cloze"] and others == ["hellaswag", "heldout_none"]


def test_the_verb_keeps_scores_in_the_result_of_the_run(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_run, run, echo=lambda line: None)
    before = json.loads((run / "result.json").read_text())
    words = ["evaluate", str(run), "--limit=8", f"--output={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "heldout_cloze: acc " in out and "8 questions" in out and f"kept in {run / 'result.json'}" in out
    after = json.loads((run / "result.json").read_text())
    assert after.pop("tasks") == kept(run) and after == before
    assert list(kept(run)) == [task.name for task in heldout.TASKS]
    # Of an untrained model little is expected; what it says of a text is what its validation says, nearly.
    assert kept(run)["heldout_bits"]["metrics"]["bits_per_byte"] == pytest.approx(before["bits_per_byte"], rel=0.15)
    lines = (tmp_path / "out" / "heldout_cloze.jsonl").read_text().splitlines()
    assert len(lines) == 8 and len(json.loads(lines[0])["log_likelihoods"]) == 4
    assert cli.main(["evaluate", str(run), "--tasks=heldout_cloze", "--limit=4"]) == 0
    assert kept(run)["heldout_cloze"]["questions"] == 4 and kept(run)["heldout_bits"]["questions"] == 8
    both = ["evaluate", str(run), str(run), "--tasks=heldout_cloze", "--limit=4", f"--output={tmp_path / 'both'}"]
    assert cli.main(both) == 0 and {path.name for path in (tmp_path / "both").iterdir()} == {"run", "run_2"}
    assert cli.main(["evaluate", str(run), f"--output={run / 'config.json'}"]) == 2
    assert "config.json is a file; name a folder" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--heldout=/nowhere"]) == 2
    assert "--heldout=FOLDER" in capsys.readouterr().err
    assert not Path("heldout").exists()
