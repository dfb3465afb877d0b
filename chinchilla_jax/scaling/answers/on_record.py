"""What was predicted before it was trained, and what came of it?

`register` writes a prediction to a small JSON file before the run begins: the target (N, D, C, the hash of its config),
loss and interval, the law, digests of the runs behind it and of the code, and the time. The file carries a SHA-256 of
its content and is never written twice. `verify` judges the finished run by the rule of the study's verdict on the loss
and writes what it finds beside, as `NAME.RUN.verdict.json`. A run that began before its prediction was on record is
refused, and so is one of another config, size or validation data.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.revision import code_digest, code_revision
from chinchilla_jax.base.words import loss_text
from chinchilla_jax.config import RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.scaling.answers.recommended import predicted_run
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.predict.verdicts import Stated
from chinchilla_jax.scaling.read.directories import validation_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

FORMAT, VERDICT, SCHEMA = "chinchilla_jax prediction", "chinchilla_jax verdict", 1
FOLDER = "predictions"  # of a study
_VERDICT_END = ".verdict.json"
_SAME = 0.02  # relative: how far N, D and C of the trained run may be from those on record


@dataclasses.dataclass(frozen=True)
class Target:
    """The run that will be trained: N, D and C as the fitted runs count them; name, config hash and C by convention
    where it is planned; `validation` as in `LoadedRuns`."""

    params: float
    tokens: float
    flops: float
    run: str | None = None
    config_hash: str | None = None
    flops_by_convention: Mapping[str, float] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A prediction on record and what came of it: `status` is `pass`, `fail` or `pending`; `error` is the predicted
    loss over the trained one, less one."""

    file: str
    run: str
    made: str
    params: float
    tokens: float
    flops: float
    loss: float
    loss_95: tuple[float, float]
    trained: float | None
    error: float | None
    inside: bool | None
    status: str


def target_of(config: RunConfig, loaded: LoadedRuns) -> Target:
    """The run of a config, counted as the fitted runs are. Raises FitRefused (`record`) if that is not known."""
    counted, convention = count_run(config), loaded.flops_counted
    if convention not in counted.flops:
        words = f"{loaded.source} counts FLOPs as {loaded.convention}, a config as one of {', '.join(counted.flops)}"
        raise FitRefused("record", f"{words}: name it, as in --columns=flops_6nd:C")
    validation = validation_of(config.to_dict())
    for key in validation.keys() & loaded.validation.keys():
        if validation[key] != loaded.validation[key]:
            values = f"{validation[key]!r} in the config, {loaded.validation[key]!r} in {loaded.source}"
            raise FitRefused("record", f"{key} is {values}: the loss would be measured on other validation data")
    params = counted.parameters.non_embedding if loaded.counts_non_embedding else counted.parameters.total
    return Target(
        params, counted.tokens, counted.flops[convention], None, config.content_hash(), counted.flops, validation
    )


def register(path: str | os.PathLike, prediction: Prediction, loaded: LoadedRuns, target: Target) -> dict[str, Any]:
    """Puts the prediction for `target` on record; returns the content.

    Raises FitRefused (`record`) if there is such a file already, or the prediction has no interval.
    """
    path = files.path(path)
    if path.suffix != ".json" or path.name.endswith(_VERDICT_END):
        raise FitRefused("record", f"{path}: a prediction is put on record in a file NAME.json, without .verdict")
    if files.exists(path):
        raise FitRefused("record", f"{path}: is on record already and never changed; name another file")
    loss, intervals = predicted_run(prediction, target.params, target.flops)
    if not intervals:
        raise FitRefused("record", "a prediction without an interval cannot be judged: fit with --replicates=1000")
    fits = prediction.fits
    content = {
        "made": _now(),
        "code": code_revision(),
        "code_sha256": code_digest(),
        "runs": {"source": pathlib.Path(loaded.source).name, "count": len(fits.runs), "sha256": _digest_of(fits.runs)},
        "target": dataclasses.asdict(target)
        | {"convention": loaded.flops_counted, "non_embedding": loaded.counts_non_embedding},
        "loss": loss,
        "loss_unit": loaded.loss_unit,
        "intervals_of": "one trained run",
        "intervals": {f"{level:.0%}": list(ends) for level, ends in intervals.items()},
        "extrapolation": prediction.extrapolation,
        "law": _law(prediction),
    }
    write(path, FORMAT, content)
    return content


def write(path: pathlib.Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes `content` with its format, schema and hash."""
    record = {"format": kind, "schema": SCHEMA, "content": content, "sha256": _sha256(content)}
    files.write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read(path: str | os.PathLike, kind: str = FORMAT) -> dict[str, Any]:
    """The record in a file, with its hash. Raises FitRefused (`record`) if it is none, or was changed."""
    try:
        record = files.read_json(path)
        if record["format"] != kind:
            raise ValueError(f"its format is {record['format']!r}")
        schema, content = record["schema"], record["content"]
        if schema != SCHEMA:
            raise FitRefused("record", f"{path}: made with schema {schema}; this code reads schema {SCHEMA}")
        if _sha256(content) != record["sha256"]:
            raise FitRefused(
                "record", f"{path}: its content does not have its SHA-256: it was changed, and proves nothing"
            )
        return record
    except FitRefused:
        raise
    except FileNotFoundError:
        raise FitRefused("not_found", f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FitRefused("record", f"{path}: not a {kind} ({type(error).__name__}: {error})") from None


def verify(path: str | os.PathLike, run: str | os.PathLike) -> Outcome:
    """Judges the finished run in the directory `run` by the prediction in `path`, and writes the verdict beside it.

    Raises FitRefused: `record` (no record, another run, or one that began before it), `not_found`.
    """
    path, folder = files.path(path), files.path(run)
    record = read(path)
    content, name = record["content"], files.resolved(folder).name
    if not files.exists(folder / "result.json"):
        raise FitRefused("record", f"{folder}: not a finished run: no result.json")
    began = _began(folder)
    if began < content["made"]:
        words = f"{folder}: began at {began}, before the prediction was on record at {content['made']}"
        raise FitRefused("record", f"{words}: it cannot be judged by it")
    loss = _trained(folder, content)
    stated = Stated(content["loss"], tuple(content["intervals"]["95%"]))
    verdict = {
        "record": record["sha256"],
        "run": name,
        "began": began,
        "judged": _now(),
        "code": code_revision(),
        "result_sha256": hashlib.sha256(files.read_bytes(folder / "result.json")).hexdigest(),
        "trained": loss,
        "error": None if loss is None else stated.error(loss),
        "allowed": stated.allowed,
        "inside_95": None if loss is None else stated.holds(loss),
        "status": "fail" if loss is None else stated.status(loss),
    }
    beside = _beside(path, name)
    if files.exists(beside):  # the first verdict stands; another one must not say otherwise
        before = read(beside, VERDICT)["content"]
        if {key: before[key] for key in ("record", "result_sha256")} != {
            key: verdict[key] for key in ("record", "result_sha256")
        }:
            raise FitRefused("record", f"{beside}: a verdict on another result of {name} is there already")
    else:
        write(beside, VERDICT, verdict)
    return _outcome(path, content, read(beside, VERDICT)["content"])


def outcomes(folder: str | os.PathLike) -> tuple[list[Outcome], list[str]]:
    """All predictions on record in a folder, one for each run that was judged, by the time they were made; and the
    files that were changed or cannot be read, with the reason."""
    verdicts: dict[str, list[Mapping[str, Any]]] = {}
    records, unreadable = [], []
    for path in files.glob(folder, "*.json"):
        try:
            if path.name.endswith(_VERDICT_END):
                content = read(path, VERDICT)["content"]
                verdicts.setdefault(content["record"], []).append(content)
            else:
                records.append((path, read(path)))
        except FitRefused as refused:
            unreadable.append(str(refused))
    rows = []
    for path, record in records:
        judged = verdicts.get(record["sha256"], [])
        rows += [_outcome(path, record["content"], verdict) for verdict in judged]
        rows += [] if judged else [_outcome(path, record["content"], None)]
    return sorted(rows, key=lambda row: (row.made, row.file)), unreadable


def calibration(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Of those with a verdict: how many, how many `diverged`, and of the others how often the 95% interval held, the
    mean and the mean absolute error."""
    judged = [row for row in rows if row.error is not None]
    errors = np.array([row.error for row in judged])
    diverged = sum(row.status == "fail" and row.error is None for row in rows)
    if not judged:
        return dict.fromkeys(("inside_95", "mean_error", "mean_absolute_error")) | {"judged": 0, "diverged": diverged}
    return {
        "judged": len(judged),
        "diverged": diverged,
        "inside_95": sum(bool(row.inside) for row in judged) / len(judged),
        "mean_error": float(errors.mean()),
        "mean_absolute_error": float(np.abs(errors).mean()),
    }


def describe(outcome: Outcome) -> str:
    """A verdict in one line."""
    low, high = (loss_text(end) for end in outcome.loss_95)
    words = f"{outcome.file}: predicted {loss_text(outcome.loss)} (95% of one run {low} to {high}) on {outcome.made}"
    if outcome.trained is None or outcome.error is None:
        return f"{outcome.status.upper()} {words}; {outcome.run} {'diverged' if outcome.status == 'fail' else 'waits'}"
    inside = "inside" if outcome.inside else "outside"
    return (
        f"{outcome.status.upper()} {words}; {outcome.run} trained to {loss_text(outcome.trained)}: predicted "
        f"{outcome.error:+.2%} off, {inside} the interval"
    )


def _outcome(path: pathlib.Path, content: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> Outcome:
    target = content["target"]
    low, high = content["intervals"]["95%"]
    return Outcome(
        file=path.name,
        run=verdict["run"] if verdict else target["run"] or "-",
        made=content["made"],
        params=target["params"],
        tokens=target["tokens"],
        flops=target["flops"],
        loss=content["loss"],
        loss_95=(low, high),
        trained=verdict["trained"] if verdict else None,
        error=verdict["error"] if verdict else None,
        inside=verdict["inside_95"] if verdict else None,
        status=verdict["status"] if verdict else "pending",
    )


def _trained(folder: pathlib.Path, content: Mapping[str, Any]) -> float | None:
    """The loss of the run, if it is the one on record; None if it diverged."""
    target = content["target"]
    try:
        result = files.read_json(folder / "result.json")
        config = files.read_json(folder / "config.json")
        counts = _counts(result, config, target)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = f"its result.json or config.json cannot be read ({type(error).__name__}: {error})"
        raise FitRefused("record", f"{folder}: {words}") from None
    if target["config_hash"] and config.get("hash") != target["config_hash"]:
        hashes = f"its config {config.get('hash')} is not the one on record, {target['config_hash']}"
        raise FitRefused("record", f"{folder}: {hashes}")
    validation = {} if not config.get("config") else validation_of(config["config"])
    for key in target["validation"].keys() & validation.keys():
        if target["validation"][key] != validation[key]:
            values = f"{validation[key]!r}, on record {target['validation'][key]!r}"
            raise FitRefused("record", f"{folder}: {key} is {values}: other validation data")
    for word, value, name in zip("NDC", counts, ("params", "tokens", "flops"), strict=True):
        if not abs(value / target[name] - 1.0) <= _SAME:
            words = f"{word} is {value:.4g}, on record {target[name]:.4g}"
            raise FitRefused("record", f"{folder}: {words}: not the same run")
    loss = result.get("loss")
    return None if result.get("diverged") or not isinstance(loss, float) or not math.isfinite(loss) else loss


def _counts(
    result: Mapping[str, Any], config: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[float, float, float]:
    """N, D and C of a finished run, counted as the record counts them; of a run that says less, from its config."""
    names = "params_non_embedding" if target["non_embedding"] else "params", "tokens"
    if not all(name in result for name in names) and config.get("config"):
        counted = count_run(RunConfig.from_dict(config["config"]))
        sizes = counted.parameters.non_embedding if target["non_embedding"] else counted.parameters.total
        result = {names[0]: sizes, "tokens": counted.tokens, "flops_by_convention": counted.flops} | dict(result)
    params, tokens = (float(result[name]) for name in names)
    by_convention = result.get("flops_by_convention") or {}
    if target["convention"] == "6nd":
        return params, tokens, 6.0 * params * tokens
    return params, tokens, float(by_convention.get(target["convention"], result.get("flops", math.nan)))


def _began(folder: pathlib.Path) -> str:
    """When the run began, ISO 8601 in UTC, as it wrote itself: times of files change when they are copied."""
    try:
        began = files.read_json(folder / "config.json")["began"]
        return _iso(datetime.datetime.fromisoformat(began).timestamp())
    except (OSError, ValueError, KeyError, TypeError):
        words = "its config.json does not say when it began, so nobody knows that the prediction came first"
        raise FitRefused("record", f"{folder}: {words}") from None


def _law(prediction: Prediction) -> dict[str, Any]:
    """The recommended law: its form and constants, and of an average its weights."""
    fits, approach = prediction.fits, prediction.recommended
    law: dict[str, Any] = {"approach": approach, "form": prediction.best.loss_law, "preset": fits.preset}
    if approach == "parametric" and fits.parametric:
        return law | {name: float(value) for name, value in vars(fits.parametric.surface).items()}
    assert fits.isoflop is not None
    loss_law = fits.isoflop.loss_law
    averaged = {
        "irreducible": loss_law.irreducible.tolist(),
        "weight": loss_law.weight.sum(1).tolist(),
        "largest_budget": float(np.exp(loss_law.log_largest)),
        "noise": loss_law.noise,
        "freedom": loss_law.freedom,
    }
    n_star = {
        "coefficient": float(fits.isoflop.params_law.coefficient),
        "exponent": float(fits.isoflop.params_law.exponent),
    }
    return law | {"loss": averaged, "params": n_star}


def _beside(path: pathlib.Path, run: str) -> pathlib.Path:
    return path.with_name(f"{path.stem}.{run}.verdict.json")


def _digest_of(runs: Sequence[Run]) -> str:
    rows = [[run.name, run.params, run.tokens, run.flops, run.loss, run.budget, run.role] for run in runs]
    return _sha256(sorted(rows, key=str))


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _now() -> str:
    return _iso(datetime.datetime.now(datetime.UTC).timestamp())


def _iso(seconds: float) -> str:
    """UTC with microseconds, so that the texts sort as the times do."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds")
