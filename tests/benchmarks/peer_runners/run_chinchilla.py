"""What does kyo-takano's chinchilla answer? Run by `tests.benchmarks.peers` in an environment that has it.

By its documented calls, with the ranges of the grid in its README; three values along each axis instead of five, as
3125 starts take minutes a case. It has C = 6 N D, so a budget is handed over as 6 / k of it where C = k N D. By
default its objective counts predictions that are too high ten times; the paper's own is the other method.
"""

import functools
import tempfile

import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import asymmetric_mae, log_huber
from exchange import serve

STARTS = 3
QUIET = 50  # its log level


def made(folder, loss_fn=asymmetric_mae, **options):
    """An instance without runs."""
    axis = functools.partial(np.linspace, num=STARTS)
    grid = {"E": axis(1, 2), "a": axis(1, 10), "b": axis(1, 10), "alpha": axis(0.1, 0.7), "beta": axis(0.1, 0.7)}
    return Chinchilla(folder, param_grid=grid, loss_fn=loss_fn, log_level=QUIET, **options)


def fitted(rows, loss_fn=asymmetric_mae):
    """The fit of runs."""
    with tempfile.TemporaryDirectory() as folder:
        model = made(folder, loss_fn)
        for params, tokens, flops, loss, _ in rows:
            model.append(N=params, D=tokens, C=flops, loss=loss)
        model.fit()
        return model


def ask(loss_fn):
    """A method: N* and the loss there."""

    def method(case):
        model = fitted(case["runs"], loss_fn)
        params, tokens = model.allocate_compute(case["budget"] * 6.0 / case["per_token"])
        return {"loss": float(model.predict_loss(params, tokens)), "params": float(params), "low": None, "high": None}

    return method


def paper_huber(measured, predicted):
    """The objective of Hoffmann et al., which it has with another threshold."""
    return log_huber(measured, predicted, delta=1e-3)


def seeded(case):
    """One size and budget drawn from its seed regime."""
    with tempfile.TemporaryDirectory() as folder:
        return "seed", made(folder, seed_ranges={"C": (1e18, 1e19), "N_to_D": (10, 100)}).seed()


def of_fit(name, function):
    """A question that a fit answers."""
    return lambda case: (name, function(fitted(case["runs"]), case))


QUESTIONS = {
    "optimum": of_fit("allocate_compute", lambda model, case: model.allocate_compute(case["budget"])),
    "loss": of_fit("predict_loss", lambda model, case: model.predict_loss(*model.allocate_compute(case["budget"]))),
    "anywhere": of_fit("predict_loss", lambda model, case: model.predict_loss(1e9, 1e10)),
    "sweep": seeded,
}
METHODS = {"its own objective": ask(asymmetric_mae), "log Huber": ask(paper_huber)}

if __name__ == "__main__":
    serve("chinchilla", METHODS, QUESTIONS)
