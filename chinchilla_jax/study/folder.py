"""Where does a study keep what?

STUDY/manifest.jsonl       header line, then one line per IsoFLOP run; never changed once written
STUDY/verification.jsonl   the same for the runs at the held-out budget
STUDY/next.jsonl           the same for runs added later (`plan --next`), then next_2.jsonl ...
STUDY/noise.jsonl          the same for runs that measure noise (`noise`), noise.json what they came to
STUDY/tune.jsonl           the same for a grid of hyper-parameters (`tune`), tune.json what it came to
STUDY/predictions/NAME.json   what was predicted of a held-out run before it began, and the verdict beside it
STUDY/runs/NAME/           one run: config.json, metrics.jsonl, checkpoints, lease.json, result.json (written last)
STUDY/logs/                output of the workers
STUDY/compilation_cache/   compiled programs, shared by all workers
STUDY/stages.json          seconds spent in each stage, over all restarts
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import USAGE, ExplainedError
from chinchilla_jax.config import RunConfig
from chinchilla_jax.scaling.read.directories import manifest_digest

MANIFEST = "manifest.jsonl"
VERIFICATION = "verification.jsonl"
NOISE, NOISE_RESULT = "noise.jsonl", "noise.json"
TUNE, TUNE_RESULT = "tune.jsonl", "tune.json"
RESULT = "result.json"
_PLAIN_NAME = re.compile(r"[^/\\\0]*[^/\\\0.][^/\\\0]*")  # of one folder, neither of another nor . nor ..
TAIL_BYTES = 8192  # of a run's metrics, read to see how far it is


class StudyError(ExplainedError):
    """A study that cannot go on: one line that says why and what to do."""

    def __init__(self, message: str, exit_code: int = USAGE):
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One line of a manifest: N, D, C by convention; the resolved config as plain values; seconds on one worker; in
    `recipe` where the hyper-parameters come from.

    A branch names its `trunk`, which it leaves after `fork_step` steps: N, D, C and config are those of the whole way.
    A trunk (role `trunk`, no part in fits) has the steps of all its forks in `keep_steps`. `preflight` has the memory
    and time predicted for a slice, if the plan was made for one; it is no part of what a run is. `method` is the way to
    train, where the study has several, and `params_plain` N of the model that is trained plainly in its place.
    """

    name: str
    role: str
    budget: float
    convention: str
    params: int
    params_non_embedding: int
    tokens: int
    flops: dict[str, float]
    config: dict[str, Any] = dataclasses.field(compare=False)  # by its hash, which keys added later leave as it was
    config_hash: str
    estimated_seconds: float
    recipe: str
    trunk: str | None = None
    fork_step: int = 0
    keep_steps: tuple[int, ...] = ()
    preflight: dict[str, Any] | None = dataclasses.field(default=None, compare=False)
    method: str = ""
    params_plain: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_steps", tuple(self.keep_steps))  # JSON has only lists

    @property
    def fork_tokens(self) -> int:
        """Tokens that the trunk trained for this run; 0 without a trunk."""
        return self.fork_step * self.config["train"]["batch_size"] * self.config["data"]["seq_len"]

    def spent(self, convention: str | None = None) -> float:
        """FLOPs of what this run trains itself: of a branch, its tail. By default under the study's convention."""
        return self.flops[convention or self.convention] * (1.0 - self.fork_tokens / self.tokens)

    @property
    def cost(self) -> float:
        """C in FLOPs under the study's convention."""
        return self.flops[self.convention]

    def run_config(self) -> RunConfig:
        """The config the run is trained with."""
        return RunConfig.from_dict(self.config)

    def with_config(self, config: RunConfig) -> PlannedRun:
        """The same run, trained with another config."""
        return dataclasses.replace(self, config=config.to_dict(), config_hash=config.content_hash())

    def facts(self) -> dict[str, Any]:
        """What goes into the run's `result.json`, so that a fit needs nothing else."""
        same = ("name", "role", "budget", "convention", "params", "params_non_embedding", "tokens")
        facts = {name: getattr(self, name) for name in same}
        facts |= {"flops": self.cost, "flops_by_convention": self.flops, "seed": self.config["train"]["seed"]}
        facts |= {"method": self.method, "params_plain": self.params_plain} if self.method else {}
        if self.trunk:
            facts |= {"trunk": self.trunk, "fork_step": self.fork_step, "flops_spent": self.spent()}
        return facts


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A study's list of runs. `header` has its name and hash, the code's version, the template config, `dropped`."""

    header: dict[str, Any]
    runs: tuple[PlannedRun, ...]

    def text(self) -> str:
        """The file's content: one JSON object a line, the header first."""
        runs = [json.dumps(dataclasses.asdict(run), allow_nan=False) for run in self.runs]
        header = json.dumps({"manifest": self.header, "digest": manifest_digest(self.header, runs)}, allow_nan=False)
        return "\n".join([header, *runs, ""])

    def template(self) -> RunConfig:
        """The config the study was planned from."""
        return RunConfig.from_dict(self.header["config"])


def write_manifest(path: pathlib.Path, manifest: Manifest) -> bool:
    """Writes a plan; False where `path` has it already, by any revision. Raises StudyError if it has another."""
    if not files.exists(path):
        files.write_text(path, manifest.text())
        return True
    before = read_manifest(path)
    old, new = before.header["study_hash"], manifest.header["study_hash"]
    if before.runs != manifest.runs or old != new:
        told = f"holds another plan (study hash {old}, this config gives {new}); a manifest is never changed"
        raise StudyError(f"{path}: {told}: use another --study folder, or delete that one")
    return False


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest in `path`. Raises StudyError if it is missing or damaged."""
    try:
        head, *lines = files.read_text(path).splitlines()
        first = json.loads(head)
        manifest = Manifest(first["manifest"], tuple(PlannedRun(**json.loads(line)) for line in lines))
        if first["digest"] != manifest_digest(manifest.header, lines):
            raise ValueError("it is not as it was written: edited, or cut off")
        for run in manifest.runs:
            if not _PLAIN_NAME.fullmatch(run.name):
                raise ValueError(f"{run.name!r} is no name of a run's folder")
        return manifest
    except FileNotFoundError:
        command = f"python -m chinchilla_jax plan --config=... --study={path.parent}"
        raise StudyError(f"{path}: no such manifest; make it with: {command}") from None
    except (ValueError, KeyError, TypeError) as error:
        told = "restore it, or plan the study anew in another folder"
        raise StudyError(f"{path}: not a manifest ({error}); {told}") from None


def next_manifests(study: pathlib.Path) -> list[str]:
    """Names of the manifests of runs that were added later, in their order."""
    names = list(itertools.takewhile(lambda name: files.exists(study / name), map(next_name, itertools.count(1))))
    return names


def next_name(number: int) -> str:
    """`next.jsonl`, `next_2.jsonl`, ..."""
    return "next.jsonl" if number == 1 else f"next_{number}.jsonl"


def planned_runs(study: pathlib.Path, names: Sequence[str] = (MANIFEST, VERIFICATION)) -> list[PlannedRun]:
    """The runs of those manifests that the study has, and of those added later. Raises StudyError if one is damaged, or
    there is none."""
    names = (*names, *next_manifests(study))
    present = [name for name in names if files.exists(study / name)]
    return [run for name in present or [MANIFEST] for run in read_manifest(study / name).runs]


def run_folder(study: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of the run `name`."""
    return study / "runs" / name


def read_json_or(path: pathlib.Path, absent: Any) -> Any:
    """The JSON object in `path`; `absent` if there is no such file. Raises StudyError if it is not one."""
    try:
        value = files.read_json(path)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except FileNotFoundError:
        return absent
    except ValueError as error:
        raise StudyError(f"{path}: not valid JSON ({error}); delete the file to have it made again") from None


def read_result(study: pathlib.Path, name: str) -> dict[str, Any] | None:
    """A finished run's `result.json`; None while it is not finished. Raises StudyError if the file is no result."""
    path = run_folder(study, name) / RESULT
    result = read_json_or(path, None)
    if result is not None and not (result.get("diverged") or isinstance(result.get("loss"), float)):
        raise StudyError(f"{path}: no loss in it; delete the file to have it made again")
    if result is not None and not result.get("diverged") and not math.isfinite(result["loss"]):
        raise StudyError(f"{path}: its loss is {result['loss']}; delete the file to have it made again")
    if result is not None and result.get("name", name) != name:
        raise StudyError(f"{path}: is the result of the run {result['name']}; delete the file to have it made again")
    return result


def unfinished(study: pathlib.Path, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Those of `runs` that have no result yet. Raises StudyError if a result is damaged."""
    return [run for run in runs if read_result(study, run.name) is None]


def finished(
    study: pathlib.Path, runs: Iterable[PlannedRun], skip_damaged: bool = False
) -> Iterator[tuple[PlannedRun, dict[str, Any]]]:
    """Those of `runs` that have a result, with it, diverged ones too. A damaged one is skipped or raises StudyError."""
    for run in runs:
        try:
            if (result := read_result(study, run.name)) is not None:
                yield run, result
        except StudyError:
            if not skip_damaged:
                raise


def last_metrics(study: pathlib.Path, name: str, file: str = "metrics.jsonl") -> dict[str, Any]:
    """The newest value of each metric at the end of what a run wrote to `file`; {} before the first."""
    path = run_folder(study, name) / file
    values: dict[str, Any] = {}
    for line in files.read_end(path, TAIL_BYTES).split(b"\n") if files.exists(path) else ():
        with contextlib.suppress(ValueError):  # the line is cut where reading began, or is being written
            record = json.loads(line)
            values |= record if isinstance(record, dict) else {}
    return values


def progress(study: pathlib.Path, run: PlannedRun) -> float:
    """Share of the run's own tokens trained so far, in [0, 1]; a branch begins at 0 where it leaves its trunk."""
    if read_result(study, run.name) is not None:
        return 1.0
    trained = last_metrics(study, run.name).get("tokens", 0) - run.fork_tokens
    return min(1.0, max(0.0, trained / (run.tokens - run.fork_tokens)))
