"""How are power laws written in a config? As `lr = 8.2 N^-0.6, batch = 0.58 D^0.571`: a constant times powers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from chinchilla_jax.config import ConfigError, did_you_mean

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(rf"\s*\*?\s*([A-Za-z_]+)(?:\s*(?:\^|\*\*)\s*({_NUMBER}))?")


@dataclasses.dataclass(frozen=True)
class Power:
    """coefficient * product of variable ^ exponent; `exponents` in the order written."""

    coefficient: float
    exponents: tuple[tuple[str, float], ...] = ()

    def at(self, **variables: float) -> float:
        """Its value; variables it does not name are ignored."""
        value = self.coefficient
        for name, exponent in self.exponents:
            value *= variables[name] ** exponent
        return value

    def __str__(self) -> str:
        return " ".join([f"{self.coefficient:g}", *(f"{name}^{exponent:g}" for name, exponent in self.exponents)])


def parse(key: str, text: str, names: Collection[str], variables: Collection[str]) -> dict[str, Power]:
    """The power laws of `text`, by name.

    Args:
      key: of the config, for messages.
      names: what may stand left of an equals sign.
      variables: what may be raised to a power on the right.

    Raises:
      ConfigError: at `key`, and what is wrong with which part.
    """
    laws: dict[str, Power] = {}
    for part in text.split(","):
        name, equals, right = (word.strip() for word in part.partition("="))
        if not equals or name not in names:
            form = f"NAME = NUMBER ... with NAME one of {', '.join(names)}{did_you_mean(name, names)}"
            raise ConfigError(key, f"{part.strip()!r} in {text!r}: write {form}")
        if name in laws:
            raise ConfigError(key, f"{text!r} says twice what {name} is")
        laws[name] = _power(key, right, variables)
    return laws


def _power(key: str, text: str, variables: Collection[str]) -> Power:
    number = re.match(_NUMBER, text)
    coefficient = float(number[0]) if number else 0.0
    if not 0.0 < coefficient < float("inf"):
        raise ConfigError(key, f"{text!r} must begin with a positive number")
    exponents, rest = [], text[number.end() :]
    while rest.strip():
        factor = _FACTOR.match(rest)
        if not factor or factor[1] not in variables:
            form = f"powers such as {next(iter(variables))}^-0.5, of {', '.join(variables)}"
            raise ConfigError(key, f"{text!r}: {rest.strip()!r} is unknown; after the number come {form}")
        exponents.append((factor[1], float(factor[2] or 1.0)))
        rest = rest[factor.end() :]
    return Power(coefficient, tuple(exponents))
