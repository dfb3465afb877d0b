"""What share of training each domain gets, and how often that repeats its text."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Iterable, Mapping

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError

_TABLES = pathlib.Path(__file__).parent / "mixtures"
PRESETS = {"massivetext-chinchilla": "massivetext", "massivetext-gopher": "massivetext", "llama": "llama"}


def preset_table(preset: str) -> list[dict[str, str]]:
    """The published rows behind `preset`, as text: domain, unique_tokens, a proportion per preset, printed_epochs.

    Raises:
      ConfigError: no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError("data.mixture", f"unknown preset {preset!r}; one of {', '.join(PRESETS)}")
    lines = files.read_text(_TABLES / f"{PRESETS[preset]}.csv").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def preset_weights(preset: str) -> dict[str, float]:
    """Published sampling proportion per domain; they sum to 1."""
    return {row["domain"]: float(row[preset]) for row in preset_table(preset)}


def preset_epochs(preset: str, tokens: float) -> dict[str, float]:
    """Epochs over each published domain when `tokens` are drawn in the preset's proportions."""
    rows = preset_table(preset)
    total = sum(preset_weights(preset).values())
    return {row["domain"]: tokens * float(row[preset]) / total / float(row["unique_tokens"]) for row in rows}


def resolve_mixture(mixture: str, train_tokens: Mapping[str, int]) -> dict[str, float]:
    """Weights of the domains to draw from, summing to 1.

    Args:
      mixture: `proportional`, `uniform`, a preset, or `domain=weight,domain=weight`; see `DataConfig`.
      train_tokens: tokens per domain of the store at hand. Preset names match whatever their case.

    Raises:
      ConfigError: not such an expression, or a domain the store does not have; lists both sides.
    """
    if mixture == "proportional":
        weights = {domain: float(tokens) for domain, tokens in train_tokens.items()}
    elif mixture == "uniform":
        weights = dict.fromkeys(train_tokens, 1.0)
    elif mixture in PRESETS:
        present = {domain.lower(): domain for domain in train_tokens}
        published = preset_weights(mixture)
        _check_domains(mixture, published, [d for d in published if d.lower() not in present], train_tokens)
        weights = {present[domain.lower()]: weight for domain, weight in published.items()}
    elif "=" in mixture:
        weights = _parse(mixture)
        _check_domains(mixture, weights, [d for d in weights if d not in train_tokens], train_tokens)
    else:
        known = f"proportional, uniform, {', '.join(PRESETS)}, or domain=weight,domain=weight"
        raise ConfigError("data.mixture", f"unknown mixture {mixture!r}; one of {known}")
    weights = {domain: weight for domain, weight in weights.items() if weight > 0}
    total = sum(weights.values())
    if not total:
        raise ConfigError("data.mixture", f"{mixture!r} gives no domain any weight")
    return {domain: weights[domain] / total for domain in sorted(weights)}


def _check_domains(mixture: str, needed: Iterable[str], absent: list[str], present: Iterable[str]) -> None:
    if absent:
        both = f"needs the domains {', '.join(needed)}; the store has {', '.join(present)}"
        raise ConfigError("data.mixture", f"{mixture!r} {both}; absent: {', '.join(absent)}")


def _parse(mixture: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in mixture.split(","):
        domain, _, value = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not domain or not 0 <= weight < math.inf:
            raise ConfigError("data.mixture", f"{part!r} in {mixture!r} is not domain=weight with a weight >= 0")
        if domain in weights:
            raise ConfigError("data.mixture", f"{mixture!r} lists {domain!r} twice")
        weights[domain] = weight
    return weights
