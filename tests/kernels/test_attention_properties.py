"""What holds of attention whatever the numbers are: order, causality, documents, offsets, merging."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

# One relative call with grouped heads on a full row, one with fewer queries and everything traced: two compilations
# an implementation serve all properties.
B, T, S, H, G, K = 1, 150, 60, 4, 2, 32
SETTINGS = hypothesis.settings(
    max_examples=6, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)  # fmt: skip
SEEDS = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def attend(call):
    """Attention of a dictionary of arrays, returning `out` and `lse` in numpy."""

    @jax.jit
    def run(x):
        return call(x["q"], x["k"], x["v"], r_NxHxK=x["r"], content_bias_HxK=x["u"], position_bias_HxK=x["w"],
                    segment_ids_BxT=x["segments"],
                    q_segment_ids_BxS=x.get("q_segments"), q_offset=x.get("q_offset"), return_lse=True)  # fmt: skip

    return lambda x: tuple(np.asarray(y) for y in run(x))


def draw(seed):
    """A row of T tokens, one document."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (B, T, H, K), "k": (B, T, G, K), "v": (B, T, G, K), "r": (T, H, K), "u": (H, K), "w": (H, K)}
    x = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return x | {"segments": np.zeros((B, T), np.int32)}


def queries(x, start, offset=None):
    """S of the queries, as if they stood at `offset`, by default where they are."""
    ids = x["segments"][:, start : start + S]
    return x | {"q": x["q"][:, start : start + S], "q_segments": ids,
                "q_offset": jnp.int32(start if offset is None else offset)}  # fmt: skip


def assert_near(found, expected):
    """The assertion of most tests here: equal up to rounding, and no NaN on either side."""
    np.testing.assert_allclose(found, expected, atol=5e-6, equal_nan=False)


@SETTINGS
@hypothesis.given(seed=SEEDS, order=st.permutations(range(G)), inner=st.permutations(range(H // G)))
def test_heads_know_nothing_of_one_another(attend, seed, order, inner):
    x = draw(seed)
    heads = [g * (H // G) + m for g in order for m in inner]
    moved = {"q": x["q"][:, :, heads], "k": x["k"][:, :, order], "v": x["v"][:, :, order], "r": x["r"][:, heads],
             "u": x["u"][heads], "w": x["w"][heads]}  # fmt: skip
    (out, lse), (moved_out, moved_lse) = attend(x), attend(x | moved)
    assert_near(moved_out, out[:, :, heads])
    assert_near(moved_lse, lse[:, heads])


@SETTINGS
@hypothesis.given(seed=SEEDS, now=st.integers(1, T - 1))
def test_the_future_changes_nothing(attend, seed, now):
    x, other = draw(seed), draw(seed + 1)
    changed = x | {name: np.concatenate([x[name][:, :now], other[name][:, now:]], axis=1) for name in "qkv"}
    (out, lse), (changed_out, changed_lse) = attend(x), attend(changed)
    np.testing.assert_array_equal(changed_out[:, :now], out[:, :now])
    np.testing.assert_array_equal(changed_lse[..., :now], lse[..., :now])
    assert np.abs(changed_out[:, now:] - out[:, now:]).max() > 0.01


@SETTINGS
@hypothesis.given(seed=SEEDS, ends=st.lists(st.integers(1, T - 1), min_size=1, max_size=3, unique=True))
def test_packed_documents_are_what_they_are_alone(attend, seed, ends):
    x, ends = draw(seed), sorted(ends)
    packed, _ = attend(x | {"segments": np.searchsorted(ends, np.arange(T), side="right")[None].astype(np.int32)})
    for start, end in zip([0, *ends], [*ends, T], strict=True):
        first = {name: np.roll(x[name], -start, axis=1) for name in "qkv"}  # what follows it is in its future
        alone, _ = attend(x | first)
        assert_near(packed[:, start:end], alone[:, : end - start])


@SETTINGS
@hypothesis.given(seed=SEEDS, start=st.integers(0, T - S))
def test_relative_attention_knows_distances_only(attend, seed, start):
    x = draw(seed)
    here = np.where(np.arange(T) < S, 1, 0)[None].astype(np.int32)
    first = queries(x | {"segments": here}, 0)
    later = first | {name: np.roll(first[name], start, axis=1) for name in ("k", "v", "segments")}
    (out, lse), (later_out, later_lse) = attend(first), attend(later | {"q_offset": jnp.int32(start)})
    assert_near(later_out, out)
    assert_near(later_lse, lse)


@SETTINGS
@hypothesis.given(seed=SEEDS, start=st.integers(0, T - S))
def test_any_stretch_of_the_queries_gives_its_part_of_the_whole(attend, seed, start):
    x = draw(seed)
    (out, lse), (part, part_lse) = attend(x), attend(queries(x, start))
    assert_near(part, out[:, start : start + S])
    assert_near(part_lse, lse[..., start : start + S])


@SETTINGS
@hypothesis.given(seed=SEEDS, start=st.integers(0, T - S), cut=st.integers(1, T - 1))
def test_two_parts_of_the_keys_merge_by_their_log_sum_exps(attend, seed, start, cut):
    x = draw(seed)
    first = queries(x | {"segments": (np.arange(T) >= cut)[None].astype(np.int32)}, start)
    parts = [attend(first | {"q_segments": np.full((B, S), part, np.int32)}) for part in (0, 1)]
    out, lse = attend(queries(x, start))
    assert_near(np.logaddexp(parts[0][1], parts[1][1]), lse)
    shares = [np.exp(part_lse - lse).transpose(0, 2, 1)[..., None] for _, part_lse in parts]
    assert_near(sum(share * part for share, (part, _) in zip(shares, parts, strict=True)), out)


@SETTINGS
@hypothesis.given(seed=SEEDS, cut=st.integers(1, T - 1))
def test_keys_that_move_on_by_whole_rows_merge_as_in_a_ring(attend, seed, cut):
    """Keys behind `cut` are shifted to the front and the queries with them: the offset is what a ring would pass."""
    x = draw(seed)
    start = T - S
    ids = (np.arange(T) >= cut)[None].astype(np.int32)
    late = queries(x | {name: np.roll(x[name], -cut, axis=1) for name in "kv"}, start, start - cut)
    late |= {"segments": np.roll(ids, -cut, axis=1), "q_segments": np.ones((B, S), np.int32)}
    there = queries(x | {"segments": ids}, start) | {"q_segments": np.ones((B, S), np.int32)}
    for moved, unmoved in zip(attend(late), attend(there), strict=True):
        assert_near(moved, unmoved)
