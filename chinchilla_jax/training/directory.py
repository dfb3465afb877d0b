"""Whose is a run directory?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from chinchilla_jax.config import ConfigError, RunConfig


def check_directory(config: RunConfig, workdir: Path, echo: Callable[[str], None], cores: int | None = None) -> None:
    """Refuses the directory of another config. Another mesh, or other `cores`, computes the same, but for rounding."""
    path = workdir / "config.json"
    if not path.exists():
        return
    theirs = read_own(path, "config", dict)
    elsewhere = config.to_dict() | {"mesh": theirs["config"].get("mesh")}
    if theirs["config"] != elsewhere:
        raise ConfigError("workdir", f"{workdir} belongs to another config ({difference(theirs['config'], config)}); "
                          "use another directory, or delete this one")  # fmt: skip
    others = [difference(theirs["config"], config)] if theirs.get("hash") != config.content_hash() else []
    if theirs.get("cores", cores) != cores:  # older directories do not say
        others.append(f"cores: {theirs['cores']} there, {cores} here")
    if others:
        echo(f"{', '.join(others)}: the numbers will agree to rounding and not to the bit")


def read_own(path: Path, key: str, kind: type) -> dict:
    """A JSON file this loop wrote; a file that has no `key` of this `kind` in it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value[key], kind):
            raise TypeError(f"{key} is {value[key]!r}")
        return value
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("workdir", f"{path} is damaged ({type(error).__name__}: {error}); delete that file, or use "
                          "another directory") from None  # fmt: skip


def difference(theirs: dict, config: RunConfig) -> str:
    """The first few keys in which a stored config differs."""

    def flat(values: dict, prefix: str = "") -> dict:
        return {k: v for name, value in values.items()
                for k, v in (flat(value, f"{prefix}{name}.") if isinstance(value, dict)
                             else {f"{prefix}{name}": value}).items()}  # fmt: skip

    old, new = flat(theirs), flat(config.to_dict())
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in keys[:3]) or "same values, other version"
