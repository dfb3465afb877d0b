"""The search of tiles: what is measured, the table that follows from it, and the command."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_jax.base.chips import kernel_chips
from chinchilla_jax.kernels.tiles import Tiles, compile_for, limit, table_key
from chinchilla_jax.tools import search_tiles
from chinchilla_jax.tools.search_tiles import CLOSE, KEPT, Key, Measured, Refused, Table, candidates, order, search
from chinchilla_jax.tools.tpu_meter import CompileError, MeterError

KEYS = [Key(generation, relative, backward, 128) for generation in kernel_chips() for relative in (False, True)
        for backward in (False, True)]  # fmt: skip
KEY = Key("v5e", relative=False, backward=False, size=128)
RULE = "tiles within 3% of the fastest by the size of the program, then the others by cycles"


sides = st.integers(1, 16).map(lambda n: 128 * n)
rows_measured = st.lists(st.builds(Measured, sides, sides, sides, st.integers(90, 110), st.integers(1, 9)), min_size=1)


def committed():
    """The table that the kernels read."""
    return json.loads(search_tiles.TABLE.read_text(encoding="utf-8"))


# ---- the table


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_kernel_of_heads_of_128_has_measured_tiles(key):
    rows = [Measured(*row) for row in committed()["tiles"][str(key)]]
    assert 1 <= len(rows) <= KEPT
    assert all(side % 128 == 0 and side > 0 for row in rows for side in row[:3])
    assert rows == order(rows), f"{key}: not in the order of the rule: {RULE}"
    assert str(key) in committed()["measured_with"]


def test_the_table_has_no_keys_that_nobody_asks_for():
    known = {str(dataclasses.replace(key, size=size)) for key in KEYS for size in search_tiles.SIZES}
    assert set(committed()["tiles"]) <= known and set(committed()["measured_with"]) == set(committed()["tiles"])


def test_keys_are_named_as_the_kernels_ask_for_them():
    assert str(KEY) == table_key("v5e", backward=False, relative=False, size=128) == "v5e plain forward 128"


# ---- the search


@given(rows_measured)
def test_the_order_is_that_of_the_rule(rows):
    ordered, near = order(rows), CLOSE * min(row.cycles for row in rows)
    count = sum(row.cycles <= near for row in rows)
    assert sorted(ordered) == sorted(rows)
    assert all(row.cycles <= near for row in ordered[:count])
    assert [row.bundles for row in ordered[:count]] == sorted(row.bundles for row in ordered[:count])
    assert [row.cycles for row in ordered[count:]] == sorted(row.cycles for row in ordered[count:])


@given(rows_measured)
def test_the_best_rows_are_in_order_also_without_those_left_out(rows):
    assert order(order(rows)[:KEPT]) == order(rows)[:KEPT]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_candidates_fit_the_chip(key):
    found = candidates(key)
    assert found and len(set(found)) == len(found)
    assert all(search_tiles.estimate(key, tiles) <= limit(key.generation) for tiles in found)


def test_only_the_best_two_are_measured_with_wider_strips():
    tried = []

    def try_tiles(tiles):
        tried.append(tiles)
        cycles = {(512, 512): 100, (1024, 512): 99}.get((tiles.block_q, tiles.block_kv), 200)
        return Measured(*dataclasses.astuple(tiles), cycles, 1)

    rows, refused = search(KEY, [], try_tiles)
    assert tried[:-2] == candidates(KEY) and set(tried[-2:]) == {Tiles(512, 512, 256), Tiles(1024, 512, 256)}
    assert len(rows) == len(tried) and not refused


def test_seeds_are_measured_as_they_are():
    seeds = [Tiles(512, 1024, 256), Tiles(256, 256)]
    rows, _ = search(KEY, seeds, lambda tiles: Measured(*dataclasses.astuple(tiles), 1, 1))
    assert {row[:3] for row in rows} == {dataclasses.astuple(tiles) for tiles in seeds}


@pytest.mark.parametrize("relative", [False, True])
def test_each_direction_is_a_program_of_its_own(relative):
    for backward, name, other in ((False, "forward", "backward"), (True, "backward", "forward")):
        with compile_for("v5e"):
            built = search_tiles.build(relative, backward, 128, (512, 512, 128))
            program = str(jax.make_jaxpr(built["fn"])(*built["args"]))
        assert program.count("pallas_call[") == 1
        assert f"attention_{name}" in program and f"attention_{other}" not in program


# ---- the command


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that is not one: larger tiles are faster, and `broken` says what it refuses."""
    state = SimpleNamespace(asked=[], broken=lambda kwargs: None)

    def measure(build, generation, kwargs):
        key = Key(generation, kwargs["relative"], kwargs["backward"], kwargs["size"])
        state.asked.append((str(key), kwargs["tiles"]))
        if error := state.broken(kwargs):
            raise error
        block_q, block_kv, strip = kwargs["tiles"]
        return SimpleNamespace(kernels=[SimpleNamespace(
            bound_cycles=10**9 // (block_q + block_kv + strip), static_bundles=block_q, vmem_bytes=2**20,
            unresolved={})])  # fmt: skip

    monkeypatch.setattr(search_tiles, "measure", measure)
    monkeypatch.setattr(search_tiles, "libtpu_version", lambda: "1.2.3")
    return state


def command(path, *flags):
    return search_tiles.main(["--generations=v5e", "--sizes=128", "--out", str(path), *flags])


def test_the_command_measures_once(compiler, tmp_path):
    path = tmp_path / "table.json"
    assert command(path) == 0
    written, count = path.read_text(), len(compiler.asked)
    assert len(json.loads(written)["tiles"]) == 4 and "libtpu 1.2.3" in written
    assert command(path) == 0 and len(compiler.asked) == count
    assert command(path, "--again") == 0 and len(compiler.asked) == 2 * count
    assert path.read_text() == written


def test_an_interrupted_search_goes_on_with_the_key_it_was_at(compiler, tmp_path):
    path = tmp_path / "table.json"
    compiler.broken = lambda kwargs: KeyboardInterrupt() if kwargs["relative"] and kwargs["backward"] else None
    with pytest.raises(KeyboardInterrupt):
        command(path)
    assert len(json.loads(path.read_text())["tiles"]) == 3
    compiler.asked.clear()
    compiler.broken = lambda kwargs: None
    assert command(path) == 0
    assert {key for key, _ in compiler.asked} == {"v5e relative backward 128"}


def test_the_command_says_which_entries_are_older_than_the_kernels(compiler, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    assert command(path, "--check") == 1 and "v5e plain forward 128: not measured yet" in capsys.readouterr().out
    command(path)
    assert command(path, "--check") == 0
    monkeypatch.setattr(search_tiles, "libtpu_version", lambda: "1.2.4")
    capsys.readouterr()
    assert command(path, "--check") == 1
    said = capsys.readouterr().out
    assert "4 of 4 keys to measure" in said and "libtpu 1.2.3" in said and "libtpu 1.2.4" in said


def test_a_changed_kernel_has_another_version(compiler, tmp_path, monkeypatch):
    before = search_tiles.versions()
    monkeypatch.setattr(search_tiles, "SOURCES", search_tiles.SOURCES[:-1])
    assert search_tiles.versions() != before


def test_tiles_that_do_not_compile_are_recorded_and_left_out(compiler, tmp_path):
    path = tmp_path / "table.json"
    refusal = CompileError("a program: failed\n  a line of the kernel\nJaxRuntimeError: out of vmem\nmore")
    compiler.broken = lambda kwargs: refusal if kwargs["tiles"][0] == 1024 else None
    assert command(path) == 0
    found = json.loads(path.read_text())
    assert all(row[0] < 1024 for rows in found["tiles"].values() for row in rows)
    assert [1024, 1024, 128, "JaxRuntimeError: out of vmem"] in found["refused"]["v5e plain forward 128"]


def test_a_key_of_which_nothing_compiles_keeps_its_entry(compiler, tmp_path, capsys):
    path = tmp_path / "table.json"
    command(path)
    written = path.read_text()
    compiler.broken = lambda kwargs: CompileError("SyntaxError: in the kernel")
    assert command(path, "--again") == 1 and path.read_text() == written
    assert "v5e plain forward 128: no tiles could be measured" in capsys.readouterr().err


def test_a_key_of_which_nothing_fits_is_settled_without_tiles(compiler, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    monkeypatch.setattr(search_tiles, "limit", lambda generation: 2**20)
    assert command(path) == 0 and not compiler.asked
    assert json.loads(path.read_text())["tiles"]["v5e plain forward 128"] == []
    assert "no tiles fit" in capsys.readouterr().out
    assert command(path, "--check") == 0


def test_what_is_wrong_with_all_tiles_stops_the_search(compiler, tmp_path, capsys):
    compiler.broken = lambda kwargs: MeterError("no compiler here")
    assert command(tmp_path / "table.json") == 2 and len(compiler.asked) == 1
    assert "no compiler here" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--generations=v5", "--sizes=64"])
def test_what_is_unknown_is_refused_before_anything_is_measured(flag, compiler, tmp_path, capsys):
    with pytest.raises(SystemExit):
        search_tiles.main([flag, "--out", str(tmp_path / "table.json")])
    assert "known: " in capsys.readouterr().err and not compiler.asked


def test_the_same_core_with_less_memory_tries_what_won_on_the_larger_and_fits(tmp_path):
    table = Table(tmp_path / "table.json", {str(KEY): [[512, 1024, 256, 1, 1], [4096, 4096, 128, 2, 2]]})
    assert table.seeds(dataclasses.replace(KEY, generation="v5p")) == [Tiles(512, 1024, 256)]
    assert table.seeds(KEY) == []


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = Table(tmp_path / "table.json")
    table.enter(KEY, [Measured(512, 512, 128, n, 9) for n in range(9)], [Refused(2048, 2048, 128, 'a "reason"')], "now")
    again = Table.read(table.path)
    assert again.tiles == {str(KEY): [[512, 512, 128, n, 9] for n in range(KEPT)]}
    assert again.refused == {str(KEY): [[2048, 2048, 128, 'a "reason"']]} and again.measured_with == {str(KEY): "now"}


@pytest.mark.compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler")
@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.long
def test_the_compiler_uses_no_more_memory_than_estimated(backward):
    key, tiles = dataclasses.replace(KEY, backward=backward), Tiles(512, 512)
    result, used = search_tiles.measure_tiles(key, tiles)
    assert isinstance(result, Measured) and 0 < used <= search_tiles.estimate(key, tiles)
