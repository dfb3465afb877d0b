"""The calls every implementation of attention is tested on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.kernels.call import check

ARGUMENTS = {"q": "q_BxSxHxK", "k": "k_BxTxGxK", "v": "v_BxTxGxK", "r": "r_NxHxK", "u": "content_bias_HxK",
             "w": "position_bias_HxK"}  # fmt: skip


def with_arguments(form, **options):
    """A form of attention, which takes a checked call, as a function of the arguments of `attention.attention`."""
    return lambda *arrays, **named: form(check(*arrays, **named), **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. `distances` is N of a relative one; `segments` is "packed" for three documents a row, the same in all
    but the first row, or "disjoint" for queries of which some have no key. `spread` multiplies the queries."""

    B: int = 1
    S: int = 130
    T: int = 130
    H: int = 2
    G: int = 2
    K: int = 32
    distances: int | None = None
    segments: str | None = None
    q_offset: int | None = None
    traced: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    dtype: str = "float32"
    spread: float = 1.0


CASES = {
    "causal, two rows": Case(B=2, S=129, T=129),
    "one token": Case(S=1, T=1, distances=1),
    "seven tokens, relative": Case(B=2, S=7, T=7, distances=7),
    "relative, two rows": Case(B=2, S=200, T=200, distances=200),
    "grouped heads, packed documents": Case(B=2, H=4, G=2, K=64, segments="packed"),
    "one group, a window, a scale": Case(H=2, G=1, window=50, scale=0.3),
    "a window of one": Case(window=1, distances=1),
    "soft-capped, large scores": Case(softcap=5.0, spread=10.0),
    "relative behind a memory, grouped, packed, capped":
        Case(B=2, S=70, T=200, H=4, G=2, distances=200, segments="packed", softcap=3.0),
    "relative in a window behind a memory": Case(S=100, T=150, distances=60, window=60),
    "queries beyond the keys, relative": Case(S=60, T=100, q_offset=120, distances=180),
    "queries beyond the keys and partly the window": Case(S=100, T=100, q_offset=120, window=110),
    "queries before the keys, relative": Case(S=100, T=70, q_offset=-40, distances=60),
    "queries of which some have no key": Case(B=2, segments="disjoint", distances=140),
    "all keys in the future": Case(S=20, T=30, q_offset=-20, distances=1),
    "decoding with a cache, relative": Case(S=1, T=200, q_offset=77, traced=True, distances=200),
    "a traced offset far beyond the keys, relative, packed":
        Case(S=60, T=150, q_offset=290, traced=True, distances=150, segments="disjoint"),
    "large scores": Case(spread=60.0),
    "bfloat16": Case(S=200, T=200, dtype="bfloat16"),
    "bfloat16, relative, grouped, packed":
        Case(B=2, S=150, T=200, H=2, G=1, distances=200, segments="packed", dtype="bfloat16"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A case with numbers: `arrays` of `ARGUMENTS`; the cotangents; the settings `by_pairs` takes."""

    arrays: dict[str, jax.Array]
    d_out: jax.Array
    d_lse: jax.Array
    settings: dict


def draw(case: Case) -> Drawn:
    """Normal numbers, the same every time."""
    rng = np.random.default_rng(0)

    def normal(*shape, dtype=case.dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    keys, wide = (case.B, case.T, case.G, case.K), jnp.promote_types(case.dtype, jnp.float32)
    arrays = {"q": normal(case.B, case.S, case.H, case.K) * case.spread, "k": normal(*keys), "v": normal(*keys)}
    if case.distances is not None:
        biases = {name: normal(case.H, case.K, dtype=wide) for name in "uw"}
        arrays |= {"r": normal(case.distances, case.H, case.K)} | biases
    settings = {name: getattr(case, name) for name in ("q_offset", "window", "softcap", "scale")}
    if case.segments is not None:
        ids = np.tile((np.arange(case.T) >= case.T // 2) + 2 * (np.arange(case.T) > case.T - 9), (case.B, 1))
        ids[0] = np.arange(case.T) > case.T // 3
        settings["segments"] = ids.astype(np.int32)
    if case.segments == "disjoint":
        settings["q_segments"] = rng.integers(0, 4, (case.B, case.S)).astype(np.int32)
    return Drawn(arrays, normal(case.B, case.S, case.H, case.K), normal(case.B, case.H, case.S, dtype=wide),
                 settings)  # fmt: skip


@functools.cache
def with_gradients(call, case: Case):
    """`out`, `lse` and the gradients of d_out . out + d_lse . lse, in one compiled function."""
    drawn = draw(case)
    settings = dict(drawn.settings)
    named = {"segment_ids_BxT": settings.pop("segments", None), "q_segment_ids_BxS": settings.pop("q_segments", None)}
    named |= {"q_offset": jnp.int32(settings.pop("q_offset"))} if case.traced else {}

    @jax.jit
    def run(arrays, d_out, d_lse, named):
        def attend(arrays):
            x = {ARGUMENTS[name]: value for name, value in arrays.items()}
            qkv = [x.pop(ARGUMENTS[name]) for name in "qkv"]
            return call(*qkv, **x, **named, **settings, return_lse=True)

        result, pull_back = jax.vjp(attend, arrays)
        return result, pull_back((d_out, d_lse))[0]

    (out, lse), gradients = run(drawn.arrays, drawn.d_out, drawn.d_lse, named)
    return out, lse, gradients
