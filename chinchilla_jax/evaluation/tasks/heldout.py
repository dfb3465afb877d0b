"""Which questions does held-out text ask? How likely it is, its last words, and which word stood in a gap.

They need no data set: any text that a model was not trained on will do, and a token store keeps some. Tokens are put
into words again, so that models with other tokenizers can be asked the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import DataError, TokenStore, store_path
from chinchilla_jax.evaluation.tasks.question import Choice, Ending, Given, Passage, Task
from chinchilla_jax.interop.trained import Trained

FAMILY = "heldout"
_QUESTIONS = 400  # of a task
_CHARACTERS = 4000  # of a passage
_WORDS = 60  # of a context with its last word; half of them at least
_OPTIONS = 4


def of_store(folder: Path | Callable[[], Path]) -> Callable[[], Iterator[str]]:
    """The held-out documents of a token store, one of each domain in turn. Raises ConfigError when asked for them, if
    there is no store in the folder."""

    def documents() -> Iterator[str]:
        try:
            store = TokenStore(folder() if callable(folder) else folder)
            tokenizer = store.tokenizer()
        except (OSError, DataError) as error:
            fix = "name a token store, as `data` makes them, with --heldout=FOLDER"
            raise ConfigError("heldout", f"no held-out text ({error}): {fix}") from None
        by_domain = [_documents(store, domain) for domain in store.domains]
        for ids in itertools.chain.from_iterable(itertools.zip_longest(*by_domain)):
            if ids is not None:
                yield tokenizer.decode(ids)

    return documents


def of_model(model: Trained) -> Callable[[], Iterator[str]]:
    """Those of the store that a run was evaluated on."""
    return of_store(lambda: store_path(model.config.data))


def _documents(store: TokenStore, domain: str) -> Iterator[list[int]]:
    """Tokens of each held-out document, from rows that are read one at a time."""
    rows, left = store.array(domain, "validation"), store.tokens(domain, "validation")
    ids: list[int] = []
    for row in rows:
        for token in row[1:][:left].tolist():
            if token != store.separator:
                ids.append(token)
            elif ids:
                yield ids
                ids = []
        left -= store.seq_len
    if ids:
        yield ids


def _some(given: Given, parts: Callable[[str], Iterator]) -> list:
    """Parts of documents, one of each document in turn, as many as a task has questions."""
    of_each = [parts(text) for text in itertools.islice(given.heldout(), _QUESTIONS)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*of_each))
    return list(itertools.islice((part for part in in_turn if part is not None), _QUESTIONS))


def _passages(given: Given) -> list[Passage]:
    return _some(given, _cut)


def _cut(text: str) -> Iterator[Passage]:
    for start in range(0, len(text), _CHARACTERS):
        if (part := text[start : start + _CHARACTERS]).strip():
            yield Passage(part)


def _endings(given: Given) -> list[Ending]:
    """Parts of documents, and the word that is next."""
    return _some(given, _of_document)


def _of_document(text: str) -> Iterator[Ending]:
    """Of every so many words: the last that is one word of letters after a space, behind those before it."""
    words = list(re.finditer(r"\S+", text))
    for start in range(0, len(words), _WORDS):
        some = words[start : start + _WORDS]
        for word in reversed(some[_WORDS // 2 :]):
            letters = re.match(r"[^\W\d_]{4,}(?=\W*$)", word.group())
            if letters and text[word.start() - 1] == " ":
                yield Ending(text[some[0].start() : word.start()].rstrip(), letters.group())
                break


def _cloze(given: Given) -> list[Choice]:
    """The same, with three words to choose from that are the next ones of other parts."""
    endings = _endings(given)
    words = sorted({ending.ending.lower() for ending in endings})
    questions = []
    for number, ending in enumerate(endings):
        random, right = Random(f"{given.seed}/{number}"), ending.ending.lower()
        others = [word for word in words if word != right]
        if len(others) < _OPTIONS - 1:
            return []
        options = [right, *random.sample(others, _OPTIONS - 1)]
        random.shuffle(options)
        written = [word.capitalize() if ending.ending[0].isupper() else word for word in options]
        written[options.index(right)] = ending.ending
        questions.append(Choice(ending.context, tuple(written), options.index(right)))
    return questions


TASKS = (
    Task("heldout_bits", _passages, "bits_per_byte"),
    Task("heldout_last_word", _endings, "acc", chance=0.0),
    Task("heldout_cloze", _cloze, "acc", chance=1 / _OPTIONS),
)
