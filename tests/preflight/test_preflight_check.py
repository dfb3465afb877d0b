"""What a run costs and keeps is what its objective says."""

import pytest

from chinchilla_jax.config import RunConfig
from chinchilla_jax.preflight import check as checks
from chinchilla_jax.preflight.cache import Cache
from chinchilla_jax.preflight.check import Options, check
from chinchilla_jax.preflight.compiled import argument_memory
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.preflight.step import CompiledStep, Memory
from chinchilla_jax.training import objective
from chinchilla_jax.training.machine.ahead import abstract_mesh

CONFIG = RunConfig.from_dict({"mesh": {"fsdp": 4}, "train": {"batch_size": 4, "train_tokens": 10**6}})


class Doubled(objective.Objective):
    """Takes as long as two steps, and keeps a second copy of the weights."""

    def init_extra(self, config, params):
        return params

    def flops(self, config, tokens):
        return {name: 2 * flops for name, flops in super().flops(config, tokens).items()}


def test_an_objective_says_what_training_by_it_costs(monkeypatch, tmp_path):
    asked = []

    def compile_step(config, slice_, objective):
        asked.append(objective)
        step = CompiledStep(config.train.batch_size, Memory(1, 2, 0, peak=3, usable=4), {}, 1.0, matmul_flops=10**9)
        return step, ""

    monkeypatch.setattr(checks, "_compile", compile_step)
    options = Options(parse_slice("v5e-4"), Cache(tmp_path))
    usual, twice = (check(CONFIG, options, print, one) for one in (None, Doubled()))
    assert asked == [None, Doubled()], "no step of another objective is taken from the cache"
    assert twice.ledger.flops == {name: 2 * flops for name, flops in usual.ledger.flops.items()}
    assert twice.cost.utilisation == {name: 2 * share for name, share in usual.cost.utilisation.items()}
    assert twice.cost.days == usual.cost.days, "the time is that of the compiled step"


def test_what_an_objective_keeps_is_part_of_the_state():
    mesh = abstract_mesh(CONFIG.mesh, "TPU v5 lite")
    usual, twice = argument_memory(CONFIG, mesh), argument_memory(CONFIG, mesh, Doubled())
    assert twice.optimizer - usual.optimizer == usual.parameters == twice.parameters > 0
    assert usual.optimizer == pytest.approx(2 * usual.parameters, abs=100)
