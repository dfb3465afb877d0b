"""What was compiled before? Results as JSON files, each named by the hash of everything it depends on.

A result depends on: the part of the config that shapes the program, the slice, the versions of JAX and of the compiler,
the compiler's flags in the environment, the words of the objective, and the text of those modules of this package that
make the program and read it. If any of these changes, the program is compiled again. An objective from outside the
package is known by its name and fields alone: give one that computes something else another name.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError

VARIABLE = "CHINCHILLA_JAX_CACHE"
VERSIONED = ("jax", "jaxlib", "libtpu", "flax", "optax")
ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
# Modules and packages that decide what is compiled, and what is read from it.
SOURCES = """
    config.py config_data.py config_study.py ledger.py method.py base/chips.py base/config_values.py base/hlo.py
    tables/attention_tiles.json
    model methods kernels parallel tools/tpu_meter tools/meter_attention.py
    training/labels.py training/loss.py training/objective.py training/optimizer.py training/step.py
    training/machine/ahead.py training/machine/shape.py
    preflight/program preflight/predict.py preflight/compiled.py preflight/slices.py preflight/step.py
""".split()


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of results. One that is damaged counts as missing."""

    folder: Path

    def key(self, facts: Mapping[str, Any]) -> str:
        """The name of the result that follows from `facts`, this package and the versions of its compilers."""
        environment = {name: os.environ.get(name, "") for name in ENVIRONMENT}
        whole = {"facts": facts, "versions": versions(), "sources": sources(), "environment": environment}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:24]

    def read(self, key: str, build: Callable[[dict[str, Any]], Any] = dict) -> Any | None:
        """What `build` makes of the result; None if there is none, or if it is of another form than `build` takes."""
        try:
            return build(files.read_json(self.folder / f"{key}.json"))
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError):
            return None

    def write(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a result."""
        files.write_json(self.folder / f"{key}.json", dict(result))

    def keep_text(self, key: str, text: str) -> Path:
        """Keeps the text of a compiled program beside its result, compressed."""
        path = self.folder / f"{key}.hlo.txt.gz"
        files.write_bytes(path, gzip.compress(text.encode(), mtime=0))
        return path


def open_cache(flag: str | None) -> Cache:
    """The cache in the folder that `--cache` names, or else the environment, or else in the user's own.

    Raises:
      ConfigError: the folder cannot be made.
    """
    path = files.path(flag or os.environ.get(VARIABLE) or "~/.cache/chinchilla_jax/preflight").expanduser()
    try:
        files.make_folder(path)
    except OSError as error:
        raise ConfigError("--cache", f"{path} cannot be made ({error.strerror}); name another folder") from None
    return Cache(path)


def versions() -> dict[str, str]:
    """The versions of the packages that compile; `none` of one that is not installed."""
    installed = {name: importlib.metadata.distributions(name=name) for name in VERSIONED}
    return {name: next((one.version for one in found), "none") for name, found in installed.items()}


@functools.cache
def sources() -> str:
    """A hash of the text of `SOURCES`."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in (root / name for name in SOURCES):
        for file in files.glob(path, "**/*.py") if files.is_folder(path) else [path]:
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + files.read_bytes(file))
    return digest.hexdigest()[:24]
