"""What do the finished runs say, in a few lines of text? The page with plots is `scaling.report`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from chinchilla_jax.scaling.isoflop import fit_isoflop
from chinchilla_jax.scaling.parametric import fit_parametric
from chinchilla_jax.scaling.predict import Prediction, predict
from chinchilla_jax.scaling.runs import FitRefused, LoadedRuns, load_runs
from chinchilla_jax.study.folder import MANIFEST, read_manifest
from chinchilla_jax.study.plan import holdout_budget


def fit(path: str | pathlib.Path, echo: Callable[[str], None] = print) -> None:
    """Prints approaches 2 and 3 fitted to a study, or to a table of runs (CSV, JSON lines).

    Raises:
      FitRefused: no runs, or neither approach can be fitted to them.
    """
    runs = _load(path, echo).role("isoflop")
    refusals = []
    try:
        isoflop = fit_isoflop(runs)
        n, d = isoflop.params_law, isoflop.tokens_law
        echo(f"approach 2: N* = {float(n.coefficient):.4g} C^{float(n.exponent):.3f}, "
             f"D* = {float(d.coefficient):.4g} C^{float(d.exponent):.3f}")  # fmt: skip
        for profile in isoflop.profiles:
            echo(f"    C = {profile.budget:.3g}: N* = {profile.params.best:.4g}, D* = {profile.tokens.best:.4g}, "
                 f"loss {profile.params.lowest:.4f}")  # fmt: skip
        for refusal in isoflop.refusals:
            echo(f"    C = {refusal.budget:.3g} left out: {refusal.message}")
    except FitRefused as refused:
        refusals.append(f"approach 2: {refused}")
    try:
        surface = fit_parametric(runs).surface
        v = {name: float(getattr(surface, name)) for name in ("E", "A", "B", "alpha", "beta", "a")}
        echo(f"approach 3: L = {v['E']:.4f} + {v['A']:.4g} / N^{v['alpha']:.3f} + {v['B']:.4g} / D^{v['beta']:.3f}, "
             f"N* ~ C^{v['a']:.3f}")  # fmt: skip
    except FitRefused as refused:
        refusals.append(f"approach 3: {refused}")
    if len(refusals) == 2:
        raise FitRefused("no_fit", "; ".join(refusals))
    for refusal in refusals:
        echo(f"not fitted: {refusal}")


def forecast(path: str | pathlib.Path, budget: float | None, echo: Callable[[str], None] = print) -> Prediction:
    """Prints and returns the compute-optimal model predicted for `budget` FLOPs.

    Args:
      budget: by default the held-out budget of the study `path`.

    Raises:
      FitRefused: no runs, no fit, or a table of runs without a budget.
    """
    loaded = _load(path, echo)
    if budget is None:
        if not pathlib.Path(path).is_dir():
            raise FitRefused("no_budget", f"{path}: a table has no held-out budget; give --budget=FLOPS")
        budget = holdout_budget(read_manifest(pathlib.Path(path) / MANIFEST).template())
    prediction = predict(loaded.runs, budget)
    echo(f"for C = {budget:.4g} FLOPs ({prediction.extrapolation:.3g} times the largest budget fitted):")
    for name, estimate in prediction.estimates.items():
        mark = "*" if name == prediction.recommended else " "
        low, high = estimate.intervals["params"][0.8] if estimate.intervals else (float("nan"),) * 2
        echo(f"  {mark} {name:10} N = {estimate.params:.4g} (80%: {low:.3g} to {high:.3g}), D = {estimate.tokens:.4g}, "
             f"D/N = {estimate.tokens_per_param:.3g}, loss {estimate.loss:.4f}")  # fmt: skip
    for name, why in prediction.refused.items():
        echo(f"    {name}: {why}")
    echo(f"  * recommended: {prediction.why}")
    for warning in prediction.warnings:
        echo(f"warning: {warning}")
    return prediction


def _load(path: str | pathlib.Path, echo: Callable[[str], None]) -> LoadedRuns:
    loaded = load_runs(path)
    held_out = len(loaded.runs) - len(loaded.role("isoflop"))
    echo(f"{len(loaded.runs)} runs{f', {held_out} of them held out' if held_out else ''}; "
         f"FLOPs: {loaded.convention}")  # fmt: skip
    for row in loaded.bad:
        echo(f"left out: {row.where}: {row.reason}")
    return loaded
