"""Which of the questions that peers are asked does this project answer? Each by the call that a user would make.

`QUESTIONS` has a function for each question of `peer_runners.exchange` that has an answer: from the runs and the budget
of a case to the name of what gave it, and the answer.
"""

import dataclasses
import pathlib
import tempfile

import numpy as np

from chinchilla_jax.config import DataConfig, ModelConfig, RunConfig, StudyConfig, TrainConfig
from chinchilla_jax.scaling import api
from chinchilla_jax.scaling.answers.suggest.suggest import suggest
from chinchilla_jax.scaling.fits.approach1.envelope import fit_envelope
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.laws.coupled import fit_coupled
from chinchilla_jax.scaling.laws.fit import fit_form
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.optimum import cheapest_for_loss, unique_data_optimum
from chinchilla_jax.scaling.laws.published import law
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.runs import LoadedRuns
from chinchilla_jax.study.plan import plan
from tests.benchmarks.coverage import curves_study


def predicted(runs, budget):
    """What `predict` answers."""
    return predict(analyse(runs, replicates=50), budget)


def surface(runs):
    """Approach 3."""
    return fit_parametric(runs, starts=few_starts(), resampling=None).surface


def accuracy(runs):
    """Error against loss, of an error made of the loss."""
    losses = np.array([run.loss for run in runs])
    fit = fit_form(form("downstream_error"), {"loss": losses}, 0.9 - 2.0 * np.exp(-losses), starts=16)
    return fit.predict(loss=losses.min())


def sweep():
    """The runs that a study plans."""
    return plan(
        RunConfig(
            model=ModelConfig(vocab_size=512),
            data=DataConfig(vocab_size=512, seq_len=64),
            train=TrainConfig(batch_size=4),
            study=StudyConfig(budgets=(2e11, 6e11), sizes=6, size_ratio=1.5, guess="D/N = 5", aspect_ratio=16.0),
        )
    ).runs


def served(runs, budget):
    """The cheapest model of the loss that the optimum has, if it then serves as many tokens as it was trained on."""
    _, tokens, loss = surface(runs).optimum(budget)
    return cheapest_for_loss(surface(runs), loss, tokens).params


def more_runs(runs, budget):
    """Two runs within the cost of the largest."""
    return suggest(analyse(runs, replicates=0), budget, max(run.flops for run in runs), 2).runs


def compared(runs, budget):
    """Whether the runs are better than the same with 2% more loss, and how surely."""
    worse = [dataclasses.replace(run, loss=1.02 * run.loss) for run in runs]
    arms = {"worse": _loaded(worse), "better": _loaded(runs)}
    return api.compare(arms, budget=budget).comparison.arms[1].target.better


def kept(runs, budget):
    """What a fit says after it was written to a file and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "fit.npz"
        api.fit(_loaded(runs), replicates=0).save(path)
        return api.predict(path, budget).loss


def _loaded(runs):
    columns = dict.fromkeys(("params", "tokens", "loss", "flops"), "")
    return LoadedRuns("runs", tuple(runs), (), columns, "as it is")


QUESTIONS = {
    "optimum": lambda runs, budget: ("predict", predicted(runs, budget).tokens_at_budget),
    "loss": lambda runs, budget: ("predict", predicted(runs, budget).best.loss),
    "loss_interval": lambda runs, budget: ("predict", predicted(runs, budget).best.intervals["loss"][0.95]),
    "params_interval": lambda runs, budget: ("predict", predicted(runs, budget).best.intervals["params"][0.95]),
    "anywhere": lambda runs, budget: ("Surface.loss", surface(runs).loss(1e9, 1e10)),
    "profiles": lambda runs, budget: ("fit_isoflop", fit_isoflop(runs, resampling=None).params_law.at(budget)),
    "curves": lambda runs, budget: (
        "fit_envelope",
        fit_envelope(curves_study(0, 0.002), resampling=None).params_law.at(1e22),
    ),
    "forms": lambda runs, budget: ("fit_coupled", fit_coupled(runs, "skaling").optimum(budget)),
    "metric": lambda runs, budget: ("fit_form", accuracy(runs)),
    "next_runs": lambda runs, budget: ("suggest", more_runs(runs, budget)),
    "compare": lambda runs, budget: ("compare", compared(runs, budget)),
    "saved": lambda runs, budget: ("Fitted.save", kept(runs, budget)),
    "sweep": lambda runs, budget: ("plan", [run.flops for run in sweep()]),
    "shapes": lambda runs, budget: ("plan", [run.config["model"]["d_model"] for run in sweep()]),
    "flops": lambda runs, budget: ("plan", [run.flops["executed"] for run in sweep()]),
    "cost": lambda runs, budget: ("Surface.optimum", surface(runs).optimum(budget, lambda n: 6.0 * n + 1e6 * n**0.5)),
    "repeats": lambda runs, budget: (
        "unique_data_optimum",
        unique_data_optimum(law("muennighoff2023").constants, 1e9, 1e21).epochs,
    ),
    "serving": lambda runs, budget: ("cheapest_for_loss", served(runs, budget)),
    "rehearsal": lambda runs, budget: ("predict", predicted(runs, budget).rollouts),
    "doubts": lambda runs, budget: ("predict", predicted(runs, 1e6 * budget).warnings or None),
}
