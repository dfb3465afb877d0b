"""What will a wide model lose, if narrow ones were trained as long by a recipe that suits every width?

By such a recipe (muP) losses at one step lie on L = a N^b + c (Yao and Wang 2023, arXiv 2304.06875), by which Li et al.
2023 (FLM-101B, arXiv 2309.03852) foretold the loss of their run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from chinchilla_jax.base.words import count
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

_SAME = 0.01  # relative: D or N of two runs that count as equal
_LEAST = 4  # sizes for three constants
_LEVEL = 0.95
_NO_LEVEL = 0.05  # of the lowest loss: a level c below it is none


def across_widths(
    loaded: LoadedRuns, params: float | None = None, tokens: float | None = None, seed: int = 0
) -> Answer:
    """The loss of models of `params` parameters and more, by the runs of smaller ones on as many tokens.

    Args:
      params: by default those of the largest run, so that the prediction meets a loss.
      tokens: D of the runs; by default the D at which there are the most sizes, of several such the largest.

    Raises:
      FitRefused: `few_points` (fewer than four sizes below `params` at one D), or `no_law` (losses do not fall with N
        to a level).
    """
    runs, others = _of_one_horizon(loaded, tokens)
    target = params or max(run.params for run in runs)
    narrow = [run for run in runs if run.params < (1.0 - _SAME) * target]
    if len({run.params for run in narrow}) < _LEAST:
        told = f"{loaded.source}: {len({run.params for run in narrow})} sizes below N = {count(target)}"
        fix = "train narrower ones, or name another with --params or --tokens"
        raise FitRefused("few_points", f"{told} at D = {count(runs[0].tokens)}, {_LEAST} needed; {fix}")
    constants, scatter, ends = _fit(loaded, narrow, seed)
    wide = sorted({run.params for run in runs if run.params >= (1.0 - _SAME) * target})
    if not wide or wide[0] > (1.0 + _SAME) * target:
        wide = [target, *wide]
    rows = [_row(size, runs, constants) | {"95% of one run": ends(size)} for size in wide]
    low, high = (count(pick(run.params for run in narrow)) for pick in (min, max))
    law = f"L = {constants['a']:.4g} N^{constants['b']:.4f} + {constants['c']:.4f}"
    notes = [
        f"{law} through {len(narrow)} runs of N = {low} to {high}, which scatter by {scatter:.2%} about it",
        "It holds for runs of one depth and one number of steps, by hyper-parameters that suit every width (muP)",
    ]
    if constants["c"] < _NO_LEVEL * min(run.loss for run in narrow):
        notes.append(
            "These runs do not tell a level c from none: the farther from them, the less the law is to be trusted"
        )
    if others:
        notes.append(f"{others} runs on other numbers of tokens are left out; --tokens=D takes those of another D")
    return Answer("across_widths", "The loss of wide models, by narrow ones", tuple(rows), tuple(notes))


def _row(size: float, runs: Sequence[Run], constants: Mapping[str, float]) -> dict[str, Any]:
    """What the law says of a size, and what it came to where it was trained."""
    loss = constants["a"] * size ** constants["b"] + constants["c"]
    trained = [run.loss for run in runs if run.params == size]
    mean = float(np.mean(trained)) if trained else None
    off = None if mean is None else f"{loss / mean - 1.0:+.2%}"
    return {"N": size, "D": runs[0].tokens, "loss": loss, "trained": mean, "off": off}


def _of_one_horizon(loaded: LoadedRuns, tokens: float | None) -> tuple[list[Run], int]:
    """The runs of one D, and how many there are of others."""
    runs = list(loaded.runs)
    near = {run.tokens: [one for one in runs if abs(one.tokens / run.tokens - 1.0) <= _SAME] for run in runs}
    if tokens is not None:
        chosen = [run for run in runs if abs(run.tokens / tokens - 1.0) <= _SAME]
        if not chosen:
            known = ", ".join(count(d) for d in sorted(near))
            raise FitRefused("few_points", f"{loaded.source}: no run on D = {count(tokens)}; there are {known}")
    else:
        chosen = max(near.items(), key=lambda group: (len({run.params for run in group[1]}), group[0]))[1]
    return chosen, len(runs) - len(chosen)


def _fit(loaded: LoadedRuns, runs: Sequence[Run], seed: int) -> tuple[dict[str, float], float, Any]:
    """Constants, relative scatter of the runs, and a function: the 95% interval of one more run of a size."""
    from chinchilla_jax.scaling.laws.fit import fit_widths  # forms are fitted by JAX, which is slow to import

    params, losses = np.array([(run.params, run.loss) for run in runs]).T
    unit = float(np.exp(np.log(params).mean()))
    fit = fit_widths(params / unit, losses, seed=seed)
    a, b, c = (fit.constants[name] for name in "abc")
    if not (a > 0.0 > b and c > 0.0) or abs(b) < 1e-3:
        why = "the losses do not fall with N to a level above zero"
        raise FitRefused("no_law", f"{loaded.source}: {why}; are all runs of one recipe?")

    def slope(sizes: np.ndarray) -> np.ndarray:
        """Of the loss by a, b and c, `[n, 3]`."""
        power = (sizes / unit) ** b
        return np.stack([power, a * power * np.log(sizes / unit), np.ones_like(sizes)], axis=-1)

    freedom = len(runs) - 3
    scatter = float(np.sqrt(((fit.predictions - losses) ** 2).sum() / freedom))
    spread = np.linalg.pinv(slope(params).T @ slope(params))

    def ends(size: float) -> tuple[float, float]:
        at = slope(np.array([size]))[0]
        half = float(t.ppf(0.5 + _LEVEL / 2.0, freedom)) * scatter * float(np.sqrt(1.0 + at @ spread @ at))
        loss = a * (size / unit) ** b + c
        return loss - half, loss + half

    return {"a": a * unit**-b, "b": b, "c": c}, scatter / float(losses.mean()), ends
