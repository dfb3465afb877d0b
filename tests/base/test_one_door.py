"""Whole files are read, written, listed and removed by `base/files.py` alone: other storage can go behind it."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "chinchilla_jax"
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
    "cli.py": ("os.open", "the null device, when nobody reads the output any more"),
    "data/clean.py": ("open", "documents are streamed, one a line"),
    "data/steps.py": ("open", "a lock"),
    "data/store.py": ("open", "tokens are streamed, and mapped into memory"),
    "parallel/job/cores.py": ("glob read_text", "/proc, /sys and /dev"),
    "parallel/job/hosts.py": ("glob read_text", "/sys"),
    "scaling/laws/overtraining.py": ("read_text", "a resource of the package"),
    "scaling/laws/published.py": ("read_text", "a resource of the package"),
    "study/execute/lease.py": ("exists open read_text", "a lock, and /proc"),
    "study/execute/pool.py": ("read_text", "the log of a worker, which may hold half a character"),
}


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
