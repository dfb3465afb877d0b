"""The door to storage: what is written comes back, whole or not at all."""

import ast
import fnmatch
import json
import math
import pathlib
import re
import sys
import threading
import time

import pytest

import chinchilla_jax
from chinchilla_jax.base import bucket, files

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
    "base/bucket.py": ("exists mkdir os.replace shutil.rmtree", "behind the door: objects, and their copies on disk"),
    "cli/verbs.py": ("os.open", "the null device, when nobody reads the output any more"),
    "data/clean.py": ("open", "documents are streamed, one a line"),
    "data/sources/columns.py": ("open", "record batches are mapped into memory"),
    "data/sources/text.py": ("open", "documents are streamed, one a line"),
    "data/sharded/spill.py": ("open", "documents are streamed, one a line, and read by their places"),
    "data/steps.py": ("open", "a lock"),
    "data/store.py": ("open", "tokens are streamed, and mapped into memory"),
    "interop/pth.py": ("open", "the header of an entry is read, where its numbers begin"),
    "interop/safetensors.py": ("open", "tensors are read and written slice by slice"),
    "parallel/job/cores.py": ("glob read_text", "/proc, /sys and /dev"),
    "parallel/job/hosts.py": ("glob read_text", "/sys"),
    "scaling/laws/overtraining.py": ("read_text", "a resource of the package"),
    "scaling/laws/published.py": ("read_text", "a resource of the package"),
    "training/record/space.py": ("exists", "which disk a folder that is not there yet will be on"),
    "study/execute/lease.py": ("exists open read_text", "a lock, and /proc"),
    "study/execute/pool.py": ("read_text", "the log of a worker, which may hold half a character"),
}


@pytest.fixture(params=["disk", "bucket"])
def folder(request):
    """An empty folder of each kind of storage."""
    return request.getfixturevalue("tmp_path" if request.param == "disk" else "bucket_folder")


def test_what_is_written_comes_back_and_folders_are_made(folder):
    path = folder / "a" / "b" / "file"
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


def test_what_is_there_and_what_is_not(folder):
    path = folder / "file"
    assert not files.exists(path) and not files.is_file(path) and files.glob(folder / "none") == []
    files.write_bytes(path, b"12345")
    assert files.exists(path) and files.is_file(path) and not files.is_folder(path) and files.is_folder(folder)
    size, written = files.stamp(path)
    assert size == 5 and abs(written / 1e9 - time.time()) < 60
    with pytest.raises(FileNotFoundError):
        files.read_json(folder / "none")
    files.write_text(path, "{")
    with pytest.raises(json.JSONDecodeError):
        files.read_json(path)


def test_a_file_is_created_by_one_alone_and_its_end_is_read_while_it_grows(folder):
    path = folder / "a" / "claim"
    assert files.create(path, "first") and not files.create(path, "second")
    assert files.read_text(path) == "first"
    assert files.read_end(path, 2) == b"st" and files.read_end(path, 99) == b"first"


def test_listing_renaming_and_removing(folder):
    for name in ("b.txt", "a.txt", "c/d.txt"):
        files.write_text(folder / name, name)
    assert [path.name for path in files.glob(folder)] == ["a.txt", "b.txt", "c"]
    assert files.glob(folder, "**/*.txt") == [folder / name for name in ("a.txt", "b.txt", "c/d.txt")]
    files.rename(folder / "a.txt", folder / "b.txt")
    assert files.read_text(folder / "b.txt") == "a.txt"
    for name in ("c", "b.txt", "never there"):
        files.remove(folder / name)
    assert files.glob(folder) == []


def test_what_is_below_is_found_by_its_parts(folder):
    names = ["a/x.json", "a/b/x.json", "a/b/c.d/y.txt", "x.json", ".hidden.json"]
    for name in names:
        files.write_text(folder / name, name)
    for pattern in (
        "*",
        "*.json",
        "*/x.json",
        "a/*",
        "**/*",
        "**/*.json",
        "a/**/*.txt",
        "[!a]*",
        "a/b",
        "?.json",
        "no/*",
    ):
        disk = {path for path in (*names, "a", "a/b", "a/b/c.d") if _matches(pattern, path)}
        assert {path.relative_to(folder).as_posix() for path in files.glob(folder, pattern)} == disk, pattern


def _matches(pattern, path):
    """By the words of the documentation of `pathlib`, part by part."""
    head, *rest = pattern.split("/")
    part, *below = path.split("/")
    if head == "**":
        return _matches("/".join(rest), path) or bool(below) and _matches(pattern, "/".join(below))
    return fnmatch.fnmatchcase(part, head) and (
        _matches("/".join(rest), "/".join(below)) if rest and below else not rest and not below
    )


def test_of_many_who_create_one_succeeds(folder):
    made = []
    everyone = [threading.Thread(target=lambda: made.append(files.create(folder / "claim", "mine"))) for _ in range(8)]
    for thread in everyone:
        thread.start()
    for thread in everyone:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_what_is_appended_is_there_after_a_flush_and_what_was_there_stays(folder):
    path = folder / "lines"
    files.write_text(path, "first\n")
    for line in ("second\n", "third\n"):
        appender = files.Appender(path)
        appender.write(line)
        appender.flush()
        assert files.read_text(path).endswith(line)
        appender.write("and more\n")
        appender.close()
    assert files.read_text(path) == "first\nsecond\nand more\nthird\nand more\n"
    assert files.glob(folder) == [path]
    new = files.Appender(folder / "new")
    new.close()
    new = files.Appender(folder / "new")
    new.write("x")
    new.close()
    assert files.read_text(folder / "new") == "x"


def test_a_copy_on_disk_is_that_of_the_newest_state(bucket_folder):
    files.write_text(bucket_folder / "a" / "b", "old")
    copy = files.fetched(bucket_folder)
    assert isinstance(copy, pathlib.Path) and (copy / "a" / "b").read_text() == "old"
    assert files.fetched(bucket_folder) == copy
    files.write_text(bucket_folder / "a" / "b", "new")
    assert (files.fetched(bucket_folder) / "a" / "b").read_text() == "new"


def test_one_write_of_an_object_can_be_meant(bucket_folder):
    path = bucket_folder / "claim"
    assert bucket.generation(path) is None
    files.write_text(path, "first")
    first = bucket.generation(path)
    assert bucket.write(path, b"second", first) == bucket.generation(path) != first
    assert bucket.write(path, b"third", first) is None
    assert files.read_text(path) == "second"


def test_a_bucket_that_is_not_there_is_named(bucket_server):
    for verb in (files.read_text, files.stamp, lambda path: files.write_text(path, "")):
        with pytest.raises(OSError, match="gs://no-such-bucket/x"):
            verb("gs://no-such-bucket/x")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(files.StorageError, match=r"gs://bucket/x: gcsfs is not installed: pip install '.*\[gcs\]'"):
        files.path("gs://bucket/x")


def test_a_heartbeat_makes_no_file(folder):
    with pytest.raises(FileNotFoundError):
        files.touch(folder / "removed")
    assert files.glob(folder) == []
    files.write_text(folder / "there", "x")
    before = files.stamp(folder / "there")
    time.sleep(0.01)
    files.touch(folder / "there")
    size, written = files.stamp(folder / "there")
    assert size == before[0] and written > before[1]


@pytest.mark.parametrize("text", ["s3://bucket/run", "gs:/bucket/run", "gs://"])
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
