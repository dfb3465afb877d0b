"""(N, D, C) -> how to train it: the hyper-parameters that change along a ladder, and where they come from."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import StudyConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`peak_lr` of the optimiser, `warmup_steps` out of the run's steps, `provenance` for readers of the manifest."""

    peak_lr: float
    warmup_steps: int
    provenance: str


def recipe(study: StudyConfig, params: int, steps: int) -> Recipe:
    """The recipe of one run.

    The learning rate follows the total N (embeddings included), the N on the axis of the fits. Hoffmann et al. 2022,
    appendix D.1 state 2e-4 for their smallest and 1.25e-4 for their largest model, a power of about -0.09; small models
    on small batches want a steeper one. Warm-up is a fraction of the steps: a fixed number would be most of a short run
    and nothing of a long one, and so tilt the IsoFLOP profiles.

    Args:
      params: total N.
      steps: optimiser steps of the run.
    """
    peak_lr = study.lr_scale * params**study.lr_exponent
    warmup = min(max(1, round(study.warmup_fraction * steps)), steps - 1) if study.warmup_fraction else 0
    provenance = (f"peak_lr = {study.lr_scale:g} * N^{study.lr_exponent:g} (N total); "
                  f"warm-up {study.warmup_fraction:.1%} of {steps} steps; batch fixed over the study")  # fmt: skip
    return Recipe(float(f"{peak_lr:.4g}"), max(warmup, 0), provenance)
