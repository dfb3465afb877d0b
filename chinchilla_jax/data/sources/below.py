"""Which files does a folder or a pattern name, and of which domain is each?"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from chinchilla_jax.base import files
from chinchilla_jax.data.sources.registry import domain_name, fixed_part
from chinchilla_jax.data.steps import DataError


def files_below(
    root: pathlib.Path, wanted: Callable[[pathlib.Path], bool] = lambda path: True
) -> list[tuple[str, pathlib.Path]]:
    """(domain, path) of the `wanted` files below `root` that are not hidden, sorted by path.

    A subfolder of `root` is a domain; files directly inside belong to `root`'s own name. Where `root` has wildcards,
    the folder before the first of them takes its place. Empty where nothing matches.

    Raises:
      DataError: two folders whose domains would have one name.
    """
    folder = fixed_part(root)
    pattern = "**/*" if folder == root else root.relative_to(folder).as_posix()
    listed: list[tuple[str, pathlib.Path]] = []
    owner: dict[str, tuple[str, bool]] = {}
    for path in files.glob(folder, pattern):
        parts = path.relative_to(folder).parts
        if not files.is_file(path) or any(part.startswith(".") for part in parts) or not wanted(path):
            continue
        first = parts[0] if len(parts) > 1 else files.resolved(folder).name
        domain = domain_name(first)
        if owner.setdefault(domain, (first, len(parts) > 1)) != (first, len(parts) > 1):
            raise DataError(f"{root}: two folders would both be the domain {domain!r}; rename one")
        listed.append((domain, path))
    return listed
