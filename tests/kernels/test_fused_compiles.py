"""The kernels compile for every TPU generation, whatever the call, and no array of all scores is left.

Ordinary runs lower one call with everything in it for every generation, and compile it where there is the TPU compiler.
The grid of features, and long sequences, take a quarter of an hour and more:

    bash tests/run.sh -m "long and compiler" tests/kernels/test_fused_compiles.py
"""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from chinchilla_jax.base.chips import CHIPS, kernel_chips
from chinchilla_jax.kernels.fused import fused_attention
from chinchilla_jax.kernels.plain import plain_attention
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.parallel.topology import topology
from tests.kernels.cases import ARGUMENTS, with_arguments

needs_compiler = [pytest.mark.compiler,
                  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                     reason="no TPU compiler: pip install 'chinchilla_jax[compiler]'")]  # fmt: skip
FUSED = with_arguments(fused_attention)
KERNELS = {"attention_forward", "attention_backward"}


@pytest.fixture(scope="module", autouse=True)
def unoptimised():
    """Nothing is: a TPU program is compiled as it would be run."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call and its gradients. No other size is S or T, H * K included, so that an array of scores can be told."""

    S: int = 512
    T: int = 512
    H: int = 3
    G: int = 3
    K: int = 128
    relative: bool = False
    documents: bool = False
    traced: bool = False
    rotated: bool = False
    lse: bool = False
    dtype: str = "bfloat16"
    settings: tuple = ()

    def shapes(self):
        """Arguments of `run`: those with gradients, those without, the gradient of what is returned."""
        keys, array = (1, self.T, self.G, self.K), jax.ShapeDtypeStruct
        shapes = {"q": (1, self.S, self.H, self.K), "k": keys, "v": keys}
        if self.relative:
            offset = dict(self.settings).get("q_offset", self.T - self.S)
            shapes |= {"r": (max(offset + self.S, self.T), self.H, self.K)}
        arrays = {name: array(shape, self.dtype) for name, shape in shapes.items()}
        if self.relative:
            arrays |= {name: array((self.H, self.K), jnp.float32) for name in "uw"}
        fixed = {"segment_ids_BxT": array((1, self.T), jnp.int32)} if self.documents else {}
        fixed |= {"q_offset": array((), jnp.int32)} if self.traced else {}
        if self.rotated:
            fixed |= {f"{name}_turn_2x{axis}xK": array((2, length, self.K), jnp.float32)
                      for name, axis, length in (("q", "S", self.S), ("k", "T", self.T))}  # fmt: skip
        d_out, d_lse = array(shapes["q"], self.dtype), array((1, self.H, self.S), jnp.float32)
        return arrays, fixed, (d_out, d_lse) if self.lse else d_out

    def run(self, arrays, fixed, gradient, attend=FUSED):
        """Attention and the gradients of its arrays."""

        def of(arrays):
            named = {ARGUMENTS[name]: x for name, x in arrays.items()}
            return attend(**named, **fixed, **dict(self.settings), return_lse=self.lse)

        out, pull_back = jax.vjp(of, arrays)
        return out, pull_back(gradient)


EVERYTHING = Call(H=6, G=3, relative=True, documents=True, settings=(("softcap", 30.0),))

FEATURES = {
    "documents": {"documents": True},
    "a window": {"settings": (("window", 200),)},
    "a soft cap": {"settings": (("softcap", 30.0),)},
    "grouped heads": {"H": 6},
    "one group": {"G": 1},
    "float32": {"dtype": "float32"},
    "a memory": {"S": 256},
    "odd lengths": {"S": 200, "T": 333},
    "an offset beyond the keys": {"S": 256, "T": 200, "settings": (("q_offset", 300),)},
    "a traced offset": {"S": 256, "traced": True},
    "one query": {"S": 1, "traced": True},
    "the log-sum-exp": {"lse": True},
} | {f"heads of {size}": {"K": size} for size in (32, 64, 96, 128, 192, 256)}
GRID = {f"{name}, {'relative' if relative else 'plain'}": Call(relative=relative, **feature)
        for name, feature in FEATURES.items() for relative in (False, True)}  # fmt: skip
GRID |= {f"heads of {size}, rotated": Call(K=size, rotated=True) for size in (64, 96, 128, 256)}
GRID |= {"a memory, rotated, grouped, documents": Call(S=256, H=6, rotated=True, documents=True)}


def compiled(generation, call):
    """The text of the program that runs the call on a chip of this generation."""
    here = SingleDeviceSharding(topology(CHIPS[generation].one_chip).devices[0])
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), call.shapes())
    with compile_for(generation):
        return jax.jit(call.run).lower(*arguments).compile().as_text()


def kernels(text):
    """Names of the kernels that a compiled program calls, one for every call."""
    calls = re.findall(r'%([\w.]+) = [^\n]*custom_call_target="tpu_custom_call"', text)
    return [re.search(r"attention_[a-z]+", name)[0] for name in calls]


def scores(text, call):
    """Arrays of a compiled program that have a value for every pair of query and key."""
    return re.findall(rf"\w+\[(?:\d+,)*(?:{call.S},{call.T}|{call.T},{call.S})\]", text)


@functools.cache
def exported(generation):
    """Everything at once, lowered for a generation but not compiled."""
    with compile_for(generation):
        return jax.export.export(jax.jit(EVERYTHING.run), platforms=["tpu"])(*EVERYTHING.shapes()).mlir_module()


@pytest.mark.parametrize("generation", kernel_chips())
def test_both_kernels_lower_for_every_generation_without_its_compiler(generation):
    assert sorted(re.findall(r'kernel_name = "(\w+)"', exported(generation))) == sorted(KERNELS)


def test_what_was_traced_for_one_generation_is_not_used_for_another():
    assert exported("v4") != exported("v5e"), "a v4 has no rotation of a row by its own distance, a v5e uses it"


def test_an_array_of_all_scores_would_be_found():
    plain = jax.jit(lambda *x: EVERYTHING.run(*x, attend=with_arguments(plain_attention)))
    assert scores(plain.lower(*EVERYTHING.shapes()).compile().as_text(), EVERYTHING)


class TestWithTheCompiler:
    pytestmark = needs_compiler

    @pytest.mark.parametrize("generation", [
        chip if chip == "v5e" else pytest.param(chip, marks=pytest.mark.long) for chip in kernel_chips()
    ])  # fmt: skip
    def test_everything_at_once_compiles_to_two_kernels_and_no_array_of_scores(self, generation):
        text = compiled(generation, EVERYTHING)
        assert sorted(kernels(text)) == sorted(KERNELS)
        assert not scores(text, EVERYTHING)

    @pytest.mark.long
    @pytest.mark.parametrize("name", GRID)
    @pytest.mark.parametrize("generation", kernel_chips())
    def test_every_feature_compiles_to_two_kernels_and_no_array_of_scores(self, generation, name):
        call = GRID[name]
        text = compiled(generation, call)
        assert sorted(kernels(text)) == sorted(KERNELS)
        if call.S > 1:
            assert not scores(text, call)

    @pytest.mark.long
    @pytest.mark.parametrize(("generation", "call"), [
        ("v4", Call(S=8192, T=8192, H=1, G=1, relative=True)),
        ("v4", Call(S=4096, T=4096, H=1, G=1, relative=True, dtype="float32")),
        ("v5e", Call(S=32768, T=32768, H=1, G=1)),
        ("v5e", Call(S=32768, T=32768, H=1, G=1, relative=True)),
    ])  # fmt: skip
    def test_long_sequences_compile_in_as_many_kernels_as_fit(self, generation, call):
        text = compiled(generation, call)
        assert set(kernels(text)) == KERNELS
        assert not scores(text, call)
