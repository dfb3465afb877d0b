"""Every `DataConfig.source` becomes a stream of documents with a domain, which is what a mixture weighs."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import SOURCES, ConfigError, DataConfig
from chinchilla_jax.data.steps import DataError


class Document(NamedTuple):
    """A text of a domain; `split` is `train`, `validation`, or None where the corpus builder is to choose."""

    domain: str
    text: str
    split: str | None = None


Documents = Callable[[], Iterator[Document]]  # each call starts a new pass


class Source(NamedTuple):
    """A place text comes from; `details` says what exactly was read."""

    name: str
    documents: Documents
    details: dict


Opener = Callable[[str, DataConfig, Echo], tuple[Documents, dict]]
Lister = Callable[[pathlib.Path], list[pathlib.Path]]


class _Kind(NamedTuple):
    open: Opener
    list_files: Lister | None
    reads_field: bool


_KINDS: dict[str, _Kind] = {}


def register(name: str, opener: Opener, list_files: Lister | None = None, reads_field: bool = False) -> None:
    """Makes `name` a value of `DataConfig.source`; one that ends in a colon is followed by a path or a name.

    Args:
      opener: fetches the text if need be; takes what follows the colon, the config and `echo`. Returns the stream of
        documents and the details of the `Source`, or raises `DataError`.
      list_files: of the path that follows the name, the files behind it. When one changes, the corpus is another.
      reads_field: whether the text of a record is its `DataConfig.text_field`.
    """
    SOURCES.setdefault(name, "")
    _KINDS[name] = _Kind(opener, list_files, reads_field)


def open_source(name: str, data: DataConfig, echo: Echo) -> Source:
    """The source called `name` (not `auto`), fetched if need be; raises `DataError` if there is nothing."""
    kind, rest = _kind(name)
    return Source(name, *kind.open(rest, data, echo))


def first_source_that_works(data: DataConfig, echo: Echo) -> tuple[str, list[str]]:
    """What `auto` means on this machine: (source name, why each earlier one was passed over)."""
    reasons: list[str] = []
    for name in ("debian", "pypi"):
        try:
            open_source(name, data, echo)
            return name, reasons
        except DataError as error:
            reasons.append(f"{name}: {error}")
            echo(f"source=auto: {name} cannot be used: {error}")
    return "shipped", reasons


def fingerprint(name: str) -> list | None:
    """What the files behind a source look like now: [[path, size, modified], ...]; [] where they are not the user's.

    None when the folder is not on this machine (a store may be used where its text is not). Sizes and times stand for
    the content: hashing a large corpus at every start would take longer than the mistake it prevents.
    """
    kind, rest = _kind(name)
    if kind.list_files is None:
        return []
    root = files.path(rest)
    folder = fixed_part(root)
    if not files.exists(folder):
        return None
    return [[path.relative_to(folder).as_posix(), *files.stamp(path)] for path in kind.list_files(root)]


def fixed_part(path: pathlib.Path) -> pathlib.Path:
    """The folder that stands before the first part of `path` with a wildcard; `path` itself if it is there."""
    if files.exists(path):
        return path
    parts = itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts)
    return pathlib.Path(*parts)


def reads_field(name: str) -> bool:
    """Whether `DataConfig.text_field` matters to this source."""
    return _kind(name)[0].reads_field


def domain_name(text: str) -> str:
    """`text` as a name that is safe in file names and in `domain=weight,domain=weight`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-") or "text"


def _kind(name: str) -> tuple[_Kind, str]:
    """(how the source is opened, what follows the colon of its name)."""
    kind, colon, rest = name.partition(":")
    key = kind + colon
    if key not in _KINDS and SOURCES.get(key):
        importlib.import_module(f"{__package__}.{SOURCES[key]}")
    if key not in _KINDS:
        raise ConfigError("data.source", f"unknown source {name!r}")
    return _KINDS[key], rest
