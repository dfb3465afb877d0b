"""What does kyo-takano's chinchilla answer? Run by `tests.benchmarks.peers` in an environment that has it.

By its documented calls, with the grid in its README, but of the five values along each axis only the second and
the fourth: 3125 starts take minutes a case. It has C = 6 N D, so a budget is multiplied by 6 / k where C = k N D.
Its objective is its default, absolute errors of the loss, ten times for what is predicted too high.
"""

import tempfile

import numpy as np
from chinchilla import Chinchilla
from exchange import serve

QUIET = 50  # its log level


def made(folder, **options):
    """An instance without runs."""
    ranges = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    grid = {name: np.linspace(*ends, 5)[1::2] for name, ends in ranges.items()}
    return Chinchilla(folder, param_grid=grid, log_level=QUIET, **options)


def fitted(rows):
    """The fit of runs."""
    with tempfile.TemporaryDirectory() as folder:
        model = made(folder)
        for params, tokens, flops, loss, _ in rows:
            model.append(N=params, D=tokens, C=flops, loss=loss)
        model.fit()
        return model


def surface(case):
    """N* and the loss there."""
    model = fitted(case["runs"])
    params, tokens = model.allocate_compute(case["budget"] * 6.0 / case["per_token"])
    return {"loss": float(model.predict_loss(params, tokens)), "params": float(params), "low": None, "high": None}


def seeded(case):
    """One size and budget drawn from its seed regime."""
    with tempfile.TemporaryDirectory() as folder:
        return "seed", made(folder, seed_ranges={"C": (1e18, 1e19), "N_to_D": (10, 100)}).seed()


def shaped(case):
    """The shape that comes nearest to a size drawn, by a size function of ours."""
    grid = {"d_model": list(range(128, 4097, 128)), "n_layers": list(range(2, 65, 2))}
    search = {"hyperparam_grid": grid, "size_estimator": lambda d_model, n_layers: 12 * n_layers * d_model**2}
    ranges = {"C": (1e18, 1e19), "N_to_D": (10, 100)}
    with tempfile.TemporaryDirectory() as folder:
        return "seed(model_search_config=)", made(folder, seed_ranges=ranges, model_search_config=search).seed()[1]


def of_fit(name, function):
    """A question that a fit answers."""
    return lambda case: (name, function(fitted(case["runs"]), case))


QUESTIONS = {
    "optimum": of_fit("allocate_compute", lambda model, case: model.allocate_compute(case["budget"])),
    "loss": of_fit("predict_loss", lambda model, case: model.predict_loss(*model.allocate_compute(case["budget"]))),
    "anywhere": of_fit("predict_loss", lambda model, case: model.predict_loss(1e9, 1e10)),
    "sweep": seeded,
    "shapes": shaped,
}
METHODS = {"surface": surface}

if __name__ == "__main__":
    serve("chinchilla", METHODS, QUESTIONS)
