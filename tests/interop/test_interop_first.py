"""A run that begins with given weights: it is another run with others, and goes on exactly after a stop."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.interop.convert import export_model
from chinchilla_jax.interop.first import first_weights
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.training import loop
from chinchilla_jax.training.loop import Fork, train


def quiet(line):
    del line


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_run):
    """A trained run, and its weights exported."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_run, folder / "run", keep=(2, 4), echo=quiet)
    export_model(folder / "run", folder / "out", echo=quiet)
    return folder


def test_training_goes_on_from_weights_and_resumes_to_the_bit(tmp_path, tiny_run, trained, monkeypatch):
    seed = dataclasses.replace(tiny_run.train, seed=5, checkpoint_every=2)
    config = dataclasses.replace(tiny_run, train=seed)
    first = first_weights(trained / "out", quiet)
    lines = []
    whole = train(config, tmp_path / "whole", first=first, echo=lines.append)
    assert f"beginning with the weights of {trained / 'out'}" in lines
    assert whole["init_from"] == {"folder": str(trained / "out"), "fingerprint": first.fingerprint}
    fresh = train(config, tmp_path / "fresh", echo=quiet)
    assert whole["loss"] < fresh["loss"] - 0.05

    class Stopped(loop.Signals):
        received = property(lambda self: self.calls(), lambda self, value: None)
        count = 0

        def calls(self):
            Stopped.count += 1
            return Stopped.count == 3

    with monkeypatch.context() as patched:
        patched.setattr(loop, "Signals", Stopped)
        with pytest.raises(loop.Preempted):
            train(config, tmp_path / "stopped", first=first, echo=quiet)
    resumed = train(config, tmp_path / "stopped", first=first, echo=quiet)
    assert resumed["loss"] == whole["loss"]
    a, b = open_model(tmp_path / "whole"), open_model(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    for other, told in ((None, "belongs to a run that began with"), (first_weights(trained / "run", quiet), "began")):
        with pytest.raises(ConfigError, match=told):
            train(config, tmp_path / "stopped", first=other, echo=quiet)
    with pytest.raises(ConfigError, match="belongs to one with fresh weights"):
        train(config, tmp_path / "fresh", first=first, echo=quiet)
    with pytest.raises(ConfigError, match="^fork: .*began with weights"):
        train(config, tmp_path / "branch", fork=Fork(tmp_path / "whole", 2), echo=quiet)


def test_a_run_gives_the_same_first_state_as_its_export(tiny_run, trained):
    from chinchilla_jax.parallel.mesh import make_mesh
    from chinchilla_jax.training.step import make_program

    program = make_program(tiny_run, make_mesh(tiny_run.mesh))
    run, out = (first_weights(trained / name, quiet) for name in ("run", "out"))
    states = [first.state(program, tiny_run.model, 3) for first in (run, out)]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))
    fresh = program.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, states[0].opt_state, fresh.opt_state)
    assert run.fingerprint != out.fingerprint and out.fingerprint == first_weights(trained / "out", quiet).fingerprint


def test_other_weights_have_another_fingerprint(tmp_path, trained):
    export_model(trained / "run", tmp_path / "earlier", step=2, echo=quiet)
    assert first_weights(tmp_path / "earlier", quiet).fingerprint != first_weights(trained / "out", quiet).fingerprint


def test_another_shape_is_refused_by_its_settings_and_leaves_nothing(tmp_path, tiny_run, trained):
    first = first_weights(trained / "out", quiet)
    wider = dataclasses.replace(tiny_run, model=dataclasses.replace(tiny_run.model, d_model=24, norm_eps=1e-6))
    with pytest.raises(ConfigError, match="model.d_model: 16 there, 24 here, model.norm_eps: 1e-05 there, 1e-06 here"):
        train(wider, tmp_path / "run", first=first, echo=quiet)
    with pytest.raises(ConfigError, match="^init_from: a branch begins with"):
        train(tiny_run, tmp_path / "run", first=first, fork=Fork(trained / "run", 2), echo=quiet)
    assert not (tmp_path / "run").exists()
    assert json.loads((trained / "run" / "config.json").read_text()).keys().isdisjoint({"init_from"})
