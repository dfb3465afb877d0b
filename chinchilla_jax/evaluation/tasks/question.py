"""What can a model be asked? Which text follows, what comes last, how likely a text is, or to write an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of the options follows the context, after the delimiter? `acc`: the likeliest one is right; `acc_norm`: the
    likeliest by character, as the LLaMA paper compares them (Touvron et al. 2023, section 3)."""

    context: str
    options: tuple[str, ...]
    answer: int
    delimiter: str = " "


@dataclasses.dataclass(frozen=True)
class Ending:
    """Does a model that writes greedily end the context so? `acc`, and the `perplexity` of an ending, as LAMBADA has
    them (Paperno et al. 2016)."""

    context: str
    ending: str


@dataclasses.dataclass(frozen=True)
class Passage:
    """How likely is this text? `bits_per_byte`, over all bytes of all passages."""

    text: str


@dataclasses.dataclass(frozen=True)
class Written:
    """Is what the model writes after the prompt right, by `grade`? `exact_match`. It writes greedily, at most so many
    tokens, and until a stop string."""

    prompt: str
    grade: Callable[[str], bool]
    new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)


Question = Choice | Ending | Passage | Written


@dataclasses.dataclass(frozen=True)
class Given:
    """What tasks are made from.

    Attributes:
      heldout: documents that no training has seen; raises a ConfigError where there are none.
      seed: of all that is drawn.
      limit: the most questions of a task.
      tables: a folder of your own tables, for families that read some.
    """

    heldout: Callable[[], Iterator[str]] = lambda: iter(())
    seed: int = 0
    limit: int | None = None
    tables: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions of one kind under a name.

    Attributes:
      make: all questions of what is given; a pure function. A limit takes the first of them.
      main: the metric that stands for the task.
      chance: what guessing scores by it, where that is known.
      shots: how many answered examples stand before each question.
      group: a name for some tasks of the family, whose scores are averaged.
      version: another one where other questions would be made.
    """

    name: str
    make: Callable[[Given], Sequence[Question]]
    main: str
    chance: float | None = None
    shots: int = 0
    version: int = 1
    group: str = ""
