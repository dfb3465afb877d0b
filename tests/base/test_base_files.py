"""The door to storage: what is written comes back, whole or not at all."""

import ast
import json
import math
import os
import pathlib
import re

import pytest

import chinchilla_jax
from chinchilla_jax.base import files

PACKAGE = pathlib.Path(chinchilla_jax.__file__).parent
# Methods of paths, and functions of modules, that reach storage.
METHODS = {
    "read_text", "write_text", "read_bytes", "write_bytes", "exists", "is_dir", "is_file", "mkdir", "touch", "unlink",
    "rmdir", "iterdir", "glob", "rglob",
}  # fmt: skip
FUNCTIONS = {
    "os": {"open", "replace", "rename", "remove", "unlink", "makedirs", "mkdir", "listdir", "scandir", "walk", "utime"},
    "shutil": {"rmtree", "copy", "copyfile", "copytree", "move"},
}
# What may go round the door, and why it has to.
EXCEPTIONS = {
    "cli/verbs.py": ("os.open", "the null device, when nobody reads the output any more"),
    "data/clean.py": ("open", "documents are streamed, one a line"),
    "data/sources/columns.py": ("open", "record batches are mapped into memory"),
    "data/sharded/spill.py": ("open", "documents are streamed, one a line, and read by their places"),
    "data/steps.py": ("open", "a lock"),
    "data/store.py": ("open", "tokens are streamed, and mapped into memory"),
    "interop/pth.py": ("open", "the header of an entry is read, where its numbers begin"),
    "interop/safetensors.py": ("open", "tensors are read and written slice by slice"),
    "parallel/job/cores.py": ("glob read_text", "/proc, /sys and /dev"),
    "parallel/job/hosts.py": ("glob read_text", "/sys"),
    "scaling/laws/overtraining.py": ("read_text", "a resource of the package"),
    "scaling/laws/published.py": ("read_text", "a resource of the package"),
    "study/execute/lease.py": ("exists open read_text", "a lock, and /proc"),
    "study/execute/pool.py": ("read_text", "the log of a worker, which may hold half a character"),
}


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


def test_a_heartbeat_makes_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.touch(tmp_path / "removed")
    assert files.glob(tmp_path) == []
    files.write_text(tmp_path / "there", "x")
    os.utime(tmp_path / "there", (1, 1))
    files.touch(tmp_path / "there")
    assert files.stamp(tmp_path / "there")[1] > 1e9


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run"])
def test_storage_that_is_not_known_is_named_and_makes_no_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verbs = [files.path, files.exists, files.glob, files.read_text, files.make_folder, files.remove, files.stamp]
    verbs += [lambda path: files.write_text(path, ""), lambda path: files.create(path, "")]
    for verb in verbs:
        with pytest.raises(files.StorageError, match=re.escape(text)):
            verb(text)
    assert files.glob(".") == []


@pytest.mark.parametrize("text", ["a/b", "/a/b", "a:b", "C:/a"])
def test_other_text_is_a_path_of_this_machine(text):
    assert files.path(text) == pathlib.Path(text) == files.path(pathlib.Path(text))


def _storage_calls(tree):
    """The calls of a module that reach storage, as text: `path.exists`, `open`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open":
            yield "open"
        if isinstance(called, ast.Attribute):
            owner = ast.unparse(called.value)
            if called.attr in FUNCTIONS.get(owner, ()):
                yield f"{owner}.{called.attr}"
            elif called.attr in METHODS and owner != "files" and "importlib.resources" not in owner:
                yield called.attr


def test_storage_is_reached_through_one_module():
    reached = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if calls := set(_storage_calls(ast.parse(path.read_text(encoding="utf-8")))):
            reached[name] = calls
    assert reached.pop("base/files.py")
    assert reached == {name: set(calls.split()) for name, (calls, _why) in EXCEPTIONS.items()}, (
        "call base/files.py instead; or, where a file is mapped, appended to, streamed or locked, add it to EXCEPTIONS"
    )
