"""The time of a step is a sum of terms that can be computed by hand, and the run's cost follows from it."""

import dataclasses

import pytest

from chinchilla_jax.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.preflight.predict import ici_seconds, plain_name, run_cost, shape_of, step_time
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.preflight.step import CompiledStep, Memory, Traffic, step_configs

V5E = parse_slice("v5e-16")  # 197 TFLOP/s, 1.503 GHz, 819 GB/s, links of 50 GB/s, 3.125 GB/s between slices
MEMORY = Memory(parameters=1, optimizer=2, batch=0, outputs=0, temporary=3, code=0, peak=6, usable=16)
LINKS = {"data": 0, "fsdp": 2, "context": 0, "tensor": 1}
STEP = CompiledStep(
    sequences=8,
    memory=MEMORY,
    links=LINKS,
    seconds=1.0,
    matmul_flops=197 * 10**10,
    cycles=15_029_907,
    hbm_bytes=819 * 10**7,
    kernels={"attention_forward": 4, "attention_backward": 2},
    traffic=(
        Traffic("all-gather", ("fsdp",), True, True, 1, 4, 10**9, 10**9, 0),
        Traffic("all-reduce", ("tensor",), True, False, 1, 4, 10**8, 10**8, 0),
    ),
)
CALLS = {"attention_forward": 1_502_990.7, "attention_backward": 3_005_981.4}  # 1 and 2 ms


def config_of(**train):
    return RunConfig(
        ModelConfig(), data=DataConfig(seq_len=128), train=TrainConfig(train_tokens=2**20, batch_size=8, **train)
    )


def test_each_term_is_work_over_speed():
    time = step_time(STEP, V5E, CALLS)
    assert time.products == pytest.approx(0.010)  # 1.97e12 / 197e12
    assert time.fusions == pytest.approx(0.010, rel=1e-5)
    assert time.hbm == pytest.approx(0.010)  # 8.19e9 / 819e9
    assert time.attention == pytest.approx(4 * 0.001 + 2 * 0.002, rel=1e-5)
    assert time.asynchronous == pytest.approx(0.010)  # 1e9 / (2 * 50e9)
    assert time.synchronous == pytest.approx(0.002)  # 1e8 / 50e9
    assert time.total == pytest.approx(0.010 + 0.008 + 0.002, rel=1e-5)


def test_compute_is_the_longest_of_products_fusions_and_memory():
    for slower in (
        {"matmul_flops": 3 * STEP.matmul_flops},
        {"cycles": 3 * STEP.cycles},
        {"hbm_bytes": 3 * STEP.hbm_bytes},
    ):
        assert step_time(dataclasses.replace(STEP, **slower), V5E, CALLS).compute == pytest.approx(0.030, rel=1e-5)


def test_asynchronous_traffic_is_exposed_only_beyond_compute_and_attention():
    more = dataclasses.replace(STEP.traffic[0], wire_bytes=3 * 10**9)  # 30 ms against 18
    time = step_time(dataclasses.replace(STEP, traffic=(more,)), V5E, CALLS)
    assert time.exposed == pytest.approx(0.012, rel=1e-5)


def test_traffic_between_slices_is_exposed_in_full():
    across = Traffic("all-reduce", ("data",), False, True, 1, 1, 0, 0, 3_125_000)
    time = step_time(dataclasses.replace(STEP, traffic=(across,)), parse_slice("2xv5e-16"), CALLS)
    assert time.dcn == time.exposed == pytest.approx(0.001)


def test_a_kernel_that_was_not_measured_is_named():
    time = step_time(STEP, V5E, {"attention_forward": 1_502_990.7})
    assert time.unmeasured == ("attention_backward",) and time.attention == pytest.approx(0.004, rel=1e-5)


@pytest.mark.parametrize(("kind", "axes", "milliseconds"), [
    ("all-gather", ("fsdp", "tensor"), 1000 / 150), ("collective-permute", ("fsdp",), 20.0), ("all-reduce", (), 0.0),
])  # fmt: skip
def test_a_collective_uses_the_links_of_its_axes_and_a_permute_one(kind, axes, milliseconds):
    group = Traffic(kind, axes, True, False, 1, 1, 10**9, 10**9, 0)
    assert ici_seconds(group, LINKS, V5E) == pytest.approx(milliseconds / 1000)


def test_the_run_costs_chips_for_as_long_as_its_tokens_take():
    config, time = config_of(), step_time(STEP, V5E, CALLS)
    cost = run_cost(config, {8: time}, V5E, price=1.5)
    seconds = 2**20 / (8 * 128) * time.total
    assert cost.days == pytest.approx(seconds / 86400) and cost.chip_hours == pytest.approx(16 * seconds / 3600)
    assert cost.dollars == pytest.approx(1.5 * cost.chip_hours)
    rate = 8 * 128 / time.total
    assert cost.utilisation["6nd"] == pytest.approx(
        rate * train_flops_per_token(config.model, 128, "6nd") / (16 * 197e12)
    )


def test_a_doubled_batch_has_two_phases_and_one_that_was_not_timed_takes_the_others_rate():
    config, time = config_of(double_batch_at=0.25), step_time(STEP, V5E, CALLS)
    assert [step.train.batch_size for step in step_configs(config)] == [8, 16]
    assert step_configs(config_of()) == (config_of(),)
    slow = dataclasses.replace(time, products=4 * time.total)
    one, both = run_cost(config, {16: slow}, V5E, None), run_cost(config, {8: time, 16: slow}, V5E, None)
    assert [phase.tokens for phase in both.phases] == [2**18, 3 * 2**18]
    assert both.phases[0].tokens_per_second == pytest.approx(8 * 128 / time.total)
    assert both.phases[1].tokens_per_second == pytest.approx(16 * 128 / slow.total)
    assert not one.phases[0].predicted and one.phases[0].tokens_per_second == one.phases[1].tokens_per_second
    assert both.dollars is None


def test_attention_is_measured_for_a_few_heads_of_a_row_of_a_chip():
    values = {
        "model": {"n_layers": 2, "d_model": 1024, "n_heads": 24, "n_kv_heads": 12, "head_dim": 128, "position": "rope"},
        "mesh": {"fsdp": 4, "tensor": 2},
        "train": {"batch_size": 64, "microbatches": 2, "compute_dtype": "bfloat16"},
        "data": {"seq_len": 512},
    }
    config = RunConfig.from_dict(values)
    shape, factor = shape_of(config, parse_slice("v5p-16"))
    assert (shape["heads"], shape["groups"], shape["position"], shape["seq"]) == (4, 2, "rope", 512)
    assert factor == 8 * 3 and shape["rows"] == 1, "8 rows of 12 heads"
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, n_heads=2, n_kv_heads=2))
    shape, factor = shape_of(narrow, parse_slice("v5p-16"))
    assert (shape["rows"], shape["heads"], factor) == (2, 1, 4), "two TensorCores get a row each"
    split = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2, context=2))
    assert shape_of(split, parse_slice("v5p-16"))[1] == 16 * 3 / 2, "heads are exchanged"
    odd = dataclasses.replace(split, model=dataclasses.replace(split.model, n_heads=6, n_kv_heads=6))
    assert shape_of(odd, parse_slice("v5p-16"))[1] == 16 / 2 / 2 / 2, "3 heads measured twice; keys are gathered"
    rules = ("heads=", "batch=data+fsdp+tensor")
    whole = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=rules))
    assert shape_of(whole, parse_slice("v5p-16"))[1] == 4 * 6, "4 rows of all 24 heads"


def test_kernels_have_the_same_name_in_a_step_and_alone():
    assert plain_name("transpose_jvp_attention_backward__.3") == plain_name("attention_backward")
    assert plain_name("jvp_attention_forward_") == "attention_forward"
