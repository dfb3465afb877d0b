"""Which model shapes does a study train?

A *family* is what a template model fixes: positions, norms, biases, tying, feed-forward kind and its width relative to
d_model, the ratio of query to key heads, and the preferred head width. Within it a shape is (layers, width), and for a
wanted parameter count the shape is chosen whose count is near and whose d_model / n_layers is near an aspect ratio.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from chinchilla_jax import ledger
from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.presets import presets

# Weight of ln(N / target)^2 against ln(aspect / target)^2: on the ladder 10% in N count as much as a factor 1.9 in
# the aspect, for an exact size 2% do.
_LADDER_WEIGHT = 40.0
_EXACT_WEIGHT = 1000.0
_MAX_LAYERS = 160
_MAX_WIDTH = 32768


@dataclasses.dataclass(frozen=True)
class Rung:
    """A shape of the ladder; `params` is its total N, embeddings included."""

    model: ModelConfig
    params: int


def _rung(model: ModelConfig) -> Rung:
    return Rung(model, count_parameters(model).total)


def _shape(template: ModelConfig, layers: int, width: int, fixed_heads: bool) -> ModelConfig:
    """The template's family at this depth and width, whose heads are about as wide or as many as the template's."""
    heads = template.n_heads if fixed_heads else _heads(template, width)
    group = template.n_heads // template.n_kv_heads
    kv_heads = next(k for k in range(max(heads // group, 1), 0, -1) if heads % k == 0)
    step = math.lcm(8, template.experts)  # experts are equally wide
    d_ff = max(step, step * round(width * template.d_ff / template.d_model / step))
    return dataclasses.replace(
        template, n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=kv_heads, head_dim=width // heads, d_ff=d_ff
    )


def _heads(template: ModelConfig, width: int) -> int:
    if width % template.head_dim == 0:
        return width // template.head_dim
    divisors = [heads for heads in range(1, width + 1) if _divides(template, heads, width)]
    return min(divisors, key=lambda heads: (abs(math.log(heads * template.head_dim / width)), heads))


def _divides(template: ModelConfig, heads: int, width: int) -> bool:
    """Whether so many heads can share this width: positions that rotate pairs of features need heads of even width."""
    return width % (heads * (2 if POSITIONS[template.position].kernel_form == "rope" else 1)) == 0


def nearest(config: RunConfig, params: float, exact: bool = False, above: Rung | None = None) -> Rung:
    """The shape of the study's family for about `params` parameters, embeddings included, and `study.aspect_ratio`; at
    least as deep and as wide as `above`. `exact` weighs the count far above the aspect, with finer steps of width.

    With `study.ladder=width` only the width varies; depth and number of heads are the template's. A size with fewer
    heads than the next would show in the profiles like a step of depth, and one with a single head depends on its luck.
    """
    template, study = config.model, config.study_section
    fixed_depth, weight = study.ladder == "width", _EXACT_WEIGHT if exact else _LADDER_WEIGHT
    least_layers, least_width = (above.model.n_layers, above.model.d_model) if above else (1, 16)
    if fixed_depth:
        least_layers = template.n_layers
    best, best_cost = (least_layers, least_width), math.inf
    for width, fixed, per_layer in _widths(template, exact, fixed_depth):
        real = math.floor((params - fixed) / per_layer)
        for layers in (template.n_layers,) if fixed_depth else (max(real, least_layers), max(real + 1, least_layers)):
            if layers > _MAX_LAYERS or width < least_width:
                continue
            aspect = 0.0 if fixed_depth else math.log(width / layers / study.aspect_ratio)
            cost = weight * math.log((fixed + layers * per_layer) / params) ** 2 + aspect**2
            if cost < best_cost:
                best, best_cost = (layers, width), cost
    return _rung(_shape(template, *best, fixed_heads=fixed_depth))


@functools.lru_cache(maxsize=16)
def _widths(template: ModelConfig, exact: bool, fixed_heads: bool) -> tuple[tuple[int, int, int], ...]:
    """(d_model, parameters outside the layers, parameters of one layer) for every width considered."""
    rows, width = [], 16
    while width <= _MAX_WIDTH:
        if not fixed_heads or _divides(template, template.n_heads, width):
            one, two = (_rung(_shape(template, layers, width, fixed_heads)).params for layers in (1, 2))
            rows.append((width, 2 * one - two, two - one))
        # Below 64, wider steps would leave gaps in N; above 8 heads whole heads are fine enough.
        step = 4 if width < 64 else 8
        if width >= (16 if exact else 8) * template.head_dim:
            step = max(16, template.head_dim)
        if exact and width >= 4096:
            step = max(128, template.head_dim)
        width += step
    return tuple(rows)


def published(template: ModelConfig) -> tuple[Rung, ...]:
    """The 50 study models of Hoffmann et al. 2022, Table A9, with the template's vocabulary and attention kind."""
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    shapes = [preset.model for preset in presets().values() if preset.name.startswith("study-")]
    models = [dataclasses.replace(template, **{name: getattr(shape, name) for name in names}) for shape in shapes]
    return tuple(sorted((_rung(model) for model in models), key=lambda rung: rung.params))


def flops_per_token(config: RunConfig, model: ModelConfig, convention: str | None = None) -> float:
    """Training FLOPs of one token of a run of `config` with the shape `model`, by default in the study's convention."""
    of_model = config if config.model == model else dataclasses.replace(config, model=model)
    return ledger.flops_per_token(of_model, convention or config.study_section.convention)


def ladder(config: RunConfig, optima: Sequence[float]) -> tuple[Rung, ...]:
    """Every rung that the study's budgets may use, smallest first. They share them: a shape is compiled once for all,
    and one trunk serves the cooldowns of several budgets.

    Rungs are `study.size_ratio` apart, counted from the geometric mean of the `optima` (the N expected at each budget);
    steps the family cannot make are left out. Raises ConfigError if `study.sizes` has no three sizes for each side.
    """
    study = config.study_section
    if study.sizes < 6:
        raise ConfigError("study.sizes", f"at least 6, three on each side of the predicted optimum, got {study.sizes}")
    anchor = math.exp(sum(map(math.log, optima)) / len(optima))
    reach = study.sizes + 1
    first = math.floor(math.log(min(optima) / anchor, study.size_ratio)) - reach
    last = math.ceil(math.log(max(optima) / anchor, study.size_ratio)) + reach
    shapes = published(config.model) if study.ladder == "chinchilla" else ()
    rungs: list[Rung] = []
    for step in range(first, last + 1):
        target = anchor * study.size_ratio**step
        if shapes:
            rung = min(shapes, key=lambda r: abs(math.log(r.params / target)))
        else:
            # Deeper or wider at every step: a ladder that goes back and forth between the two is a noisier one.
            rung = nearest(config, target, above=rungs[-1] if rungs else None)
        # At the ends of the family several targets meet in one shape, or in shapes hardly apart.
        if abs(math.log(rung.params / target)) > 0.5 * math.log(study.size_ratio):
            continue
        if not rungs or rung.params > rungs[-1].params * study.size_ratio**0.5:
            rungs.append(rung)
    return tuple(rungs)


def around(rungs: tuple[Rung, ...], optimum: float, sizes: int) -> tuple[Rung, ...]:
    """The `sizes` neighbouring rungs nearest to `optimum` on both sides; fewer where the ladder ends."""
    below = [rung for rung in rungs if rung.params < optimum]
    above = [rung for rung in rungs if rung.params >= optimum]
    one_more = sizes % 2 and below and above and optimum / below[-1].params < above[0].params / optimum
    n_below = sizes // 2 + bool(one_more)
    return tuple(below[-n_below:] + above[: sizes - n_below])
