"""How likely are continuations of contexts, and what does a model write? Many questions at once, for any harness.

    scorer = Scorer(open_model(folder))
    scorer.scores_of([("The sky is", " blue"), ("The sky is", " made of stone")])

Rows are put together by length, in powers of two, so that each bucket is compiled once. Continuations of one context
share its pass: it is read into a cache, and every continuation goes on from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.harness.pairs import Pair, encode_pairs, encode_prompts, encode_texts, within
from chinchilla_jax.evaluation.harness.programs import Sums, make_programs
from chinchilla_jax.generation.decode import generate, ready, round_up
from chinchilla_jax.generation.sampling import GREEDY, Sampling
from chinchilla_jax.generation.text import TextStream
from chinchilla_jax.interop.trained import Trained

_Prompt = tuple[int, tuple[int, ...]]  # its number, and its tokens
_MOST_ROWS = 256
_BEYOND = (0, 8, 16, 32, 48, 64)  # then as rows
_CACHE_COSTS = 1.2  # times the tokens that are read, to keep them and look at them: measured on a CPU
_MOST_OPTIONS = 16  # of one context in one place of a batch: contexts with more come again


class Score(NamedTuple):
    """Of a continuation: its log-likelihood in nats, and whether a model that writes greedily would write it."""

    log_likelihood: float
    greedy: bool


class _Group(NamedTuple):
    """A context, and the continuations of it by their number among those asked for."""

    context: tuple[int, ...]
    options: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def beyond(self) -> int:
        """How many tokens of the longest option are read: all but its last."""
        return max(len(tokens) for _, tokens in self.options) - 1


class _Asked(NamedTuple):
    """Pairs by number, the rows of a batch that they are in, and sums of its rows, which add up."""

    numbers: list[int]
    rows: list[int]
    sums: list[Sums]


class Scorer:
    """Asks one model. Its tokenizer is needed where texts are given, and not where pairs of tokens are.

    Attributes:
      model: as it decodes (`generation.decode.ready`).
      length: of the longest row that the model takes: that of its training.
    """

    def __init__(self, model: Trained, *, begin: bool = True, batch_tokens: int = 8192, share: bool = True):
        """`begin`: texts begin with the token that began them in training. `batch_tokens`: of all rows of a batch.
        `share`: one pass for a context, however many continuations it has."""
        self.model, self.begin, self.length = ready(model), begin, model.config.data.seq_len
        self._programs = make_programs(self.model.config, model.mesh)
        self._tokens, self._share = batch_tokens, share

    def scores_of(self, texts: Sequence[tuple[str, str]]) -> list[Score]:
        """Of each (context, continuation). Contexts that are too long lose their beginning."""
        return self.scores(encode_pairs(self.model, texts, self.begin))

    def log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Of each whole text in nats, however long: every token sees as many before it as there is room for."""
        return [score.log_likelihood for score in self.scores(encode_texts(self.model, texts))]

    def scores(self, pairs: Sequence[Pair]) -> list[Score]:
        """Of each pair, in order."""
        parts = [(i, part) for i, pair in enumerate(pairs) for part in within(pair, self.length)]
        nats, missed = np.zeros(len(pairs)), np.zeros(len(pairs))
        of_pair = np.array([i for i, _ in parts], int)
        for asked in self._asked([part for _, part in parts]):
            for sums in asked.sums:
                for total, of_row in zip((nats, missed), sums, strict=True):
                    np.add.at(total, of_pair[asked.numbers], np.asarray(of_row, np.float64)[asked.rows])
        return [Score(float(n), not m) for n, m in zip(nats, missed, strict=True)]

    def _asked(self, pairs: list[Pair]) -> Iterator[_Asked]:
        """One batch is under way while the one before it is looked at."""
        by_context: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for number, pair in enumerate(pairs):
            by_context.setdefault(pair.context, []).append((number, pair.continuation))
        groups: list[_Group] = []
        rows: list[tuple[int, tuple[int, ...], int]] = []
        for context, options in by_context.items():
            some = [_Group(context, tuple(part)) for part in _chunks(options, _MOST_OPTIONS)]
            if self._share and len(options) > 1 and all(map(self._is_cheaper, some)):
                groups += some
            else:
                rows += [(number, context + tokens, len(tokens)) for number, tokens in options]
        yield from _looked_at(itertools.chain(self._rows(rows), self._groups(groups)))

    def _rows(self, rows: list[tuple[int, tuple[int, ...], int]]) -> Iterator[_Asked]:
        """Of (number, tokens, how many of the last are asked for)."""
        for width, batch, size in self._batches(rows, lambda row: self._width(len(row[1]) - 1), lambda width: width):
            arrays = _arrays(size, width)
            for i, (_, tokens, asked) in enumerate(batch):
                _fill(arrays, i, tokens, len(tokens) - asked)
            sums = self._programs.rows(self.model.params, *self._placed(arrays))
            yield _Asked([number for number, *_ in batch], list(range(len(batch))), [sums])

    def _groups(self, groups: list[_Group]) -> Iterator[_Asked]:
        groups = sorted(groups, key=lambda group: -len(group.options))  # places that few contexts fill come last
        for (width, beyond), batch, size in self._batches(groups, self._room, sum):
            yield from self._of_contexts(batch, size, width, beyond)

    def _is_cheaper(self, group: _Group) -> bool:
        """Whether fewer tokens are read if the context is read once, by enough to pay for its cache."""
        width, beyond = self._room(group)
        apart = sum(self._width(len(group.context) + len(tokens) - 1) for _, tokens in group.options)
        return _CACHE_COSTS * (width + beyond * len(group.options)) < apart

    def _room(self, group: _Group) -> tuple[int, int]:
        """How many tokens the context takes, and the options beyond their first; together never more than there are."""
        beyond = next((size for size in _BEYOND if size >= group.beyond), round_up(max(group.beyond, 1)))
        return self._width(len(group.context)), min(beyond, self.length - len(group.context))

    def _of_contexts(self, groups: list[_Group], size: int, width: int, beyond: int) -> Iterator[_Asked]:
        tokens, starts = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
        for i in range(size):
            context = groups[min(i, len(groups) - 1)].context  # filling is a context like the last
            tokens[i, width - len(context) :], starts[i] = context, width - len(context)
        programs, params = self._programs, self.model.params
        (placed,) = self._placed([tokens])
        out_BxV, cache = programs.prefill(params, placed, jnp.int32(width), starts, width + beyond)
        for place in range(max(len(group.options) for group in groups)):
            there = [(i, *group.options[place]) for i, group in enumerate(groups) if place < len(group.options)]
            first, arrays = np.zeros(size, np.int32), _arrays(size, beyond)
            for i, _, option in there:
                first[i] = option[0]
                _fill(arrays, i, option, 1)
            sums = [programs.first(out_BxV, first)]
            if any(len(option) > 1 for *_, option in there):
                sums.append(programs.more(params, cache, *self._placed(arrays)))
            yield _Asked([number for _, number, _ in there], [i for i, *_ in there], sums)

    def _batches(self, items: list, key: Callable, tokens: Callable) -> Iterator[tuple]:
        """(key, items, rows of the batch) of items that have one key, the longest first: they show what fits."""
        by_key: dict = {}
        for item in items:
            by_key.setdefault(key(item), []).append(item)
        multiple = self.model.config.mesh.rows
        for shape in sorted(by_key, reverse=True):
            most = max(1, min(_MOST_ROWS, self._tokens // tokens(shape)))
            size = min(most, 1 << (len(by_key[shape]) - 1).bit_length())
            size = -(-size // multiple) * multiple
            for batch in _chunks(by_key[shape], size):
                yield shape, batch, size

    def _width(self, tokens: int) -> int:
        return min(round_up(tokens), self.length)

    def _placed(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        return [jax.device_put(array, self._programs.batch_sharding) for array in arrays]

    def write(
        self,
        prompts: Sequence[str],
        new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt: at most so many tokens, ended by a stop string, which is not in it.

        Raises ConfigError: a row of the model has no room for a token before so many new ones.
        """
        if new_tokens >= self.length:
            told = f"{new_tokens} leave no room for a prompt in the {self.length} of the model's rows"
            raise ConfigError("new_tokens", told)
        ids = encode_prompts(self.model, prompts, self.begin)
        rows = list(enumerate(prompt[new_tokens - self.length :] for prompt in ids))
        texts = [""] * len(rows)
        for _, batch, _ in self._batches(rows, lambda row: round_up(len(row[1]) + new_tokens), lambda width: width):
            for (number, _), text in zip(batch, self._written(batch, new_tokens, stop, sampling, seed), strict=True):
                texts[number] = text
        return texts

    def _written(
        self, batch: list[_Prompt], new_tokens: int, stop: Sequence[str], sampling: Sampling, seed: int
    ) -> list[str]:
        model, prompts = self.model, [ids for _, ids in batch]
        streams = [TextStream(model.need_tokenizer(), ids, stop, model.ends) for ids in prompts]
        texts = [""] * len(batch)
        for tokens_B in generate(model, prompts, new_tokens, sampling, seed + batch[0][0]):
            for i, (stream, token) in enumerate(zip(streams, tokens_B, strict=True)):
                texts[i] += stream.push(int(token))
            if all(stream.done for stream in streams):
                break
        return [text + stream.flush() for text, stream in zip(texts, streams, strict=True)]


def _looked_at(batches: Iterable[_Asked]) -> Iterator[_Asked]:
    """The same, each as soon as the next one is under way."""
    waiting: _Asked | None = None
    for batch in batches:
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _arrays(size: int, width: int) -> list[np.ndarray]:
    """Inputs, targets and weights of a batch."""
    return [np.zeros((size, width), np.int32), np.zeros((size, width), np.int32), np.zeros((size, width), np.float32)]


def _fill(arrays: list[np.ndarray], row: int, tokens: Sequence[int], before: int) -> None:
    """Puts tokens into a row; those after the first `before` count."""
    inputs, targets, weights = arrays
    inputs[row, : len(tokens) - 1], targets[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
    weights[row, before - 1 : len(tokens) - 1] = 1.0
