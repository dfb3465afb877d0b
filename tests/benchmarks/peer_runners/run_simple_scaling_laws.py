"""What does simple-scaling-laws answer? Run by `tests.benchmarks.peers` in an environment that has it.

By its documented calls: a law fitted with 200 draws, the optimum along C = k N D, and the interval of a new run there.
"""

import os
import tempfile

import polars as pl
import simple_scaling_laws as peer
from exchange import near_rows, serve
from simple_scaling_laws.cost import cost_model

SIZE, DATA, LOSS = "model_size__params", "dataset_size__tokens", "test_loss__nats"
ENDS = [0.025, 0.5, 0.975]
DRAWS = 200


def frame(rows):
    """Runs as the table it reads."""
    params, tokens, flops, loss, _ = zip(*rows, strict=True)
    columns = {SIZE: params, DATA: tokens, LOSS: loss, "compute__flops": flops}
    return pl.DataFrame(
        {"training_run_id": [f"{i}" for i in range(len(rows))]} | {k: list(v) for k, v in columns.items()}
    )


def chinchilla_cost(case):
    """C = k N D of the table."""
    return cost_model("power", k=case["per_token"], a=1.0, b=1.0)


def fitted(rows, law="separable-power"):
    """A law through runs."""
    return peer.fit(frame(rows), law=law, n_draws=DRAWS)


def optimum(case, model):
    """The row of the best allocation."""
    return model.optimal_allocation([case["budget"]], chinchilla_cost(case), quantiles=ENDS).row(0, named=True)


def ask(law, pick):
    """A method: N* and the loss of one run there."""

    def method(case):
        model = fitted(pick(case), law)
        best = optimum(case, model)
        point = pl.DataFrame({SIZE: [best[f"{SIZE}__median"]], DATA: [best[f"{DATA}__median"]]})
        one = model.predict(point, kind="new-run", quantiles=ENDS).row(0, named=True)
        middle, low, high = best[f"{LOSS}__median"], one[f"{LOSS}__q025"], one[f"{LOSS}__q975"]
        return {"loss": middle, "params": best[f"{SIZE}__median"], "low": low, "high": high}

    return method


def profiles(case):
    """N* by its IsoFLOP profiles, which predict no loss."""
    fit = peer.fit_isoflop(frame(case["runs"]), cost=chinchilla_cost(case), n_draws=DRAWS)
    best = fit.predict([case["budget"]], quantiles=ENDS).row(0, named=True)
    return {"loss": None, "params": best[f"{SIZE}__median"], "low": None, "high": None}


def all_rows(case):
    """Every run of a case."""
    return case["runs"]


def compared(case):
    """Two halves of the runs as two systems."""
    models = {"first": fitted(case["runs"][::2]), "second": fitted(case["runs"][1::2])}
    point = pl.DataFrame({SIZE: [case["runs"][-1][0]], DATA: [case["runs"][-1][1]]})
    return "compare", peer.compare(models, point, reference="first")["p_best"][0]


def suggested(case):
    """Three runs within twice the largest budget."""
    budgets = [2 * max(row[2] for row in case["runs"])]
    model, cost = fitted(case["runs"]), chinchilla_cost(case)
    return "suggest_runs", len(peer.suggest_runs(model, [case["budget"]], cost, n=3, candidate_budgets=budgets))


def saved(case):
    """To a folder and back."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fit.slaw")
        fitted(case["runs"]).save(path)
        return "save, load", peer.load(path).params(LOSS)


def accuracy(case):
    """A metric between 0 and 1 made of the loss."""
    table = frame(case["runs"]).with_columns((-pl.col(LOSS)).exp().alias("test_metric__accuracy")).drop(LOSS)
    return "test_metric__accuracy", peer.fit(table, n_draws=DRAWS).params("test_metric__accuracy")


def noted(case):
    """Its notes on a fit of few runs."""
    return "model.warnings", [note.code for note in fitted(case["runs"][:8]).warnings] or None


def swept(case):
    """Sizes at two budgets."""
    return "isoflop_grid", len(peer.isoflop_grid([1e18, 1e19], chinchilla_cost(case), 20.0))


def other_cost(case):
    """The optimum under a cost law fitted to the recorded FLOPs."""
    cost = peer.fit_cost_model(frame(case["runs"]))
    model = fitted(case["runs"])
    return "fit_cost_model", model.optimal_allocation([case["budget"]], cost)[f"{SIZE}__median"][0]


def read(column, name):
    """A question that the row of the best allocation answers."""
    return lambda case: (name, optimum(case, fitted(case["runs"]))[column])


QUESTIONS = {
    "optimum": read(f"{DATA}__median", "optimal_allocation"),
    "loss": read(f"{LOSS}__median", "optimal_allocation"),
    "loss_interval": read(f"{LOSS}__q975", "optimal_allocation"),
    "params_interval": read(f"{SIZE}__q975", "optimal_allocation"),
    "anywhere": lambda case: ("predict", len(fitted(case["runs"]).predict({SIZE: [1e9], DATA: [1e10]}))),
    "profiles": lambda case: ("fit_isoflop", profiles(case)["params"]),
    "forms": lambda case: ("fit(law=)", fitted(case["runs"], "skaling-joint-power").params(LOSS)),
    "metric": accuracy,
    "compare": compared,
    "next_runs": suggested,
    "sweep": swept,
    "cost": other_cost,
    "doubts": noted,
    "saved": saved,
}
METHODS = {
    "separable law": ask("separable-power", all_rows),
    "separable law, near": ask("separable-power", near_rows),
    "Skaling law, near": ask("skaling-joint-power", near_rows),
    "IsoFLOP profiles": profiles,
}

if __name__ == "__main__":
    serve("simple-scaling-laws", METHODS, QUESTIONS)
