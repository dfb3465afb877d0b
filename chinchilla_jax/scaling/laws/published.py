"""Which constants were published, where, and what did they count? Or which does a file of the user state?

The table is `chinchilla_jax/tables/published_laws.json`; its notes say which constants are the papers' own and which
were fitted to their published runs. An entry without constants is a law whose constants were not published or not
found; it says so when asked for a value. A name that ends in `.json` is a file with one such entry.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws.form import Form, form
from chinchilla_jax.scaling.read.runs import FitRefused


@dataclasses.dataclass(frozen=True)
class PublishedLaw:
    """A form with the constants of one paper: `gives` the quantity and its unit; `counts` what the inputs mean there;
    `source` paper, equation, table; `notes` what else a user should know; `standard_errors` where the paper has them.
    `constants` is empty if there are none."""

    name: str
    form_name: str
    constants: Mapping[str, float]
    gives: str
    counts: str
    source: str
    notes: str
    standard_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def form(self) -> Form:
        """The form these constants belong to."""
        return form(self.form_name)

    def value(self, **inputs: Any) -> np.ndarray:
        """The law at `inputs` [...]; refused as `known`, or with `inputs` (missing or unknown names)."""
        return self.form.value(self.known(), **inputs)

    def known(self) -> Mapping[str, float]:
        """The constants; FitRefused `no_constants`."""
        if not self.constants:
            raise FitRefused("no_constants", f"{self.name}: {self.notes}")
        return self.constants


@functools.cache
def published() -> Mapping[str, PublishedLaw]:
    """Every published law by name."""
    table = importlib.resources.files("chinchilla_jax") / "tables" / "published_laws.json"
    rows = json.loads(table.read_text(encoding="utf-8"), object_hook=MappingProxyType)
    return MappingProxyType(
        {
            name: PublishedLaw(name, row["form"], **{key: row[key] for key in row if key != "form"})
            for name, row in rows.items()
        }
    )


def stated(path: str) -> PublishedLaw:
    """The law of a JSON file, `{"form": NAME, "constants": {NAME: NUMBER, ...}}`, perhaps with the other texts of an
    entry of the table; its name is that of the file.

    FitRefused `unknown_law`: no such file, no JSON, or no entry; `unknown_form`; `constants`, not those of the form, or
    not finite.
    """
    try:
        entry = files.read_json(files.path(path))
        form_name, constants = entry["form"], {name: float(value) for name, value in entry["constants"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        shape = '{"form": "routed_served", "constants": {"A": 120.0, ...}}'
        raise FitRefused("unknown_law", f"--law={path}: not read ({error!r}); a law is stated as {shape}") from None
    form(form_name).check_names("constants", form(form_name).constant_names, constants)
    if not all(math.isfinite(value) for value in constants.values()):
        raise FitRefused("constants", f"--law={path}: constants must be finite")
    told = {"gives": form(form_name).target, "counts": "what N and D count is not stated", "source": path, "notes": ""}
    gives, counts, source, notes = (str(entry.get(key, text)) for key, text in told.items())
    return PublishedLaw(files.path(path).stem, form_name, constants, gives, counts, source, notes)


def law(name: str) -> PublishedLaw:
    """One published law, or that of a file NAME.json; FitRefused `unknown_law`, or as `stated`."""
    if name.endswith(".json"):
        return stated(name)
    if name not in published():
        raise FitRefused("unknown_law", f"no published law {name!r}; there are {', '.join(published())}")
    return published()[name]


def surface(name: str) -> Surface:
    """A published law of the Chinchilla form as a `Surface`, e.g. `besiroglu2024`; FitRefused `unknown_law`,
    `not_a_surface` for a law of another form, or `no_constants`."""
    entry = law(name)
    if entry.form_name != "chinchilla":
        usable = ", ".join(n for n, other in published().items() if other.form_name == "chinchilla" and other.constants)
        raise FitRefused("not_a_surface", f"{name} is a law of form {entry.form_name}; surfaces are {usable}")
    return Surface(**entry.known())
