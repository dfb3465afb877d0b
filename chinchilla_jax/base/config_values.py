"""From nested mappings to dataclasses and back: types are checked, and what is wrong is named by its dotted key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
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


# What a number must be, and whether it is. A NaN is none of these.
POSITIVE, NOT_NEGATIVE = "be positive and finite", "be finite and not negative"
SHARE, BELOW_ONE = "lie in [0, 1]", "lie in [0, 1)"
# Beyond these no number is meant: float32 has no such values, and nobody counts so far.
LARGEST, SMALLEST, MOST = 1e37, 1e-37, 10**18
_RANGES: dict[str, Callable[[float], bool]] = {
    POSITIVE: lambda x: 0 < x < math.inf,
    NOT_NEGATIVE: lambda x: 0 <= x < math.inf,
    SHARE: lambda x: 0 <= x <= 1,
    BELOW_ONE: lambda x: 0 <= x < 1,
}


def key(
    default: Any, *must: str, one_of: Collection[str] = (), later: bool = False, most: float | None = None
) -> Any:
    """A setting: what its value `must` do, or the words it may be; `most` is the largest that anybody would want.

    `later`: it came when configs had been hashed and manifests written already.
    """
    return dataclasses.field(default=default, metadata={"must": must, "one_of": one_of, "later": later, "most": most})


def one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises `ConfigError` at the key `name` unless the value is one of these words."""
    if value not in allowed:
        raise ConfigError(name, f"unknown value {value!r}{did_you_mean(value, allowed)}; one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class Section:
    """Settings, each checked as its `key` says."""

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> type:
        """The class that has these values, where one of their keys decides about the others."""
        return cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for what in field.metadata.get("must", ()):
                if not _RANGES[what](value):
                    raise ConfigError(field.name, f"must {what}, got {value}")
            if field.metadata.get("must"):
                _check_size(field.name, value, field.metadata["most"])
            if field.metadata.get("one_of"):
                one_of(field.name, value, field.metadata["one_of"])


def _check_size(name: str, value: float, most: float | None) -> None:
    """Raises `ConfigError` for a number beyond reason, before arithmetic meets it."""
    limit = most or (MOST if isinstance(value, int) else LARGEST)
    if value > limit:
        raise ConfigError(name, f"must be at most {limit:,}")
    if isinstance(value, float) and 0.0 < value < SMALLEST:
        raise ConfigError(name, f"must be 0, or at least {SMALLEST:g}, got {value:g}")


def build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """An instance of the dataclass `cls` from nested mappings; `prefix` is the dotted name of its section, with a dot.

    Raises:
      ConfigError: unknown key, wrong type or impossible value; names the dotted key.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(prefix.rstrip(".") or "config", f"expected a section with keys, got {values!r}")
    try:
        cls = cls.variant(values) if issubclass(cls, Section) else cls
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error.key}", error.message) from None
    hints = {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
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
