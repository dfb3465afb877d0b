"""The fused kernel computes what is needed of every tile, once, and tiles of any size give the same attention."""

import dataclasses
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from chinchilla_jax.kernels import fused, fused_kernel
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.kernels.fused import fused_attention, merge
from chinchilla_jax.kernels.fused_kernel import LANES, Plan, columns, move_rows, roll_rows, strips
from chinchilla_jax.kernels.schedule import MASKED, WHOLE, schedule, tile_kinds
from chinchilla_jax.kernels.target import compile_for
from chinchilla_jax.kernels.tiles import Tiles, limit, vmem_bytes
from tests.kernels.cases import ARGUMENTS, Case, draw, with_arguments, with_gradients
from tests.kernels.reference import by_pairs
from tests.kernels.test_schedule import grid_of, read

FUSED = with_arguments(fused_attention)
SIDES = st.sampled_from([128, 256, 384, 512])
WINDOWS = st.none() | st.sampled_from([1, 127, 128, 129, 300, 1000]) | st.integers(1, 700)


def plan_of(grid, strip):
    """A plan of which only the tiles matter."""
    known = {"grid": grid, "kinds": tile_kinds(grid), "strip": strip}
    return Plan(**{field.name: None for field in dataclasses.fields(Plan)} | known)


def plans_of(S, T, *, relative=False, dtype="float32", size=128, documents=False, traced=None, **settings):
    """The plans that a call of one head makes, and its gradient: of the forward passes, of the backward passes."""
    plans = {"forward": [], "backward": []}

    def forward(plan, tables, arrays):
        plans["forward"].append(plan)
        return arrays["q"], jnp.zeros((1, 1, 1, plan.grid.padded_queries))

    def backward(plan, tables, arrays):
        plans["backward"].append(plan)
        shapes = {"e": (1, plan.head_dim, plan.distances), "u": (1, 1, plan.head_dim), "w": (1, 1, plan.head_dim)}
        found = {f"d{name}": arrays[name] for name in "qkv"}
        return found | {f"d{name}": jnp.zeros(shape) for name, shape in shapes.items() if plan.relative}

    keys = jax.ShapeDtypeStruct((1, T, 1, size), dtype)
    arrays = [jax.ShapeDtypeStruct((1, S, 1, size), dtype), keys, keys]
    if relative:
        offset = settings.get("q_offset", T - S) if traced is None else 0
        rows = jax.ShapeDtypeStruct((max(1, T, offset + S), 1, size), dtype)
        arrays += [rows, *2 * [jax.ShapeDtypeStruct((1, size), jnp.float32)]]
    if documents:
        settings |= {"segment_ids_BxT": np.zeros((1, T), np.int32), "q_segment_ids_BxS": np.zeros((1, S), np.int32)}

    def loss(arrays, offset):
        names = dict(zip(("r_NxHxK", "content_bias_HxK", "position_bias_HxK"), arrays[3:], strict=relative))
        given = names | settings | ({} if traced is None else {"q_offset": offset})
        return FUSED(*arrays[:3], **given).astype(jnp.float32).sum()

    with mock.patch.object(fused, "forward_call", forward), mock.patch.object(fused, "backward_call", backward):
        jax.eval_shape(jax.grad(loss), arrays, jax.ShapeDtypeStruct((), jnp.int32))
    return plans


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


# ---- parts of the keys


def test_attention_to_disjoint_keys_merges_to_attention_to_all():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(0, 5, (2, 3, 50, 40)), rng.standard_normal((2, 3, 40, 8))
    part = rng.integers(0, 3, 40)
    scores[:, :, :10, part == 0] = -np.inf
    scores[:, :, 5:15, part > 0] = -np.inf  # queries 5 to 9 see nothing at all

    def attend(keys):
        with np.errstate(divide="ignore", invalid="ignore"):
            lse = np.logaddexp.reduce(scores[..., keys], axis=-1)
            weights = np.nan_to_num(np.exp(scores[..., keys] - lse[..., None]))
        return (weights @ values[:, :, keys]).swapaxes(1, 2).astype(np.float32), lse.astype(np.float32)

    parts = [attend(part == n) for n in range(3)]
    assert np.isneginf(parts[0][1][:, :, :10]).all()
    (out, lse), (expected, expected_lse) = merge(parts), attend(part >= 0)
    np.testing.assert_allclose(out, expected, atol=3e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    assert np.isneginf(lse[:, :, 5:10]).all() and not np.any(out[:, 5:10])
    gradients = jax.grad(lambda parts: sum(jnp.where(jnp.isfinite(x), x, 0.0).sum() for x in merge(parts)))(parts)
    for (d_out, d_lse), (_, part_lse) in zip(gradients, parts, strict=True):
        assert np.isfinite(d_out).all() and np.isfinite(d_lse).all()
        assert not np.asarray(d_lse)[np.isneginf(part_lse)].any()


def pairs_of(plans):
    """Pairs of query and key not in its future, over all parts."""
    return sum(np.clip(grid.q_offset + np.arange(grid.queries) + 1, 0, grid.keys).sum()
               for grid in (plan.grid for plan in plans))  # fmt: skip


def interpreted(call):
    """A call of a kernel for a TPU, here."""
    return lambda plan, *arguments: call(dataclasses.replace(plan, interpret=True), *arguments)


def test_parts_of_the_keys_merge_to_what_all_give_at_once(monkeypatch):
    case = Case(S=150, T=300, H=2, G=1, K=64, distances=270, segments="packed", q_offset=120, softcap=4.0)
    fit = fused._fit

    def fit_fewer(*arguments, backward):
        tiles, keys, *more = fit(*arguments, backward=backward)
        return tiles, min(keys, 128 if backward else 256), *more

    monkeypatch.setattr(fused, "_fit", fit_fewer)
    plans = plans_of(150, 300, relative=True, q_offset=120)
    assert [plan.grid.keys for plan in plans["forward"]] == [256, 14]
    assert sorted(plan.grid.keys for plan in plans["backward"]) == [14, 128, 128]
    errors = errors_of(case, lambda *x, **named: FUSED(*x, **named))
    assert all(error < FLOAT32 for error in errors.values()), errors


def test_parts_of_the_queries_join_to_what_all_give_at_once(monkeypatch):
    """On a chip with so little memory that tiles of 256 take fewer queries at a time."""
    case = Case(S=400, T=512, H=1, G=1, K=64, distances=512, segments="packed")
    monkeypatch.setattr(fused, "limit", lambda generation: 5.5e6)
    monkeypatch.setattr(fused, "ranked", lambda *_, **__: [Tiles(256, 256)])
    monkeypatch.setattr(fused, "FEWEST", 128)
    for name in ("forward_call", "backward_call"):
        monkeypatch.setattr(fused, name, interpreted(getattr(fused, name)))
    with compile_for("v4"):
        plans = plans_of(400, 512, relative=True, size=64, documents=True)
        errors = errors_of(case, lambda *x, **named: FUSED(*x, **named))
    assert {plan.grid.queries for plan in plans["forward"]} == {256, 144}
    assert max(plan.grid.keys for plan in plans["backward"]) < case.T
    assert all(error < FLOAT32 for error in errors.values()), errors


@pytest.mark.parametrize(("length", "relative", "dtype"), [(32768, False, "bfloat16"), (4096, True, "float32")])
def test_on_a_v4_long_sequences_are_cut_into_parts_that_fit_and_have_every_pair_once(length, relative, dtype):
    with compile_for("v4"):
        plans = plans_of(length, length, relative=relative, dtype=dtype)
    for name, made in plans.items():
        for plan in made:
            assert vmem_bytes(Tiles(plan.grid.block_q, plan.grid.block_kv), backward=name == "backward", size=128,
                              keys=plan.grid.padded_keys, distances=plan.distances,
                              itemsize=jnp.dtype(dtype).itemsize) <= limit("v4")  # fmt: skip
        assert pairs_of(made) == length * (length + 1) // 2
    assert len(plans["backward"]) > 1, "all at once do not fit"


def test_a_head_of_which_nothing_fits_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(fused, "limit", lambda generation: 10**5)
    with compile_for("v4"), pytest.raises(AttentionError, match='heads of 128 .* v4 .*use "blockwise"'):
        plans_of(512, 512)


# ---- tiles of any size


FLOAT32 = 3e-6  # of the largest number of each result: what rounding of the inputs' products leaves
BFLOAT16 = 1e-2


def errors_of(case, call):
    """The largest error of each result against the definition in float64, over the largest number in it."""
    drawn = draw(case)
    exact = {name: np.asarray(x, np.float64) for name, x in drawn.arrays.items()}
    expected = by_pairs(exact, np.asarray(drawn.d_out, np.float64), np.asarray(drawn.d_lse), **drawn.settings)
    out, lse, gradients = with_gradients(call, case)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected.lse))
    seen = np.isfinite(expected.lse)
    results = {"out": (out, expected.out), "lse": (np.asarray(lse)[seen], expected.lse[seen])}
    results |= {name: (gradients[name], x) for name, x in expected.gradients.items()}
    return {name: np.abs(np.asarray(found, np.float64) - x).max() / np.abs(x).max()
            for name, (found, x) in results.items()}  # fmt: skip


WIDE, HIGH = Tiles(128, 256), Tiles(256, 128)
TILES = {
    "high and wide, a memory, one group, documents":
        (Case(B=2, S=300, T=420, G=1, K=64, distances=420, segments="packed"), HIGH, WIDE),
    "wide and high, before the keys": (Case(S=300, T=200, q_offset=-130, H=1, G=1, distances=170), WIDE, HIGH),
    "strips of 256 in a window, capped":
        (Case(S=512, T=512, H=1, G=1, distances=200, window=200, softcap=4.0), Tiles(256, 256, 256), Tiles(256, 256)),
    "strips of 128 and 256, grouped heads, a scale":
        (Case(S=512, T=512, H=4, G=2, scale=0.3), Tiles(512, 512), Tiles(512, 512, 256)),
    "high strips, an offset that no tile has": (Case(S=300, T=420, H=1, G=1, distances=333, q_offset=33),
                                                Tiles(256, 128, 256), Tiles(512, 256, 256)),
    "larger than the sequence": (Case(S=100, T=140, H=1, G=1, distances=140, window=50), Tiles(256, 512), HIGH),
}  # fmt: skip


@pytest.mark.parametrize("name", TILES)
def test_tiles_of_any_size_give_attention_and_its_gradients(name):
    case, forward, backward = TILES[name]
    errors = errors_of(case, with_arguments(fused_attention, tiles=forward, backward_tiles=backward))
    assert all(error < FLOAT32 for error in errors.values()), errors


def test_bfloat16_is_off_by_a_rounding_of_scores_and_weights():
    case = Case(S=512, T=512, H=1, G=1, K=64, distances=512, dtype="bfloat16")
    errors = errors_of(case, with_arguments(fused_attention, tiles=Tiles(256, 256), backward_tiles=WIDE))
    assert all(error < BFLOAT16 for error in errors.values()), errors


# ---- what is kept, and what repeats


def names_in(jaxpr):
    """Checkpoint names anywhere in a program."""
    return re.findall(r"name\[name=(\w+)", str(jaxpr))


def test_what_the_backward_pass_needs_of_the_forward_pass_has_names():
    x = jnp.zeros((1, 256, 1, 64))
    traced = jax.make_jaxpr(jax.grad(lambda x: FUSED(x, x, x).sum()))(x)
    assert sorted(names_in(traced)) == sorted([fused.OUTPUT, fused.LSE])


def test_with_the_names_kept_the_forward_kernel_runs_once():
    def kernels(policy):
        attend = jax.checkpoint(lambda x: FUSED(x, x, x), policy=policy)
        traced = jax.make_jaxpr(jax.grad(lambda x: (attend(x) ** 2).sum()))(jnp.zeros((1, 256, 1, 64)))
        found = re.findall(r"\bname=(attention_forward|attention_backward)\b", str(traced))
        return {name: found.count(name) for name in found}

    keep = jax.checkpoint_policies.save_only_these_names(fused.OUTPUT, fused.LSE)
    assert kernels(keep) == {"attention_forward": 1, "attention_backward": 1}
    assert kernels(None) == {"attention_forward": 2, "attention_backward": 1}


@functools.cache
def compiled_relative():
    """One compiled function of four packed rows: out, lse and all gradients, every row weighted alike."""

    @jax.jit
    def run(arrays, ids, q_ids):
        def attend(arrays):
            named = {ARGUMENTS[name]: x for name, x in arrays.items()}
            return FUSED(**named, segment_ids_BxT=ids, q_segment_ids_BxS=q_ids, return_lse=True)

        (out, lse), pull_back = jax.vjp(attend, arrays)
        return (out, lse), pull_back((jnp.cos(out), jnp.ones_like(lse)))[0]

    return run


def rows_of(seed=0, S=200):
    rng = np.random.default_rng(seed)
    shapes = {name: (4, S, 1, 64) for name in "qkv"} | {"r": (S, 1, 64), "u": (1, 64), "w": (1, 64)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return arrays, np.sort(rng.integers(0, 3, (4, S)), axis=1).astype(np.int32)


def test_the_same_inputs_give_the_same_bits_wherever_in_the_batch_a_row_stands():
    arrays, ids = rows_of()
    order = np.array([2, 0, 3, 1])
    first, again = (compiled_relative()(arrays, ids, ids) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    there = arrays | {name: arrays[name][order] for name in "qkv"}
    (out, lse), gradients = compiled_relative()(there, ids[order], ids[order])
    np.testing.assert_array_equal(out, first[0][0][order])
    np.testing.assert_array_equal(lse, first[0][1][order])
    for name in "qkv":
        np.testing.assert_array_equal(gradients[name], first[1][name][order])


# ---- the unusual


def test_every_token_its_own_document_sees_itself_alone_beside_rows_of_one_document_or_none():
    """Four rows of a batch, each with ids of its own: one document; a document a token; none; backwards."""
    arrays, _ = rows_of()
    length = arrays["q"].shape[1]
    tokens = np.arange(length, dtype=np.int32)
    ids = np.stack([0 * tokens, tokens, tokens, tokens[::-1]])
    q_ids = np.stack([0 * tokens, tokens, -1 - tokens, tokens[::-1]])
    (out, lse), gradients = jax.tree.map(np.asarray, compiled_relative()(arrays, ids, q_ids))
    for alone in (1, 3):
        np.testing.assert_allclose(out[alone], arrays["v"][alone], rtol=1e-6)
        near = arrays["q"] + arrays["u"], arrays["q"] + arrays["w"]
        score = (near[0] * arrays["k"] + near[1] * arrays["r"][-1]).sum(-1)[alone, :, 0] / 8
        np.testing.assert_allclose(lse[alone, 0], score, atol=1e-5)
        np.testing.assert_allclose(gradients["v"][alone], np.cos(out[alone]), rtol=1e-6)
    assert np.isneginf(lse[2]).all() and not out[2].any()
    assert not any(gradients[name][2].any() for name in "qkv")
    only = {name: arrays[name][:1].repeat(4, axis=0) for name in "qkv"}
    (expected, _), _ = compiled_relative()(arrays | only, ids[:1].repeat(4, axis=0), ids[:1].repeat(4, axis=0))
    np.testing.assert_array_equal(out[0], expected[3])
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_a_window_of_one_and_a_single_query_see_one_key():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 150, 1, 32)), jnp.float32) for _ in range(3))
    np.testing.assert_allclose(FUSED(q, k, v, window=1), v, rtol=1e-6)
    np.testing.assert_allclose(FUSED(q[:, :1], k[:, :1], v[:, :1]), v[:, :1], rtol=1e-6)
    np.testing.assert_allclose(FUSED(q[:, :1], k, v, window=1), v[:, -1:], rtol=1e-6)


def test_scores_in_the_thousands_pick_the_largest():
    case = Case(S=200, T=200, H=1, G=1, distances=200, spread=1000.0)
    drawn = draw(case)
    out, lse, gradients = with_gradients(with_arguments(fused_attention, tiles=HIGH, backward_tiles=WIDE), case)
    exact = {name: np.asarray(x, np.float64) for name, x in drawn.arrays.items()}
    expected = by_pairs(exact, np.asarray(drawn.d_out, np.float64), np.asarray(drawn.d_lse), **drawn.settings)
    assert np.ptp(expected.lse) > 2000
    np.testing.assert_allclose(lse, expected.lse, rtol=1e-6)
    assert np.mean(np.abs(out - expected.out).max((0, 2, 3)) < 1e-2) > 0.9, "but where two scores nearly tie"
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_padded_queries_give_no_gradient_however_large_their_scores():
    """A padded query scores u . k: where its tiles differ forward and backward, it may meet a key its lse has not."""
    rng = np.random.default_rng(0)
    q, k, v, r = rng.standard_normal((4, 1, 200, 1, 32)).astype(np.float32)
    u = np.zeros((1, 32), np.float32)
    k[..., 0], k[0, 10, 0, 0], u[0, 0] = 0.0, 30.0, 30.0

    def loss(q, k, v, r, u):
        attend = with_arguments(fused_attention, tiles=Tiles(256, 256), backward_tiles=Tiles(128, 128))
        return attend(q, k, v, r_NxHxK=r[0], content_bias_HxK=u, position_bias_HxK=0 * u, window=200).sum()

    for gradient in jax.jit(jax.grad(loss, argnums=range(5)))(q, k, v, r, u):
        assert np.isfinite(gradient).all()
