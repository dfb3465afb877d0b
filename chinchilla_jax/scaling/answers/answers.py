"""Given a law, what should be trained, and what do other choices cost? The questions of the verb `predict`, as tables.

Each answer is a `Section`: rows of plain values, for `words.table` and for JSON alike. Intervals are 95% percentiles of
the law's bootstrap replicates, where it has any.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.presets import Preset, presets
from chinchilla_jax.scaling.answers import decide
from chinchilla_jax.scaling.answers.decide import Choice
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.laws.data_constrained import unique_data_optimum
from chinchilla_jax.scaling.laws.inference import cheapest_for_loss
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.laws.published import PublishedLaw, published
from chinchilla_jax.scaling.laws.published import law as published_law
from chinchilla_jax.scaling.laws.published import surface as published_surface
from chinchilla_jax.scaling.read.runs import FitRefused

SMALLER = (0.75, 0.5, 0.35, 0.25)
_NEAR = 2.0  # a preset further than this factor from N* is not near
# Share of all parameters that one token uses: Abnar et al. vary it, Krajewski et al. hold it at 1 in 64.
_USED = {"sparsity": lambda inputs: 1.0 - inputs["sparsity"], "granularity": lambda inputs: 1.0 / 64.0}
CONTEXT = 2048  # tokens, of the presets' papers
SMALLER_TITLE = "A smaller model, trained for longer"


@dataclasses.dataclass(frozen=True)
class Law:
    """A surface to ask: its name, the replicates of its fit or None, and its FLOPs per token (6: C = 6 N D)."""

    name: str
    surface: Surface
    source: str
    boot: Surface | None = None
    flops_per: FlopsPerToken = 6.0


@dataclasses.dataclass(frozen=True)
class Section:
    """One question answered: `rows` of column -> number, (low, high), text or None; `notes` below the table."""

    key: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


def published_laws(names: Sequence[str] = ()) -> tuple[Law, ...]:
    """Published surfaces by name; by default the paper's and its refit.

    Raises:
      FitRefused: `unknown_law`, `not_a_surface` (a law of another form) or `no_constants`.
    """
    found = []
    for name in names or ("hoffmann2022_unrounded", "besiroglu2024"):
        entry = published_law(name)
        if not entry.constants:
            raise FitRefused("no_constants", f"{name}: {entry.notes}")
        found.append(Law(name, published_surface(name), entry.source))
    return tuple(found)


def optimum(laws: Sequence[Law], flops: float) -> Section:
    """The compute-optimal model under each law."""
    rows = [_row(law, lambda s, c: decide.optimal(s, flops, c), "law") for law in laws]
    rows = [{k: v for k, v in row.items() if k not in ("above optimum", "FLOPs wasted", "C")} for row in rows]
    return Section("optimum", f"Compute-optimal for C = {flops:.4g} FLOPs", tuple(rows), _sources(laws))


def printed_allocations(flops: float) -> Section:
    """What papers that printed a power law and no surface would train; extrapolated, see each source."""
    rows = [
        {"law": "hoffmann2022 approach 1", **_split(0.0992 * flops**0.4981, flops)},
        {"law": "hoffmann2022 approach 2", **_split(0.1449 * flops**0.4899, flops)},
    ]
    # The text's rounded 0.29 C^0.53 gives 10.5T tokens at 3.8e25 FLOPs, not the 16.55T it states; the figure's does.
    tokens = float(published()["llama3_2024_figure"].value(x=flops))
    rows.append({"law": "llama3_2024", "N": flops / 6.0 / tokens, "D": tokens, "D/N": 6 * tokens**2 / flops})
    notes = ("power laws through the printed Tables 3 and A3, and Llama 3's D*(C) of its figure; C = 6 N D",)
    return Section("printed", "Published allocations without a loss", tuple(rows), notes)


def other_laws(names: Sequence[str], flops: float, inputs: Mapping[str, float]) -> Section:
    """The optimum under published laws of other forms, such as `kaplan2020`, `krajewski2024` or `abnar2025`.

    Args:
      inputs: what such a law needs besides N and D, by name, e.g. `{"granularity": 8}`.

    Raises:
      FitRefused: `unknown_law`, `no_constants`, or `inputs` (a law that is no loss over N and D, or needs more inputs).
    """
    rows, notes = [], ["C = 6 N D over the parameters that a token uses; N as each law counts it"]
    for name in names:
        entry = published_law(name)
        asked = entry.form.input_names
        extra = {key: inputs[key] for key in asked if key in inputs}
        missing = [key for key in asked if key not in ("params", "tokens", *extra)]
        if not {"params", "tokens"} <= set(asked) or not entry.gives.startswith("loss"):
            raise FitRefused("inputs", f"{name} gives {entry.gives} from {', '.join(asked)}: without both N and D a "
                             "budget has no optimum")  # fmt: skip
        if missing:
            raise FitRefused("inputs", f"{name} needs {', '.join(missing)}: --inputs={missing[0]}:VALUE")
        for key, value in extra.items():
            top = 1.0 if key == "sparsity" else np.inf
            if not (0.0 if key == "sparsity" else 1e-9) <= value < top:
                raise FitRefused("inputs", f"--inputs={key}:{value:g} must be positive"
                                 f"{' and below 1' if key == 'sparsity' else ''}")  # fmt: skip
        entry.value(params=1e9, tokens=1e10, **extra)  # says so when there are no constants
        share = _USED.get(entry.form_name, lambda _: 1.0)(extra)
        loss = functools.partial(_value, entry, extra)
        try:
            best = allocate(loss, flops, 6.0 * share)
        except FitRefused as refusal:
            raise FitRefused(refusal.reason, f"{name}: {refusal}") from None
        rows.append({"law": name, "N": best.params, "D": best.tokens, "D/N": best.tokens / best.params,
                     "loss": best.loss, **extra})  # fmt: skip
        notes.append(f"{name}: {entry.source}; {entry.counts}")
    title = f"Compute-optimal for C = {flops:.4g} FLOPs, laws of other forms"
    return Section("other_laws", title, tuple(rows), tuple(notes))


def fixed(laws: Sequence[Law], flops: float | None, params: float | None, tokens: float | None) -> Section:
    """With N or D given: what to do with the budget, or which budget makes the given value optimal."""
    if params is not None and tokens is not None:
        title, ask = "N and D given", lambda s, c: decide.trained(s, params, tokens, c)
    elif params is not None:
        title, ask = "N given", lambda s, c: decide.given_params(s, params, flops, c)
    else:
        title, ask = "D given", lambda s, c: decide.given_tokens(s, tokens, flops, c)
    if flops is None and (params is None or tokens is None):
        title += ": the budget for which it is optimal"
    elif params is None or tokens is None:
        title += f" and all of C = {flops:.4g} FLOPs spent"
    notes = ("FLOPs wasted: the share that an optimal model would not need for the same loss",)
    return Section("fixed", title, tuple(_row(law, ask, "law") for law in laws), notes)


def smaller(law: Law, flops: float) -> Section:
    """What a smaller model than the optimal one costs: loss at equal FLOPs, FLOPs at equal loss."""
    best = decide.optimal(law.surface, flops, law.flops_per)
    rows = []
    for factor in (1.0, *SMALLER):
        size = float(best.params) * factor
        equal = decide.given_params(law.surface, size, flops, law.flops_per)
        reach = decide.reaching(law.surface, size, best.loss, law.flops_per)
        rows.append({
            "size": f"{factor:g} N*", "N": size, "D": float(equal.tokens), "D/N": float(equal.tokens) / size,
            "loss": float(equal.loss), "above optimum": float(equal.loss / best.loss - 1),
            "extra FLOPs for the loss of N*": float(reach.flops) / flops - 1,
            "D for the loss of N*": float(reach.tokens),
        })  # fmt: skip
    rows = [{("extra FLOPs" if k.startswith("extra") else k): v for k, v in row.items()} for row in rows]
    notes = (
        f"{law.name}. Left: all of C spent on that size. Right: what that size needs to reach the loss of the optimum",
    )
    return Section("smaller", SMALLER_TITLE, tuple(rows), notes)


def nearest_presets(law: Law, flops: float) -> Section:
    """Published shapes near the optimal size, each given the whole budget, and what it loses against the optimum."""
    best = decide.optimal(law.surface, flops, law.flops_per)
    rows = []
    for preset in presets_near(float(best.params)):
        own = decide.given_params(law.surface, preset.params_exact, flops, law.flops_per)
        counted = train_flops_per_token(preset.model, CONTEXT, "executed") * float(own.tokens)
        rows.append({"preset": preset.name, "N": float(preset.params_exact), "D": float(own.tokens),
                     "D/N": float(own.tokens) / preset.params_exact, "loss": float(own.loss),
                     "above optimum": float(own.loss / best.loss - 1), "FLOPs wasted": float(own.wasted),
                     "C, executed": counted})  # fmt: skip
    return presets_section(rows, float(best.params), f"{law.name}; ")


def presets_near(target: float, most: int = 3) -> list[Preset]:
    """At most `most` published shapes within a factor 2 of `target` parameters, the nearest first."""
    near = sorted(presets().values(), key=lambda p: abs(np.log(p.params_exact / target)))
    return [p for p in near if abs(np.log(p.params_exact / target)) <= np.log(_NEAR)][:most]


def presets_section(rows: Sequence[Mapping[str, Any]], target: float, law: str = "") -> Section:
    """The section of the nearest published shapes, which says so when there is none near `target` parameters."""
    notes = (f"{law}N* = {target:.4g}. C, executed: what this code would multiply, context {CONTEXT}",)
    if not rows:
        notes = (f"no published shape within a factor {_NEAR:g} of N* = {target:.4g}",)
    return Section("presets", "Nearest published shapes", tuple(rows), notes)


def with_unique_tokens(laws: Sequence[Law], flops: float, unique: float) -> Section:
    """Only `unique` tokens exist: how large a model, and how many epochs (Muennighoff et al. 2023)?"""
    decay = {name: published()["muennighoff2023"].constants[name] for name in ("R_D", "R_N")}
    rows = []
    for law in laws:
        if callable(law.flops_per):
            raise FitRefused("convention", "--unique_tokens counts C as 6 N D; these runs count it otherwise: give "
                             "--law")  # fmt: skip
        constants = {name: float(getattr(law.surface, name)) for name in ("E", "A", "B", "alpha", "beta")} | decay
        best = unique_data_optimum(constants, unique, flops)
        rows.append({"law": law.name, "N": best.params, "D": best.tokens, "epochs": best.epochs, "loss": best.loss,
                     "loss, fresh data": best.unlimited, "next token worth": best.next_value})  # fmt: skip
    notes = (f"repetition as fitted by Muennighoff et al. 2023 (R_D* {decay['R_D']:.3g}, R_N* {decay['R_N']:.3g}) on "
             "top of each law; next token worth: one more repeated token in fresh ones",)  # fmt: skip
    return Section("unique_tokens", f"With {unique:.4g} unique tokens", tuple(rows), notes)


def with_inference(laws: Sequence[Law], flops: float, served: float) -> Section:
    """The model that is cheapest to train and serve at the loss of the compute-optimal one (Sardana et al. 2024)."""
    rows = []
    for law in laws:
        if callable(law.flops_per):
            raise FitRefused("convention", "--inference_tokens counts C as 6 N D; these runs count it otherwise: give "
                             "--law")  # fmt: skip
        best = decide.optimal(law.surface, flops, law.flops_per)
        found = cheapest_for_loss(law.surface, float(best.loss), served)
        rows.append({"law": law.name, "N": float(found.params), "D": float(found.tokens),
                     "D/N": float(found.tokens / found.params), "loss": float(found.loss),
                     "C, training": float(found.training), "C, inference": float(found.inference),
                     "saved": float(found.saving)})  # fmt: skip
    notes = (f"same loss as the optimum of C = {flops:.4g}; 2 N FLOPs per token served; saved: of training and serving "
             "together, against serving the compute-optimal model",)  # fmt: skip
    return Section("inference", f"With {served:.4g} tokens to serve", tuple(rows), notes)


def _value(entry: PublishedLaw, extra: Mapping[str, float], params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return entry.value(params=params, tokens=tokens, **extra)


def _row(law: Law, ask: Callable[[Surface, FlopsPerToken], Choice], label: str) -> dict[str, Any]:
    found = ask(law.surface, law.flops_per)
    row = {label: law.name} | _values(found)
    if law.boot is None:
        return row
    many = _values(ask(law.boot, law.flops_per))
    spans = {name: interval(np.asarray(many[name]), 0.95) for name in ("N", "D", "loss")}
    spans = {name: span for name, span in spans.items() if span[1] > span[0] * (1 + 1e-9)}
    return row | {f"{name}, 95%": span for name, span in spans.items()}


def _values(choice: Choice) -> dict[str, Any]:
    values = {
        "N": choice.params, "D": choice.tokens, "D/N": choice.tokens / choice.params, "C": choice.flops,
        "loss": choice.loss, "above optimum": choice.loss / choice.optimal_loss - 1, "FLOPs wasted": choice.wasted,
    }  # fmt: skip
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in values.items()}


def _split(params: float, flops: float) -> dict[str, float]:
    tokens = flops / 6.0 / params
    return {"N": params, "D": tokens, "D/N": tokens / params}


def _sources(laws: Sequence[Law]) -> tuple[str, ...]:
    return tuple(f"{law.name}: {law.source}" for law in laws if law.source)
