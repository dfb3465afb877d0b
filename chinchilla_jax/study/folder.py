"""Where does a study keep what?

    STUDY/manifest.jsonl       header line, then one line per IsoFLOP run; never changed once written
    STUDY/verification.jsonl   the same for the runs at the held-out budget
    STUDY/noise.jsonl          the same for runs that measure noise (`noise`), noise.json what they came to
    STUDY/runs/NAME/           one run: config.json, metrics.jsonl, checkpoints, lease.json, result.json (written last)
    STUDY/logs/                output of the workers
    STUDY/compilation_cache/   compiled programs, shared by all workers
    STUDY/stages.json          seconds spent in each stage, over all restarts
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from chinchilla_jax.base.errors import USAGE, ExplainedError
from chinchilla_jax.base.files import write_text
from chinchilla_jax.config import RunConfig

MANIFEST = "manifest.jsonl"
VERIFICATION = "verification.jsonl"
NOISE, NOISE_RESULT = "noise.jsonl", "noise.json"


class StudyError(ExplainedError):
    """A study that cannot go on. One line that says why and what to do."""

    def __init__(self, message: str, exit_code: int = USAGE):
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One line of a manifest.

    `params` total N and `params_non_embedding`; `tokens` D; `flops` C by convention; `config` the resolved RunConfig as
    plain values, `config_hash` its content hash; `estimated_seconds` on one worker; `recipe` where the hyper-parameters
    come from. A branch names its `trunk`, which it leaves after `fork_step` steps: N, D, C and config are those of the
    whole way. A trunk (role `trunk`, no part in fits) has the steps of all its forks in `keep_steps`. `preflight` has
    the memory and time that were predicted for a slice, if the plan was made for one; it is no part of what a run is.
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

    def __post_init__(self):
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

    def facts(self) -> dict[str, Any]:
        """What goes into the run's `result.json`, so that a fit needs nothing else."""
        facts = {"name": self.name, "role": self.role, "budget": self.budget, "convention": self.convention,
                 "params": self.params, "params_non_embedding": self.params_non_embedding, "tokens": self.tokens,
                 "flops": self.cost, "flops_by_convention": self.flops,
                 "seed": self.config["train"]["seed"]}  # fmt: skip
        if self.trunk:
            facts |= {"trunk": self.trunk, "fork_step": self.fork_step, "flops_spent": self.spent()}
        return facts


def training_order(
    runs: Sequence[PlannedRun], seconds: Callable[[PlannedRun], float] | None = None
) -> list[PlannedRun]:
    """The order in which workers take runs: what others wait for first, then the longest first.

    Args:
      seconds: how long a run takes, if that is known better than when it was planned.
    """
    return sorted(runs, key=lambda run: (not run.keep_steps, -(seconds(run) if seconds else run.estimated_seconds)))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A study's list of runs. `header` has study, study_hash, package and revision, the template config, `dropped`."""

    header: dict[str, Any]
    runs: tuple[PlannedRun, ...]

    def text(self) -> str:
        """The file's content: one JSON object a line, the header first."""
        runs = [json.dumps(dataclasses.asdict(run), allow_nan=False) for run in self.runs]
        header = json.dumps({"manifest": self.header, "digest": _digest(self.header, runs)}, allow_nan=False)
        return "".join(f"{line}\n" for line in (header, *runs))

    def template(self) -> RunConfig:
        """The config the study was planned from."""
        return RunConfig.from_dict(self.header["config"])


def write_manifest(path: pathlib.Path, manifest: Manifest) -> bool:
    """Writes `path` unless it holds the same plan already; returns whether it wrote.

    Who made a plan (version, revision) is not part of what it is.

    Raises:
      StudyError: `path` holds another plan.
    """
    if path.exists():
        there = read_manifest(path)
        same = there.runs == manifest.runs and there.header["study_hash"] == manifest.header["study_hash"]
        if not same:
            raise StudyError(f"{path}: holds another plan (study hash {there.header['study_hash']}, this config gives "
                             f"{manifest.header['study_hash']}); a manifest is never changed: use another --study "
                             "folder, or delete that one")  # fmt: skip
        return False
    write_text(path, manifest.text())
    return True


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest in `path`.

    Raises:
      StudyError: it is missing or damaged.
    """
    try:
        first, *runs = path.read_text(encoding="utf-8").splitlines()
        first = json.loads(first)
        manifest = Manifest(first["manifest"], tuple(PlannedRun(**json.loads(line)) for line in runs))
        if first["digest"] != _digest(manifest.header, runs):
            raise ValueError("it is not as it was written: edited, or cut off")
        return manifest
    except FileNotFoundError:
        raise StudyError(f"{path}: no such manifest; make it with: python -m chinchilla_jax plan --config=... "
                         f"--study={path.parent}") from None  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StudyError(f"{path}: not a manifest ({error}); restore it, or plan the study anew in another "
                         "folder") from None  # fmt: skip


def _digest(header: dict[str, Any], lines: list[str]) -> str:
    return hashlib.sha256("\n".join([json.dumps(header), *lines]).encode()).hexdigest()[:16]


def manifests(study: pathlib.Path, names: Sequence[str] = (MANIFEST, VERIFICATION)) -> list[Manifest]:
    """Those of the study's manifests that are there: by default the plan and the verification.

    Raises:
      StudyError: one is damaged, or there is none.
    """
    there = [name for name in names if (study / name).exists()]
    return [read_manifest(study / name) for name in there or [MANIFEST]]


def run_folder(study: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of the run `name`."""
    return study / "runs" / name


def read_json_or(path: pathlib.Path, absent: Any) -> Any:
    """The JSON object in `path`; `absent` if there is no such file.

    Raises:
      StudyError: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except FileNotFoundError:
        return absent
    except ValueError as error:
        raise StudyError(f"{path}: not valid JSON ({error}); delete the file to have it made again") from None


def read_result(study: pathlib.Path, name: str) -> dict[str, Any] | None:
    """A finished run's `result.json`; None while it is not finished.

    Raises:
      StudyError: the file is no result.
    """
    path = run_folder(study, name) / "result.json"
    result = read_json_or(path, None)
    if result is not None and not (result.get("diverged") or isinstance(result.get("loss"), float)):
        raise StudyError(f"{path}: no loss in it; delete the file to have it made again")
    return result


def last_metrics(
    study: pathlib.Path, name: str, file: str = "metrics.jsonl", window: int = 8192
) -> dict[str, Any]:
    """The newest value of each metric among the last `window` bytes a run wrote to `file`; {} before the first."""
    values: dict[str, Any] = {}
    try:
        with open(run_folder(study, name) / file, "rb") as handle:
            handle.seek(max(0, handle.seek(0, 2) - window))
            tail = handle.read().split(b"\n")
    except FileNotFoundError:
        return values
    for line in tail:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut at the window's start, or being written
        if isinstance(record, dict):
            values |= record
    return values


def progress(study: pathlib.Path, run: PlannedRun) -> float:
    """Share of the run's own tokens trained so far, in [0, 1]; a branch begins at 0 where it leaves its trunk."""
    if read_result(study, run.name) is not None:
        return 1.0
    trained = last_metrics(study, run.name).get("tokens", 0) - run.fork_tokens
    return min(1.0, max(0.0, trained / (run.tokens - run.fork_tokens)))
