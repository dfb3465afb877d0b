"""Results are found again until anything that they depend on changes."""

import pathlib
import subprocess
import sys

from chinchilla_jax.preflight import cache as caches
from chinchilla_jax.preflight import predict
from chinchilla_jax.preflight.cache import Cache


def test_a_cache_misses_what_is_absent_damaged_or_made_otherwise(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    key = cache.key({"slice": "v5e:2x2"})
    assert cache.read(key) is None
    cache.write(key, {"x": 1})
    assert cache.read(key) == {"x": 1} and cache.key({"slice": "v5e:2x4"}) != key == cache.key({"slice": "v5e:2x2"})
    (tmp_path / f"{key}.json").write_text('{"x": ')
    assert cache.read(key) is None
    monkeypatch.setattr(caches, "versions", lambda: {"libtpu": "another"})
    assert cache.key({"slice": "v5e:2x2"}) != key
    monkeypatch.undo()
    monkeypatch.setattr(caches, "sources", lambda: "changed")
    assert cache.key({"slice": "v5e:2x2"}) != key


def test_the_folder_of_the_cache_is_the_flags_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv(caches.VARIABLE, str(tmp_path / "there"))
    assert caches.open_cache(str(tmp_path)).folder == tmp_path
    assert caches.open_cache(None).folder == tmp_path / "there"
    monkeypatch.delenv(caches.VARIABLE)
    assert caches.open_cache(None).folder.parts[-3:] == (".cache", "chinchilla_jax", "preflight")


def test_every_module_that_makes_or_reads_a_program_is_part_of_the_key():
    files = "*(getattr(module, '__file__', None) for module in sys.modules.values())"
    code = f"import sys, chinchilla_jax.preflight.compiled; print({files})"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    root = pathlib.Path(caches.__file__).parents[1]
    loaded = {path.relative_to(root) for path in map(pathlib.Path, output.split()) if path.is_relative_to(root)}
    known = [root / name for name in caches.SOURCES]
    missed = {path for path in loaded if not any((root / path).is_relative_to(source) for source in known)}
    others = {path.as_posix() for path in missed if path.name != "__init__.py"}
    assert all(source.exists() for source in known) and others == {"base/errors.py"}


def test_what_the_meter_builds_is_part_of_the_key():
    module, _, _ = predict.BUILD.partition(":")
    assert module.removeprefix("chinchilla_jax.").replace(".", "/") + ".py" in caches.SOURCES
