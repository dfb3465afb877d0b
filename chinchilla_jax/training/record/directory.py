"""What does a run directory say? Whose it is (`config.json`), what the run costs (`ledger.json`), and what it achieved.

`result.json` is written last, and says that the run is finished.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from chinchilla_jax.base import files
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import Ledger
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.timing.clock import Clock, goodput, time_line, utilisation


def check_directory(
    course: Course,
    workdir: Path,
    echo: Callable[[str], None],
    cores: int | None = None,
    init_from: Mapping[str, str] | None = None,
) -> None:
    """Refuses another run's directory by a `ConfigError`. Another mesh, or other `cores`, only rounds otherwise.

    `init_from`: the record of the weights that the run begins with, if they are no random ones.
    """
    path, config = workdir / "config.json", course.config
    if not files.exists(path):
        return
    stored = read_record(path, "config", dict)
    there = stored["config"]
    with contextlib.suppress(ConfigError):  # keys that came later have their defaults
        there = RunConfig.from_dict(there).to_dict()
        there["train"]["tracker"] = config.train.tracker  # nothing that is computed depends on who watches
    difference, owner = differences(there, config), None
    if there != config.to_dict() | {"mesh": there.get("mesh")}:
        owner = f"another config ({difference})"
    elif stored.get("stages") != course.besides_config():
        owner = "a run with another objective or other stages"
    elif (first := _fingerprint(stored.get("init_from"))) != _fingerprint(init_from):
        owner = (
            f"a run that began with {stored['init_from']['folder']} ({first})" if first else "one with fresh weights"
        )
    if owner:
        raise ConfigError("workdir", f"{workdir} belongs to {owner}; use another directory, or delete this one")
    others = [difference] if stored.get("hash") != course.content_hash() else []
    if stored.get("cores", cores) != cores:  # older directories do not say
        others.append(f"cores: {stored['cores']} there, {cores} here")
    if others:
        echo(f"{', '.join(others)}: the numbers will agree to rounding and not to the bit")


def check_data(workdir: Path, content: str) -> None:
    """Refuses to go on with other tokens than the run began with, by a `ConfigError`; older directories do not say."""
    path = workdir / "config.json"
    began = read_record(path, "config", dict).get("data", content) if files.exists(path) else content
    if began != content:
        told = f"{workdir} was trained on other text, or with another tokenizer ({began} there, {content} here)"
        raise ConfigError("data", f"{told}: prepare the data that it began with, or use another directory")


def _fingerprint(init_from: Mapping[str, str] | None) -> str:
    return init_from["fingerprint"] if init_from else ""


def take_directory(
    course: Course, ledger: Ledger, workdir: Path, content: str, init_from: Mapping[str, str] | None = None
) -> None:
    """Writes whose the directory is, of which data, and what its run costs; who began the run stays there."""
    if not files.exists(workdir / "config.json"):
        stages = course.besides_config()
        record: dict[str, Any] = {
            "hash": course.content_hash(),
            "code": code_revision(),
            "cores": hardware.cpu_cores(),
            "data": content,
            "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            "config": course.config.to_dict(),
        }
        if stages:
            record["stages"] = stages
        if init_from:
            record["init_from"] = dict(init_from)
        files.write_json(workdir / "config.json", record)
    files.write_json(workdir / "ledger.json", ledger.to_dict())


def finished_result(workdir: Path, echo: Callable[[str], None]) -> dict[str, Any] | None:
    """The result of a run that is finished already, else None; what process 0 sees counts for all."""
    path = workdir / "result.json"
    if distributed.exchange("finished", str(files.exists(path)))[0] != "True":
        return None
    result = read_record(path, "loss", float)
    if not math.isfinite(result["loss"]):
        raise ConfigError("workdir", f"{path} has the loss {result['loss']}; delete it, or use another directory")
    echo(f"finished already: loss {result['loss']:.4f} nats/token; another run needs another directory")
    return result


def write_result(
    workdir: Path,
    facts: Mapping[str, Any],
    course: Course,
    ledger: Ledger,
    validation: Mapping[str, float],
    clock: Clock,
    peak: tuple[float, str],
    echo: Callable[[str], None],
) -> dict[str, Any]:
    """Writes and returns the result of a run that has ended; `peak` is what `hardware.peak_flops` gives."""
    flops_per_token = {convention: flops / ledger.tokens for convention, flops in ledger.flops.items()}
    used = utilisation(clock.parts, clock.tokens, flops_per_token, peak[0])
    seconds, speed, devices = clock.seconds(), clock.tokens_per_second(), course.config.mesh.size
    stages = course.stages_by_name()
    result = {
        **facts,
        "loss": validation["validation_loss"],
        "bits_per_byte": validation["bits_per_byte"],
        "validation": dict(validation),
        "diverged": False,
        "params": ledger.parameters.total,
        **({} if ledger.params_active == ledger.parameters.total else {"params_active": ledger.params_active}),
        "tokens": ledger.tokens,
        "flops_by_convention": ledger.flops,
        "steps": course.total_steps,
        **({"stages": stages} if stages else {}),
        "seconds": seconds,
        "time": clock.parts,
        "goodput": goodput(clock.parts),
        "utilisation": used,
        "device_hours": seconds * devices / 3600,
        "tokens_per_second": speed,
        "flops_per_second": speed * flops_per_token["executed"],
        "peak_flops": peak[0],
        "peak_is": peak[1],
        "devices": devices,
        "platform": jax.default_backend(),
        "cores": hardware.cpu_cores(),
        "config_hash": course.content_hash(),
        "code": code_revision(),
    }
    if distributed.first():
        files.write_json(workdir / "result.json", result)
    echo(
        f"done: loss {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte, {seconds:.1f} s, "
        f"{result['flops_per_second'] / 1e9:.1f} GFLOP/s"
    )
    echo(time_line(clock.parts, used))
    return result


def read_record(path: Path, key: str, kind: type) -> dict:
    """A JSON file of a run directory; a `ConfigError` if it has no `key` of this `kind`: the loop did not write it."""
    try:
        value = files.read_json(path)
        if not isinstance(value[key], kind):
            raise TypeError(f"{key} is {value[key]!r}")
        return value
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            "workdir", f"{path} is damaged ({reason}); delete that file, or use another directory"
        ) from None


def differences(stored: dict, config: RunConfig) -> str:
    """The first few keys in which a stored config differs."""
    keys = [
        f"{key}: {there} there, {here} here" for key, there, here in distributed.different(stored, config.to_dict())
    ]
    return ", ".join(keys[:3]) or "same values, other version"
