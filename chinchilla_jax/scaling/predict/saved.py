"""How is a fit kept in a file, so that it answers later without its table?

One .npz: arrays under `a0`, `a1`, ..., and under `header` the UTF-8 text of a JSON object with `format`, `schema`,
`code` (by which it was written) and `content`: the runs as they were read and the fits made of them. Dataclasses are
`{"#": NAME, "fields": {...}}`; a run that several fits hold is written once. Nothing in the file is executed: names are
looked up among the classes below, and arrays are read without pickle.

`SCHEMA` goes up when a field of one of these classes comes or goes (a test holds them to it).
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit, EnvelopePoints
from chinchilla_jax.scaling.fits.approach2.curve import ProfileCurve
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit, Profile
from chinchilla_jax.scaling.fits.approach2.table import Refusal
from chinchilla_jax.scaling.fits.approach3.known import Known
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.frontier import AveragedLaw, OffsetLaw, OptimumLaw, PowerLaw
from chinchilla_jax.scaling.fits.minimise import Misfit
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Preset, Resampling, Residuals
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.read.runs import BadRow, Curve, FitRefused, LoadedRuns, Run

FORMAT, SCHEMA = "chinchilla_jax fit", 1
CLASSES = {
    kept.__name__: kept
    for kept in (
        *(Analysis, LoadedRuns, Run, Curve, BadRow, EnvelopeFit, EnvelopePoints, IsoflopFit, Profile, ProfileCurve),
        *(Refusal, ParametricFit, Known, AveragedLaw, OffsetLaw, OptimumLaw, PowerLaw, Surface, Misfit, Preset),
        *(Resampling, Residuals, MinimaScatter),
    )
}
_ENDS = (".npz",)
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, EOFError, RecursionError)


@dataclasses.dataclass(frozen=True)
class SavedFit:
    """The runs as they were read, and the fits made of them."""

    loaded: LoadedRuns
    fits: Analysis


def is_saved_fit(path: str | os.PathLike) -> bool:
    """Whether the path is named as a saved fit is."""
    return os.fspath(path).endswith(_ENDS)


def save_fit(path: str | os.PathLike, saved: SavedFit) -> None:
    """Writes a fit whole or not at all. Raises FitRefused (`saved`) unless the name ends in .npz."""
    if not is_saved_fit(path):
        raise FitRefused("saved", f"{path}: a saved fit is a file NAME.npz")
    writer = _Writer()
    content = {"loaded": writer.encode(saved.loaded), "fits": writer.encode(saved.fits), "runs": writer.runs}
    header = {"format": FORMAT, "schema": SCHEMA, "code": code_revision(), "content": content}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
    np.savez_compressed(buffer, header=text, **writer.arrays)
    files.write_bytes(path, buffer.getvalue())


def load_fit(path: str | os.PathLike) -> SavedFit:
    """The fit in a file. Raises FitRefused: `not_found`, or `saved` (another schema, or not such a file)."""
    if not files.is_file(path):
        raise FitRefused("not_found", f"{path}: no such file")
    again = "fit the runs again with --save"
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as arrays:
            header = json.loads(bytes(arrays["header"]))
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            if header["schema"] != SCHEMA:
                words = f"made with schema {header['schema']} by {header.get('code', 'unknown code')}"
                raise FitRefused("saved", f"{path}: {words}; this code reads schema {SCHEMA}: {again}")
            content = header["content"]
            reader = _Reader(arrays, content["runs"])
            loaded, fits = reader.decode(content["loaded"]), reader.decode(content["fits"])
    except FitRefused:
        raise
    except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise FitRefused("saved", f"{path}: not a saved fit ({type(error).__name__}: {error}); {again}") from None
    if not (isinstance(loaded, LoadedRuns) and isinstance(fits, Analysis)):
        raise FitRefused("saved", f"{path}: not a saved fit (it holds something else); {again}")
    return SavedFit(loaded, fits)


class _Writer:
    """Values as JSON, with the arrays and the runs put aside."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.runs: list[Any] = []
        self._places: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        if isinstance(value, Run):
            if id(value) not in self._places:
                self._places[id(value)] = len(self.runs)
                self.runs.append(None)
                self.runs[self._places[id(value)]] = self._fields(value)
            return {"run": self._places[id(value)]}
        if dataclasses.is_dataclass(value):
            return {"#": type(value).__name__, "fields": self._fields(value)}
        if isinstance(value, (np.ndarray, np.generic)):
            name = f"a{len(self.arrays)}"
            self.arrays[name] = np.asarray(value)
            return {"array": name} | ({} if isinstance(value, np.ndarray) else {"number": True})
        if isinstance(value, (tuple, list)):
            return {"tuple" if isinstance(value, tuple) else "list": [self.encode(item) for item in value]}
        if isinstance(value, dict):
            return {"items": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        raise TypeError(f"a saved fit has no place for {type(value).__name__}")

    def _fields(self, value: Any) -> dict[str, Any]:
        if type(value).__name__ not in CLASSES:
            raise TypeError(f"a saved fit has no place for {type(value).__name__}")
        return {field.name: self.encode(getattr(value, field.name)) for field in dataclasses.fields(value)}


class _Reader:
    """The reverse of `_Writer`."""

    def __init__(self, arrays: Any, runs: list[Any]):
        self.arrays, self._encoded = arrays, runs
        self._runs: dict[int, Run] = {}

    def decode(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "run" in value:
            place = value["run"]
            if place not in self._runs:
                self._runs[place] = self._made(Run, self._encoded[place])
            return self._runs[place]
        if "#" in value:
            return self._made(CLASSES[value["#"]], value["fields"])
        if "array" in value:
            array = self.arrays[value["array"]]
            return array[()] if value.get("number") else array
        if "items" in value:
            return {self.decode(key): self.decode(item) for key, item in value["items"]}
        if "float" in value:
            return float(value["float"])
        items = [self.decode(item) for item in value["tuple" if "tuple" in value else "list"]]
        return tuple(items) if "tuple" in value else items

    def _made(self, kind: type, fields: dict[str, Any]) -> Any:
        return kind(**{name: self.decode(value) for name, value in fields.items()})
