"""Settings are ranked by arithmetic, and what is compiled of them, in which order, follows from what fits."""

import dataclasses

import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.preflight import search
from chinchilla_jax.preflight.search import with_setting
from chinchilla_jax.preflight.slices import lays_out, parse_slice
from chinchilla_jax.presets import preset

SLICE = parse_slice("v5p-256")
GIB = 2**30


def config_of(mesh=(1, 128, 1), **train):
    model = preset("llama-7b").model
    return RunConfig(
        model,
        data=DataConfig(vocab_size=32000, seq_len=2048),
        mesh=MeshConfig(*mesh),
        train=TrainConfig(
            train_tokens=10**12, compute_dtype="bfloat16", **{"remat": "none", "batch_size": 1024} | train
        ),
    )


def changed(config, **setting):
    """The config with some of its mesh, microbatches and remat changed."""
    before = {"mesh": config.mesh, "microbatches": config.train.microbatches, "remat": config.train.remat}
    return with_setting(config, **before | setting)


def estimated(**setting):
    return search.estimate(changed(config_of(), **setting), SLICE)


def test_every_mesh_covers_the_slice_and_divides_the_model():
    found = list(search.meshes(config_of(), SLICE))
    assert MeshConfig(1, 128, 1) in found and MeshConfig(1, 32, 4) in found and MeshConfig(4, 4, 8) in found
    assert all(lays_out(SLICE, mesh) and mesh.size == 128 for mesh in found)
    two = list(search.meshes(config_of(), parse_slice("2xv5p-256")))
    assert two and all(mesh.data % 2 == 0 for mesh in two)


def test_experts_stay_on_the_axis_that_the_config_gives_them_and_only_the_rest_is_copied_along_it():
    model = dataclasses.replace(preset("llama-7b").model, feed_forward="top_k_swiglu", experts=8, active_experts=2,
                                d_ff=8 * 4096)  # fmt: skip
    sparse = dataclasses.replace(config_of((1, 128, 1)), model=model)
    split = changed(sparse, mesh=MeshConfig(fsdp=32, expert=4))
    found = list(search.meshes(split, SLICE))
    assert found and all(mesh.expert == 4 and mesh.size == 128 for mesh in found)
    assert search.mesh_flags(split.mesh).endswith("--config.mesh.context=1 --config.mesh.expert=4")
    whole = count_parameters(model)
    experts = 32 * 3 * 8 * 4096 * 4096
    more = search.estimate(split, SLICE).memory - search.estimate(sparse, SLICE).memory
    assert more == pytest.approx(16 * (whole.total - experts) * (1 / 32 - 1 / 128))


def test_the_mesh_named_in_an_error_keeps_tensor_and_divides_the_batch():
    assert search.nearest_mesh(config_of((1, 64, 4)), SLICE) == MeshConfig(1, 32, 4)
    assert search.nearest_mesh(config_of((1, 16, 1), batch_size=16), SLICE) == MeshConfig(1, 16, 8)
    assert search.nearest_mesh(config_of((1, 1, 1), batch_size=1), SLICE) is None


def test_more_is_kept_less_recomputed_from_full_to_none():
    memory = [estimated(remat=remat).memory for remat in ("full", "attention", "dots", "none")]
    seconds = [estimated(remat=remat).seconds for remat in ("full", "attention", "dots", "none")]
    assert memory == sorted(memory) and memory[0] < memory[-1]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > seconds[-1]


def test_kept_activations_are_counted_by_hand_for_a_policy():
    config = config_of((1, 32, 4), remat="attention", microbatches=8)
    # 1024 rows of 2048 tokens in 8 parts over 32 devices: 8192 tokens, shared by 4 devices.
    # 32 layers: the stream of 4096, attention's 4096 and two words of its 32 heads.
    assert search.activation_bytes(config) == 32 * 8192 * 2 * (4096 + 4096 + 64) / 4


def test_microbatches_save_activations_and_tensor_parallelism_costs_traffic():
    assert estimated(microbatches=8).memory < estimated(microbatches=1).memory
    assert estimated(mesh=MeshConfig(1, 16, 8)).seconds > estimated(mesh=MeshConfig(1, 128, 1)).seconds


def test_what_cannot_fit_is_ruled_out_and_the_rest_is_fastest_first():
    usable = 20 * GIB
    order, ruled_out = search.ranked(config_of(), SLICE, usable)
    assert order and ruled_out
    assert all(e.memory <= search.ROOM * usable for e in order)
    assert all(e.memory > search.ROOM * usable for e in ruled_out)
    assert [e.seconds for e in order] == sorted(e.seconds for e in order)


def test_the_nearest_setting_that_fits_changes_least_and_needs_less():
    config = config_of()
    here, twice = estimated(), estimated(microbatches=2)
    # Half the rows are not enough by a byte, and neither is the next policy: one more step of either is.
    found = search.nearest(config, SLICE, here.memory, twice.memory - 1)
    assert {found[0].config.mesh, found[1].config.mesh} == {config.mesh}
    steps = {(e.config.train.microbatches, e.config.train.remat) for e in found if e.config.mesh == config.mesh}
    assert (2, "none") not in steps and (4, "none") in steps and all(e.memory < twice.memory for e in found)
    assert search.nearest(config, SLICE, 2.0 * here.memory, twice.memory)[0].memory <= twice.memory / 2
    assert search.nearest(config, SLICE, here.memory, 1.0) == [], "nothing fits a chip without memory"


def test_flags_can_be_pasted():
    flags = search.setting_flags(with_setting(config_of(), MeshConfig(1, 32, 4), 2, "dots"))
    assert flags == (
        "--config.mesh.data=1 --config.mesh.fsdp=32 --config.mesh.tensor=4 --config.mesh.context=1 "
        "--config.train.microbatches=2 --config.train.remat=dots"
    )


def test_a_setting_that_does_not_divide_the_batch_is_none():
    counts = {
        one.train.microbatches for one in search.settings(config_of(), SLICE) if one.mesh == MeshConfig(1, 128, 1)
    }
    assert counts == {1, 2, 4, 8}, "1024 sequences over 128 devices"
    with pytest.raises(ValueError, match="batch_size"):
        with_setting(config_of(), MeshConfig(1, 128, 1), 16, "none")
