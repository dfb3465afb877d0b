"""Tiles: what fits, and which of the measured ones the kernels try."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_jax.base.chips import CHIPS, kernel_chips
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.kernels.tiles import Tiles, compiler_limit, limit, ranked, vmem_bytes
from chinchilla_jax.tools import search_tiles
from chinchilla_jax.tools.search_tiles import Key

KEY = Key("v5e", relative=False, backward=False, size=128)

sides = st.integers(1, 16).map(lambda n: 128 * n)
lengths = st.integers(1, 20_000)
tiles_of_any_size = st.builds(Tiles, sides, sides, sides)


def committed():
    """The table that the kernels read."""
    return json.loads(search_tiles.TABLE.read_text(encoding="utf-8"))


# ---- what fits


@given(tiles_of_any_size, lengths, lengths)
def test_shrunk_tiles_are_no_larger_and_still_multiples_of_the_lanes(tiles, queries, keys):
    small = tiles.shrunk(queries, keys)
    assert all(side % 128 == 0 and side > 0 for side in dataclasses.astuple(small))
    assert small.block_q <= tiles.block_q and small.block_kv <= tiles.block_kv and small.strip <= tiles.strip
    assert small.block_q % small.strip == 0
    assert small.shrunk(queries, keys) == small


@given(tiles_of_any_size, lengths, lengths)
def test_shrunk_tiles_pad_by_an_eighth_at_most_or_as_little_as_the_lanes_allow(tiles, queries, keys):
    small = tiles.shrunk(queries, keys)
    for side, length in ((small.block_q, queries), (small.block_kv, keys)):
        assert -(-length // side) * side <= max(1.125 * length, -(-length // 128) * 128)


@given(tiles_of_any_size, st.integers(1, 9), st.integers(1, 9))
def test_tiles_that_divide_the_sequence_are_not_shrunk(tiles, times_q, times_kv):
    small = tiles.shrunk(times_q * tiles.block_q, times_kv * tiles.block_kv)
    assert (small.block_q, small.block_kv) == (tiles.block_q, tiles.block_kv)


@given(tiles_of_any_size, st.booleans(), sides, sides, st.integers(0, 16).map(lambda n: 128 * n), sides)
def test_the_memory_estimate_grows_with_everything(tiles, backward, keys, size, distances, more):
    def estimate(tiles=tiles, backward=backward, itemsize=2, **changed):
        given = {"keys": keys, "size": size, "distances": distances} | changed
        return vmem_bytes(tiles, backward=backward, itemsize=itemsize, **given)

    assert estimate(dataclasses.replace(tiles, block_q=tiles.block_q + more)) > estimate()
    assert estimate(dataclasses.replace(tiles, block_kv=tiles.block_kv + more)) > estimate()
    assert estimate(keys=keys + more) > estimate()
    assert estimate(size=size + more) > estimate()
    assert estimate(distances=distances + more) > estimate()
    assert estimate(itemsize=4) > estimate()
    assert estimate(backward=True) > estimate(backward=False)
    for feature in ("turned", "shared", "masked", "capped"):
        assert estimate(**{feature: True}) >= estimate(**{feature: False})


@pytest.mark.parametrize("generation", kernel_chips())
def test_what_is_planned_may_be_compiled(generation):
    assert limit(generation) < CHIPS[generation].core.vmem
    for estimate in (1, limit(generation) // 2, limit(generation)):
        assert estimate <= compiler_limit(generation, estimate) <= CHIPS[generation].core.vmem


def test_a_generation_without_tiles_is_refused_with_what_to_do_instead():
    with pytest.raises(AttentionError, match='"blockwise"') as refusal:
        limit("TPU v9")
    assert "'TPU v9'" in str(refusal.value) and all(known in str(refusal.value) for known in kernel_chips())


def test_off_a_tpu_there_is_no_limit():
    assert compiler_limit(None, 2**40) is None


# ---- the table


def test_the_kernels_try_the_tiles_of_the_table_first():
    rows = committed()["tiles"][str(KEY)]
    assert ranked("v5e", backward=False, relative=False, size=128)[: len(rows)] == [Tiles(*row[:3]) for row in rows]


def test_rows_of_several_documents_have_tiles_that_lose_little_where_one_ends():
    usual = ranked("v5e", backward=False, relative=False, size=128)
    assert ranked("v5e", backward=False, relative=False, size=128, documents=True) == [Tiles(512, 512)]
    assert max(usual[0].block_q, usual[0].block_kv) > 512


def test_what_was_not_measured_has_tiles_too():
    assert ranked("v5e", backward=False, relative=False, size=640) == [Tiles(512, 512)]
