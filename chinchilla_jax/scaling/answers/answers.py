"""Given a law, what should be trained, and what do other choices cost? The questions of the verb `predict`, as tables.

Intervals are 95% percentiles of the law's bootstrap replicates, where it has any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.presets import presets
from chinchilla_jax.scaling.answers import decide
from chinchilla_jax.scaling.answers.decide import Choice
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.laws.optimum import allocate, cheapest_for_loss, unique_data_optimum
from chinchilla_jax.scaling.laws.published import PublishedLaw, published
from chinchilla_jax.scaling.laws.published import law as published_law
from chinchilla_jax.scaling.laws.published import surface as published_surface
from chinchilla_jax.scaling.read.runs import FitRefused

SMALLER = (0.75, 0.5, 0.35, 0.25)
_NEAR, _MOST_NEAR = 2.0, 3  # a preset further than this factor from N* is not near; presets shown
# Share of all parameters that one token uses: Abnar et al. vary it, Krajewski et al. hold it at 1 in 64.
_USED = {"sparsity": lambda inputs: 1.0 - inputs["sparsity"], "granularity": lambda inputs: 1.0 / 64.0}
_CONTEXT = 2048  # tokens, of the presets' papers


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question answered: `rows` of column -> number, (low, high), text or None; `notes` below the table."""

    key: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


class SizeLaw(Protocol):
    """The loss of any size N at any budget C in FLOPs; losses in the law's own unit.

    `words` says what the law is made of, `premise` what its `tokens_reaching` supposes; `flops_per` is training FLOPs
    per token. `best` is N* and the loss there, `loss` that of `params` on which `flops` are spent; `tokens_reaching` is
    D with which `params` reach `loss`, near `flops`, or infinite; `flops_for` the least FLOPs, up to `flops`, for it.
    """

    name: str
    words: str
    premise: str
    flops_per: FlopsPerToken

    def best(self, flops: float) -> tuple[float, float]: ...
    def loss(self, params: np.ndarray | float, flops: float) -> np.ndarray: ...
    def tokens_reaching(self, params: float, loss: float, flops: float) -> float: ...
    def flops_for(self, loss: float, flops: float) -> float: ...

    def tokens(self, params: np.ndarray | float, flops: float) -> np.ndarray:
        """D that spends `flops` on `params`."""
        return flops / decide.per_token(params, self.flops_per)


@dataclasses.dataclass(frozen=True)
class Law(SizeLaw):
    """A surface to ask, with the replicates of its fit or None."""

    name: str
    surface: Surface
    source: str = ""
    boot: Surface | None = None
    flops_per: FlopsPerToken = 6.0
    words = "its surface E + A/N^alpha + B/D^beta"
    premise = ""

    def best(self, flops: float) -> tuple[float, float]:
        params, _, loss = self.surface.optimum(flops, self.flops_per)
        return float(params), float(loss)

    def loss(self, params: np.ndarray | float, flops: float) -> np.ndarray:
        return self.surface.loss(params, self.tokens(params, flops))

    def tokens_reaching(self, params: float, loss: float, flops: float) -> float:
        return float(decide.tokens_reaching(self.surface, params, loss))

    def flops_for(self, loss: float, flops: float) -> float:
        return float(decide.flops_for_loss(self.surface, loss, self.flops_per))


def published_laws(names: Sequence[str] = ()) -> tuple[Law, ...]:
    """Published surfaces by name; by default the paper's and its refit.

    Refused as `unknown_law`, `not_a_surface` (a law of another form) or `no_constants`.
    """
    laws = []
    for name in names or ("hoffmann2022_unrounded", "besiroglu2024"):
        published_law(name).known()
        laws.append(Law(name, published_surface(name), published_law(name).source))
    return tuple(laws)


def optimum(laws: Sequence[Law], flops: float) -> Answer:
    """The compute-optimal model under each law."""
    rows = [_row(law, lambda s, c: decide.optimal(s, flops, c)) for law in laws]
    for row in rows:
        del row["above optimum"], row["FLOPs wasted"], row["C"]
    sources = tuple(f"{law.name}: {law.source}" for law in laws if law.source)
    return Answer("optimum", f"Compute-optimal for C = {flops:.4g} FLOPs", tuple(rows), sources)


def printed_allocations(flops: float) -> Answer:
    """What papers that printed a power law and no surface would train; extrapolated, see each source."""
    sizes = {
        "hoffmann2022 approach 1": 0.0992 * flops**0.4981,
        "hoffmann2022 approach 2": 0.1449 * flops**0.4899,
        # The text's rounded 0.29 C^0.53 gives 10.5T tokens at 3.8e25 FLOPs; the figure's gives the 16.55T it states.
        "llama3_2024": flops / 6.0 / float(published()["llama3_2024_figure"].value(x=flops)),
    }
    rows = [{"law": name, "N": n, "D": flops / 6.0 / n, "D/N": flops / 6.0 / n**2} for name, n in sizes.items()]
    notes = ("Power laws through the printed Tables 3 and A3, and Llama 3's D*(C) of its figure; C = 6 N D",)
    return Answer("printed", "Published allocations without a loss", tuple(rows), notes)


def other_laws(names: Sequence[str], flops: float, inputs: Mapping[str, float]) -> Answer:
    """The optimum under published laws of other forms, such as `kaplan2020`, `krajewski2024` or `abnar2025`.

    `inputs` are what such laws need besides N and D, e.g. `{"granularity": 8}`. Refused as `unknown_law`,
    `no_constants`, or `inputs` (a law that is no loss over N and D, or needs more inputs).
    """
    laws = [published_law(name) for name in names]
    rows = tuple(_other_row(law, flops, inputs) for law in laws)
    counting = "C = 6 N D over the parameters that a token uses; N as each law counts it"
    notes = (counting, *(f"{law.name}: {law.source}; {law.counts}" for law in laws))
    return Answer("other_laws", f"Compute-optimal for C = {flops:.4g} FLOPs, laws of other forms", rows, notes)


def _other_row(law: PublishedLaw, flops: float, inputs: Mapping[str, float]) -> dict[str, Any]:
    extra = _extra_inputs(law, inputs)
    law.known()  # says so when there are no constants
    share = _USED.get(law.form_name, lambda _: 1.0)(extra)
    try:
        best = allocate(lambda params, tokens: law.value(params=params, tokens=tokens, **extra), flops, 6.0 * share)
    except FitRefused as refusal:
        raise FitRefused(refusal.reason, f"{law.name}: {refusal}") from None
    row = {"law": law.name, "N": best.params, "D": best.tokens, "D/N": best.tokens / best.params, "loss": best.loss}
    return row | extra


def _extra_inputs(law: PublishedLaw, inputs: Mapping[str, float]) -> dict[str, float]:
    """Those of `inputs` that the law needs besides N and D, checked."""
    asked = law.form.input_names
    if not {"params", "tokens"} <= set(asked) or not law.gives.startswith("loss"):
        words = f"gives {law.gives} from {', '.join(asked)}: without both N and D a budget has no optimum"
        raise FitRefused("inputs", f"{law.name} {words}")
    extra = {key: inputs[key] for key in asked if key in inputs}
    missing = [key for key in asked if key not in ("params", "tokens", *extra)]
    if missing:
        raise FitRefused("inputs", f"{law.name} needs {', '.join(missing)}: --inputs={missing[0]}:VALUE")
    for key, value in extra.items():
        low, high, below = (0.0, 1.0, " and below 1") if key == "sparsity" else (1e-9, np.inf, "")
        if not low <= value < high:
            raise FitRefused("inputs", f"--inputs={key}:{value:g} must be positive{below}")
    return extra


def fixed(laws: Sequence[Law], flops: float | None, params: float | None, tokens: float | None) -> Answer:
    """With N or D given: what to do with the budget, or which budget makes the given value optimal."""
    spent = ": the budget for which it is optimal" if flops is None else f" and all of C = {flops:.4g} FLOPs spent"
    ask: Callable[[Surface, FlopsPerToken], Choice]
    if params is not None and tokens is not None:
        title, ask = "N and D given", lambda s, c: decide.trained(s, params, tokens, c)
    elif params is not None:
        title, ask = f"N given{spent}", lambda s, c: decide.given_params(s, params, flops, c)
    else:
        assert tokens is not None  # one of both is asked about
        title, ask = f"D given{spent}", lambda s, c: decide.given_tokens(s, tokens, flops, c)
    notes = ("FLOPs wasted: the share that an optimal model would not need for the same loss",)
    return Answer("fixed", title, tuple(_row(law, ask) for law in laws), notes)


def smaller(law: SizeLaw, flops: float) -> Answer:
    """What a smaller model than the optimal one costs: loss at equal FLOPs, FLOPs at equal loss."""
    best, lowest = law.best(flops)
    rows = []
    for factor in (1.0, *SMALLER):
        row = _with_all_flops(law, factor * best, flops, lowest)
        enough = law.tokens_reaching(factor * best, lowest, flops)
        extra = {"extra FLOPs": enough / row["D"] - 1.0, "D for the loss of N*": enough}
        rows.append({"size": f"{factor:g} N*", **row, **extra})
    notes = (
        f"{law.name}. Left: all of C spent on that size. Right: what that size needs to reach the loss of the optimum"
        f"{law.premise}",
    )
    return Answer("smaller", "A smaller model, trained for longer", tuple(rows), notes)


def nearest_presets(law: SizeLaw, flops: float) -> Answer:
    """Published shapes near the optimal size, each given the whole budget, and what it loses against the optimum."""
    best, lowest = law.best(flops)
    distance = {preset: abs(np.log(preset.params_exact / best)) for preset in presets().values()}
    near = [preset for preset in distance if distance[preset] <= np.log(_NEAR)]
    rows = []
    for preset in sorted(near, key=lambda preset: distance[preset])[:_MOST_NEAR]:
        row = _with_all_flops(law, float(preset.params_exact), flops, lowest)
        executed = train_flops_per_token(preset.model, _CONTEXT, "executed") * row["D"]
        wasted = max(0.0, 1.0 - law.flops_for(row["loss"], flops) / flops)
        rows.append({"preset": preset.name} | row | {"FLOPs wasted": wasted, "C, executed": executed})
    notes = (f"{law.name}; N* = {best:.4g}. C, executed: what this code would multiply, context {_CONTEXT}",)
    if not rows:
        notes = (f"No published shape within a factor {_NEAR:g} of N* = {best:.4g}",)
    return Answer("presets", "Nearest published shapes", tuple(rows), notes)


def _with_all_flops(law: SizeLaw, params: float, flops: float, lowest: float) -> dict[str, float]:
    tokens, loss = float(law.tokens(params, flops)), float(law.loss(params, flops))
    return {"N": params, "D": tokens, "D/N": tokens / params, "loss": loss, "above optimum": loss / lowest - 1.0}


def with_unique_tokens(laws: Sequence[Law], flops: float, unique: float) -> Answer:
    """Only `unique` tokens exist: how large a model, and how many epochs (Muennighoff et al. 2023)?"""
    decay = {name: published()["muennighoff2023"].constants[name] for name in ("R_D", "R_N")}
    rows: list[dict[str, Any]] = []
    for law in laws:
        _check_6nd(law, "unique_tokens")
        constants = {name: float(getattr(law.surface, name)) for name in ("E", "A", "B", "alpha", "beta")} | decay
        best = unique_data_optimum(constants, unique, flops)
        row = {"law": law.name, "N": best.params, "D": best.tokens, "epochs": best.epochs, "loss": best.loss}
        rows.append(row | {"loss, fresh data": best.unlimited, "next token worth": best.next_value})
    notes = (
        f"Repetition as fitted by Muennighoff et al. 2023 (R_D* {decay['R_D']:.3g}, R_N* {decay['R_N']:.3g}) on "
        "top of each law; next token worth: one more repeated token in fresh ones",
    )
    return Answer("unique_tokens", f"With {unique:.4g} unique tokens", tuple(rows), notes)


def with_inference(laws: Sequence[Law], flops: float, served: float) -> Answer:
    """The model that is cheapest to train and serve at the loss of the compute-optimal one (Sardana et al. 2024)."""
    rows: list[dict[str, Any]] = []
    for law in laws:
        _check_6nd(law, "inference_tokens")
        best = cheapest_for_loss(law.surface, law.best(flops)[1], served)
        values = {"N": best.params, "D": best.tokens, "D/N": best.tokens / best.params, "loss": best.loss}
        values |= {"C, training": best.training, "C, inference": best.inference, "saved": best.saving}
        rows.append({"law": law.name} | {name: float(value) for name, value in values.items()})
    notes = (
        f"Same loss as the optimum of C = {flops:.4g}; 2 N FLOPs per token served; saved: of training and serving "
        "together, against serving the compute-optimal model",
    )
    return Answer("inference", f"With {served:.4g} tokens to serve", tuple(rows), notes)


def _check_6nd(law: Law, flag: str) -> None:
    if callable(law.flops_per):
        raise FitRefused("convention", f"--{flag} counts C as 6 N D; these runs count it otherwise: give --law")


def _row(law: Law, ask: Callable[[Surface, FlopsPerToken], Choice]) -> dict[str, Any]:
    """The choice under a law, and 95% intervals where they have a width."""
    choice = ask(law.surface, law.flops_per)
    values = {
        "N": choice.params,
        "D": choice.tokens,
        "D/N": choice.tokens / choice.params,
        "C": choice.flops,
        "loss": choice.loss,
        "above optimum": choice.loss / choice.optimal_loss - 1,
        "FLOPs wasted": choice.wasted,
    }
    row: dict[str, Any] = {"law": law.name} | {name: float(value) for name, value in values.items()}
    if law.boot is not None:
        many = ask(law.boot, law.flops_per)
        for name, replicates in (("N", many.params), ("D", many.tokens), ("loss", many.loss)):
            low, high = interval(np.asarray(replicates), 0.95)
            if high > low * (1 + 1e-9):
                row[f"{name}, 95%"] = (low, high)
    return row
