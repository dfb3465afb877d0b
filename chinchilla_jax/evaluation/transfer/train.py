"""In which ways is a model made to do a task, and how well does it then?

    scratch      fresh weights, all trained: what the task teaches by itself
    full         the model's weights, all trained
    frozen       the model's weights; only norms, the table of positions (where there is one) and the head are trained
    embeddings   as `frozen`, but the embeddings are fresh, and trained: the Frozen Pretrained Transformer of Lu et al.
                 2021 (arXiv 2103.05247), which reads each task through an input layer of its own
    random       as `embeddings`, but with fresh weights throughout: what the architecture alone gives

`frozen` beside `embeddings` asks what Ballout et al. 2023 (arXiv 2306.12205) ask: are the embeddings learned from text
needed? Every way sees the same examples in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.evaluation.transfer.head import make_classifier, new_head
from chinchilla_jax.evaluation.transfer.tasks import Rows
from chinchilla_jax.interop.trained import Trained

BATCH = 32  # rows, or the next multiple of what they are split over
WARMUP = 0.1  # of the steps; then the rate falls to nothing, as a cosine


class Mode(NamedTuple):
    """Which weights a way begins with and which it trains. `fresh`: nothing, "embedding" or "all"."""

    fresh: str
    everything: bool


MODES = {
    "scratch": Mode("all", True),
    "full": Mode("", True),
    "frozen": Mode("", False),
    "embeddings": Mode("embedding", False),
    "random": Mode("all", False),
}


class Outcome(NamedTuple):
    """Accuracies, 0 to 1, on rows of which none was trained on; the last loss in nats; trained numbers of the body."""

    validation: float
    test: float
    loss: float
    trained: int


def trains(mode: Mode, path: tuple[str, ...]) -> bool:
    """Whether a mode trains the weight of the body with these names, from the outside in."""
    if path[0] in ("output", "output_bias"):  # the head stands in for them
        return False
    if mode.everything or any(name.endswith("_norm") for name in path) or path == ("position",):
        return True
    return path == ("embedding",) and mode.fresh != ""


def first_weights(model: Trained, mode: Mode, classes: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained (`body`, `head`), in arrays of its own, and what of the body stays as it is."""
    key = jax.random.key(seed)
    params = model.params
    if mode.fresh:
        fresh = model.program.init(key).params
        params = fresh if mode.fresh == "all" else params | {"embedding": fresh["embedding"]}
    body = jax.tree.map(jnp.copy, _part(params, lambda path: trains(mode, path)))
    head = new_head(model.config, classes, jax.random.fold_in(key, 1))
    return {"body": body, "head": head}, _part(params, lambda path: not trains(mode, path))


def rate_at(step: int, steps: int, rate: float) -> float:
    """The learning rate of a step, counted from 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return rate * (step + 1) / warmup
    return rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(
    model: Trained,
    mode: Mode,
    classes: int,
    rows: Rows,
    validation: Rows,
    test: Rows,
    steps: int,
    rate: float,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains a head, and what the mode says of the model, on `rows` in their order; the result depends on nothing else.

    Args:
      rows: `BATCH` of them a step; from the first again should they not suffice. All three are of one width.
      on_step: called after every step.
    """
    classifier = make_classifier(model.config, model.mesh)
    weights, frozen = first_weights(model, mode, classes, seed)
    state, batch = classifier.init(weights), batch_of(model)
    loss: Any = math.nan
    for step in range(steps):
        before = loss
        lr = np.float32(rate_at(step, steps, rate))
        weights, state, loss = classifier.step(
            weights, state, frozen, *rows.slice(step * batch, (step + 1) * batch), lr
        )
        jax.block_until_ready(before)  # no further ahead than that: progress would be a fiction
        on_step()

    def accuracy(held_out: Rows) -> float:
        right = 0
        for start in range(0, len(held_out.labels), batch):
            some = held_out.slice(start, start + batch)
            count = min(batch, len(held_out.labels) - start)
            classes_B = np.asarray(classifier.predict(weights, frozen, some.tokens, some.lengths))
            right += int((classes_B == some.labels)[:count].sum())
        return right / len(held_out.labels)

    trained = sum(x.size for x in jax.tree.leaves(weights["body"]))
    return Outcome(accuracy(validation), accuracy(test), float(loss), trained)


def batch_of(model: Trained) -> int:
    """Rows of a step: `BATCH`, or the next multiple of the devices they are split over."""
    return -(-BATCH // model.config.mesh.rows) * model.config.mesh.rows


def _part(params: dict, wanted: Callable[[tuple[str, ...]], bool], before: tuple[str, ...] = ()) -> dict[str, Any]:
    """The leaves of a nested dictionary whose names are wanted; dictionaries without any are left out."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        path = (*before, name)
        if isinstance(value, dict):
            if inner := _part(value, wanted, path):
                found[name] = inner
        elif wanted(path):
            found[name] = value
    return found
