"""The least traffic of a layer is what a hand counts, and what the compiler's collectives add up to."""

import dataclasses
import math

import pytest

from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight.program.collectives import Collective
from chinchilla_jax.preflight.program.program import StepProgram, read_program
from chinchilla_jax.preflight.program.traffic import Need, compare, minimum
from chinchilla_jax.training.machine.ahead import compile_train_step
from tests.compiling import libtpu, needs_compiler

# Matrices of a layer: 8 (8 + 2 * 8) + 8 * 8 + 3 * 8 * 16 = 640 weights.
SMALL = ModelConfig(
    n_layers=2,
    d_model=8,
    n_heads=2,
    n_kv_heads=2,
    head_dim=4,
    d_ff=16,
    vocab_size=512,
    position="rope",
    feed_forward="swiglu",
    biases="none",
)


def run_of(model=SMALL, batch_size=4, microbatches=1, remat="attention", compute_dtype="bfloat16", seq_len=8, **mesh):
    return RunConfig(
        model,
        data=DataConfig(vocab_size=512, seq_len=seq_len),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(
            batch_size=batch_size,
            microbatches=microbatches,
            remat=remat,
            compute_dtype=compute_dtype,
            train_tokens=10**6,
        ),
    )


def sums(needs):
    """`{(kind, axes joined by +): bytes}`."""
    found = {}
    for need in needs:
        key = need.kind, "+".join(need.axes)
        found[key] = found.get(key, 0) + need.wire_bytes
    return found


def test_a_layer_on_two_axes_is_as_counted_by_hand():
    traffic = minimum(run_of(fsdp=2, tensor=2))
    # On a device: 320 weights of 2 bytes; 2 rows of 8 tokens of width 8, 256 bytes; 16 gains. Half of each is sent.
    assert sums(traffic.layer) == {
        ("all-gather", "fsdp"): 2 * 320,
        ("reduce-scatter", "fsdp"): 320,
        ("all-gather", "tensor"): 6 * 128,
        ("reduce-scatter", "tensor"): 5 * 128,
        ("all-reduce", "fsdp+tensor"): 2 * 32 * 3 // 4,
    }
    assert traffic.layer_per_step == ()
    # 256 rows of the vocabulary of 8 times 2 bytes; 3 float32 numbers for 16 tokens.
    assert sums(traffic.embedding_and_loss) == {
        ("all-gather", "tensor"): 2 * 128,
        ("reduce-scatter", "tensor"): 2 * 128,
        ("all-reduce", "tensor"): 3 * 4 * 16,
        ("reduce-scatter", "fsdp"): 2048,
    }
    assert sums(traffic.embedding_and_loss_per_step) == {("all-gather", "fsdp"): 2048}
    assert minimum(run_of(fsdp=2, tensor=2, batch_size=8, microbatches=2)).layer == traffic.layer


def test_rules_of_the_config_say_what_is_split_over_which_axes():
    # The whole stream on every device: five sums of 256 bytes, and two more before the first and behind the last layer.
    whole = minimum(run_of(fsdp=2, tensor=2, rules=("residual_length=context",)))
    assert sums(whole.layer) == {
        ("all-gather", "fsdp"): 2 * 320,
        ("reduce-scatter", "fsdp"): 320,
        ("all-reduce", "tensor"): 5 * 256,
        ("all-reduce", "fsdp"): 32,
    }
    assert sums(whole.embedding_and_loss)["all-reduce", "tensor"] == 2 * 256 + 3 * 4 * 16
    # Whole weights on every device: only their gradients are added up, once a step.
    copied = minimum(run_of(fsdp=2, rules=("embed=",)))
    assert copied.layer == copied.embedding_and_loss == ()
    assert sums(copied.layer_per_step) == {("all-reduce", "fsdp"): 2 * (640 + 16)}
    assert sums(copied.embedding_and_loss_per_step) == {("all-reduce", "fsdp"): 2 * 512 * 8}
    with pytest.raises(ConfigError, match="mesh.rules: unknown logical axis 'width'"):
        minimum(run_of(rules=("width=fsdp",)))


def test_one_device_sends_nothing():
    assert minimum(run_of()) == type(minimum(run_of()))((), (), (), ())


@pytest.mark.parametrize(
    ("remat", "gathers", "scatters"), [("none", 4, 4), ("dots", 6, 4), ("attention", 6, 5), ("full", 6, 5)]
)
def test_what_is_recomputed_is_sent_again(remat, gathers, scatters):
    found = sums(minimum(run_of(remat=remat, tensor=2, batch_size=2)).layer)
    assert (found["all-gather", "tensor"], found["reduce-scatter", "tensor"]) == (gathers * 128, scatters * 128)


def test_gradients_cross_the_data_axis_once_a_step_in_the_type_they_are_added_up_in():
    def over_data(**settings):
        traffic = minimum(run_of(data=2, fsdp=2, batch_size=8, **settings))
        assert not any("data" in need.axes for need in traffic.layer + traffic.embedding_and_loss)
        return sums(traffic.layer_per_step), sums(traffic.embedding_and_loss_per_step)["all-reduce", "data"]

    assert over_data() == ({("all-reduce", "data"): 2 * (640 // 2 + 16)}, 2 * 512 * 8 // 2)
    assert over_data(microbatches=2) == ({("all-reduce", "data"): 4 * (640 // 2 + 16)}, 4 * 512 * 8 // 2)
    assert over_data(compute_dtype="float32")[0] == {("all-reduce", "data"): 4 * (640 // 2 + 16)}


def test_keys_of_distances_come_the_cheaper_way():
    def extra(**shape):
        relative = dataclasses.replace(SMALL, position="relative", **shape)
        with_it, without = (
            sums(minimum(run_of(model, fsdp=2)).layer)
            for model in (relative, dataclasses.replace(relative, position="none"))
        )
        return {kind: sent - without.get((kind, axes), 0) for (kind, axes), sent in with_it.items()}

    uv = 2 * 2 * 8 * 1 // 2 * 2  # u and v, 16 numbers of 2 bytes: half of them, twice
    # The weight of 8 x 8 is smaller than two sums of 8 distances x 8 in float32.
    assert extra() == {"all-gather": 2 * 64, "reduce-scatter": 64, "all-reduce": uv}
    # The weight of 64 x 8 is larger.
    assert extra(d_model=64) == {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 2 * 4 * 64 + 2 * 64 + uv}


def test_tokens_that_are_split_over_devices_see_each_other_the_cheaper_way():
    def over_context(**shape):
        found = sums(minimum(run_of(dataclasses.replace(SMALL, **shape), fsdp=2, context=2)).layer)
        assert found["all-gather", "fsdp+context"] == 2 * 2 * 640 * 3 // 4, "weights are in 4 parts"
        return {kind: sent for (kind, axes), sent in found.items() if axes == "context"}

    # 2 rows of 4 tokens on a device: queries, keys, values and output of 8 numbers of 2 bytes each; half is sent.
    assert over_context() == {"all-to-all": 3 * (2 * 4 * 4 * 8 * 2) // 2}
    # One head cannot be split: 2 rows of 8 keys and values are gathered.
    assert over_context(n_heads=1, n_kv_heads=1, head_dim=8) == {
        "all-gather": 2 * (2 * 8 * 2 * 8 * 2) // 2,
        "reduce-scatter": 2 * 8 * 2 * 8 * 2 // 2,
    }
    # Nothing recomputed: 2 exchanges.
    assert sums(minimum(run_of(remat="none", context=2)).layer)["all-to-all", "context"] == 2 * (4 * 4 * 4 * 8 * 2) // 2


def test_biases_and_tables_are_counted():
    model = dataclasses.replace(
        SMALL, biases="all", norm="layernorm", tie_embeddings=False, position="learned", max_position=64
    )
    traffic = minimum(run_of(model, fsdp=2, tensor=2))
    found = sums(traffic.layer)
    assert found["all-reduce", "fsdp+tensor"] == 2 * 2 * (4 * 8 + 2 * 8) * 3 // 4
    assert found["all-reduce", "fsdp"] == 2 * 2 * (2 * 16 + 8 + 2 * 8) // 2 // 2
    assert sums(traffic.embedding_and_loss_per_step)["all-gather", "fsdp"] == 2 * (2 * 256 * 8 + 64 * 8) // 2


def sent(kind, axes, wire, trips, loops, op_name=""):
    return Collective("c", kind, axes, 2, 2 * wire, wire, trips, "ici", False, op_name, loops)


def program(*collectives):
    return StepProgram(collectives, {}, 0, 0, 0, (), {})


def parts(program, config):
    """Rows of a layer, and of the embedding and the loss."""
    rows = compare(program, config)
    return [row for row in rows if row.in_layers], [row for row in rows if not row.in_layers]


LAYER, FSDP = "jit(step)/while/body/jvp(Transformer)/while/body/layers/attention/dot_general", ("fsdp",)


def test_what_is_measured_is_shared_out_over_layers_and_microbatches():
    config = run_of(fsdp=2, microbatches=2, batch_size=8)
    layer, ends = parts(
        program(
            sent("all-gather", FSDP, 600, 4, ("batch", "forward"), LAYER),
            sent("all-gather", FSDP, 680, 4, ("batch", "backward"), LAYER),
            sent("reduce-scatter", FSDP, 100, 4, ("batch", "backward")),
            sent("collective-permute", FSDP, 10, 8, ("batch", "backward", "window")),
            sent("all-reduce", FSDP, 32, 2, ("batch",), LAYER.replace("layers", "layer_1")),
            sent("reduce-scatter", FSDP, 5000, 2, ("batch",)),
            sent("all-gather", FSDP, 4096, 1, ()),
        ),
        config,
    )
    assert [(row.kind, row.axes, row.measured, row.minimum) for row in layer] == [
        ("all-gather", FSDP, 1280, 1280),
        ("all-reduce", FSDP, 16, 32),
        ("collective-permute", FSDP, 20, 0),
        ("reduce-scatter", FSDP, 100, 640),
        ("all", FSDP, 1416, 1952),
        ("all", (), 1416, 1952),
    ]
    assert [row.ratio for row in layer[:3]] == [1.0, 0.5, math.inf]
    assert [(row.kind, row.axes, row.measured, row.minimum) for row in ends] == [
        ("all-gather", FSDP, 2048, 2048),
        ("reduce-scatter", FSDP, 5000, 4096),
        ("all", FSDP, 7048, 6144),
        ("all", (), 7048, 6144),
    ]


def test_without_microbatches_the_loop_over_layers_is_the_outer_one():
    layer, ends = parts(
        program(
            sent("all-gather", FSDP, 640, 2, ("layers",), LAYER),
            sent("reduce-scatter", FSDP, 640, 2, ("layers",)),
            sent("all-gather", FSDP, 99, 2, ("chunks",)),
        ),
        run_of(fsdp=2),
    )
    assert [row.measured for row in layer if row.kind != "all"] == [640, 0, 640]
    assert ends[0].measured == 198


def test_a_loop_of_unknown_length_is_not_compared():
    known = program(sent("all-gather", FSDP, 1, 1, ("while.3",), LAYER))
    with pytest.raises(HloError, match="while.3"):
        compare(dataclasses.replace(known, unknown_loops={"while.3": "while.3 layers"}), run_of(fsdp=2))


SPARSE = dataclasses.replace(SMALL, feed_forward="top_k_swiglu", experts=4, active_experts=2)


def test_experts_are_sent_the_rows_of_their_tokens_and_their_gradients_stay():
    traffic = minimum(run_of(SPARSE, data=2, expert=2))
    # On a device: 1 row of 8 tokens of width 8, 128 bytes; 256 weights of attention, 4 * 8 of the router and 16 gains.
    assert sums(traffic.layer) == {("all-to-all", "expert"): 6 * 2 * 128 // 2}
    assert sums(traffic.layer_per_step) == {
        ("all-reduce", "data+expert"): 2 * 2 * (256 + 32 + 16) * 3 // 4,
        ("all-reduce", "data"): 2 * 2 * (3 * 8 * 16 // 2) // 2,
    }
    no_remat = minimum(run_of(SPARSE, data=2, expert=2, remat="none"))
    assert sums(no_remat.layer) == {("all-to-all", "expert"): 4 * 2 * 128 // 2}


def test_a_need_says_what_it_is_for():
    need = minimum(run_of(fsdp=2)).layer[0]
    assert need == Need("all-gather", ("fsdp",), 2 * 640, "weights")


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def test_tokens_are_exchanged_for_experts_by_a_ragged_all_to_all_that_sends_the_least(self):
        model = dataclasses.replace(SPARSE, d_model=256, n_heads=2, head_dim=128, d_ff=1024, attention="plain")
        config = run_of(model, batch_size=8, seq_len=128, fsdp=2, expert=2)
        mesh = topology_mesh("v5e:2x2", config.mesh)
        text = compile_train_step(config, mesh).as_text()
        assert " ragged-all-to-all(" in text
        compiled = read_program(text, dict(mesh.shape))
        assert compiled.kernels["ragged-dot-none"] >= 2 * 9, "nine products a layer"
        layer, _ = parts(compiled, config)
        [rows] = [row for row in layer if row.kind == "all-to-all"]
        assert rows.axes == ("expert",) and rows.ratio == 1.0
        [everything] = [row for row in layer if not row.axes]
        assert everything.ratio <= 1.2

    @pytest.mark.parametrize("axes", [
        {"fsdp": 2, "tensor": 2}, pytest.param({"context": 2, "tensor": 2}, marks=pytest.mark.long),
    ], ids=["fsdp", "context"])  # fmt: skip
    def test_a_compiled_layer_moves_the_least_and_a_fifth_more_in_all_at_most(self, axes):
        model = dataclasses.replace(
            SMALL, d_model=256, n_heads=4, n_kv_heads=4, head_dim=64, d_ff=1024, attention="plain"
        )
        config = run_of(model, batch_size=16, microbatches=2, seq_len=256, **axes)
        mesh = topology_mesh("v5e:2x2", config.mesh)
        compiled = read_program(compile_train_step(config, mesh).as_text(), dict(mesh.shape))
        layer, ends = parts(compiled, config)
        moved = [row for row in layer if row.kind in ("all-gather", "all-to-all") and row.minimum]
        assert len(moved) == len(axes) + ("context" in axes) and all(row.ratio == 1.0 for row in moved), moved
        for total in (*(row for row in layer if row.kind == "all" and len(row.axes) < 2), ends[-1]):
            # On `fsdp`, libtpu 0.0.50 sends 1.5 kB of 4.5 MB less than is thought to be the least; why is not known.
            least = 1.0 if libtpu() < (0, 0, 50) else 0.999
            assert least <= total.ratio <= 1.2, total
