"""Whose is a run directory, and what was computed in it?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import Ledger
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.stages import Course


def check_directory(course: Course, workdir: Path, echo: Callable[[str], None], cores: int | None = None) -> None:
    """Refuses the directory of another run. Another mesh, or other `cores`, computes the same, but for rounding.

    Raises:
      ConfigError: it belongs to another run, or what it says of itself is damaged.
    """
    path, config = workdir / "config.json", course.config
    if not path.exists():
        return
    stored = read_record(path, "config", dict)
    difference, owner = differences(stored["config"], config), None
    if stored["config"] != config.to_dict() | {"mesh": stored["config"].get("mesh")}:
        owner = f"another config ({difference})"
    elif stored.get("stages") != course.besides_config():
        owner = "a run with another objective or other stages"
    if owner:
        raise ConfigError("workdir", f"{workdir} belongs to {owner}; use another directory, or delete this one")
    others = [difference] if stored.get("hash") != course.content_hash() else []
    if stored.get("cores", cores) != cores:  # older directories do not say
        others.append(f"cores: {stored['cores']} there, {cores} here")
    if others:
        echo(f"{', '.join(others)}: the numbers will agree to rounding and not to the bit")


def take_directory(course: Course, ledger: Ledger, workdir: Path) -> None:
    """Writes whose the directory is and what its run costs; who began the run stays there."""
    if not (workdir / "config.json").exists():
        record = {
            "hash": course.content_hash(),
            "code": code_revision(),
            "cores": hardware.cpu_cores(),
            "config": course.config.to_dict(),
        }
        if stages := course.besides_config():
            record["stages"] = stages
        write_json(workdir / "config.json", record)
    write_json(workdir / "ledger.json", ledger.to_dict())


def read_record(path: Path, key: str, kind: type) -> dict:
    """A JSON file of a run directory.

    Raises:
      ConfigError: it has no `key` of this `kind`, so the loop did not write it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value[key], kind):
            raise TypeError(f"{key} is {value[key]!r}")
        return value
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "workdir",
            f"{path} is damaged ({type(error).__name__}: {error}); delete that file, or use another directory",
        ) from None


def differences(stored: dict, config: RunConfig) -> str:
    """The first few keys in which a stored config differs."""
    old, new = _flat(stored), _flat(config.to_dict())
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in keys[:3]) or "same values, other version"


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
