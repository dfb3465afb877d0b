"""The verb `trajectories`: what is done with the way of training runs, asked how, and what is shown of the answer."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.words import percent, table
from chinchilla_jax.cli.generate import parse_mesh, read_prompts
from chinchilla_jax.cli.runs import echo

_MODEL = ("mesh", "compute_dtype")
_SAMPLED = ("factors", "prompts", "new_tokens", "temperature", "top_k", "top_p", "stop", "seed")
TRAJECTORIES = ("output", "sequences", "after", *_MODEL, *_SAMPLED)


def trajectories(values: flags.FlagValues, words: list[str]) -> None:
    """How single tokens are learned, over the checkpoints of runs that keep some (train.keep_checkpoints).

    collect RUN... --output=FILE.npz   the loss of every held-out token at every kept checkpoint (--sequences)
    classify FILE.npz                  the share of tokens that get better, worse, or stay, late in training (--after)
    match FILE.npz                     do sizes predict alike at equal loss, equal FLOPs or equal tokens?
    plot FILE.npz --output=FILE.png    tokens of each trend in all sizes, against FLOPs and perplexity
    contrast SMALL LARGE [PROMPT...]   text that one run likes and the other does not (--factors)

    After Xia et al. 2023 (arXiv 2212.09803). classify and match also write JSON to --output.
    """
    if not words or words[0] not in _ACTIONS:
        what = f"unknown action {words[0]!r}" if words else "which action?"
        raise UsageError(f"trajectories: {what}; one of {', '.join(_ACTIONS)}")
    action = _ACTIONS[words[0]]
    for name in TRAJECTORIES:
        if values[name].present and name not in action.flags:
            takes = ", ".join(f"--{flag}" for flag in action.flags)
            raise UsageError(f"trajectories {words[0]} takes no --{name}; it takes {takes}")
    action.run(values, words[1:])


def _collect(values: flags.FlagValues, words: list[str]) -> None:
    if not words:
        raise UsageError("trajectories collect: which runs? Name their folders, as STUDY/runs/NAME")
    path = _output(values, "collect", ".npz")
    from chinchilla_jax.evaluation.trajectories.collect import collect
    from chinchilla_jax.evaluation.trajectories.series import save

    options = {"mesh": parse_mesh(values.mesh), "compute_dtype": values.compute_dtype, "sequences": values.sequences}
    found = collect([files.path(word) for word in words], **options, echo=echo)
    save(path, found)
    checkpoints = sum(len(run.step) for run in found.runs)
    echo(f"{path}: {len(found.targets):,} tokens at {checkpoints} checkpoints of {len(found.runs)} runs")


def _classify(values: flags.FlagValues, words: list[str]) -> None:
    from chinchilla_jax.evaluation.trajectories import classify, series

    found = series.load(_one_file(words, "classify"))
    shares = _shares(values.after) or classify.SHARES
    trends = classify.shares(found, shares)
    _show(trends, classify.CLASSES, after="{:.0%}".format)
    facts: dict[str, Any] = {"trends": trends}
    if len(found.runs) > 1:
        facts["across"] = classify.across(found, shares[0])
        echo(f"\ntokens of a run in the next larger one, by their trends after {shares[0]:.0%}:")
        _show(facts["across"], ("stagnated too", "stagnated before", "double descent", "among all"))
    _write(values, facts)


def _match(values: flags.FlagValues, words: list[str]) -> None:
    from chinchilla_jax.evaluation.trajectories import match, series

    rows = match.rows(match.matches(series.load(_one_file(words, "match"))))
    echo("|ln perplexity - ln perplexity|, mean over tokens and checkpoints, and rank correlations of the tokens:")
    numbers = [name for name in rows[0] if name.startswith(("equal", "rank"))]
    echo("\n".join(table([row | {name: f"{row[name]:.3f}" for name in numbers} for row in rows])))
    _write(values, {"matches": rows})


def _plot(values: flags.FlagValues, words: list[str]) -> None:
    path, shares = _output(values, "plot", ".png"), _shares(values.after) or (0.1,)
    if len(shares) > 1:
        raise UsageError(f"trajectories plot --after={values.after}: give one percentage")
    from chinchilla_jax.evaluation.trajectories import series
    from chinchilla_jax.evaluation.trajectories.plot import plot

    plot(series.load(_one_file(words, "plot")), path, shares[0])
    echo(f"written: {path}")


def _contrast(values: flags.FlagValues, words: list[str]) -> None:
    if len(words) < 2:
        raise UsageError("trajectories contrast: which two runs? Name the folders of a small and a large one")
    from chinchilla_jax.evaluation.trajectories.contrast import contrast
    from chinchilla_jax.generation.decode import ready
    from chinchilla_jax.generation.sampling import Sampling
    from chinchilla_jax.interop.trained import open_model

    factors, prompts = _factors(values.factors), read_prompts(values, words[2:]) or [""]
    sampling = Sampling(values.temperature, values.top_k, values.top_p)
    options = {"mesh": parse_mesh(values.mesh), "compute_dtype": values.compute_dtype, "echo": echo}
    small, large = (ready(open_model(files.path(word), **options)) for word in words[:2])
    settings = {"new_tokens": values.new_tokens, "stop": values.stop or (), "sampling": sampling, "seed": values.seed}
    for prompt, found in zip(prompts, contrast(small, large, prompts, factors=factors, **settings), strict=True):
        losses = ", ".join(f"{nats:.3f} under {word}" for nats, word in zip(found.nats, words, strict=False))
        echo(f"{prompt}{found.text}\n(nats per token: {losses})\n")


class _Action(NamedTuple):
    """What it does with flags and words, and which flags it takes."""

    run: Callable[[flags.FlagValues, list[str]], None]
    flags: tuple[str, ...]


_ACTIONS = {
    "collect": _Action(_collect, ("output", "sequences", *_MODEL)),
    "classify": _Action(_classify, ("output", "after")),
    "match": _Action(_match, ("output",)),
    "plot": _Action(_plot, ("output", "after")),
    "contrast": _Action(_contrast, (*_MODEL, *_SAMPLED)),
}


def _output(values: flags.FlagValues, action: str, suffix: str) -> pathlib.Path:
    if not values.output or not values.output.endswith(suffix):
        given = f"--output={values.output}: " if values.output else ""
        raise UsageError(f"trajectories {action}: {given}where to? Give --output=FILE{suffix}")
    return files.path(values.output)


def _one_file(words: list[str], action: str) -> str:
    if len(words) != 1:
        raise UsageError(f"trajectories {action} takes one file, which `trajectories collect` wrote; got {len(words)}")
    return words[0]


def _shares(text: str | None) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) / 100.0 for part in text.split(",")) if text else ()
    except ValueError:
        shares = (-1.0,)
    if not all(0.0 <= share < 1.0 for share in shares):
        raise UsageError(f"--after={text}: expected percentages from 0 to below 100, as 10,40")
    return shares


def _factors(text: str) -> tuple[float, float]:
    try:
        small, large = (float(part) for part in text.split(","))
    except ValueError:
        small = large = 2.0
    if not (abs(small) <= 1.0 and abs(large) <= 1.0 and max(small, large) > 0.0):
        raise UsageError(f"--factors={text}: expected two numbers from -1 to 1, one of them above 0, as 1,-1")
    return small, large


def _show(rows: list[dict[str, Any]], percentages: tuple[str, ...], **forms: Callable[[Any], str]) -> None:
    forms |= dict.fromkeys(percentages, percent)

    def shown(name: str, value: Any) -> Any:
        return value if name not in forms or value is None else forms[name](value)

    echo("\n".join(table([{name: shown(name, value) for name, value in row.items()} for row in rows])))


def _write(values: flags.FlagValues, facts: dict[str, Any]) -> None:
    if values.output:
        write_json(values.output, facts)
        echo(f"written: {values.output}")
