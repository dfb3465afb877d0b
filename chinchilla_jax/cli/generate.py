"""The verbs that use a trained model: `generate`. Which model, on which devices, asked what?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.cli.runs import echo
from chinchilla_jax.config import ConfigError, MeshConfig

if TYPE_CHECKING:
    from chinchilla_jax.interop.trained import Trained

MODEL = ("step", "tokenizer", "mesh", "compute_dtype")
GENERATE = (*MODEL, "prompts", "chat", "new_tokens", "temperature", "top_k", "top_p", "stop", "seed")


def generate(values: flags.FlagValues, words: list[str]) -> None:
    """Continues a prompt with a trained model, and prints the text as it comes.

    RUN is the folder of a run, or of a study: then of its run with the lowest loss. The PROMPTs are continued together;
    more may come from a file (--prompts), one a line. With --chat each line of standard input is added to what has been
    said so far, and continued. Without any prompt a text is begun. At temperature 0, as by default, the likeliest
    token always comes next.
    """
    from chinchilla_jax.generation.decode import ready
    from chinchilla_jax.generation.sampling import Sampling
    from chinchilla_jax.generation.text import continue_texts

    sampling, prompts = Sampling(values.temperature, values.top_k, values.top_p), read_prompts(values, words[1:])
    settings = {"new_tokens": values.new_tokens, "stop": values.stop or (), "sampling": sampling, "seed": values.seed}
    if values.chat and prompts:
        raise UsageError("--chat reads its prompts from standard input: give no others")
    model = ready(open_named(values, words))
    if values.chat:
        _chat(model, settings)
    elif len(prompts) > 1:
        for prompt, text in zip(prompts, continue_texts(model, prompts, **settings), strict=True):
            echo(f"{prompt}{text}\n")
    else:
        prompt = prompts[0] if prompts else ""
        print(prompt, end="", flush=True)
        continue_texts(model, [prompt], on_text=lambda _, text: print(text, end="", flush=True), **settings)
        echo("")


def read_prompts(values: flags.FlagValues, words: list[str]) -> list[str]:
    """A command's prompts: its `words`, and the lines of the file --prompts. Raises UsageError without that file."""
    if not values.prompts:
        return list(words)
    if not files.is_file(values.prompts):
        raise UsageError(f"--prompts={values.prompts}: no such file")
    return [*words, *files.read_text(values.prompts).splitlines()]


def _chat(model: Trained, settings: dict) -> None:
    from chinchilla_jax.generation.text import continue_texts

    said = ""
    for line in _lines():
        said += line
        answer = continue_texts(model, [said], on_text=lambda _, text: print(text, end="", flush=True), **settings)[0]
        said += f"{answer}\n"
        echo("")


def _lines() -> Iterator[str]:
    """Of standard input, each with its line end; where a person types, with a mark that it is their turn."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line


def open_named(values: flags.FlagValues, words: list[str]) -> Trained:
    """The model that a command's first word names, as its flags want it."""
    if not words:
        raise UsageError("which model? Name the folder of a run or of a study")
    from chinchilla_jax.interop.trained import open_model

    mesh = parse_mesh(values.mesh)
    return open_model(
        files.path(words[0]),
        mesh=mesh,
        step=values.step,
        compute_dtype=values.compute_dtype,
        tokenizer=values.tokenizer,
        echo=echo,
    )


def parse_mesh(text: str | None) -> MeshConfig | None:
    """`data:2,tensor:4` as a mesh; None of nothing. Raises UsageError for what is no axis or number."""
    if not text:
        return None
    axes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, devices = part.partition(":")
        if axis not in (*MeshConfig().axes, "expert") or not devices.isdigit():
            raise UsageError(f"--mesh={text}: expected AXIS:DEVICES,... with axes of {', '.join(MeshConfig().axes)}")
        axes[axis] = int(devices)
    try:
        return MeshConfig(**axes)
    except ConfigError as error:
        raise UsageError(f"--mesh={text}: {error}") from None
