"""The same questions from Python: of studies, files, DataFrames or plain columns.

    from chinchilla_jax.scaling import api

    fitted = api.fit({"params": [...], "tokens": [...], "loss": [...], "flops": [...], "budget": [...]})
    answer = fitted.predict(budget=1e21)
    answer.loss, answer.interval, answer.facts["prediction"]

What is returned carries the facts that the command line writes with --output (`report/facts.py`). Wherever runs are
asked for, a path (study, run directories, table, saved fit), a DataFrame, a dict of columns, loaded runs or a `Fitted`
will do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.answers import losses as several
from chinchilla_jax.scaling.answers import on_record
from chinchilla_jax.scaling.answers.compare.compare import DRAWS, Comparison
from chinchilla_jax.scaling.answers.compare.compare import compare as compare_arms
from chinchilla_jax.scaling.answers.flight.forecast import Forecast
from chinchilla_jax.scaling.answers.suggest.suggest import NextRun, Suggestion
from chinchilla_jax.scaling.answers.suggest.suggest import answer as tell_suggestion
from chinchilla_jax.scaling.answers.suggest.suggest import suggest as suggest_runs
from chinchilla_jax.scaling.predict.analysis import Analysis, analyse
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.predict.predict import predict as predict_from
from chinchilla_jax.scaling.predict.saved import SavedFit, is_saved_fit, load_fit, save_fit
from chinchilla_jax.scaling.read.in_flight import InFlight, load_in_flight
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, target_budget, telling_left_out
from chinchilla_jax.scaling.read.table.frames import is_frame, table_of_frame

if TYPE_CHECKING:
    from chinchilla_jax.scaling.report.forecasts import Outlook

__all__ = [
    *("Compared", "Fitted", "Forecasts", "Predicted", "Suggested"),
    *("compare", "fit", "fit_losses", "forecast", "load", "predict", "suggest"),
]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Runs and the fits made of them."""

    loaded: LoadedRuns
    fits: Analysis

    @property
    def facts(self) -> dict[str, Any]:
        """As `fit --output` writes them."""
        from chinchilla_jax.scaling.report.facts import facts_of

        return facts_of(self.loaded, self.fits)

    def predict(self, budget: float | None = None) -> Predicted:
        """The answer for `budget` FLOPs; by default for the study's held-out budget, or 4 times the largest."""
        budget = target_budget(self.loaded) if budget is None else budget
        if budget is None:
            raise FitRefused("no_budget", f"{self.loaded.source}: no held-out budget to ask about; give a budget")
        if not 0.0 < budget < math.inf:
            raise FitRefused("question", f"budget = {budget:g}: no number of FLOPs")
        return Predicted(self.loaded, predict_from(self.fits, budget))

    def save(self, path: str | os.PathLike) -> None:
        """Keeps runs and fits in NAME.npz, which stands for them wherever runs are asked for."""
        save_fit(path, SavedFit(self.loaded, self.fits))


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A prediction of the recommended approach."""

    loaded: LoadedRuns
    prediction: Prediction

    @property
    def loss(self) -> float:
        """The lowest loss at the budget."""
        return self.prediction.best.loss

    @property
    def params(self) -> float:
        """N*."""
        return self.prediction.best.params

    @property
    def tokens(self) -> float:
        """What spends the budget at N*."""
        return self.prediction.tokens_at_budget

    @property
    def interval(self) -> tuple[float, float] | None:
        """The central 95% interval of the loss of one trained run; None without a bootstrap."""
        return self.prediction.best.intervals.get("loss", {}).get(0.95)

    @property
    def facts(self) -> dict[str, Any]:
        """As `predict --output` writes them, without further questions."""
        from chinchilla_jax.scaling.report.facts import facts_of

        return facts_of(self.loaded, prediction=self.prediction)

    def register(self, path: str | os.PathLike, target: on_record.Target | None = None) -> dict[str, Any]:
        """Puts the prediction on record for `target`, by default the run at N*, before it is trained."""
        counts = self.params, self.tokens, self.prediction.budget
        target = target or on_record.Target(*counts, validation=self.loaded.validation)
        return on_record.register(path, self.prediction, self.loaded, target)


@dataclasses.dataclass(frozen=True)
class Compared:
    """A comparison of arms."""

    arms: Mapping[str, LoadedRuns]
    comparison: Comparison

    @property
    def facts(self) -> dict[str, Any]:
        """As `compare --output` writes them."""
        from chinchilla_jax.scaling.report.compared import facts_of_comparison

        return facts_of_comparison(self.comparison, self.arms)


@dataclasses.dataclass(frozen=True)
class Suggested:
    """The next runs."""

    fitted: Fitted
    suggestion: Suggestion

    @property
    def runs(self) -> tuple[NextRun, ...]:
        """N, D and C of each, in the order in which to train them, with what is left of the interval then."""
        return self.suggestion.runs

    @property
    def facts(self) -> dict[str, Any]:
        """The suggestion as `suggest --output` writes it."""
        from chinchilla_jax.scaling.report.facts import facts_of

        told: dict[str, Any] = {"suggestion": self.suggestion, "answers": [tell_suggestion(self.suggestion)]}
        return facts_of(self.fitted.loaded, self.fitted.fits, target_budget=self.suggestion.target, **told)


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Where runs under way will end: `forecasts`, and the alarm of each."""

    flight: InFlight
    outlook: Outlook

    @property
    def forecasts(self) -> tuple[Forecast, ...]:
        """One for each run under way."""
        return self.outlook.forecasts

    @property
    def going_wrong(self) -> dict[str, str]:
        """Runs that the alarm marks, by name, and why."""
        return self.outlook.going_wrong()

    @property
    def facts(self) -> dict[str, Any]:
        """As `forecast --output` writes them."""
        from chinchilla_jax.scaling.report.forecasts import facts_of_forecasts

        return facts_of_forecasts(self.flight, self.outlook)


def load(runs: Any, **reading: Any) -> LoadedRuns:
    """The runs, read as `load_runs` says (`columns`, `curves`, `where`, `best_per_cell`)."""
    if isinstance(runs, (Fitted, SavedFit)):
        return runs.loaded
    if isinstance(runs, (str, os.PathLike)) and not isinstance(runs, LoadedRuns) and is_saved_fit(runs):
        return load_fit(runs).loaded
    with _in_files(reading) as options:
        return load_runs(runs, **options)


def fit(runs: Any, *, preset: str = "corrected", replicates: int = 1000, seed: int = 0, **reading: Any) -> Fitted:
    """All three approaches on the runs; a saved fit is taken as it is. Refused as `load_runs` and `analyse`."""
    if isinstance(runs, (str, os.PathLike)) and not isinstance(runs, LoadedRuns) and is_saved_fit(runs):
        saved = load_fit(runs)
        return Fitted(saved.loaded, saved.fits)
    loaded = load(runs, **reading)
    with telling_left_out(loaded):
        return Fitted(loaded, analyse(loaded.runs, preset, replicates=replicates, seed=seed))


def predict(runs: Any, budget: float | None = None, **options: Any) -> Predicted:
    """`fit(runs, **options).predict(budget)`; a `Fitted` is asked as it is."""
    return (runs if isinstance(runs, Fitted) else fit(runs, **options)).predict(budget)


def compare(
    arms: Mapping[str, Any],
    reference: str | None = None,
    budget: float | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    **reading: Any,
) -> Compared:
    """Compute-equivalent gains of the arms by name; refused as `answers.compare.compare`."""
    loaded = {name: load(runs, **reading) for name, runs in arms.items()}
    return Compared(loaded, compare_arms(loaded, reference, budget, draws=draws, seed=seed))


def suggest(
    runs: Any, purse: float, count: int = 8, budget: float | None = None, quantity: str = "loss", **options: Any
) -> Suggested:
    """The at most `count` runs within `purse` FLOPs that narrow the prediction for `budget` most, of the loss or, with
    `quantity="params"`, of N*. `options` are those of `fit`; refused as `answers.suggest.suggest`."""
    fitted = runs if isinstance(runs, Fitted) else fit(runs, **{"replicates": 0} | options)
    budget = budget or target_budget(fitted.loaded)
    if budget is None:
        raise FitRefused("no_budget", f"{fitted.loaded.source}: no held-out budget to ask about; give a budget")
    return Suggested(fitted, suggest_runs(fitted.fits, budget, purse, count, quantity))


def forecast(runs: Any, names: Sequence[str] = (), **reading: Any) -> Forecasts:
    """Where the runs under way in a study, or in a table with `curves`, will end; of them those of `names`, if any.
    Refused as `load_in_flight`."""
    from chinchilla_jax.scaling.report.forecasts import outlook

    with _in_files({"runs": runs} | reading) as options:
        flight = load_in_flight(options.pop("runs"), names, **options)
    return Forecasts(flight, outlook(flight))


@contextlib.contextmanager
def _in_files(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options, with tables in memory written to files that last as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        changed = dict(options)
        for name, value in options.items():
            if name in ("runs", "curves") and is_frame(value):
                lines = (json.dumps(row.values, default=str) for row in table_of_frame(value).rows)
                changed[name] = files.path(folder) / f"{name}.jsonl"
                files.write_text(changed[name], "\n".join(lines) + "\n")
        yield changed


def fit_losses(runs: Any, names: Sequence[str] = (), budget: float | None = None, **reading: Any) -> Any:
    """Every loss of a study or a table, as `several.LossFit`s, at `budget` FLOPs."""
    from chinchilla_jax.scaling.read.losses import load_losses

    with _in_files({"runs": runs} | reading) as options:
        losses = load_losses(options.pop("runs"), names, options)
    budget = budget or target_budget(next(iter(losses.values())))
    if budget is None:
        raise FitRefused("no_budget", "no held-out budget to ask about; give a budget")
    return several.fit_losses(losses, budget)
