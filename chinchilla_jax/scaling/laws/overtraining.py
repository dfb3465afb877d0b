"""What does a model trained far past the compute optimum lose, and what error does it make downstream?

Gadre et al. 2024 (arXiv 2403.08540). Loss against compute C and token multiplier M = D / N (eq. 4): the Chinchilla form
with both exponents 2 eta, so that models of one multiplier lie on parallel lines. Mean top-1 error of the downstream
tasks against loss (eq. 5). The paper fits the two in turn, on 5 and 6 small runs of one data set. Its 104 runs are
shipped; the constants of `published_laws.json` (gadre2024_...) are what `fit_published` finds in them.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.minimise import SQUARED_RAW
from chinchilla_jax.scaling.laws.fit import FormFit, fit_form
from chinchilla_jax.scaling.laws.form import Form, amplitude, form, positive
from chinchilla_jax.scaling.read.runs import FitRefused, Run

TASKS = (17, 46)  # those of the paper's main results, well above chance in small models; and all

FORMS = (
    Form(
        "overtraining",
        "L = E + (a M^eta + b M^-eta) C^-eta",
        "arXiv 2403.08540 eq. 4",
        (("flops", "training FLOPs C = 6 N D"), ("multiplier", "tokens per parameter M = D / N")),
        (
            amplitude("E", low=0.1, high=1.0),
            amplitude("a", lambda c, x, xp: (x.multiplier / x.flops) ** c.eta),
            amplitude("b", lambda c, x, xp: (x.multiplier * x.flops) ** -c.eta),
            positive("eta", 0.03, 0.6),
        ),
        lambda c, x, xp: c.E + c.a * (x.multiplier / x.flops) ** c.eta + c.b * (x.multiplier * x.flops) ** -c.eta,
    ),
    Form(
        "downstream_error",
        "Err = epsilon - k exp(-gamma L)",
        "arXiv 2403.08540 eq. 5",
        (("loss", "loss L, nats per token"),),
        (
            amplitude("epsilon", low=1.0, high=2.0),
            amplitude("k", lambda c, x, xp: xp.exp(-c.gamma * x.loss), low=0.03, high=1.0),
            positive("gamma", 0.2, 3.0),
        ),
        lambda c, x, xp: c.epsilon - c.k * xp.exp(-c.gamma * x.loss),
        "mean top-1 error of the downstream tasks",
    ),
)


@dataclasses.dataclass(frozen=True)
class OverTraining:
    """Both stages: `loss` fitted to runs, `error` to measured errors against measured losses."""

    loss: FormFit
    error: FormFit

    def predict_loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss of a run with `params` N and `tokens` D; [...]."""
        return self.loss.predict(**_inputs(params, tokens))

    def predict_error(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Mean downstream error of such a run, through the predicted loss; [...]."""
        return self.error.predict(loss=self.predict_loss(params, tokens))


def _inputs(params: np.ndarray | float, tokens: np.ndarray | float) -> dict[str, np.ndarray]:
    params, tokens = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
    return {"flops": 6.0 * params * tokens, "multiplier": tokens / params}


def fit_over_training(
    loss_runs: Sequence[Run], error_runs: Sequence[Run], errors: Sequence[float], *, seed: int = 0
) -> OverTraining:
    """The two-stage fit by least squares on raw loss, and on the mean downstream `errors` of `error_runs`.

    The paper's least recipe: `loss_runs` with N = 11M, 79M, 154M and 411M at M = 20 and N = 11M at M = 320;
    `error_runs` these and N = 1.4B at M = 20. C is 6 N D whatever the runs count. Refused as `fit_form`; 5 runs are the
    least for the loss, 4 for the error.
    """
    inputs = _inputs(np.array([run.params for run in loss_runs]), np.array([run.tokens for run in loss_runs]))
    loss = fit_form(form("overtraining"), inputs, [run.loss for run in loss_runs], SQUARED_RAW, seed=seed)
    measured = {"loss": [run.loss for run in error_runs]}
    return OverTraining(loss, fit_form(form("downstream_error"), measured, errors, SQUARED_RAW, seed=seed))


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """One run of the paper: `run` with N with embeddings and the loss on C4 eval, whatever it was trained on;
    `multiplier` D / N; `errors`, from how many tasks (17 or 46) to their mean top-1 error."""

    run: Run
    multiplier: float
    errors: Mapping[int, float]


@functools.cache
def published_runs(data_set: str) -> tuple[PublishedRun, ...]:
    """The paper's runs on `c4`, `redpajama` or `refinedweb` (FitRefused `unknown_data_set`), small models first, then
    few tokens first."""
    table = importlib.resources.files("chinchilla_jax") / "tables" / "gadre2024_runs.csv"
    runs: dict[str, list[PublishedRun]] = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        params, tokens, name = float(row["params_total"]), float(row["tokens"]), row["dataset"]
        run = Run(
            f"{name} N={params:.4g} M={row['multiplier']}", params, tokens, 6.0 * params * tokens, float(row["loss"])
        )
        errors = {tasks: float(row[f"error_{tasks}"]) for tasks in TASKS}
        runs.setdefault(name, []).append(PublishedRun(run, float(row["multiplier"]), errors))
    if data_set not in runs:
        raise FitRefused("unknown_data_set", f"no published runs on {data_set!r}; there are {', '.join(runs)}")
    return tuple(runs[data_set])


def fit_published(data_set: str, tasks: int = 17) -> OverTraining:
    """The law by the paper's least recipe from its own runs on one data set, as `published_runs` has them; the
    downstream error is averaged over 17 or 46 `tasks`."""
    runs = published_runs(data_set)
    sizes = sorted({published.run.params for published in runs})
    cells = {(published.run.params, published.multiplier): published for published in runs}
    small = [cells[size, 20.0] for size in sizes[:4]] + [cells[sizes[0], 320.0]]
    six = [*small, cells[sizes[4], 20.0]]
    errors = [published.errors[tasks] for published in six]
    return fit_over_training([published.run for published in small], [published.run for published in six], errors)
