"""The lists of tiles are what pair by pair comes out: nothing visible is left out, nothing that is not is visited."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chinchilla_jax.kernels.schedule import KINDS, MASKED, MAX_DELTAS, WHOLE, Grid, schedule, tile_kinds

Ids = tuple[np.ndarray, np.ndarray] | tuple[None, None]  # of queries and keys


def grid_of(queries, keys, block_q, block_kv, q_offset=0, window=None, segments=False, more=(0, 0)):
    """A grid with as little padding as the blocks allow, and `more` blocks of it."""
    padded_queries = (-(-queries // block_q) + more[0]) * block_q
    padded_keys = (-(-keys // block_kv) + more[1]) * block_kv
    return Grid(queries, keys, padded_queries, padded_keys, block_q, block_kv, q_offset, window, segments)


def visible_pairs(grid, q_offset, ids: Ids = (None, None)):
    """Which queries see which keys, `[rows, padded queries, padded keys]`; of padding, none."""
    distance = q_offset + np.arange(grid.padded_queries)[:, None] - np.arange(grid.padded_keys)[None, :]
    visible = (distance >= 0) & (distance < (grid.window or np.inf))
    visible[grid.queries :], visible[:, grid.keys :] = False, False
    if not grid.segments:
        return visible[None]
    same = np.zeros((len(ids[0]), *visible.shape), bool)
    same[:, : grid.queries, : grid.keys] = ids[0][:, :, None] == ids[1][:, None, :]
    return visible & same


def tiles_of(pairs, grid):
    """Pairs by tile: `[rows, blocks_q, blocks_kv, block_q, block_kv]`."""
    shape = (-1, grid.blocks_q, grid.block_q, grid.blocks_kv, grid.block_kv)
    return pairs.reshape(shape).swapaxes(2, 3)


def read(entries, counts, kinds):
    """`{(row, block of queries): [(block of keys, kind), ...]}`."""
    return {place: [(int(entry) // KINDS, kinds[int(entry) % KINDS]) for entry in entries[place][:count]]
            for place, count in np.ndenumerate(np.asarray(counts))}  # fmt: skip


def listed(lists, grid):
    """Which tiles are visited, `[rows, blocks_q, blocks_kv]`."""
    found = np.zeros((1 + max(row for row, _ in lists), grid.blocks_q, grid.blocks_kv), bool)
    for (row, i), tiles in lists.items():
        found[row, i, [j for j, _ in tiles]] = True
    return found


@st.composite
def grids(draw, segments=False):
    block_q, block_kv = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    offset = st.integers(-50, 90)
    if segments:  # ids of queries are those of the keys at their positions
        queries, offset = min(queries, keys), st.just(keys - min(queries, keys))
    return grid_of(queries, keys, block_q, block_kv, draw(offset), draw(st.none() | st.integers(1, 60)), segments,
                   draw(st.tuples(st.integers(0, 2), st.integers(0, 2))))  # fmt: skip


@st.composite
def packed(draw):
    """A grid, and documents one after the other in two rows; their ids need not be consecutive."""
    grid = draw(grids(segments=True))
    lengths = st.lists(st.integers(0, 3), min_size=grid.keys, max_size=grid.keys)
    ids = np.cumsum(np.array([draw(lengths) for _ in range(2)]) // 2, axis=1).astype(np.int32)
    return grid, (ids[:, grid.q_offset : grid.q_offset + grid.queries], ids)


@st.composite
def scattered(draw):
    """A grid, and any ids in any order, those of the queries their own."""
    grid = dataclasses.replace(draw(grids()), segments=True)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    documents = draw(st.integers(1, 5))
    return grid, tuple(rng.integers(0, documents, (2, n)).astype(np.int32) for n in (grid.queries, grid.keys))


def assert_masks_are_true(grid, lists, ids: Ids = (None, None)):
    """Every listed tile, masked as its kind says, shows the pairs that are visible, and whole ones are all of them."""
    tiles = tiles_of(visible_pairs(grid, grid.q_offset, ids), grid)
    query = np.arange(grid.block_q)[:, None]
    for (row, i), entries in lists.items():
        real = i * grid.block_q + query < grid.queries  # what padded queries see does not matter
        for j, kind in entries:
            true = tiles[row, i, j]
            if kind == WHOLE:
                assert true[real[:, 0]].all(), (row, i, j)
            elif kind == MASKED:
                assert not (true | ~real).all(), (row, i, j, "a whole tile need not be masked")
            else:
                assert kind == grid.q_offset + i * grid.block_q - j * grid.block_kv
                distance = kind + query - np.arange(grid.block_kv)[None, :]
                shown = (distance >= 0) & (distance < (grid.window or np.inf))
                np.testing.assert_array_equal(shown & real, true, str((row, i, j)))


@settings(deadline=None, max_examples=200)
@given(grids())
@example(grid_of(40, 40, 8, 8, -50))  # nothing is visible
@example(grid_of(33, 40, 5, 8, 90, window=60))
def test_the_tiles_listed_are_those_with_a_visible_pair_and_their_masks_are_true(grid):
    kinds = tile_kinds(grid)
    entries, counts = schedule(grid, kinds, grid.q_offset)
    assert isinstance(entries, np.ndarray) and entries.dtype == counts.dtype == np.int32
    lists = read(entries, counts, kinds)
    np.testing.assert_array_equal(listed(lists, grid), tiles_of(visible_pairs(grid, grid.q_offset), grid).any((-2, -1)))
    assert_masks_are_true(grid, lists)


@settings(deadline=None, max_examples=100)
@given(packed())
def test_of_packed_documents_too_exactly_the_tiles_with_a_visible_pair_are_listed(case):
    grid, ids = case
    lists = read(*schedule(grid, tile_kinds(grid), grid.q_offset, *ids), tile_kinds(grid))
    np.testing.assert_array_equal(listed(lists, grid),
                                  tiles_of(visible_pairs(grid, grid.q_offset, ids), grid).any((-2, -1)))  # fmt: skip
    assert_masks_are_true(grid, lists, ids)


@settings(deadline=None, max_examples=100)
@given(scattered())
def test_of_ids_in_any_order_no_tile_with_a_visible_pair_is_left_out(case):
    grid, ids = case
    lists = read(*schedule(grid, tile_kinds(grid), grid.q_offset, *ids), tile_kinds(grid))
    found = listed(lists, grid)
    assert not (tiles_of(visible_pairs(grid, grid.q_offset, ids), grid).any((-2, -1)) & ~found).any()
    by_position = dataclasses.replace(grid, segments=False)
    assert not (found & ~tiles_of(visible_pairs(by_position, grid.q_offset), grid).any((-2, -1))).any()
    for (row, i), entries in lists.items():
        for j, kind in entries:
            assert kind == MASKED or (ids[0][row, i * grid.block_q :][: grid.block_q, None]
                                      == ids[1][row, j * grid.block_kv :][: grid.block_kv]).all()  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.one_of(packed(), scattered(), grids().map(lambda grid: (grid, (None, None)))))
def test_keys_are_listed_in_order_and_kinds_are_few(case):
    grid, ids = case
    kinds = tile_kinds(grid)
    lists = read(*schedule(grid, kinds, grid.q_offset, *ids), kinds)
    for tiles in lists.values():
        blocks = [j for j, _ in tiles]
        assert blocks == sorted(set(blocks))
    assert len(set(kinds)) == len(kinds) <= KINDS
    assert len([kind for kind in kinds if kind not in (WHOLE, MASKED)]) <= MAX_DELTAS


@pytest.mark.parametrize("grid", [
    grid_of(37, 45, 8, 4), grid_of(30, 30, 6, 10, window=11, more=(2, 1)), grid_of(1, 40, 4, 8),
    grid_of(20, 25, 5, 5, segments=True), grid_of(20, 25, 8, 3, window=9, segments=True),
], ids=str)  # fmt: skip
def test_what_is_known_only_at_run_time_lists_the_same_tiles(grid):
    """Every offset from long before the keys to long after them, as numbers of the run."""
    offsets, rng, ids = np.arange(-50, 100), np.random.default_rng(0), (None, None)
    if grid.segments:
        ids = tuple(np.sort(rng.integers(0, 3, (2, n)), axis=1).astype(np.int32) for n in (grid.queries, grid.keys))
    unknown = dataclasses.replace(grid, q_offset=None)
    kinds = tile_kinds(unknown)
    assert kinds == (WHOLE, MASKED)
    run = jax.jit(jax.vmap(functools.partial(schedule, unknown, kinds), in_axes=(0, None, None)))
    entries, counts = run(jnp.asarray(offsets, jnp.int32), *(None if x is None else jnp.asarray(x) for x in ids))
    assert entries.dtype == counts.dtype == jnp.int32
    for n, offset in enumerate(offsets):
        known = dataclasses.replace(grid, q_offset=int(offset))
        static = tile_kinds(known)
        expected = read(*schedule(known, static, int(offset), *ids), static)
        found = read(np.asarray(entries[n]), counts[n], kinds)
        assert found == {place: [(j, kind if kind == WHOLE else MASKED) for j, kind in tiles]
                         for place, tiles in expected.items()}, offset  # fmt: skip


def test_ids_of_the_run_give_the_lists_of_ids_known_before():
    grid = grid_of(64, 96, 8, 16, 32, window=40, segments=True)
    ids = np.sort(np.random.default_rng(0).integers(0, 5, (6, 96)), axis=1).astype(np.int32)
    kinds = tile_kinds(grid)
    assert {WHOLE, MASKED} < set(kinds)
    constant = schedule(grid, kinds, 32, ids[:, 32:], ids)
    traced = jax.jit(functools.partial(schedule, grid, kinds, 32))(jnp.asarray(ids[:, 32:]), jnp.asarray(ids))
    for one, other in zip(constant, traced, strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, other)


def test_causality_leaves_the_lower_half_of_the_tiles_and_one_mask():
    grid = grid_of(4096, 4096, 256, 256)
    kinds = tile_kinds(grid)
    assert kinds == (WHOLE, 0)
    _, counts = schedule(grid, kinds, 0)
    np.testing.assert_array_equal(counts, [np.arange(1, 17)])


def test_a_window_makes_the_tiles_visited_grow_with_the_length_and_not_its_square():
    def visited(length):
        grid = grid_of(length, length, 128, 128, window=512)
        return schedule(grid, tile_kinds(grid), 0)[1].sum()

    assert visited(4096) == 1 + 2 + 3 + 4 + 28 * 5
    assert visited(8192) - visited(4096) == 32 * 5


@pytest.mark.parametrize("length", [128, 256, 1024, 4096])
def test_packed_documents_are_visited_in_proportion_to_their_own_tiles(length):
    """Documents of m tiles each have m (m + 1) / 2 of them, and share none."""
    grid = grid_of(4096, 4096, 128, 128, segments=True)
    ids = np.repeat(np.arange(4096 // length, dtype=np.int32), length)[None]
    kinds = tile_kinds(grid)
    lists = read(*schedule(grid, kinds, 0, ids, ids), kinds)
    m = length // 128
    assert sum(map(len, lists.values())) == (4096 // length) * m * (m + 1) // 2
    assert MASKED not in {kind for tiles in lists.values() for _, kind in tiles}, "no tile holds two documents"


def test_the_rows_of_a_batch_have_lists_of_their_own():
    grid = grid_of(32, 32, 8, 8, segments=True)
    ids = np.stack([np.zeros(32), np.arange(32) // 8, np.arange(32)]).astype(np.int32)
    _, counts = schedule(grid, tile_kinds(grid), 0, ids, ids)
    np.testing.assert_array_equal(counts, [[1, 2, 3, 4], [1, 1, 1, 1], [1, 1, 1, 1]])
