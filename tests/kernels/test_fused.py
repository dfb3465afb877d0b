"""Calls are cut into parts that fit, tiles of any size give the same attention, and what is kept has names."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels import fused
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.kernels.fused import fused_attention, merge
from chinchilla_jax.kernels.tiles import Tiles, compile_for, limit, vmem_bytes
from tests.kernels.cases import ARGUMENTS, Case, draw, with_arguments, with_gradients
from tests.kernels.plans import plans_of
from tests.kernels.reference import by_pairs

FUSED = with_arguments(fused_attention)


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
