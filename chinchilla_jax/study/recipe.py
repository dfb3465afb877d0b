"""(N, D, C) -> how to train it: learning rate and batch as power laws, and where these come from.

A recipe is a text of the config: a formula, or the name of one in the table of published laws. Its variables:

    N      parameters, embeddings included     N_ne   parameters without the token, position and output matrices
    D      training tokens                     C_ne   FLOPs without vocabulary terms (`table_a4`)
    C      FLOPs under the study's convention

`lr` is the peak learning rate, `batch` the tokens of a batch; a recipe without it leaves `train.batch_size` as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean
from chinchilla_jax.ledger import count_parameters, train_flops_per_token
from chinchilla_jax.scaling.laws.published import PublishedLaw, law
from chinchilla_jax.study.formula import Power, parse

VARIABLES = ("N", "N_ne", "D", "C", "C_ne")

# Name of the recipe: the published laws of its learning rate and batch, with the variable each of their exponents
# belongs to. DeepSeek's C is M D with M = 72 L d^2 + 12 L d s per token, which is `table_a4` but for its softmax; Step
# Law's N leaves the vocabulary out.
PUBLISHED = {
    "deepseek": (("deepseek2024_learning_rate", {"p": "C_ne"}), ("deepseek2024_batch", {"p": "C_ne"})),
    "step-law": (("steplaw2025_learning_rate", {"p": "N_ne", "q": "D"}), ("steplaw2025_batch", {"p": "D"})),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`lr` and, if it has one, `batch` (tokens), with their `source` for readers of a manifest."""

    lr: Power
    batch: Power | None
    source: str

    def __str__(self) -> str:
        batch = "batch as in the config" if self.batch is None else f"batch = {self.batch} tokens"
        return f"peak_lr = {self.lr}, {batch} ({self.source})"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run's hyper-parameters. `batch_size` in sequences, a multiple of `microbatches`; `provenance` in one line."""

    peak_lr: float
    batch_size: int
    microbatches: int
    provenance: str


def read_recipe(text: str) -> Recipe:
    """The recipe `study.recipe`: a formula, or the name of a published one.

    Raises:
      ConfigError: it is neither; says what is wrong.
    """
    text = text.strip()
    if text in PUBLISHED:
        lr, batch = (_power(law(name), exponents) for name, exponents in PUBLISHED[text])
        return Recipe(lr, batch, f"{text}: {law(PUBLISHED[text][0][0]).source}")
    if "=" not in text:
        raise ConfigError("study.recipe", f"unknown recipe {text!r}{did_you_mean(text, PUBLISHED)}; one of "
                          f"{', '.join(PUBLISHED)}, or a formula such as 'lr = 1 N^-0.5'")  # fmt: skip
    laws = parse("study.recipe", text, ("lr", "batch"), VARIABLES)
    if "lr" not in laws:
        raise ConfigError("study.recipe", f"{text!r} has no learning rate; add 'lr = ...'")
    return Recipe(laws["lr"], laws.get("batch"), "study.recipe")


def _power(published: PublishedLaw, exponents: Mapping[str, str]) -> Power:
    constants = published.known()
    return Power(constants["k"], tuple((variable, constants[name]) for name, variable in exponents.items()))


def settings(config: RunConfig, budget: float) -> Settings:
    """The hyper-parameters of the run of `config.model` on `budget` FLOPs under `config.study.convention`.

    A batch of the recipe becomes whole sequences, spread evenly over the devices; the rows of a microbatch stay those
    of the config, which fit its memory, and their number changes.

    Raises:
      ConfigError: the recipe cannot be read.
    """
    made, known = read_recipe(config.study.recipe), _variables(config, budget)
    peak_lr = float(f"{made.lr.at(**known):.4g}")
    provenance = f"peak_lr = {made.lr} ({made.source})"
    if made.batch is None:
        batch_size, microbatches = config.train.batch_size, config.train.microbatches
        provenance += f"; batch of {batch_size} x {config.data.seq_len} tokens as in the config"
    else:
        wanted = made.batch.at(**known)
        batch_size, microbatches = _whole(config, wanted / config.data.seq_len)
        provenance += (f"; batch = {made.batch} = {wanted:.4g} tokens, rounded to {batch_size} x {config.data.seq_len} "
                       f"({made.source})")  # fmt: skip
    used = {name for law in (made.lr, made.batch) if law for name, _ in law.exponents}
    at = ", ".join(f"{name} = {known[name]:.4g}" for name in VARIABLES if name in used)
    return Settings(peak_lr, batch_size, microbatches, f"{provenance}; at {at}")


def warmup_steps(config: RunConfig, steps: int) -> int:
    """Steps of warm-up of a run of `steps`.

    A fraction, because a fixed number would be most of a short run and nothing of a long one, and so tilt the IsoFLOP
    profiles.
    """
    fraction = config.study.warmup_fraction
    return max(min(max(1, round(fraction * steps)), steps - 1), 0) if fraction else 0


def _variables(config: RunConfig, budget: float) -> Mapping[str, float]:
    counted, sequences = count_parameters(config.model), config.train.batch_size // config.train.microbatches

    def per_token(convention: str) -> float:
        return train_flops_per_token(config.model, config.data.seq_len, convention, sequences)

    tokens = budget / per_token(config.study.convention)
    return {"N": counted.total, "N_ne": counted.non_embedding, "D": tokens, "C": budget,
            "C_ne": tokens * per_token("table_a4")}  # fmt: skip


def _whole(config: RunConfig, sequences: float) -> tuple[int, int]:
    """Batch size and microbatches nearest to a wanted number of sequences."""
    rows, devices = config.train.batch_size // config.train.microbatches, config.mesh.data * config.mesh.fsdp
    if sequences >= rows:
        microbatches = round(sequences / rows)
        return microbatches * rows, microbatches
    return max(1, round(sequences / devices)) * devices, 1
