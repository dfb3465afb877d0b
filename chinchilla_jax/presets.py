"""Published model shapes by name, from the tables in `chinchilla_jax/tables`."""

from __future__ import annotations

import csv
import dataclasses
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinchilla_jax.base.files import read_text
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, ModelConfig, did_you_mean
from chinchilla_jax.ledger import count_parameters

TABLES = {
    "gopher.csv": "arXiv 2112.11446 Table 1",  # Rae et al. 2021
    "chinchilla_all_models.csv": "arXiv 2203.15556 Table A9",  # the 50 models of Hoffmann et al. 2022
    "chinchilla.csv": "arXiv 2203.15556 Table 4",  # the same
    "gpt3.csv": "arXiv 2005.14165 Table 2.1",  # Brown et al. 2020, as printed
    "llama.csv": "arXiv 2302.13971 Table 2",  # Touvron et al. 2023
    "ds_moe.csv": "arXiv 2404.05567 Table 5, without embeddings",  # Pan et al. 2024
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model: its shape, the size its paper prints, the exact count derived from the shape."""

    name: str
    model: ModelConfig
    params_printed: int
    params_exact: int
    source: str


@functools.cache
def presets() -> dict[str, Preset]:
    """Every preset by name."""
    return {preset.name: preset for table, source in TABLES.items() for preset in _read(table, source)}


def _read(table: str, source: str) -> Iterator[Preset]:
    """The columns that have names of `ModelConfig` fields are the shape; of the others only the two counts are read."""
    kinds = typing.get_type_hints(ModelConfig)

    def value(name: str, text: str) -> Any:
        return text == "yes" if kinds[name] is bool else kinds[name](text)

    for row in csv.DictReader(read_text(Path(__file__).parent / "tables" / table).splitlines()):
        shape = {name: value(name, text) for name, text in row.items() if name in kinds}
        yield Preset(row["name"], ModelConfig(**shape), int(row["params_printed"]), int(row["params_exact"]), source)


def preset(name: str) -> Preset:
    """One preset; `ConfigError` if no such name."""
    if name not in presets():
        advice = f"{did_you_mean(name, presets())}; `python -m chinchilla_jax presets` lists them"
        raise ConfigError("model.preset", f"unknown preset {name!r}{advice}")
    return presets()[name]


def describe(echo: Echo = print) -> None:
    """Prints every preset: the size printed in its paper and the one counted from its shape, in parameters."""
    echo(f"{'name':16} {'layers':>6} {'d_model':>7} {'heads':>5} {'printed N':>16} {'counted N':>16}  source")
    for preset in presets().values():
        m = preset.model
        shape = f"{preset.name:16} {m.n_layers:6d} {m.d_model:7d} {m.n_heads:5d}"
        echo(f"{shape} {preset.params_printed:16,d} {count_parameters(m).total:16,d}  {preset.source}")
