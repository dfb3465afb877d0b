"""The fused kernel computes what is needed of every tile, once, and moves rows as it should."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from chinchilla_jax.kernels import fused_kernel
from chinchilla_jax.kernels.fused_kernel import LANES, Plan, columns, move_rows, roll_rows, strips
from chinchilla_jax.kernels.schedule import MASKED, WHOLE, schedule, tile_kinds
from chinchilla_jax.kernels.tiles import Tiles
from tests.kernels.plans import plans_of
from tests.kernels.test_schedule import grid_of, read

SIDES = st.sampled_from([128, 256, 384, 512])
WINDOWS = st.none() | st.sampled_from([1, 127, 128, 129, 300, 1000]) | st.integers(1, 700)


def plan_of(grid, strip):
    """A plan of which only the tiles matter."""
    known = {"grid": grid, "kinds": tile_kinds(grid), "strip": strip}
    return Plan(**{field.name: None for field in dataclasses.fields(Plan)} | known)


# ---- what of a tile is computed


def times_computed(cut, shape, by_columns):
    """How often each pair of a tile is computed."""
    times = np.zeros(shape, int)
    if not by_columns:
        for strip in cut:
            times[strip.queries, strip.first : strip.last] += 1
        return times
    for first, last, having in columns(cut):
        assert having == list(range(having[0], having[-1] + 1)), "strips of a column are taken as one slice"
        for n in having:
            times[cut[n].queries, first:last] += 1
    return times


@settings(deadline=None, max_examples=150)
@given(st.data(), SIDES, SIDES, st.sampled_from([128, 256, 512]), WINDOWS)
def test_strips_and_columns_have_every_visible_pair_once_and_no_block_of_keys_in_vain(data, block_q, block_kv, rows,
                                                                                      window):  # fmt: skip
    rows = min(rows, block_q)
    if block_q % rows:
        rows = LANES
    grid = grid_of(block_q, block_kv, block_q, block_kv, window=window)
    last = block_kv - 1 + (block_kv if window is None else window)
    delta = data.draw(st.integers(1 - block_q, last))
    distance = delta + np.arange(block_q)[:, None] - np.arange(block_kv)[None, :]
    visible = (distance >= 0) & (distance < (window or np.inf))
    cut = strips(plan_of(grid, rows), delta)
    for by_columns in (False, True):
        times = times_computed(cut, visible.shape, by_columns)
        assert times.max(initial=0) <= 1
        assert (times[visible] == 1).all()
    for strip in cut:
        assert strip.first % LANES == strip.last % LANES == 0
        part = visible[strip.queries, strip.first : strip.last]
        assert part.reshape(strip.rows, -1, LANES).any((0, 2)).all(), "128 keys that none of the queries sees"


@pytest.mark.parametrize("kind", [WHOLE, MASKED])
def test_tiles_whose_mask_is_not_known_are_computed_in_one_piece(kind):
    (strip,) = strips(plan_of(grid_of(256, 384, 256, 384), LANES), kind)
    assert (strip.queries, strip.first, strip.last) == (slice(0, 256), 0, 384)


@pytest.mark.parametrize(("rows", "products"), [(128, 10), (256, 12), (512, 16)])
def test_of_the_tile_on_the_diagonal_strips_compute_10_of_16_products(rows, products):
    cut = strips(plan_of(grid_of(512, 512, 512, 512), rows), 0)
    for by_columns in (False, True):
        assert times_computed(cut, (512, 512), by_columns).sum() == products * LANES * LANES


@st.composite
def tiles(draw):
    block_q = draw(SIDES)
    return Tiles(block_q, draw(SIDES), draw(st.sampled_from([n for n in (128, 256, 512) if block_q % n == 0])))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 900), st.integers(1, 900), tiles(), tiles(), st.integers(-500, 1200), st.booleans(), WINDOWS,
       st.booleans())  # fmt: skip
@example(1024, 1024, Tiles(512, 512, 512), Tiles(512, 512, 512), -383, False, None, False)
def test_bands_of_e_have_the_distance_of_every_visible_pair_and_end_within_e(S, T, forward, backward, offset, traced,
                                                                            window, documents):  # fmt: skip
    """Row p of e is for the distance q_offset + padded queries - 1 - p; row a of a product moves right by a."""
    plans = plans_of(S, T, relative=True, tiles=forward, backward_tiles=backward, window=window, documents=documents,
                     **({"traced": True} if traced else {"q_offset": offset}))  # fmt: skip
    for plan in (*plans["forward"], *plans["backward"]):
        grid = plan.grid
        ids = tuple(np.zeros((1, n), np.int32) for n in (grid.queries, grid.keys)) if documents else (None, None)
        known = dataclasses.replace(grid, q_offset=offset)  # lists the same tiles
        kinds = tile_kinds(known)
        for (_, i), entries in read(*schedule(known, kinds, offset, *ids), kinds).items():
            entries = [(j, kind if kind in plan.kinds else MASKED) for j, kind in entries]
            for j, kind, strip in [(*entry, strip) for entry in entries for strip in strips(plan, entry[1])]:
                with mock.patch.object(pl, "multiple_of", lambda x, _: x):
                    bands = list(fused_kernel._bands(plan, i, j, kind, strip))
                assert [band[0] for band in bands] == list(range(strip.row, strip.row + strip.rows, LANES))
                for row, last, start, width in bands:
                    assert start % LANES == 0 and 0 <= start and start + width <= plan.distances, (i, j, kind, strip)
                    distance = (offset + i * grid.block_q + row + np.arange(LANES)[:, None]
                                - j * grid.block_kv - np.arange(strip.first, strip.last)[None, :])  # fmt: skip
                    query, key = np.nonzero((distance >= 0) & (distance < (window or np.inf)))
                    assert (key < last - strip.first).all()
                    place = key - query + LANES - 1  # in the product with rows `start : start + width` of e
                    assert ((0 <= place) & (place < width)).all()
                    of_row = offset + grid.padded_queries - 1 - (start + place)
                    np.testing.assert_array_equal(of_row, distance[query, key])


# ---- moving rows


def rolled(x, width):
    """What a kernel that rotates the rows of x makes of it."""

    def kernel(x_ref, out_ref):
        out_ref[...] = roll_rows(x_ref[...], width)

    out = jax.ShapeDtypeStruct((x.shape[0], width), x.dtype)
    return np.asarray(pl.pallas_call(kernel, out_shape=out, interpret=True)(x))


def numbered(width):
    """Whole numbers, each of them once: any two ways of moving them are the same or are not."""
    return np.arange(1, LANES * width + 1, dtype=np.float32).reshape(LANES, width)


RIGHT, LEFT = (LANES - 1, -1), (1 - LANES, 1)


@pytest.mark.parametrize("width", [128, 384])
def test_registers_are_moved_as_the_definition_says(width):
    for x, (first, step), out_width in ((numbered(width + LANES), RIGHT, width), (numbered(width), LEFT, width + LANES),
                                        (numbered(width), RIGHT, width), (numbered(width), LEFT, width)):  # fmt: skip
        expected = np.zeros((LANES, out_width), np.float32)
        for a, c in np.ndindex(expected.shape):
            if 0 <= c + first + step * a < x.shape[1]:
                expected[a, c] = x[a, c + first + step * a]
        np.testing.assert_array_equal(move_rows(jnp.asarray(x), first, step, out_width), expected)
        at_once = fused_kernel._move_rows_at_once(jnp.asarray(x), first, step, out_width)
        np.testing.assert_array_equal(at_once, expected)


@pytest.mark.parametrize("excess", [0, LANES])
def test_one_rotation_a_register_moves_right_every_lane_that_is_read(excess):
    """Without the excess the keys after a row's own, which are in its future, have other numbers."""
    x = numbered(LANES + excess)
    expected = np.asarray(move_rows(jnp.asarray(x), *RIGHT, LANES))
    row, key = np.indices(expected.shape)
    seen = key - row + LANES - 1 < x.shape[1]
    assert seen.all() == bool(excess)
    np.testing.assert_array_equal(rolled(x, LANES)[seen], expected[seen])


@pytest.mark.parametrize("width", [128, 256])
def test_moving_left_undoes_moving_right_and_is_its_transpose(width):
    x, y = jnp.asarray(numbered(width + LANES) % 97), jnp.asarray(numbered(width) % 89)
    right, left = move_rows(x, *RIGHT, width), move_rows(y, *LEFT, width + LANES)
    whole = [np.asarray(one, np.int64) for one in (right, y, x, left)]
    assert np.sum(whole[0] * whole[1]) == np.sum(whole[2] * whole[3])
    np.testing.assert_array_equal(move_rows(left, *RIGHT, width), y)
