"""The form for NVIDIA GPUs: what it serves, that it asks cuDNN for what attention is, and that it lowers for one.

No GPU is needed: XLA's own form of `jax.nn.dot_product_attention`, with the same arguments, stands for cuDNN's.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels import attention as module
from chinchilla_jax.kernels import cudnn
from chinchilla_jax.kernels.attention import attention, choose
from chinchilla_jax.kernels.call import AttentionError, check
from tests.kernels.cases import ARGUMENTS, Case, draw
from tests.kernels.reference import by_pairs

SERVED = {
    "causal, two rows": Case(B=2, S=128, T=128),
    "grouped heads": Case(B=2, S=64, T=64, H=4, G=2, K=64),
    "a window, a scale": Case(H=2, G=1, window=50, scale=0.3),
    "a window of one": Case(window=1),
    "a window wider than the row": Case(window=1000),
    "relative": Case(B=4, S=96, T=96, H=2, distances=96),
    "relative, grouped heads, large scores": Case(B=2, H=4, G=2, distances=130, spread=4.0),
}
SERVED = {name: dataclasses.replace(case, dtype="bfloat16") for name, case in SERVED.items()}


def call_of(case):
    """The checked call of a case."""
    drawn = draw(case)
    named = {ARGUMENTS[name]: x for name, x in drawn.arrays.items()}
    settings = dict(drawn.settings)
    named["segment_ids_BxT"] = settings.pop("segments", None)
    arrays = [named.pop(ARGUMENTS[name]) for name in "qkv"]
    return check(*arrays, **named, **settings)


@pytest.fixture
def imitated(monkeypatch):
    """Another back-end of JAX's function in the place of cuDNN."""
    monkeypatch.setattr(cudnn, "BACKEND", "xla")


def gradients(case, form):
    drawn, call = draw(case), call_of(case)

    @jax.jit
    def run(arrays):
        return jax.vjp(lambda arrays: form(call.replace(**arrays)), arrays)

    out, pull_back = run({ARGUMENTS[name]: x for name, x in drawn.arrays.items()})
    return out, pull_back(drawn.d_out)[0]


@pytest.mark.parametrize("name", SERVED)
def test_it_is_attention_with_its_gradients(name, imitated):
    case = SERVED[name]
    drawn = draw(case)
    assert cudnn.refusal(call_of(case)) is None
    exact = {name: np.asarray(x, np.float64) for name, x in drawn.arrays.items()}
    no_lse = np.zeros(drawn.d_lse.shape)
    reference = by_pairs(exact, np.asarray(drawn.d_out, np.float64), no_lse, **drawn.settings)
    out, found = gradients(case, cudnn.cudnn_attention)
    assert out.dtype == jnp.bfloat16
    pairs = {"out": (out, reference.out)} | {
        name: (found[ARGUMENTS[name]], x) for name, x in reference.gradients.items()
    }
    for what, (ours, expected) in pairs.items():
        error = np.linalg.norm(np.asarray(ours, np.float64) - expected)
        assert error <= 0.02 * np.linalg.norm(expected) + 1e-2, (what, error)


def test_rows_some_at_a_time_are_all_rows_at_once(imitated, monkeypatch):
    case = SERVED["relative"]
    expected = gradients(case, cudnn.cudnn_attention)
    monkeypatch.setattr(cudnn, "BIAS_BYTES", 2 * 2 * case.H * case.S * case.T)
    assert cudnn._rows_at_a_time(call_of(case)) == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0.02, atol=0.02),
        gradients(case, cudnn.cudnn_attention),
        expected,
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "float32"}, "float32"),
        ({"softcap": 5.0}, "a soft cap"),
        ({"segments": "packed"}, "packed documents"),
        ({"S": 64}, "an offset"),
        ({"S": 129, "T": 129}, "an odd number of tokens"),
        ({"K": 20}, "heads of 20"),
        ({"K": 512}, "heads of 512"),
        ({"distances": 130, "window": 40}, "a window beside relative positions"),
    ],
)
def test_what_it_does_not_serve_it_names(changes, told, imitated):
    call = call_of(dataclasses.replace(Case(dtype="bfloat16"), **changes))
    assert told in cudnn.refusal(call)
    with pytest.raises(AttentionError, match=told):
        cudnn.cudnn_attention(call)


@pytest.fixture
def gpu(monkeypatch):
    """A process that compiles for a GPU, as far as the choice of a form goes."""
    for place in (module, cudnn):
        monkeypatch.setattr(place, "on_gpu", lambda: True)
    monkeypatch.setattr(cudnn, "_capability", lambda: (9, 0))


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "cudnn"),
        ({"distances": 130}, "cudnn"),
        ({"window": 20}, "cudnn"),
        ({"dtype": "float32", "S": 512, "T": 512}, "blockwise"),
        ({"segments": "packed", "S": 512, "T": 512}, "blockwise"),
        ({"S": 1, "T": 512, "q_offset": 300}, "plain"),
    ],
)
def test_auto_on_a_gpu_is_cudnn_for_what_it_serves(changes, chosen, gpu):
    assert choose(call_of(dataclasses.replace(Case(dtype="bfloat16"), **changes))) == chosen


def test_old_gpus_and_heads_too_large_for_ampere_have_another_form(gpu, monkeypatch):
    monkeypatch.setattr(cudnn, "_capability", lambda: (8, 0))
    assert choose(call_of(Case(S=512, T=512, K=256, dtype="bfloat16"))) == "blockwise"
    assert choose(call_of(Case(S=512, T=512, K=128, dtype="bfloat16"))) == "cudnn"
    monkeypatch.setattr(cudnn, "_capability", lambda: (7, 5))
    assert choose(call_of(Case(S=512, T=512, dtype="bfloat16"))) == "blockwise"


@pytest.mark.parametrize(("version", "chosen"), [("cuda 13000", "cudnn"), ("rocm 60300", "plain")])
def test_gpus_of_others_have_the_forms_that_run_everywhere(version, chosen, monkeypatch):
    backend = types.SimpleNamespace(platform_version=version)
    monkeypatch.setattr(cudnn.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn.jax.extend.backend, "get_backend", lambda: backend)
    device = types.SimpleNamespace(compute_capability="9.0" if chosen == "cudnn" else "gfx942")
    monkeypatch.setattr(cudnn.jax, "local_devices", lambda: [device])
    assert choose(call_of(Case(S=64, T=64, dtype="bfloat16"))) == chosen


def test_without_a_gpu_it_says_so():
    arrays = [jnp.ones((1, 8, 2, 8), jnp.bfloat16)] * 3
    with pytest.raises(AttentionError, match="needs an NVIDIA GPU"):
        attention(*arrays, implementation="cudnn")
    assert choose(check(*arrays)) != "cudnn"


@pytest.mark.parametrize("name", ["causal, two rows", "relative"])
def test_a_step_lowers_to_kernels_of_cudnn_forwards_and_backwards(name, gpu, monkeypatch):
    """For a GPU, without one: what cuDNN is asked for stands in the program."""
    stablehlo = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91200)
    call = call_of(SERVED[name])

    def loss(q):
        return jnp.sum(cudnn.cudnn_attention(call.replace(q_BxSxHxK=q)).astype(jnp.float32))

    text = jax.jit(jax.grad(loss)).trace(call.q_BxSxHxK).lower(lowering_platforms=("cuda",)).as_text()
    kernel = "__cudnn$fmhaScaleBiasSoftmax" if call.r_NxHxK is not None else "__cudnn$fmhaSoftmax"
    assert f"@{kernel}" in text and f"@{kernel}Backward" in text
