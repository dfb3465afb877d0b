"""What was compiled before? Results as JSON files, each named by the hash of everything it depends on.

What a program depends on: the part of the config that shapes it, the slice, the versions of JAX and of the compiler,
its flags in the environment, and the text of this package's modules that it is made by and read with. Change any, and
it is compiled anew.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_jax.base.files import write_json
from chinchilla_jax.config import ConfigError

VARIABLE = "CHINCHILLA_JAX_CACHE"
VERSIONED = ("jax", "jaxlib", "libtpu", "flax", "optax")
ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
# Modules and packages that decide what is compiled, and what is read from it.
SOURCES = ("config.py", "base/chips.py", "model", "kernels", "parallel", "tools/tpu_meter",
           "tables/attention_tiles.json", "preflight/program",
           *(f"training/{name}.py" for name in ("loss", "optimizer", "step")),
           *(f"training/machine/{name}.py" for name in ("ahead", "shape", "xla_flags")),
           *(f"preflight/{name}.py" for name in ("attention", "compiled", "slices", "step")))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of results. One that is damaged counts as missing."""

    folder: Path

    def key(self, facts: Mapping[str, Any]) -> str:
        """The name of the result that follows from `facts`, this package and the versions of its compilers."""
        environment = {name: os.environ.get(name, "") for name in ENVIRONMENT}
        whole = {"facts": facts, "versions": versions(), "sources": sources(), "environment": environment}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:24]

    def read(self, key: str) -> dict[str, Any] | None:
        """The result, if it is there."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a result."""
        write_json(self._path(key), dict(result))

    def keep_text(self, key: str, text: str) -> Path:
        """Keeps the text of a compiled program beside its result, compressed."""
        path = self.folder / f"{key}.hlo.txt.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def open_cache(flag: str | None) -> Cache:
    """The cache in the folder of `--cache`, of the environment, or of the user."""
    folder = flag or os.environ.get(VARIABLE) or Path.home() / ".cache" / "chinchilla_jax" / "preflight"
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--cache", f"{path} cannot be made ({error.strerror}); name another folder") from None
    return Cache(path)


def versions() -> dict[str, str]:
    """Of what compiles; `none` where it is not installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


@functools.cache
def sources() -> str:
    """A hash of the text of `SOURCES`."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in SOURCES:
        path = root / name
        files = sorted(p for p in path.rglob("*.py") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:24]
