"""Published model shapes by name, from the tables in `chinchilla_jax/tables`.

    gopher-44m ... gopher-280b     Rae et al. 2021, Table 1
    study-44m ... study-16183m     the 50 models of Hoffmann et al. 2022, Table A9
    chinchilla-70b                 Hoffmann et al. 2022, Table 4
    gpt3-small ... gpt3-175b       Brown et al. 2020, Table 2.1, as printed
    llama-7b ... llama-65b         Touvron et al. 2023, Table 2
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Callable

from chinchilla_jax.config import ConfigError, ModelConfig, did_you_mean
from chinchilla_jax.ledger import count_parameters


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model: its shape, the size its paper prints, the exact count derived from the shape."""

    name: str
    model: ModelConfig
    params_printed: int
    params_exact: int
    source: str


def _rows(table: str) -> list[dict[str, str]]:
    path = importlib.resources.files("chinchilla_jax") / "tables" / table
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _deepmind(name: str, row: dict[str, str], printed: int, source: str) -> Preset:
    heads = int(row["n_heads"])
    model = ModelConfig(n_layers=int(row["n_layers"]), d_model=int(row["d_model"]), n_heads=heads, n_kv_heads=heads,
                        head_dim=int(row["kv_size"]), d_ff=int(row["d_ff"]), vocab_size=32000)  # fmt: skip
    return Preset(name, model, printed, int(row["params_full_inferred"]), source)


@functools.cache
def presets() -> dict[str, Preset]:
    """Every preset by name."""
    found = []
    for row in _rows("gopher.csv"):
        found.append(_deepmind(row["model"], row, int(row["params_printed"]), "arXiv 2112.11446 Table 1"))
    for row in _rows("chinchilla_all_models.csv"):
        millions = int(row["params_printed_millions"])
        found.append(_deepmind(f"study-{millions}m", row, millions * 10**6, "arXiv 2203.15556 Table A9"))
    for row in _rows("chinchilla.csv"):
        if row["model"] == "chinchilla-70b":
            found.append(_deepmind(row["model"], row, int(row["params_printed"]), "arXiv 2203.15556 Table 4"))
    for row in _rows("gpt3.csv"):
        heads = int(row["n_heads"])
        model = ModelConfig(n_layers=int(row["n_layers"]), d_model=int(row["d_model"]), n_heads=heads,
                            n_kv_heads=heads, head_dim=int(row["head_dim"]), d_ff=int(row["d_ff"]),
                            vocab_size=int(row["vocab"]), position="learned", norm="layernorm", biases="all",
                            max_position=int(row["context"]))  # fmt: skip
        found.append(Preset(row["model"], model, int(row["params_printed"]),
                            int(row["params_recomputed_as_printed"]), "arXiv 2005.14165 Table 2.1"))  # fmt: skip
    for row in _rows("llama.csv"):
        model = ModelConfig(n_layers=int(row["n_layers"]), d_model=int(row["d_model"]), n_heads=int(row["n_heads"]),
                            n_kv_heads=int(row["n_kv_heads"]), head_dim=int(row["head_dim"]), d_ff=int(row["d_ff"]),
                            vocab_size=int(row["vocab"]), position="rope", feed_forward="swiglu", biases="none",
                            tie_embeddings=False, norm_eps=float(row["norm_eps"]),
                            rope_theta=float(row["rope_theta"]))  # fmt: skip
        found.append(Preset(row["model"], model, int(row["params_printed"]), int(row["params_recomputed"]),
                            "arXiv 2302.13971 Table 2"))  # fmt: skip
    return {preset.name: preset for preset in found}


def preset(name: str) -> Preset:
    """One preset.

    Raises:
      ConfigError: no such name.
    """
    if name not in presets():
        raise ConfigError("model.preset", f"unknown preset {name!r}{did_you_mean(name, presets())}; "
                          "`python -m chinchilla_jax presets` lists them")  # fmt: skip
    return presets()[name]


def model_dict(name: str) -> dict:
    """The shape of a preset as plain values, for the `model` section of a config file."""
    return dataclasses.asdict(preset(name).model)


def describe(echo: Callable[[str], None] = print) -> None:
    """Prints every preset: the size printed in its paper and the one counted from its shape, in parameters."""
    echo(f"{'name':16} {'layers':>6} {'d_model':>7} {'heads':>5} {'printed N':>16} {'counted N':>16}  source")
    for preset in presets().values():
        m = preset.model
        echo(f"{preset.name:16} {m.n_layers:6d} {m.d_model:7d} {m.n_heads:5d} {preset.params_printed:16,d} "
             f"{count_parameters(m).total:16,d}  {preset.source}")  # fmt: skip
