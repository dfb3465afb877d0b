"""What does the fitter have to know of a scaling law?

Its formula, what goes in, which constants are free, and in which range of each a search is sensible. A constant such
as A in A / N^alpha has no sensible range of its own: it is 10 or 10^5 as alpha moves by little. The whole term has one,
at the sizes that were trained: a few per cent of the loss to about the loss. So a constant names the `term` it stands
before, and the search runs over the size of that term, averaged over the data in the logarithm. The same ranges then
serve models of a million parameters and of a trillion, and the coordinates are nearly independent of each other.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

import chinchilla_jax.scaling.laws
from chinchilla_jax.scaling.read.runs import FitRefused

# Constants, inputs (each a namespace of arrays) and the array module, numpy or jax.numpy -> array.
Law = Callable[[SimpleNamespace, SimpleNamespace, ModuleType], Any]


@dataclasses.dataclass(frozen=True)
class Constant:
    """One constant of a form and how it is searched. Make one with `amplitude`, `positive` or `signed`.

    `low`, `high`: the range of starts of the searched quantity u. `kind` says what u is:

      amplitude   size of constant^power * term over the data, in units of the median target; searched in the logarithm
      positive    constant^power * term over the data; searched in the logarithm
      signed      (constant + offset) * term over the data; searched as it is

    where "over the data" is the mean over the points: of the logarithm of `term`, of `offset` itself. `power` names
    another constant. A term or offset may use every constant that has neither, and any one declared before it.
    """

    name: str
    low: float
    high: float
    kind: str
    term: Law | None = None
    power: str | None = None
    offset: Law | None = None

    @property
    def anchored(self) -> bool:
        """Whether the searched quantity depends on the data or on other constants."""
        return self.term is not None or self.offset is not None

    def decode(self, u: Any, c: SimpleNamespace, x: SimpleNamespace, typical: float, xp: ModuleType) -> Any:
        """The constant that the searched quantity `u` stands for; `typical` is the median target."""
        log_term = 0.0 if self.term is None else xp.log(xp.abs(self.term(c, x, xp))).mean()
        if self.kind == "signed":
            return u * xp.exp(-log_term) - (0.0 if self.offset is None else self.offset(c, x, xp).mean())
        unit = xp.log(typical) if self.kind == "amplitude" else 0.0
        return xp.exp((u + unit - log_term) / (1.0 if self.power is None else getattr(c, self.power)))


def amplitude(
    name: str, term: Law | None = None, *, low: float = 0.02, high: float = 2.0, power: str | None = None
) -> Constant:
    """A positive constant before `term`, searched as the share of the median target that the two make together."""
    return Constant(name, low, high, "amplitude", term, power)


def positive(name: str, low: float, high: float, term: Law | None = None) -> Constant:
    """A positive constant: an exponent, a scale."""
    return Constant(name, low, high, "positive", term)


def positives(**ranges: tuple[float, float]) -> tuple[Constant, ...]:
    """Positive constants by name, each with its range of starts."""
    return tuple(positive(name, low, high) for name, (low, high) in ranges.items())


def signed(name: str, low: float, high: float, term: Law | None = None, offset: Law | None = None) -> Constant:
    """A constant of either sign."""
    return Constant(name, low, high, "signed", term, None, offset)


@dataclasses.dataclass(frozen=True)
class Form:
    """A scaling law without its constants: `formula` in plain text; `source` paper and equation; `inputs` the names of
    what it takes, with the unit of each; `constants` what is fitted; `law` the formula itself, against an array module,
    so that NumPy evaluates it in double precision and JAX differentiates it; `target` what it gives."""

    name: str
    formula: str
    source: str
    inputs: tuple[tuple[str, str], ...]
    constants: tuple[Constant, ...]
    law: Law
    target: str = "loss, nats per token"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs without their units."""
        return tuple(name for name, _ in self.inputs)

    @property
    def constant_names(self) -> tuple[str, ...]:
        """The constants, as the paper names them."""
        return tuple(constant.name for constant in self.constants)

    @property
    def decoding_order(self) -> tuple[Constant, ...]:
        """The constants, those that others are anchored to first."""
        return tuple(sorted(self.constants, key=lambda constant: constant.anchored))

    def value(self, constants: Mapping[str, Any], **inputs: Any) -> np.ndarray:
        """The law at `inputs` [...], in double precision; constants may be arrays that broadcast against them.
        FitRefused `inputs` or `constants`, for a name that is missing or unknown."""
        self.check_names("inputs", self.input_names, inputs)
        self.check_names("constants", self.constant_names, constants)
        c, x = (SimpleNamespace(**{k: np.asarray(v, np.float64) for k, v in d.items()}) for d in (constants, inputs))
        return np.asarray(self.law(c, x, np))

    def check_names(self, what: str, expected: tuple[str, ...], names: Iterable[str]) -> None:
        """Refuses with reason `what` unless the names are those expected."""
        missing, unknown = [n for n in expected if n not in names], [n for n in names if n not in expected]
        if missing or unknown:
            lists = (("missing", missing), ("unknown", unknown))
            wrong = "; ".join(f"{word} {', '.join(names)}" for word, names in lists if names)
            raise FitRefused(what, f"law {self.name}: {wrong}; its {what} are {', '.join(expected)}")


@functools.cache
def _registry() -> dict[str, Form]:
    """The forms by name, at first those in the tuples `FORMS` of the modules of this package."""
    found = pkgutil.iter_modules(chinchilla_jax.scaling.laws.__path__, "chinchilla_jax.scaling.laws.")
    modules = [importlib.import_module(module.name) for module in found]
    forms = [form for module in modules for form in getattr(module, "FORMS", ())]
    assert len({form.name for form in forms}) == len(forms), "two forms of this package have one name"
    return {form.name: form for form in forms}


def register(form: Form) -> None:
    """Makes a form from outside this package known by its name; ValueError where the name is taken."""
    if form.name in _registry():
        raise ValueError(f"two forms are called {form.name!r}")
    _registry()[form.name] = form


def forms() -> dict[str, Form]:
    """Every form by name."""
    return dict(_registry())


def form(name: str) -> Form:
    """One form; FitRefused `unknown_form`."""
    if name not in _registry():
        raise FitRefused("unknown_form", f"no scaling law {name!r}; there are {', '.join(sorted(_registry()))}")
    return _registry()[name]
