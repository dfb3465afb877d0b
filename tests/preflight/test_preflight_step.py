"""A run has one train step or two, and what is known of one survives JSON."""

import dataclasses
import json

from chinchilla_jax.base.config_values import build
from chinchilla_jax.config import RunConfig
from chinchilla_jax.preflight.step import CompiledStep, step_configs
from tests.preflight.test_preflight_predict import STEP


def test_a_doubled_batch_is_compared_with_what_it_must_send():
    config = RunConfig.from_dict({"train": {"batch_size": 4, "train_tokens": 512, "double_batch_at": 0.5}})
    first, wide = step_configs(config)
    assert (first.train.batch_size, first.train.double_batch_at, first.train.train_tokens) == (4, 0.0, 512)
    assert (wide.train.batch_size, wide.train.double_batch_at, wide.train.train_tokens) == (8, 0.0, 1024)


def test_a_step_survives_json():
    assert build(CompiledStep, json.loads(json.dumps(dataclasses.asdict(STEP))), "") == STEP
