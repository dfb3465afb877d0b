"""What do the fits and the prediction say, in text and in JSON? The page with plots is `report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base.words import cell, change, count, flops_text, in_unit, percent, table
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.answers import Law, Section
from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.fits.approach3.likelihood import profile_likelihood, quantities
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.predict.analysis import APPROACHES, Analysis, analyse
from chinchilla_jax.scaling.predict.doubts import doubts
from chinchilla_jax.scaling.predict.estimates import LOSS_LAW
from chinchilla_jax.scaling.predict.predict import Prediction, predict
from chinchilla_jax.scaling.read.runs import LoadedRuns

Echo = Callable[[str], None]
_SPARE = 4  # runs beyond the unknowns for a profile likelihood
_BEYOND = 10.0  # times the largest budget: where a fit states the bias of approach 2


def read(loaded: LoadedRuns, echo: Echo) -> None:
    """Prints what was read: counts, units, conventions, and each row left out with its reason."""
    echo(headline(loaded))
    for line in reading_lines(loaded):
        echo(f"  {line}")


def headline(loaded: LoadedRuns) -> str:
    """How many runs there are, and how many rows were left out."""
    held_out = len(loaded.runs) - len(loaded.role("isoflop"))
    parts = [f"{len(loaded.runs)} runs"]
    parts += [f"{held_out} of them held out"] if held_out else []
    parts += [f"{len(loaded.bad)} left out, see below"] if loaded.bad else []
    return f"{loaded.source}: {', '.join(parts)}"


def reading_lines(loaded: LoadedRuns) -> Iterator[str]:
    """Units and conventions, and each row left out with its reason."""
    yield from loaded.describe()
    for row in loaded.bad:
        yield f"left out: {row.where}: {row.reason}"


def fit(
    loaded: LoadedRuns, preset: str, echo: Echo, replicates: int = 1000, seed: int = 0, explain: bool = False
) -> Analysis:
    """Fits all three approaches and prints them: the results, then warnings, then notes on how they came about.

    Args:
      explain: the notes also say what the preset does, and why.

    Raises:
      FitRefused: no runs, or neither approach 2 nor 3 can be fitted to them.
    """
    echo(headline(loaded))
    _announce(preset, echo)
    found = analyse(loaded.runs, preset, replicates=replicates, seed=seed)
    for line in fit_lines(found, loaded):
        echo(line)
    for line in doubts(found, loaded.role("isoflop")):
        echo(f"warning: {line}")
    echo("notes:")
    for line in (*reading_lines(loaded), *fit_notes(found, explain)):
        echo(f"  {line}")
    return found


def _announce(preset: str, echo: Echo) -> None:
    if preset == "paper":
        echo("preset paper: approach 3 descends from 4500 starts one after the other, about half a minute ...")


def fit_lines(found: Analysis, loaded: LoadedRuns) -> Iterator[str]:
    """The results: the three fits with their intervals, or why one was refused."""
    yield f"preset {found.preset}; intervals 95%; losses {in_unit(loaded.loss_unit)}"
    for name, title in APPROACHES.items():
        own = getattr(found, name)
        if own is None:
            yield f"{title} refused: {found.refused[name]}"
            continue
        yield f"{title}:"
        yield from (f"  {line}" for line in _LINES[name](own))
        if name == "parametric":
            yield from (f"  {line}" for line in _profile_lines(own, loaded))


def fit_notes(found: Analysis, explain: bool = False) -> Iterator[str]:
    """The bias of approach 2 on this grid, and, to `explain`, what the preset does and why."""
    if found.isoflop is not None:
        yield from bias_lines(found, _BEYOND * found.isoflop.profiles[-1].budget)
    if not explain:
        yield f"--explain says what the preset {found.preset} does, and why"
        return
    for name, title in APPROACHES.items():
        if getattr(found, name) is not None:
            yield f"preset {found.preset}, {title}:"
            yield from (f"  {line}" for line in found.differences[name])


def fit_facts(found: Analysis) -> dict[str, Any]:
    """The fits for JSON: laws, constants, intervals, refusals; runs and replicates left out."""
    facts: dict[str, Any] = {"preset": found.preset, "refused": found.refused, "differences": found.differences}
    for name in ("envelope", "isoflop"):
        own = getattr(found, name)
        if own is not None:
            laws = {"N": (own.params_law, own.boot_params), "D": (own.tokens_law, own.boot_tokens)}
            facts[name] = {
                symbol: {"coefficient": float(law.coefficient), "exponent": float(law.exponent),
                         "exponent_95": interval(boot.exponent, 0.95) if boot is not None else None}
                for symbol, (law, boot) in laws.items()
            }  # fmt: skip
    if found.parametric is not None:
        own, names = found.parametric, ("E", "A", "B", "alpha", "beta", "a", "b")
        facts["parametric"] = {name: float(getattr(own.surface, name)) for name in names}
        if own.boot is not None:
            facts["parametric"] |= {f"{name}_95": interval(getattr(own.boot, name), 0.95) for name in names}
        facts["parametric"] |= {name: getattr(own, name) for name in (
            "n_runs", "n_starts", "objective", "gradient", "converged", "agreement", "scatter", "flat")}  # fmt: skip
        facts["parametric"]["misfit"] = own.misfit.name
    return as_json(facts)


def _law(symbol: str, power: str, law, boot) -> str:
    span = "" if boot is None else " ({:.3f} to {:.3f})".format(*interval(boot.exponent, 0.95))
    return f"{symbol}* = {float(law.coefficient):.4g} C^{power}, {power} = {float(law.exponent):.4f}{span}"


def _envelope_lines(fit) -> Iterator[str]:
    yield _law("N", "a", fit.params_law, fit.boot_params)
    yield _law("D", "b", fit.tokens_law, fit.boot_tokens)
    points = fit.points
    flagged = ", ".join(f"{number} {word}" for word, number in points.edges.items() if number) or "none"
    yield (f"{len(points.flops)} FLOP values; the winner is in the last 15% of its training at "
           f"{points.on_schedule:.0%} of them; at an edge: {flagged}; left out of the fit: {fit.dropped}")  # fmt: skip


def _isoflop_lines(fit) -> Iterator[str]:
    yield _law("N", "a", fit.params_law, fit.boot_params)
    yield _law("D", "b", fit.tokens_law, fit.boot_tokens)
    low, high = fit.loss_law.irreducible_interval(0.95)
    mean = fit.loss_law.irreducible_mean
    yield f"L* = {LOSS_LAW}: E {mean:.4f} ({low:.4f} to {high:.4f}); noise of a run {fit.noise:.2%}"
    rows = [{"C": p.budget, "N*": p.params.best, "D*": p.tokens.best, "loss": p.params.lowest,
             "runs": str(len(p.runs)), "near": str(len(p.near))} for p in fit.profiles]  # fmt: skip
    yield from table(rows)
    yield from (f"left out: {refusal.message}" for refusal in fit.refusals)


def bias_lines(found: Analysis, flops: float) -> Iterator[str]:
    """The known bias of approach 2 on the runs' own grid."""
    for name, bias in found.isoflop_bias(flops).items():
        yield f"bias of the {name} profile, approach 3 taken for true: {bias.describe()}"


def _parametric_lines(fit) -> Iterator[str]:
    s = fit.surface
    yield f"L = {s.E:.4f} + {s.A:.5g} / N^{s.alpha:.4f} + {s.B:.5g} / D^{s.beta:.4f}; N* ~ C^{s.a:.4f}"
    if fit.boot is not None:
        spans = (f"{name} {low:.4g} to {high:.4g}" for name in ("E", "A", "B", "alpha", "beta", "a")
                 for low, high in [interval(getattr(fit.boot, name), 0.95)])  # fmt: skip
        yield f"bootstrap: {', '.join(spans)}"
    yield (f"{fit.n_runs} runs, misfit {fit.misfit.name}, objective {fit.objective:.8g}, gradient {fit.gradient:.1e}; "
           f"{fit.agreement:.1%} of {fit.n_starts} starts reached this minimum; scatter {fit.scatter:.2%}")  # fmt: skip
    if fit.flat:
        yield f"flat directions, known only together: {flat_text(fit.flat)}"


def flat_text(flat: Sequence[tuple[str, str, float]]) -> str:
    """`A and alpha (0.999), ...`"""
    return ", ".join(f"{one} and {other} ({correlation:+.3f})" for one, other, correlation in flat)


def has_profile(fit: ParametricFit | None) -> bool:
    """Not where an optimiser stopped on a slope, nor with hardly more runs than unknowns, nor without any noise."""
    return fit is not None and fit.preset != "paper" and fit.n_runs >= 5 + _SPARE and fit.scatter > 1e-6


def _profile_lines(fit, loaded: LoadedRuns) -> Iterator[str]:
    if not has_profile(fit):
        return
    runs = loaded.role("isoflop")
    wanted = {name: quantity for name, quantity in quantities().items() if name in ("E", "alpha", "beta", "a")}
    spans = (f"{name} {low:.4g} to {high:.4g}" for name, quantity in wanted.items()
             for low, high in [profile_likelihood(runs, fit, name, quantity).interval])  # fmt: skip
    yield f"profile likelihood: {', '.join(spans)}"


_LINES = {"envelope": _envelope_lines, "isoflop": _isoflop_lines, "parametric": _parametric_lines}


def forecast(loaded: LoadedRuns, budget: float, echo: Echo, **fits: Any) -> Prediction:
    """Prints and returns the compute-optimal model predicted for `budget` FLOPs; `remarks` prints what else to know.

    Args:
      fits: preset, replicates and seed, as for `predict`.

    Raises:
      FitRefused: no runs, or no fit.
    """
    echo(headline(loaded))
    _announce(fits.get("preset", ""), echo)
    prediction = predict(loaded.runs, budget, **fits)
    for line in forecast_lines(prediction, loaded.loss_unit):
        echo(line)
    spans = profiled_prediction(prediction, loaded)
    if spans:
        words = (f"{name} {cell(name, span)}" for name, span in spans.items())
        echo(f"  approach 3, profile likelihood 95%: {', '.join(words)}")
    return prediction


def remarks(prediction: Prediction, loaded: LoadedRuns, echo: Echo) -> None:
    """Prints the warnings of a prediction, then notes: the bias of approach 2 and how the runs were read."""
    for warning in prediction.warnings:
        echo(f"warning: {warning}")
    echo("notes:")
    for line in (*reading_lines(loaded), *bias_lines(prediction.analysis, prediction.budget)):
        echo(f"  {line}")


def profiled_prediction(prediction: Prediction, loaded: LoadedRuns) -> dict[str, tuple[float, float]]:
    """95% profile-likelihood intervals of N, D and loss at the target budget; {} where approach 3 has none."""
    fit = prediction.parametric
    if not has_profile(fit):
        return {}
    wanted = quantities(prediction.budget, prediction.flops_per)
    runs, found = loaded.role("isoflop"), {}
    for name, key, form in (("N", "ln N*", np.exp), ("D", "ln D*", np.exp), ("loss", "loss", float)):
        low, high = profile_likelihood(runs, fit, key, wanted[key]).interval
        found[name] = float(form(low)), float(form(high))
    return found


def forecast_lines(prediction: Prediction, loss_unit: str = "nats per token") -> Iterator[str]:
    """The estimates with intervals, the recommendation and the rollouts."""
    yield (f"for C = {prediction.budget:.4g} FLOPs ({prediction.extrapolation:.3g} times the largest budget fitted), "
           f"preset {prediction.analysis.preset}, losses {in_unit(loss_unit)}:")  # fmt: skip
    rows = []
    for name, estimate in prediction.estimates.items():
        spans = {quantity: levels[0.95] for quantity, levels in estimate.intervals.items()}
        rows.append({
            "": f"{'*' if name == prediction.recommended else ' '} {name}", "N": estimate.params,
            "N, 95%": spans.get("params"), "D": estimate.tokens, "D, 95%": spans.get("tokens"),
            "D/N": estimate.tokens_per_param, "loss": estimate.loss, "loss, 95%": spans.get("loss"),
        })  # fmt: skip
    yield from (f"  {line}" for line in table(rows))
    for name, why in prediction.refused.items():
        yield f"    {name}: {why}"
    yield f"  * recommended: {prediction.why}"
    yield (f"    the budget is spent by N = {count(prediction.best.params)} on D = "
           f"{count(prediction.tokens_at_budget)}; approach 2 fits N and D apart: its D above need not")  # fmt: skip
    for r in prediction.rollouts:
        yield (f"  rollout: {r.candidate}, fitted to {r.fitted} budgets, predicted C = {flops_text(r.budget)}: loss "
               f"{change(r.loss_error)}, N {count(r.predicted_params)} against {count(r.profile_params)}, which costs "
               f"{percent(r.size_cost)}")  # fmt: skip


def law_of(prediction: Prediction, source: str) -> Law | None:
    """Approach 3's surface as a law that can be asked, with the FLOPs per token of the runs."""
    fit = prediction.parametric
    if fit is None:
        return None
    return Law("approach 3", fit.surface, source, fit.boot, prediction.flops_per)


def show(sections: Sequence[Section], echo: Echo) -> None:
    """Prints answers as tables."""
    for section in sections:
        echo("")
        echo(section.title)
        for line in table(section.rows) if section.rows else ():
            echo(f"  {line}")
        for note in section.notes:
            echo(f"  {note}")


def questions(
    laws: Sequence[Law], flops: float | None, params: float | None = None, tokens: float | None = None,
    unique_tokens: float | None = None, inference_tokens: float | None = None, prediction: Prediction | None = None,
) -> tuple[Section, ...]:  # fmt: skip
    """What `predict` answers from laws: the optimum, and whatever else was asked.

    What other sizes cost follows the recommended law of `prediction`, or, without one, the last of `laws`.
    """
    found = []
    if flops is not None:
        found.append(answers.optimum(laws, flops))
    if params is not None or tokens is not None:
        found.append(answers.fixed(laws, flops, params, tokens))
    if flops is None:
        return tuple(found)
    if unique_tokens is not None:
        found.append(answers.with_unique_tokens(laws, flops, unique_tokens))
    if inference_tokens is not None:
        found.append(answers.with_inference(laws, flops, inference_tokens))
    if prediction is not None:
        return (*found, *other_sizes(prediction))
    return (*found, answers.smaller(laws[-1], flops), answers.nearest_presets(laws[-1], flops))


def as_json(value: Any) -> Any:
    """Dataclasses, tuples and numpy numbers as JSON; infinite values as text, since JSON has none."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else str(float(value))
    if isinstance(value, np.integer):
        return int(value)
    return value

