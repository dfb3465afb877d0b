"""What share of training each domain gets, and how often that repeats its text."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Mapping

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data.index import MixtureIndex as MixtureIndex

_TABLES = pathlib.Path(__file__).parent / "mixtures"
PRESETS = {"massivetext-chinchilla": "massivetext", "massivetext-gopher": "massivetext", "llama": "llama"}


def preset_table(preset: str) -> list[dict[str, str]]:
    """The published rows behind `preset`, as text: domain, unique_tokens, a proportion per preset, printed_epochs.

    Raises:
      ConfigError: no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError("data.mixture", f"unknown preset {preset!r}; one of {', '.join(PRESETS)}")
    with open(_TABLES / f"{PRESETS[preset]}.csv", encoding="utf-8") as handle:
        return list(csv.DictReader(line for line in handle if not line.startswith("#")))


def preset_weights(preset: str) -> dict[str, float]:
    """Published sampling proportion per domain; they sum to 1."""
    return {row["domain"]: float(row[preset]) for row in preset_table(preset)}


def preset_epochs(preset: str, tokens: float) -> dict[str, float]:
    """Epochs over each published domain when `tokens` are drawn in the preset's proportions."""
    unique = {row["domain"]: float(row["unique_tokens"]) for row in preset_table(preset)}
    return epochs(preset_weights(preset), unique, tokens)


def epochs(weights: Mapping[str, float], unique_tokens: Mapping[str, float], tokens: float) -> dict[str, float]:
    """How often each domain's `unique_tokens` are seen when `tokens` are drawn in proportion to `weights`."""
    total = sum(weights.values())
    return {domain: tokens * weight / total / unique_tokens[domain] for domain, weight in weights.items()}


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
        wanted = preset_weights(mixture)
        _check_domains(mixture, wanted, [d for d in wanted if d.lower() not in present], train_tokens)
        weights = {present[domain.lower()]: weight for domain, weight in wanted.items()}
    elif "=" in mixture:
        weights = _parse(mixture)
        _check_domains(mixture, weights, [d for d in weights if d not in train_tokens], train_tokens)
    else:
        raise ConfigError("data.mixture", f"unknown mixture {mixture!r}; one of proportional, uniform, "
                          f"{', '.join(PRESETS)}, or domain=weight,domain=weight")  # fmt: skip
    weights = {domain: weight for domain, weight in weights.items() if weight > 0}
    total = sum(weights.values())
    if not total:
        raise ConfigError("data.mixture", f"{mixture!r} gives no domain any weight")
    return {domain: weights[domain] / total for domain in sorted(weights)}


def _check_domains(mixture: str, wanted, absent: list[str], train_tokens) -> None:
    if absent:
        raise ConfigError("data.mixture", f"{mixture!r} needs the domains {', '.join(wanted)}; the store has "
                          f"{', '.join(train_tokens)}; absent: {', '.join(absent)}")  # fmt: skip


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
