"""The door to storage: what is written comes back, whole or not at all."""

import ast
import json
import math
import pathlib

import pytest

import chinchilla_jax
from chinchilla_jax.base import files

# What reads, writes, lists or changes whole files without the door.
_AROUND = frozenset(
    """read_text read_bytes write_text write_bytes exists is_file is_dir glob rglob iterdir stat unlink rmtree
    rename""".split()
)


def test_what_is_written_comes_back_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write_text(path, "é\n")
    assert files.read_text(path) == "é\n" and files.read_bytes(str(path)) == "é\n".encode()
    files.write_json(path, {"b": 1, "a": [None]})
    assert files.read_json(path) == {"b": 1, "a": [None]}
    assert files.read_text(path) == '{\n "b": 1,\n "a": [\n  null\n ]\n}\n'
    files.write_json(path, {"b": 1, "a": 2}, sort_keys=True)
    assert files.read_text(path) == '{\n "a": 2,\n "b": 1\n}\n'


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(ValueError):
        files.write_json(path, math.nan)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "new")
    assert files.read_text(path) == "old" and files.glob(tmp_path) == [path]


def test_what_is_there_and_what_is_not(tmp_path):
    path = tmp_path / "file"
    assert not files.exists(path) and not files.is_file(path) and files.glob(tmp_path / "none") == []
    files.write_bytes(path, b"12345")
    assert files.exists(path) and files.is_file(path) and not files.is_folder(path) and files.is_folder(tmp_path)
    assert files.stamp(path) == (5, path.stat().st_mtime_ns)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none")
    files.write_text(path, "{")
    with pytest.raises(json.JSONDecodeError):
        files.read_json(path)


def test_a_file_is_created_by_one_alone_and_its_end_is_read_while_it_grows(tmp_path):
    path = tmp_path / "a" / "claim"
    assert files.create(path, "first") and not files.create(path, "second")
    assert files.read_text(path) == "first"
    assert files.read_end(path, 2) == b"st" and files.read_end(path, 99) == b"first"


def test_listing_renaming_and_removing(tmp_path):
    for name in ("b.txt", "a.txt", "c/d.txt"):
        files.write_text(tmp_path / name, name)
    assert [path.name for path in files.glob(tmp_path)] == ["a.txt", "b.txt", "c"]
    assert files.glob(tmp_path, "**/*.txt") == [tmp_path / name for name in ("a.txt", "b.txt", "c/d.txt")]
    files.rename(tmp_path / "a.txt", tmp_path / "b.txt")
    assert files.read_text(tmp_path / "b.txt") == "a.txt"
    for name in ("c", "b.txt", "never there"):
        files.remove(tmp_path / name)
    assert files.glob(tmp_path) == []


@pytest.mark.parametrize("folder", ["data", "scaling/read"])
def test_whole_files_go_through_the_door_alone(folder):
    around = []
    for path in sorted((pathlib.Path(chinchilla_jax.__file__).parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in _AROUND:
                if ast.unparse(node.value) != "files":
                    around.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not around
