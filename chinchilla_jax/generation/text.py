"""How do prompts in words become texts? Encoded, continued, decoded as pieces arrive, and cut at a stop string.

    continue_texts(model, ["Once upon a time"], new_tokens=50, stop=["\\n\\n"])

Stop strings are looked for in the text and not among tokens, where they may be spelt in many ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from chinchilla_jax.data import Tokenizer
from chinchilla_jax.generation.decode import generate
from chinchilla_jax.generation.sampling import GREEDY, Sampling
from chinchilla_jax.interop.trained import Trained


class TextStream:
    """The text of tokens that arrive one at a time: `push` returns what is certain by now, cut at a stop string.

    What may be the beginning of a stop string is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = (), ends: Sequence[int] = ()):
        """`prompt` is what stands before; one of the tokens `ends` ends the text, and is not part of it."""
        self._decoded = tokenizer.decode_stream(prompt)
        self._ends, self._stop = frozenset(ends), [text for text in stop if text]
        self._text = ""  # certain, of the new tokens
        self._given = 0  # how much of it was returned
        self.done = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        if self.done:
            return ""
        if token in self._ends:
            return self.flush()
        self._text += self._decoded.push(token)
        return self._release(held_back=max((len(text) for text in self._stop), default=1) - 1)

    def flush(self) -> str:
        """The rest: no token follows."""
        if self.done:
            return ""
        self._text += self._decoded.flush()
        rest = self._release(held_back=0)
        self.done = True
        return rest

    def _release(self, held_back: int) -> str:
        found = [at for at in map(self._text.find, self._stop) if at >= 0]
        if found:
            self._text, held_back, self.done = self._text[: min(found)], 0, True
        end = max(self._given, len(self._text) - held_back)
        piece, self._given = self._text[self._given : end], end
        return piece


def continue_texts(
    model: Trained,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    stop: Sequence[str] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[str]:
    """What follows each prompt, without it: at most `new_tokens` tokens, and less where a text ends or is stopped.

    Args:
      stop: a text ends before the first of these strings.
      on_text: told every piece of text as soon as it is certain, with the number of its prompt.

    Raises:
      ConfigError: the model's tokenizer is not known, or a prompt is too long for its positions.
    """
    ids = [prompt_ids(model, prompt) for prompt in prompts]
    return texts_of(model, ids, generate(model, ids, new_tokens, sampling, seed), stop, on_text)


def texts_of(
    model: Trained,
    ids: Sequence[Sequence[int]],
    tokens: Iterable[np.ndarray],
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[str]:
    """The texts of `tokens`, int32 `[B]` at a time, behind prompts of these `ids`; no more are asked for than needed.

    The other arguments are those of `continue_texts`, and so is what it raises.
    """
    tokenizer = model.need_tokenizer()
    streams, texts = [TextStream(tokenizer, row, stop, model.ends) for row in ids], [""] * len(ids)

    def say(row: int, piece: str) -> None:
        if piece:
            texts[row] += piece
            on_text(row, piece)

    for tokens_B in tokens:
        for row, (stream, token) in enumerate(zip(streams, tokens_B, strict=True)):
            say(row, stream.push(int(token)))
        if all(stream.done for stream in streams):
            break
    for row, stream in enumerate(streams):
        say(row, stream.flush())
    return texts


def prompt_ids(model: Trained, prompt: str) -> list[int]:
    """The tokens of a prompt, behind the one that begins a text."""
    return [model.begin, *model.need_tokenizer().encode(prompt)]
