"""Train steps for TPUs that are not there: they lower, compile, hold our kernels, and no score is ever in memory."""

import dataclasses
import re

import jax
import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.presets import preset
from chinchilla_jax.training import loop
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.machine.ahead import (
    abstract_mesh,
    compile_train_step,
    lower_train_step,
    train_step_arguments,
    warm,
)
from chinchilla_jax.training.step import make_program
from chinchilla_jax.training.timing.clock import compile_seconds
from tests.compiling import needs_compiler

KERNELS = {"attention_forward": 1, "attention_backward": 1}
MORE_KINDS = [pytest.param(kind, marks=pytest.mark.long) for kind in ("TPU v4", "TPU v5", "TPU v6 lite")]
S = 512
# No other dimension of these is S.
CHINCHILLA = ModelConfig(n_layers=2, d_model=256, n_heads=2, n_kv_heads=2, head_dim=128, d_ff=768, vocab_size=1280)
LLAMA = dataclasses.replace(
    CHINCHILLA, n_heads=4, position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False
)


def run_of(model, *mesh, seq_len=S, batch_size=8, **train):
    return RunConfig(
        model,
        data=DataConfig(vocab_size=model.vocab_size, seq_len=seq_len),
        mesh=MeshConfig(*mesh),
        train=TrainConfig(
            batch_size=batch_size, compute_dtype="bfloat16", train_tokens=10**9, **{"remat": "attention"} | train
        ),
    )


def kernels(text):
    """How often each of our kernels is called in a lowered or compiled program; a loop's once."""
    lowered, compiled = r'kernel_name = "(\w+)"', r'%([a-z_]+)[.\d]* = [^\n]*custom_call_target="tpu_custom_call"'
    found = re.findall(lowered, text) + re.findall(compiled, text)
    return {name: found.count(name) for name in found}


def scores(text, seq_len=S):
    """Arrays in a compiled program with a value for every pair of tokens."""
    return re.findall(rf"\w+\[(?:\d+,)*{seq_len},{seq_len}\]", text)


@pytest.mark.parametrize("model", [CHINCHILLA, LLAMA], ids=["chinchilla", "llama"])
@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU7x", *MORE_KINDS])
def test_a_step_lowers_with_our_kernels_for_every_kind_of_tpu(kind, model):
    config = run_of(model, 1, 4, 2)
    assert kernels(lower_train_step(config, abstract_mesh(config.mesh, kind)).as_text()) == KERNELS


def test_what_auto_chooses_depends_on_the_mesh_and_not_on_this_machine():
    config = run_of(CHINCHILLA, 2, 2, 2)
    for mesh in (make_mesh(config.mesh), abstract_mesh(config.mesh, "cpu"), abstract_mesh(config.mesh, "cuda")):
        assert kernels(lower_train_step(config, mesh).as_text()) == {}
    with pytest.raises(AttentionError, match="TPU v99"):
        lower_train_step(config, abstract_mesh(config.mesh, "TPU v99"))


@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("full", 2), ("dots", 1)])
def test_the_forward_kernel_runs_again_only_if_nothing_but_block_inputs_is_kept(remat, forward):
    config = run_of(CHINCHILLA, 1, 2, 2, remat=remat)
    found = kernels(lower_train_step(config, abstract_mesh(config.mesh, "TPU v5 lite")).as_text())
    assert found == {"attention_forward": forward, "attention_backward": 1}


def test_arguments_are_those_of_a_real_step(small, changed):
    config = changed(small, data={"mask_documents": True})
    state, batch, lr = train_step_arguments(config, make_mesh(config.mesh))
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "inputs": ((2, 4, 32), "int32"),
        "targets": ((2, 4, 32), "int32"),
        "weights": ((2, 4, 32), "float32"),
        "segment_ids": ((2, 4, 32), "int32"),
    }
    assert state is make_program(config, make_mesh(config.mesh)).abstract and lr.shape == ()
    _, doubled, _ = train_step_arguments(config, make_mesh(config.mesh), sequences=16)
    assert doubled["weights"].shape == (2, 8, 32)


def test_a_step_compiled_ahead_is_the_step_that_runs(small):
    mesh = make_mesh(small.mesh)
    program, compiled = make_program(small, mesh), compile_train_step(small, mesh)
    arguments = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), train_step_arguments(small, mesh))
    _, expected = program.step(*jax.tree.map(lambda x: x.copy(), arguments))
    _, found = compiled(*arguments)
    assert jax.tree.map(float, found) == jax.tree.map(float, expected)


@pytest.mark.parametrize("model", [CHINCHILLA, LLAMA], ids=["chinchilla", "llama"])
def test_a_step_can_be_exported_for_tpus_where_there_is_none(model):
    config = run_of(model, 1, 2, 2)
    mesh = abstract_mesh(config.mesh, "TPU v5 lite")
    step = make_program(config, mesh).step
    exported = jax.export.export(step, platforms=["tpu"])(*train_step_arguments(config, mesh))
    assert (exported.platforms, exported.nr_devices) == (("tpu",), 4)
    assert kernels(exported.mlir_module()) == KERNELS


@pytest.mark.parametrize("relative", [True, False])
def test_the_op_and_its_gradients_can_be_exported_for_tpus_where_there_is_none(relative):
    shapes = {"q_BxSxHxK": (2, S, 2, 128), "k_BxTxGxK": (2, S, 2, 128), "v_BxTxGxK": (2, S, 2, 128)}
    if relative:
        shapes |= {"r_NxHxK": (S, 2, 128), "content_bias_HxK": (2, 128), "position_bias_HxK": (2, 128)}
    arrays = {name: jax.ShapeDtypeStruct(shape, "bfloat16") for name, shape in shapes.items()}
    gradient = jax.jit(jax.grad(lambda x: attention(**x).astype("float32").sum()))
    with jax.sharding.use_abstract_mesh(abstract_mesh(MeshConfig(), "TPU v5 lite")):
        exported = jax.export.export(gradient, platforms=["tpu"])(arrays)
    assert kernels(exported.mlir_module()) == KERNELS


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def compiled(self, config, slice_):
        return compile_train_step(config, topology_mesh(slice_, config.mesh)).as_text()

    def test_a_step_with_relative_positions_compiles_and_each_device_has_its_rows_and_heads(self):
        text = self.compiled(run_of(CHINCHILLA, 1, 2, 2), "v5e:2x2")
        assert kernels(text) == KERNELS and not scores(text)
        assert re.search(r"%attention_forward\S* = \(bf16\[4,512,128\]", text), "4 of 8 rows, 1 of 2 heads"

    @pytest.mark.long
    def test_gradients_of_untied_tables_may_be_added_up_over_microbatches(self):
        assert kernels(self.compiled(run_of(LLAMA, 1, 2, 2, microbatches=2), "v5e:2x2")) == KERNELS

    @pytest.mark.long
    @pytest.mark.parametrize(("slice_", "remat"), [("v5e:2x2", "full"), ("v4:2x2x1", "dots"), ("v6e:2x2", "none")])
    def test_a_step_with_rotary_positions_and_grouped_heads_compiles(self, slice_, remat):
        text = self.compiled(run_of(LLAMA, 1, 2, 2, remat=remat), slice_)
        assert kernels(text) == KERNELS | {"attention_forward": 2 if remat == "full" else 1} and not scores(text)

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("name", "slice_", "mesh"),
        [
            ("chinchilla-70b", "v5p:8x8x8", (1, 64, 8)),
            ("llama-65b", "v5p:8x8x8", (1, 64, 8)),
            ("llama-7b", "v5e:4x4", (1, 16, 1)),
        ],
    )
    def test_two_layers_of_the_published_width_compile(self, name, slice_, mesh):
        model = dataclasses.replace(preset(name).model, n_layers=2)
        text = self.compiled(run_of(model, *mesh, seq_len=2048, batch_size=128), slice_)
        assert kernels(text) == KERNELS and not scores(text, 2048)


def test_a_run_that_was_warmed_up_for_compiles_nothing(small, changed, tmp_path):
    config = changed(small, model={"d_ff": 40}, train={"double_batch_at": 0.0})
    before = compile_seconds()
    warm(config)
    compiled = compile_seconds() - before
    hardware.peak_flops(make_mesh(config.mesh))  # compiles a little, once in a process
    result = loop.train(config, tmp_path, echo=lambda line: None)
    assert result["time"]["compile"] < 0.05 * compiled
