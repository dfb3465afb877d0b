"""Which tokens are asked about, after which others? Cut as EleutherAI's harness cuts texts, long ones in parts.

A continuation is what is left of both texts' tokens behind those of the context: a token across the seam would
otherwise be one that no text of this kind holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chinchilla_jax.interop.trained import Trained


class Pair(NamedTuple):
    """Tokens whose likelihood is asked for, and those before them; at least one of each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode_pairs(model: Trained, texts: Sequence[tuple[str, str]], begin: bool = True) -> list[Pair]:
    """(context, continuation) in words as tokens; spaces at the end of a context go with the continuation.

    `begin`: a text begins with the token that began texts in training. An empty context is that token in any case.
    """
    moved = [_spaces_moved(*pair) for pair in texts]
    whole = {context + continuation for context, continuation in moved}
    unique = list(whole | {text for pair in moved for text in pair})
    ids = dict(zip(unique, model.need_tokenizer().encode_all(unique), strict=True))
    first = (model.begin,)

    def pair(context: str, continuation: str) -> Pair:
        before = ids[context]
        # Where one token spans the seam there may be nothing left behind it: the continuation is cut by itself then.
        after = ids[context + continuation][len(before) :] or ids[continuation]
        if before or after[:1] != [model.begin] or len(after) < 2:
            return Pair((*(first if begin or not before else ()), *before), tuple(after))
        return Pair(first, tuple(after[1:]))

    return [pair(*texts) for texts in moved]


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def encode_texts(model: Trained, texts: Sequence[str]) -> list[Pair]:
    """Whole texts as tokens, each behind the token that begins a text; empty ones are left with nothing to ask."""
    return [Pair((model.begin,), tuple(ids)) for ids in model.need_tokenizer().encode_all(list(texts))]


def encode_prompts(model: Trained, prompts: Sequence[str], begin: bool = True) -> list[tuple[int, ...]]:
    """What a model is to go on from, at least one token."""
    encoded = model.need_tokenizer().encode_all(list(prompts))
    return [(*((model.begin,) if begin or not ids else ()), *ids) for ids in encoded]


def within(pair: Pair, length: int) -> Iterator[Pair]:
    """The pair in parts that a model of rows of `length` tokens can take, whose log-likelihoods add up to its own.

    Each sees as many tokens before it as there is room for: of a context that is too long the last ones, and the last
    part of a long continuation as many as the others (`loglikelihood_rolling` of the harness).
    """
    tokens, first = pair.context + pair.continuation, len(pair.context)
    for start in range(first, len(tokens), length):
        stop = min(start + length, len(tokens))
        yield Pair(tokens[max(0, stop - length - 1) : start], tokens[start:stop])
