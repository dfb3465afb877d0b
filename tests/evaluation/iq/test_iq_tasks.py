"""IQ questions are solvable from their text alone, by their rule and by nothing cheaper."""

import collections
import functools
import hashlib
import random

import pytest
from scipy.stats import binom

from chinchilla_jax.evaluation.iq import interference
from chinchilla_jax.evaluation.iq.question import ACCURACY, EXACT_MATCH, Question
from chinchilla_jax.evaluation.iq.symbols import symbols
from chinchilla_jax.evaluation.iq.tasks import FAMILIES, all_tasks
from tests.evaluation.iq.oracles import ORACLES

TASKS = all_tasks()
NAMES = sorted(TASKS)
MAPPING = [name for name in NAMES if TASKS[name].metric == ACCURACY]
SEEDS = 4


@functools.cache
def _all(name):
    return [question for seed in range(SEEDS) for question in TASKS[name].questions(seed)]


def _within_chance(right, questions, chance):
    low, high = binom.interval(0.9999, questions, chance)
    return low <= right <= high


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_the_rule_solves_all_from_the_prompt_alone(name):
    questions = _all(name)
    assert all(question.grade(ORACLES[name](question.prompt)) for question in questions)


def test_families_sizes_and_shots_are_the_published_ones():
    published = {
        "counting": (148, 0), "replace_lowercase": (300, 4), "replace_word": (300, 4), "head_tail": (100, 5),
        "full_repeating": (100, 5), "head_slicing": (100, 5), "key_retrieval": (300, 0),
        "one_supporting_fact": (300, 3), "two_supporting_facts": (300, 3),
    }  # fmt: skip
    for name, (size, shots) in published.items():
        questions = TASKS[name].questions()
        assert len(questions) == size and {len(question.shots) for question in questions} == {shots}
        assert TASKS[name].metric == EXACT_MATCH and TASKS[name].shots == shots
    assert {TASKS[name].family for name in NAMES} == set(FAMILIES)
    assert sorted(set(NAMES) - set(published)) == MAPPING


@pytest.mark.parametrize("name", NAMES)
def test_no_question_comes_twice_or_is_its_own_example(name):
    task = TASKS[name]
    questions = task.questions()
    assert len(questions) == len({question.asked for question in questions}) == task.size
    assert all(question.asked not in dict(question.shots) for question in questions)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_questions_and_fewer_are_the_first_of_more(name):
    task = TASKS[name]
    questions = task.questions(seed=3)
    assert questions == task.questions(seed=3) != task.questions(seed=4)
    assert task.questions(seed=3, size=7) == questions[:7] and task.questions(seed=3, size=10**6) == questions


def test_questions_are_the_same_on_every_machine():
    """A change of this digest changes what scores mean: those from before do not compare with those after it."""
    digest = hashlib.sha256()
    for name in NAMES:
        for question in TASKS[name].questions():
            digest.update(f"{question.prompt}|{question.answer}|{question.options}".encode())
    assert digest.hexdigest()[:16] == "7aedf6ae0ad70e0f"


@pytest.mark.parametrize("name", [name for name in NAMES if not TASKS[name].chance])
def test_an_open_answer_does_not_stand_in_the_prompt(name):
    """But where finding it is the task: the head of the input, a key that comes once."""
    for question in _all(name):
        if name == "head_slicing":
            assert question.asked.startswith(f"Input: {question.answer}")
            assert all(answer != question.answer for _, answer in question.shots)
        elif name == "key_retrieval":
            assert question.prompt.count(question.answer) == 1
        else:
            assert question.answer not in question.prompt


@pytest.mark.parametrize("name", MAPPING)
def test_options_differ_and_no_count_or_place_tells_the_answer(name):
    task = TASKS[name]
    for question in _all(name):
        shown = collections.Counter(answer for _, answer in question.shots)
        assert question.answer in question.options and len(set(question.options)) == len(question.options)
        assert set(shown) == set(question.options) and set(shown.values()) == {task.shots // len(question.options)}
        assert len(set(map(len, question.options))) == 1 and task.chance == 1 / len(question.options)


@pytest.mark.parametrize("name", MAPPING)
@pytest.mark.parametrize(
    "guess",
    [
        lambda question, rng: rng.choice(question.options),
        lambda question, rng: question.options[0],
        lambda question, rng: question.shots[-1][1],  # copies the last answer
        lambda question, rng: question.shots[0][1],
        lambda question, rng: min(question.options),
    ],
    ids=["random", "first option", "last shot", "first shot", "alphabet"],
)
def test_guesses_among_symbols_score_at_chance(name, guess):
    rng, questions = random.Random(0), _all(name)
    right = sum(question.grade(guess(question, rng)) for question in questions)
    assert _within_chance(right, len(questions), TASKS[name].chance)


@pytest.mark.parametrize("name", ["one_supporting_fact", "two_supporting_facts"])
def test_guesses_among_places_score_at_chance(name):
    rng, questions = random.Random(0), _all(name)
    right = sum(question.grade(rng.choice(interference.PLACES)) for question in questions)
    always = sum(question.grade("kitchen") for question in questions)
    assert _within_chance(right, len(questions), TASKS[name].chance)
    assert _within_chance(always, len(questions), TASKS[name].chance)


def _keys(prompt):
    return [part.split(".")[0] for part in prompt.split(" is ")[1:] if part[:5].isdigit()]


@pytest.mark.parametrize("which", [0, -1])
def test_the_first_and_the_last_key_score_as_a_guess_among_the_keys(which):
    questions = _all("key_retrieval")
    right = sum(question.grade(_keys(question.prompt)[which]) for question in questions)
    assert _within_chance(right, len(questions), 1 / interference.KEYS)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(MAPPING)))
def test_copying_an_example_scores_nothing_where_the_answer_is_open(name):
    questions = _all(name)
    right = sum(question.grade(question.shots[-1][1] if question.shots else "") for question in questions)
    assert right <= binom.ppf(0.9999, len(questions), TASKS[name].chance)


def test_symbols_hold_no_label_and_all_differ():
    rng = random.Random(0)
    for _ in range(200):
        found = symbols(rng, ["no", "a", "yes", "0"])
        assert list(found) == ["no", "a", "yes", "0"] and len(set(found.values())) == 4
        assert not any(word in symbol.lower() for symbol in found.values() for word in ("no", "yes"))
        assert all(len(symbol) == 10 and symbol[0] == "<" and symbol[-1] == ">" for symbol in found.values())


def test_an_answer_is_the_first_line_and_nothing_else():
    question = Question("2, 3,", "4, 5")
    assert question.grade(" 4, 5\n\nCount") and question.grade("\n4, 5 ")
    assert not any(question.grade(text) for text in ("", "\n", "4, 5, 6", "4,5", "so 4, 5"))
