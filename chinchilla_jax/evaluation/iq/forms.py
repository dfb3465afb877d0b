"""Rules for symbolic mapping that need no data: small problems in the form of the published ones.

All of it is our choice; the sizes are those of the tasks whose form they take. Everything that a question needs
stands in it, so that a model is asked for nothing that it would have to know.

    passage      as BoolQ: a passage, and a question answered by yes or no
    word         as WiC: a word and two sentences; whether it stands in both
    entailment   as RTE: whether a sentence follows from another
    reference    as WSC: whether a description means a person
    relation     as OCNLI: whether a sentence follows, contradicts, or neither; three labels
"""

from __future__ import annotations

from random import Random

from chinchilla_jax.evaluation.iq.rules import WORDS
from chinchilla_jax.evaluation.iq.symbols import PUBLISHED_SIZES, drawn

YES, NO = "yes", "no"
ENTAILMENT, NOT_ENTAILMENT, CONTRADICTION, NEUTRAL = "entailment", "not_entailment", "contradiction", "neutral"
NAMES = (
    "Anna", "Boris", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Irene", "Jacob", "Karen", "Louis", "Maria",
    "Nina", "Oscar", "Paul", "Rosa", "Simon", "Tina", "Victor",
)  # fmt: skip
TRADES = ("baker", "doctor", "farmer", "painter", "pilot", "singer", "tailor", "teacher")
OPPOSITES = (("older", "younger"), ("taller", "shorter"), ("faster", "slower"), ("richer", "poorer"))


def _passage(random: Random, label: str) -> dict[str, str]:
    names, numbers = random.sample(NAMES, 3), random.sample(range(2, 99), 3)
    owned = dict(zip(names, numbers, strict=True))
    more, less = sorted(random.sample(names, 2), key=lambda name: -owned[name])
    asked = (more, less) if label == YES else (less, more)
    return {
        "passage": " ".join(f"{name} has {number} books." for name, number in owned.items()),
        "question": f"Does {asked[0]} have more books than {asked[1]}?",
    }


def _word(random: Random, label: str) -> dict[str, str]:
    word, *others = random.sample(WORDS, 11)
    first, second = others[:5], others[5:]
    holders = (first, second) if label == YES else (random.choice((first, second)),)
    for sentence in holders:
        sentence[random.randrange(5)] = word
    return {"word": word, "first": " ".join(first), "second": " ".join(second), "question": "Does it stand in both?"}


def _entailment(random: Random, label: str) -> dict[str, str]:
    one, two, three = random.sample(NAMES, 3)
    more = random.choice(random.choice(OPPOSITES))
    claimed = (one, three) if label == ENTAILMENT else (three, one)
    facts = [f"{one} is {more} than {two}.", f"{two} is {more} than {three}."]
    random.shuffle(facts)
    return {"premise": " ".join(facts), "hypothesis": f"{claimed[0]} is {more} than {claimed[1]}."}


def _reference(random: Random, label: str) -> dict[str, str]:
    (one, two), trades = random.sample(NAMES, 2), random.sample(TRADES, 2)
    meant = random.randrange(2)
    asked = (one, two)[meant if label == YES else 1 - meant]
    met = f"{one} is a {trades[0]} and {two} is a {trades[1]}."
    return {"text": f"{met} The {trades[meant]} is tired.", "question": f"Is {asked} tired?"}


def _relation(random: Random, label: str) -> dict[str, str]:
    one, two, other = random.sample(NAMES, 3)
    pair, unrelated = random.sample(OPPOSITES, 2)
    more, less = random.sample(pair, 2)
    hypothesis = {
        ENTAILMENT: [f"{two} is {less} than {one}."],
        CONTRADICTION: [f"{two} is {more} than {one}.", f"{one} is {less} than {two}."],
        NEUTRAL: [f"{one} is {more} than {other}.", f"{two} is {random.choice(unrelated)} than {one}."],
    }
    return {"premise": f"{one} is {more} than {two}.", "hypothesis": random.choice(hypothesis[label])}


TASKS = (
    drawn("passage", PUBLISHED_SIZES["boolq"], (YES, NO), _passage),
    drawn("word", PUBLISHED_SIZES["wic"], (YES, NO), _word),
    drawn("entailment", PUBLISHED_SIZES["rte"], (ENTAILMENT, NOT_ENTAILMENT), _entailment),
    drawn("reference", PUBLISHED_SIZES["wsc"], (YES, NO), _reference),
    drawn("relation", PUBLISHED_SIZES["ocnli"], (ENTAILMENT, NEUTRAL, CONTRADICTION), _relation),
)
