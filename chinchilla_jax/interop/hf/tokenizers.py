"""What of a tokenizer lies beside weights, and which of its tokens begin and end a text?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError

GENERATION = "generation_config.json"
# What is copied with weights, as far as it is there.
COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    GENERATION,
    "chat_template.jinja",
)


def begin_and_ends(folder: Path, config: Mapping[str, Any], vocab_size: int) -> tuple[int | None, tuple[int, ...]]:
    """The token before a text, and those that end one, as `generation_config.json` says, else `config.json`.

    None, or no token, where neither says it. Raises ConfigError if what they say is no token of the vocabulary.
    """
    main = folder / ("params.json" if files.is_file(folder / "params.json") else "config.json")
    said = dict.fromkeys(("bos_token_id", "eos_token_id"), (None, main))
    found = [(main, config)]
    if files.is_file(folder / GENERATION):
        found.append((folder / GENERATION, _read(folder / GENERATION)))
    for path, values in found:
        said |= {name: (values[name], path) for name in said if values.get(name) is not None}
    begins, ends = (_tokens(name, *of, vocab_size) for name, of in said.items())
    return (begins[0] if begins else None), ends


def _read(path: Path) -> dict[str, Any]:
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise ConfigError(GENERATION, f"is no JSON: {error} (in {path.parent})") from None
    if not isinstance(values, dict):
        raise ConfigError(GENERATION, f"holds no object (in {path.parent})")
    return values


def _tokens(name: str, value: Any, where: Path, vocab_size: int) -> tuple[int, ...]:
    """One number, or several in a list."""
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise ConfigError(name, f"{token!r} is no token of a vocabulary of {vocab_size} (in {where})")
    return tuple(tokens)
