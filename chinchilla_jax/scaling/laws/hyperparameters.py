"""Which learning rate, batch and allocation do the published hyper-parameter laws ask for?

Each answer comes with its source and with what the law's inputs mean: the laws count N and C differently, and batch and
learning rate were tuned together, so take both from one law. All batches are in tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chinchilla_jax.scaling.laws.published import PublishedLaw, law


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """`value` of `quantity` (with its unit) by the published `law`, which holds source, counts and notes."""

    value: float
    quantity: str
    law: PublishedLaw

    def describe(self) -> str:
        """One line with the value, its source and what the inputs mean."""
        return f"{self.quantity}: {self.value:.4g} ({self.law.source}; {self.law.counts}; {self.law.notes})"


def _ask(name: str, **inputs: Any) -> Recommendation:
    entry = law(name)
    return Recommendation(float(entry.value(**inputs)), entry.gives, entry)


def deepseek_flops_per_token(n_layers: int, d_model: int, sequence: int) -> float:
    """M of DeepSeek LLM eq. 2: training FLOPs per token without embeddings, 72 L d^2 + 12 L d s."""
    return 72.0 * n_layers * d_model**2 + 12.0 * n_layers * d_model * sequence


def deepseek_learning_rate(flops: float) -> Recommendation:
    """Peak learning rate for a budget of `flops` = M D."""
    return _ask("deepseek2024_learning_rate", x=flops)


def deepseek_batch(flops: float) -> Recommendation:
    """Batch in tokens for a budget of `flops` = M D."""
    return _ask("deepseek2024_batch", x=flops)


def deepseek_model(flops: float) -> Recommendation:
    """Compute-optimal M, in FLOPs per token, for a budget of `flops` = M D."""
    return _ask("deepseek2024_model", x=flops)


def deepseek_tokens(flops: float) -> Recommendation:
    """Compute-optimal training tokens for a budget of `flops` = M D."""
    return _ask("deepseek2024_tokens", x=flops)


def step_law_learning_rate(params: float, tokens: float) -> Recommendation:
    """Peak learning rate for N `params` without the vocabulary and D `tokens`."""
    return _ask("steplaw2025_learning_rate", params=params, tokens=tokens)


def step_law_batch(tokens: float) -> Recommendation:
    """Batch in tokens for D `tokens`."""
    return _ask("steplaw2025_batch", x=tokens)


def kaplan_critical_batch(loss: float) -> Recommendation:
    """Tokens per batch at which training at `loss` (nats per token) takes twice the least steps and the least data."""
    return _ask("kaplan2020_critical_batch", loss=loss)
