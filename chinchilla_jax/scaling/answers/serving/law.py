"""Which law of mixtures is asked: one fitted to runs of several numbers of experts, or one whose constants are stated?

The form is `routed_served` of `laws.experts` (Yun et al. 2024), whose constants are published nowhere; a stated law may
have any form of dense size N, tokens and experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.serving.experts import Loss
from chinchilla_jax.scaling.fits.minimise import AGREEMENT
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.laws.form import Form, form
from chinchilla_jax.scaling.laws.published import law as law_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run, stated_number

FORM = "routed_served"
# Names of columns. N of the law is that of the dense model of one feed-forward layer for each routed one, else of the
# parameters that a token uses, the dense model of the same products; else whatever `params` counts.
EXPERTS = ("experts", "n_experts", "num_experts")
_USED = ("active_experts", "top_k")
_DENSE = ("params_dense", "dense_params")
_ACTIVE = ("params_active", "active_params")
_ALL = ("params_total", "total_params", "params")
_INPUTS = {"params", "tokens", "experts"}
STARTS = 64  # of the descent, over the ranges that the form states
_MOST_REPLICATES = 200  # each is a fit of ten constants


@dataclasses.dataclass(frozen=True)
class ExpertsLaw:
    """A law of dense size N, tokens D and experts E: its `form` and `constants`; `boot`, replicates [B] of those that
    were fitted; `ranges`, lowest and highest `experts` and `D/N` of its runs, where it has any; `notes` on its origin;
    `mixture`, fields of `Mixture` that its runs tell.
    """

    name: str
    form: Form
    constants: Mapping[str, float]
    notes: tuple[str, ...]
    boot: Mapping[str, np.ndarray] | None = None
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def loss(self, params: np.ndarray, tokens: np.ndarray, experts: float) -> np.ndarray:
        """The loss [...] of a dense size N [...] on D tokens [...], with E experts."""
        return self.form.value(self.constants, params=params, tokens=tokens, experts=experts)

    def replicates(self, count: int) -> Iterator[Loss]:
        """The losses of the first `count` bootstrap replicates; none without a bootstrap."""
        for values in zip(*(self.boot or {}).values(), strict=True):
            if (count := count - 1) < 0:
                return
            drawn = {**self.constants, **dict(zip(self.boot or {}, values, strict=True))}
            yield dataclasses.replace(self, constants=drawn).loss

    def interval(self, params: float, tokens: float, experts: float) -> tuple[float, float] | None:
        """The central 95% interval of the law at one point, by the bootstrap; None without one."""
        if self.boot is None:
            return None
        inputs = {"params": params, "tokens": tokens, "experts": experts}
        return interval(self.form.value({**self.constants, **self.boot}, **inputs), 0.95)


def stated_law(name: str) -> ExpertsLaw:
    """A published law, or that of a file NAME.json.

    FitRefused: `not_of_experts`, a law of other quantities; `no_constants`, none were published; as `published.law`.
    """
    law = law_of(name)
    if set(law.form.input_names) != _INPUTS or not law.gives.startswith("loss"):
        takes = f"{name} gives {law.gives} from {', '.join(law.form.input_names)}"
        needs = f"--experts asks a law of loss from params, tokens and experts, such as the form {FORM}"
        raise FitRefused("not_of_experts", f"{takes}; {needs}")
    if not law.constants:
        fix = "fit them to runs of several numbers of experts (--runs, --study), or state them, --law=FILE.json"
        raise FitRefused("no_constants", f"{name}: its constants are published nowhere; {fix}")
    return ExpertsLaw(
        f"{law.name}: {law.source}", law.form, law.constants, tuple(filter(None, (law.counts, law.notes)))
    )


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs to fit: dense sizes `params`, `tokens`, `experts` and `loss` [n]; `counts`, what N is, in words; `without`,
    how many runs do not say their experts; `mixture`, fields of `Mixture` that they tell."""

    params: np.ndarray
    tokens: np.ndarray
    experts: np.ndarray
    loss: np.ndarray
    counts: str
    without: int
    mixture: Mapping[str, float]


def points_of(loaded: LoadedRuns) -> Points:
    """What runs say of their experts: columns of a table, keys of `result.json`, or `model` of a study's configs.

    FitRefused `columns`: no run says how many experts it has, or all have the same number.
    """
    told = {run.name: _told(loaded, run.name) for run in loaded.role("isoflop")}
    # Of a DS-MoE a token uses as many experts as one likes: it is no mixture of this law.
    sparse = [run for run in loaded.role("isoflop") if told[run.name].get("feed_forward") != "ds_moe"]
    runs = [run for run in sparse if stated_number(told[run.name], EXPERTS)]
    experts = np.array([stated_number(told[run.name], EXPERTS) for run in runs], np.float64)
    kinds = np.unique(experts)
    if len(kinds) < 2:
        have = f"all {len(runs)} runs have {kinds[0]:g}" if len(kinds) else "no run says how many"
        fix = f"a column {EXPERTS[0]} with several values is needed, 1 for a dense model"
        raise FitRefused("columns", f"{loaded.source}: experts: {have}; {fix}")
    counted, counts = None, f"{loaded.columns['params']} as it stands"
    mixture: dict[str, float] = {}
    if dense := _stated(runs, told, experts, _DENSE):
        counted, counts = dense, "that of the dense model, as stated"
    elif (active := _stated(runs, told, experts, _ACTIVE)) or loaded.params_count == "active":
        counted, counts = active, "what a token uses: that of the dense model of the same products"
        mixture = _mixture_of([told[run.name] for run in runs], counted or [run.params for run in runs])
    columns = (counted or [run.params for run in runs], [run.tokens for run in runs], experts, [r.loss for r in runs])
    params, tokens, experts, loss = (np.array(values, np.float64) for values in columns)
    return Points(params, tokens, experts, loss, counts, len(told) - len(runs), mixture)


def _stated(
    runs: Sequence[Run], told: Mapping[str, Mapping[str, Any]], experts: np.ndarray, names: Sequence[str]
) -> list[float] | None:
    """The N of every run under one of these names; None where a mixture states none. A dense model's is N itself."""
    found = []
    for run, count in zip(runs, experts, strict=True):
        value = stated_number(told[run.name], names) or (run.params if count == 1 else None)
        if value is None:
            return None
        found.append(value)
    return found


def _told(loaded: LoadedRuns, name: str) -> dict[str, Any]:
    """What the row or result of a run says, and before that the model of its config: one expert where it names none."""
    model = ((loaded.planned.get(name) or {}).get("config") or {}).get("model")
    return ({EXPERTS[0]: 1, **model} if isinstance(model, Mapping) else {}) | dict(loaded.details.get(name, {}))


def _mixture_of(rows: Sequence[Mapping[str, Any]], active: Sequence[float]) -> dict[str, float]:
    """Fields of `Mixture` for an N of what a token uses: K experts then have the products of one dense layer. K is
    told where all runs have one, the share of the routed layers follows from N and all parameters."""
    used = {stated_number(row, _USED) for row in rows if (stated_number(row, EXPERTS) or 1) > 1}
    top_k = used.pop() if len(used) == 1 else None
    if top_k is None:
        return {}
    shares = []
    for row, params in zip(rows, active, strict=True):
        every, experts = stated_number(row, _ALL), stated_number(row, EXPERTS)
        if every and experts and experts > top_k:
            shares.append((every / params - 1.0) / (experts / top_k - 1.0))
    told = {"top_k": top_k, "expert_size": 1.0 / top_k}
    return told | ({"routed_share": float(np.median(shares))} if shares and 0 < np.median(shares) <= 1 else {})


def fitted_law(loaded: LoadedRuns, replicates: int = 0, seed: int = 0, starts: int = STARTS) -> ExpertsLaw:
    """The law fitted to runs that say how many experts they have; intervals by at most 200 bootstrap `replicates`.
    Refused as `points_of` and `fit_form`."""
    from chinchilla_jax.scaling.laws.fit import fit_form  # forms are fitted by JAX, which is slow to import

    points = points_of(loaded)
    inputs = {name: getattr(points, name) for name in sorted(_INPUTS)}
    resampling = Resampling(min(replicates, _MOST_REPLICATES)) if replicates else None
    fit = fit_form(form(FORM), inputs, points.loss, starts=starts, seed=seed, resampling=resampling)
    kinds, numbers = np.unique(points.experts, return_counts=True)
    each = ", ".join(f"{kind:g} ({number})" for kind, number in zip(kinds, numbers, strict=True))
    notes = [
        f"{len(points.loss)} runs, by experts: {each}; scatter about the law {fit.scatter:.2%}; {fit.agreement:.0%} of "
        f"{fit.n_starts} starts within {AGREEMENT:.1%} of this minimum",
        f"N is {points.counts}",
    ]
    if points.without:
        notes.append(f"{points.without} runs do not say how many experts they have, and are left out")
    if fit.flat:
        directions = f"{len(fit.flat)} directions of {len(fit.free)} constants"
        notes.append(f"The runs leave {directions} open: compare predictions, not constants")
    ratios = points.tokens / points.params
    ranges = {"experts": (float(kinds[0]), float(kinds[-1])), "D/N": (float(ratios.min()), float(ratios.max()))}
    name = f"fitted to {loaded.source}"
    return ExpertsLaw(name, fit.form, fit.constants, tuple(notes), fit.boot, ranges, points.mixture)


def constants_of(law: ExpertsLaw) -> Answer:
    """The constants, with 95% intervals where they were fitted with a bootstrap."""
    rows: list[dict[str, object]] = []
    for name, value in law.constants.items():
        row: dict[str, object] = {"constant": name, "value": f"{value:.5g}"}
        if law.boot is not None and name in law.boot:
            low, high = interval(law.boot[name], 0.95)
            row["95%"] = f"{low:.4g} to {high:.4g}"
        rows.append(row)
    return Answer("experts_law", f"The law: {law.form.formula}", tuple(rows), (law.name, *law.notes))
