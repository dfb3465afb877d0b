"""Anti-interference: is what matters found among what does not?

Published: the three tasks and 300 questions each; the facts are those of bAbI 1 and 2 (Weston et al. 2015, arXiv
1502.05698), stories of people who walk and carry things. Our choice: every wording, four keys of five digits among 48
other sentences, stories of 6 to 10 and 8 to 14 sentences, three examples for the facts, none for keys.
"""

from __future__ import annotations

import functools
from random import Random

from chinchilla_jax.evaluation.iq.question import EXACT_MATCH, Question, Task, distinct

FAMILY = "anti_interference"
KEYS, FILLERS, STORIES_BEFORE = 4, 48, 3
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
_WALKS = ("moved", "went", "journeyed", "travelled")
_FILLER = (
    "The wind blows over the hill.", "A boat lies at the shore.", "The clock on the wall is slow.",
    "Somebody left the gate open.", "The soup is still warm.", "Leaves fall all day long.",
    "The road leads to the next town.", "Two birds sit on the roof.", "It may rain before noon.",
    "The lamp is brighter than before.", "Bread is baked early in the day.", "A letter lies on the desk.",
)  # fmt: skip


def _key_retrieval(random: Random) -> Question:
    """Numbered keys lie among sentences that say nothing; one of them is asked for."""
    sentences = random.choices(_FILLER, k=FILLERS)
    keys = random.sample(range(10_000, 100_000), KEYS)
    numbers = random.sample(range(1, KEYS + 1), KEYS)  # keys do not come in the order of their numbers
    told = [f"Pass key {number} is {key}. Remember it." for number, key in zip(numbers, keys, strict=True)]
    for place, sentence in zip(sorted(random.sample(range(FILLERS), KEYS), reverse=True), told, strict=True):
        sentences.insert(place, sentence)
    wanted = random.randrange(KEYS)
    ask = f"What is pass key {numbers[wanted]}? Pass key {numbers[wanted]} is"
    instruction = f"The text holds {KEYS} pass keys. Remember them, you will be asked for one."
    return Question(f"{' '.join(sentences)}\n{ask}", str(keys[wanted]), (), instruction)


def _walk(random: Random, where: dict[str, str]) -> str:
    person = random.choice(PEOPLE)
    where[person] = random.choice([place for place in PLACES if place != where.get(person)])
    return f"{person} {random.choice(_WALKS)} to the {where[person]}."


def _one_fact(random: Random) -> tuple[str, str]:
    """Where a person is: where the last sentence about them says they went."""
    where: dict[str, str] = {}
    story = [_walk(random, where) for _ in range(random.randint(6, 10))]
    person = random.choice(sorted(where))
    return f"{' '.join(story)}\nWhere is {person}?", where[person]


def _carry(random: Random, where: dict[str, str], held: dict[str, str], lies: dict[str, str]) -> str:
    """Somebody whose place is known takes a thing that nobody holds, from where it lies, or puts one down there."""
    person = random.choice(sorted(where))
    if owned := [thing for thing in THINGS if held.get(thing) == person]:
        thing = random.choice(owned)
        lies[thing] = where[held.pop(thing)]
        return f"{person} put down the {thing}."
    free = [thing for thing in THINGS if thing not in held and lies.get(thing, where[person]) == where[person]]
    if not free:
        return _walk(random, where)
    thing = random.choice(free)
    held[thing] = person
    return f"{person} took the {thing}."


def _two_facts(random: Random) -> tuple[str, str]:
    """Where a thing is: who had it last, and where they were then, or went with it."""
    while True:
        where: dict[str, str] = {}
        held: dict[str, str] = {}
        lies: dict[str, str] = {}
        story = [_walk(random, where)]
        for _ in range(random.randint(7, 13)):
            walks = random.random() < 0.6
            story.append(_walk(random, where) if walks else _carry(random, where, held, lies))
        places = lies | {thing: where[person] for thing, person in held.items()}
        if places:
            thing = random.choice(sorted(places))
            return f"{' '.join(story)}\nWhere is the {thing}?", places[thing]


def _facts(random: Random, several: bool) -> Question:
    asked, answer = (_two_facts if several else _one_fact)(random)
    shots = tuple((_two_facts if several else _one_fact)(random) for _ in range(STORIES_BEFORE))
    return Question(asked, answer, shots, "Read the story and answer with one word.")


_ONE, _TWO = (distinct(functools.partial(_facts, several=several)) for several in (False, True))
TASKS = (
    Task("key_retrieval", FAMILY, 300, 0, EXACT_MATCH, 0.0, distinct(_key_retrieval)),
    Task("one_supporting_fact", FAMILY, 300, STORIES_BEFORE, EXACT_MATCH, 1 / len(PLACES), _ONE),
    Task("two_supporting_facts", FAMILY, 300, STORIES_BEFORE, EXACT_MATCH, 1 / len(PLACES), _TWO),
)
