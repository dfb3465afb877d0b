"""Which law of mixtures is asked: one fitted to runs of several numbers of experts, or one whose constants are stated?

The form is `routed_served` of `laws.experts` (Yun et al. 2024), whose constants are published nowhere; a stated law may
have any form of dense size N, tokens and experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.serving.experts import Loss
from chinchilla_jax.scaling.fits.minimise import AGREEMENT
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.laws.form import Form, form
from chinchilla_jax.scaling.laws.published import law as law_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, stated_number

FORM = "routed_served"
EXPERTS = ("experts", "n_experts", "num_experts")  # names of the column
DENSE = ("params_dense", "dense_params")  # N of the dense model, where `params` of a table counts something else
_INPUTS = {"params", "tokens", "experts"}
STARTS = 64  # of the descent, over the ranges that the form states
_MOST_REPLICATES = 200  # each is a fit of ten constants


@dataclasses.dataclass(frozen=True)
class ExpertsLaw:
    """A law of dense size N, tokens D and experts E: its `form` and `constants`; `boot`, replicates [B] of those that
    were fitted; `ranges`, lowest and highest `experts` and `D/N` of its runs, where it has any; `notes` on its origin.
    """

    name: str
    form: Form
    constants: Mapping[str, float]
    notes: tuple[str, ...]
    boot: Mapping[str, np.ndarray] | None = None
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

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


def fitted_law(loaded: LoadedRuns, replicates: int = 0, seed: int = 0, starts: int = STARTS) -> ExpertsLaw:
    """The law fitted to runs that say how many experts they have; intervals by at most 200 bootstrap `replicates`.

    FitRefused: `columns`, no run says how many experts it has, or all have the same number; as `fit_form`.
    """
    from chinchilla_jax.scaling.laws.fit import fit_form  # forms are fitted by JAX, which is slow to import

    points, without = _points(loaded)
    kinds = np.unique(points["experts"])
    if len(kinds) < 2:
        have = f"all {len(points['loss'])} runs have {kinds[0]:g}" if len(kinds) else "no run says how many"
        fix = f"a column {EXPERTS[0]} with several values is needed, 1 for a dense model"
        raise FitRefused("columns", f"{loaded.source}: experts: {have}; {fix}")
    target, ratios = points.pop("loss"), points["tokens"] / points["params"]
    resampling = Resampling(min(replicates, _MOST_REPLICATES)) if replicates else None
    fit = fit_form(form(FORM), points, target, starts=starts, seed=seed, resampling=resampling)
    counts = ", ".join(f"{kind:g} ({int((points['experts'] == kind).sum())})" for kind in kinds)
    notes = [
        f"{len(target)} runs, by experts: {counts}; scatter about the law {fit.scatter:.2%}; {fit.agreement:.0%} of "
        f"{fit.n_starts} starts within {AGREEMENT:.1%} of this minimum",
        f"N is {'params_dense' if any(_dense(loaded, run.name) for run in loaded.runs) else loaded.columns['params']}, "
        "taken for the dense model of one feed-forward layer for each routed one",
    ]
    if without:
        notes.append(f"{without} runs do not say how many experts they have, and are left out")
    if fit.flat:
        directions = f"{len(fit.flat)} directions of {len(fit.free)} constants"
        notes.append(f"The runs leave {directions} open: compare predictions, not constants")
    ranges = {"experts": (float(kinds[0]), float(kinds[-1])), "D/N": (float(ratios.min()), float(ratios.max()))}
    return ExpertsLaw(f"fitted to {loaded.source}", fit.form, fit.constants, tuple(notes), fit.boot, ranges)


def _points(loaded: LoadedRuns) -> tuple[dict[str, np.ndarray], int]:
    """params, tokens, experts and loss [n] of the runs to fit; and how many do not say their experts."""
    rows, without = [], 0
    for run in loaded.role("isoflop"):
        experts = stated_number(loaded.details.get(run.name, {}), EXPERTS)
        if experts is None:
            without += 1
        else:
            rows.append((_dense(loaded, run.name) or run.params, run.tokens, experts, run.loss))
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    return dict(zip(("params", "tokens", "experts", "loss"), columns, strict=True)), without


def _dense(loaded: LoadedRuns, name: str) -> float | None:
    return stated_number(loaded.details.get(name, {}), DENSE)


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
