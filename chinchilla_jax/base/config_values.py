"""From nested mappings to dataclasses and back: types are checked, and what is wrong is named by its dotted key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.errors import ExplainedError


class ConfigError(ExplainedError, ValueError):
    """A setting that cannot be used. `key` is its dotted name; the message says what to do about it."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """An instance of the dataclass `cls` from nested mappings; `prefix` is the dotted name of its section, with a dot.

    Raises:
      ConfigError: unknown key, wrong type or impossible value; names the dotted key.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(prefix.rstrip(".") or "config", f"expected a section with keys, got {values!r}")
    for key in values:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}", f"unknown key{did_you_mean(key, hints)}; known: {', '.join(hints)}")
    arguments = {key: _convert(hints[key], values[key], f"{prefix}{key}") for key in values}
    try:
        return cls(**arguments)
    except ConfigError as error:
        if prefix and not error.key.startswith(prefix):
            raise ConfigError(f"{prefix}{error.key}", error.message) from None
        raise


def _convert(hint: Any, value: Any, key: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, f"{key}.")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(key, f"expected a list, got {value!r}")
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, v, f"{key}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(key, f"expected {hint.__name__}, got {type(value).__name__} {value!r}")
    return value
