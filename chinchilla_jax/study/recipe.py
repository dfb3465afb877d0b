"""(N, D, C) -> how to train it: learning rate and batch as power laws, and where these come from.

A recipe is a text of the config: a formula as `lr = 8.2 N^-0.6, batch = 0.58 D^0.571`, constants times powers, or the
name of one in the table of published laws. Its variables:

    N      parameters, embeddings included     N_ne   parameters without the token, position and output matrices
    D      training tokens                     C_ne   FLOPs without vocabulary terms (`table_a4`)
    C      FLOPs under the study's convention  B      tokens of a batch (of `lr` only)

Parameters are those that a token meets: experts that it is not sent to do not count.
`lr` is the peak learning rate, `batch` the tokens of a batch; a recipe without it leaves `train.batch_size` as it is. A
variable may be measured in a unit, as in `(D/2.5e9)^-0.3`: then the number before it is what suits that value.

`mup lr = 0.004, base = 64` carries over what suits a model of `d_model` 64 by muP (`ModelConfig.base_width`): N is no
part of the rate then, D and B may be. `init` is `ModelConfig.init_scale` and `temperature` divides the logits:
with `lr` the three that Li et al. 2023 (arXiv 2309.03852) look for on a narrow proxy (`study/beside/grid.py`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig, did_you_mean
from chinchilla_jax.ledger import count_active, count_parameters
from chinchilla_jax.scaling.laws.published import law
from chinchilla_jax.study.ladder import flops_per_token
from chinchilla_jax.training.schedule import steps_of

_KEY = "study.recipe"
_VARIABLES = ("N", "N_ne", "D", "C", "C_ne", "B")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(
    rf"\s*\*?\s*((?P<name>[A-Za-z_]+)|\(\s*(?P<measured>[A-Za-z_]+)\s*/\s*(?P<unit>{_NUMBER})\s*\))"
    rf"(\s*(\^|\*\*)\s*(?P<exponent>{_NUMBER}))?"
)
_MUP, _MUP_WORDS = "mup", ("base", "init", "temperature")

# Name of the recipe: the published laws of its learning rate and batch, with the variable each of their exponents
# belongs to. DeepSeek's C is M D with M = 72 L d^2 + 12 L d s per token, which is `table_a4` but for its softmax; Step
# Law's N leaves the vocabulary out.
PUBLISHED = {
    "deepseek": (("deepseek2024_learning_rate", {"p": "C_ne"}), ("deepseek2024_batch", {"p": "C_ne"})),
    "step-law": (("steplaw2025_learning_rate", {"p": "N_ne", "q": "D"}), ("steplaw2025_batch", {"p": "D"})),
}


@dataclasses.dataclass(frozen=True)
class Power:
    """coefficient * product of variable ^ exponent; `exponents` in the order written."""

    coefficient: float
    exponents: tuple[tuple[str, float], ...] = ()

    def at(self, **variables: float) -> float:
        """Its value; variables it does not name are ignored."""
        return math.prod([self.coefficient, *(variables[name] ** exponent for name, exponent in self.exponents)])

    def __str__(self) -> str:
        return " ".join([f"{self.coefficient:g}", *(f"{name}^{exponent:g}" for name, exponent in self.exponents)])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`lr` and, if it has one, `batch` (tokens), with their `source` for readers of a manifest.

    `mup` has the words of a recipe by muP, `base` and those given of `init` and `temperature`; {} of another.
    """

    lr: Power
    batch: Power | None
    source: str
    mup: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        batch = "batch as in the config" if self.batch is None else f"batch = {self.batch} tokens"
        return f"peak_lr = {self.lr}, {batch}{f', by muP, {self.words}' if self.mup else ''} ({self.source})"

    @property
    def words(self) -> str:
        """Those of muP, as they are written in a recipe."""
        return ", ".join(f"{name} = {self.mup[name]:g}" for name in _MUP_WORDS if name in self.mup)

    @property
    def text(self) -> str:
        """A formula that `read_recipe` reads as this recipe, its numbers in six digits."""
        batch = "" if self.batch is None else f", batch = {self.batch}"
        return f"{_MUP} lr = {self.lr}{batch}, {self.words}" if self.mup else f"lr = {self.lr}{batch}"


def read_recipe(text: str) -> Recipe:
    """The recipe `study.recipe`: a formula, or the name of a published one. Raises ConfigError if it is neither."""
    text = text.strip()
    if text in PUBLISHED:
        lr, batch = (_published(name, exponents) for name, exponents in PUBLISHED[text])
        return Recipe(lr, batch, f"{text}: {law(PUBLISHED[text][0][0]).source}")
    if "=" not in text:
        names = f"{did_you_mean(text, PUBLISHED)}; one of {', '.join(PUBLISHED)}"
        raise ConfigError(_KEY, f"unknown recipe {text!r}{names}, or a formula such as 'lr = 1 N^-0.5'")
    start, _, rest = text.partition(" ")
    by_mup = start == _MUP
    laws = parse(_KEY, rest if by_mup else text, ("lr", "batch", *(_MUP_WORDS if by_mup else ())), _VARIABLES)
    if "lr" not in laws:
        raise ConfigError(_KEY, f"{text!r} has no learning rate; add 'lr = ...'")
    if "batch" in laws and "B" in dict(laws["batch"].exponents):
        raise ConfigError(_KEY, f"{text!r}: B is the batch itself; only lr may depend on it")
    return Recipe(laws["lr"], laws.get("batch"), _KEY, _mup_words(text, laws) if by_mup else {})


def _mup_words(text: str, laws: Mapping[str, Power]) -> dict[str, float]:
    for name in _MUP_WORDS:
        if name in laws and laws[name].exponents:
            raise ConfigError(_KEY, f"{text!r}: {name} is one number for all runs, without powers")
    words = {name: laws[name].coefficient for name in _MUP_WORDS if name in laws}
    if "base" not in words or not words["base"].is_integer():
        raise ConfigError(_KEY, f"{text!r}: muP needs the d_model that the rate suits; add 'base = 64', a whole number")
    return words


def _published(name: str, exponents: Mapping[str, str]) -> Power:
    constants = law(name).known()
    return Power(constants["k"], tuple((variable, constants[symbol]) for symbol, variable in exponents.items()))


def with_recipe(config: RunConfig, budget: float) -> tuple[RunConfig, str]:
    """The study's config with learning rate, batch and, by muP, parametrisation for the run of its model on `budget`
    FLOPs; still with its study, and trained for as many batches as before. Second, the provenance in one line. Raises
    ConfigError if the recipe cannot be read or, by muP, does not suit the model.

    A batch of the recipe becomes whole sequences, spread evenly over the devices. A microbatch keeps the rows of the
    config, which fit its memory; how many there are changes.
    """
    recipe, known = read_recipe(config.study_section.recipe), _variables(config, budget)
    batch_size, microbatches, length = config.train.batch_size, config.train.microbatches, config.data.seq_len
    batch = f"batch of {batch_size} x {length} tokens as in the config"
    if recipe.batch is not None:
        tokens = _value("batch", recipe.batch, known)
        batch_size, microbatches = _whole(config, tokens / length)
        batch = f"batch = {recipe.batch} = {tokens:.4g} tokens, rounded to {batch_size} x {length} ({recipe.source})"
    known["B"] = batch_size * length
    named = {name for power in (recipe.lr, recipe.batch) if power for name, _ in power.exponents}
    at = ", ".join(f"{name} = {known[name]:.4g}" for name in _VARIABLES if name in named)
    optimizer = dataclasses.replace(config.optimizer, peak_lr=float(f"{_value('lr', recipe.lr, known):.4g}"))
    tokens = steps_of(config).total_steps * batch_size * length
    train = dataclasses.replace(config.train, batch_size=batch_size, microbatches=microbatches, train_tokens=tokens)
    provenance = f"peak_lr = {recipe.lr} ({recipe.source}); {batch}; at {at}"
    config = dataclasses.replace(config, optimizer=optimizer, train=train)
    if not recipe.mup:
        return config, provenance
    config = dataclasses.replace(config, model=_by_mup(config, recipe.mup))
    return config, f"{provenance}; by muP, {recipe.words}, rates of matrices and logits / {config.model.widening:g}"


def _by_mup(config: RunConfig, words: Mapping[str, float]) -> ModelConfig:
    """The config's model, parametrised by muP from the base width that the recipe's words name."""
    model, base = config.model, int(words["base"])
    if model.base_width not in (0, base):
        raise ConfigError("model.base_width", f"{model.base_width}, but {_KEY} says base = {base}: leave it at 0")
    values: dict[str, Any] = {"base_width": base}
    if config.study_section.ladder == "width":  # every width has as many heads
        if model.head_dim * base % model.d_model:
            width = f"{model.head_dim * base / model.d_model:g}"
            fix = f"take a multiple of {model.d_model // math.gcd(model.d_model, model.head_dim)}"
            raise ConfigError(
                _KEY, f"base = {base}: there the {model.n_heads} heads would have a width of {width}; {fix}"
            )
        values["base_head_dim"] = model.head_dim * base // model.d_model
    if "init" in words:
        values["init_scale"] = words["init"]
    if "temperature" in words:
        values["output_scale"] = 1.0 / words["temperature"]
    return dataclasses.replace(model, **values)


def warmup_steps(config: RunConfig, steps: int) -> int:
    """Steps of warm-up of a run of `steps`."""
    # A fixed number would be most of a short run and nothing of a long one, and so tilt the IsoFLOP profiles.
    fraction = config.study_section.warmup_fraction
    return min(max(1, round(fraction * steps)), steps - 1) if fraction else 0


def _variables(config: RunConfig, budget: float) -> dict[str, float]:
    counted = count_parameters(config.model)
    tokens = budget / flops_per_token(config, config.model)
    without_vocabulary = tokens * flops_per_token(config, config.model, "table_a4")
    idle = counted.total - count_active(config.model)  # experts that a token is not sent to
    return {
        "N": counted.total - idle,
        "N_ne": counted.non_embedding - idle,
        "D": tokens,
        "C": budget,
        "C_ne": without_vocabulary,
    }


def _value(name: str, power: Power, known: Mapping[str, float]) -> float:
    """Of a part of the recipe for a run. Raises ConfigError where that is no number to train with."""
    try:
        value = power.at(**known)
    except OverflowError:
        value = math.inf
    if not 1e-30 < value < 1e15:
        at = ", ".join(f"{variable} = {known[variable]:.4g}" for variable, _ in power.exponents)
        raise ConfigError(_KEY, f"{name} = {power} is {value:.3g} at {at}: nothing to train with")
    return value


def _whole(config: RunConfig, sequences: float) -> tuple[int, int]:
    """Batch size and microbatches nearest to a number of sequences that need not be whole."""
    rows, devices = config.train.batch_size // config.train.microbatches, config.mesh.rows
    if sequences >= rows:
        microbatches = round(sequences / rows)
        return microbatches * rows, microbatches
    return max(1, round(sequences / devices)) * devices, 1


def parse(key: str, text: str, names: Collection[str], variables: Collection[str]) -> dict[str, Power]:
    """The power laws of `text`, by name. `names` may stand left of an equals sign, `variables` right of it. Raises
    ConfigError at `key`; says what is wrong with which part.
    """
    laws: dict[str, Power] = {}
    for part in text.split(","):
        name, equals, right = (word.strip() for word in part.partition("="))
        if not equals or name not in names:
            form = f"NAME = NUMBER ... with NAME one of {', '.join(names)}{did_you_mean(name, names)}"
            raise ConfigError(key, f"{part.strip()!r} in {text!r}: write {form}")
        if name in laws:
            raise ConfigError(key, f"{text!r} says twice what {name} is")
        laws[name] = _power(key, right, variables)
    return laws


def _power(key: str, text: str, variables: Collection[str]) -> Power:
    number = re.match(_NUMBER, text)
    if not number or not 0.0 < float(number[0]) < math.inf:
        raise ConfigError(key, f"{text!r} must begin with a positive number")
    coefficient, exponents, rest = float(number[0]), [], text[number.end() :]
    while rest.strip():
        factor = _FACTOR.match(rest)
        name = (factor["name"] or factor["measured"]) if factor else ""
        unit = float(factor["unit"] or 1.0) if factor else 0.0
        if not factor or name not in variables or unit <= 0.0:
            form = f"powers such as {next(iter(variables))}^-0.5, of {', '.join(variables)}"
            raise ConfigError(key, f"{text!r}: {rest.strip()!r} is unknown; after the number come {form}")
        exponents.append((name, float(factor["exponent"] or 1.0)))
        coefficient *= unit ** -exponents[-1][1]
        rest = rest[factor.end() :]
    return Power(coefficient, tuple(exponents))
