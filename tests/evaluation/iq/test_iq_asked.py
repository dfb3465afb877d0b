"""Models are asked the IQ tasks by `evaluate`: who knows the rules is right everywhere, who does not is at chance."""

import random

import pytest
from scipy.stats import binom

from chinchilla_jax import cli
from chinchilla_jax.evaluation.harness.scorer import Score
from chinchilla_jax.evaluation.iq.tasks import FAMILIES, all_tasks
from chinchilla_jax.evaluation.record import kept, lines
from chinchilla_jax.evaluation.tasks.ask import ask
from chinchilla_jax.evaluation.tasks.named import made_here
from chinchilla_jax.evaluation.tasks.question import Given
from chinchilla_jax.training.loop import train
from tests.evaluation.iq.oracles import ORACLES

NAMES = sorted(all_tasks())


class Oracle:
    """A model that knows the rule of a task: the answer is certain, and it goes on behind the answer's line."""

    length = 2048

    def __init__(self, solve):
        self.solve = solve

    def scores_of(self, texts):
        right = {prompt: self.solve(prompt) for prompt, _ in texts}
        return [Score(0.0 if option == f" {right[prompt]}" else -9.0, True) for prompt, option in texts]

    def write(self, prompts, new_tokens, stop):
        answers = [f" {self.solve(prompt)}" for prompt in prompts]
        assert stop == ("\n",) and all(len(answer.encode()) < new_tokens for answer in answers)
        return answers


class Guesser(Oracle):
    """Options in a random order, and words of nothing."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def scores_of(self, texts):
        return [Score(-self.random.random(), False) for _ in texts]

    def write(self, prompts, new_tokens, stop):
        return [self.random.choice(["kitchen", "garden", "office", "hallway", "bedroom", "bathroom"]) for _ in prompts]


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_the_rule_scores_all_and_who_guesses_scores_chance(name):
    ([task], []) = made_here([f"iq_{name}"], Given())
    record, questions = ask(Oracle(ORACLES[name]), task, Given(seed=1))
    assert record["metrics"][record["main"]] == 1.0 and len(questions) == all_tasks()[name].size
    right = size = 0
    for seed in range(4):
        record, questions = ask(Guesser(seed), task, Given(seed=seed))
        right, size = right + sum(question[record["main"]] for question in questions), size + len(questions)
    low, high = binom.interval(0.9999, size, record["chance"])
    assert low <= right <= high


def test_a_family_a_group_and_a_task_are_named_and_a_group_is_averaged():
    all_of_them = [f"iq_{name}" for name in all_tasks()]
    assert [task.name for task in made_here(["iq"], Given())[0]] == all_of_them
    of_groups = [task.name for name in FAMILIES for task in made_here([f"iq_{name}"], Given())[0]]
    assert of_groups == all_of_them
    tasks, others = made_here(["iq_pattern_mining", "iq_counting", "iq_nothing"], Given())
    assert len(tasks) == 4 and others == ["iq_nothing"]
    records = {task.name: ask(Oracle(ORACLES[task.name.removeprefix("iq_")]), task, Given()).record for task in tasks}
    records["iq_head_tail"]["metrics"]["exact_match"] = 0.25
    records["other"] = {"metrics": {}, "main": "", "questions": 0, "shots": 0}  # a task of others may have no metric
    assert lines(records)[5:] == ["iq_pattern_mining: 0.7500, the mean of 3 tasks"]


def test_a_table_that_is_brought_takes_the_place_of_the_built_in_rules(tmp_path):
    (tmp_path / "parity.csv").write_text(
        "number,label\n" + "".join(f"{i},{'no yes'.split()[i % 2]}\n" for i in range(30))
    )
    given = Given(tables=str(tmp_path / "parity.csv"))
    ([task], []) = made_here(["iq_symbolic_mapping"], given)
    assert task.name == "iq_symbolic_parity"
    assert ask(Oracle(ORACLES["symbolic_parity"]), task, given).record["metrics"]["acc"] == 1.0
    assert made_here(["iq_symbolic_word"], given) == ([], ["iq_symbolic_word"])


def test_the_verb_asks_models_of_short_rows_too_and_says_what_is_wrong_with_a_table(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_run, run, echo=lambda line: None)
    assert cli.main(["evaluate", str(run), "--tasks=iq_counting,iq_replace_word", "--limit=1"]) == 0
    assert "iq_rule_understanding: 0.0000, the mean of 2 tasks" in capsys.readouterr().out
    assert kept(run)["iq_counting"]["group"] == "iq_rule_understanding"
    assert cli.main(["evaluate", str(run), "--tasks=iq", "--rules=/nowhere"]) == 2
    assert capsys.readouterr().err.strip().endswith("--rules=/nowhere: no such file or folder")
