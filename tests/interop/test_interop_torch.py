"""What transformers computes with exported weights is what this code computes, for every kind of model.

    CHINCHILLA_JAX_TORCH=OTHER_PYTHON python -m pytest -s tests/interop/test_interop_torch.py

The variable names a Python with torch and transformers, unless this one has them. Without either only what can be
checked without torch is.
"""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.hf.own import CODE, config
from chinchilla_jax.model.parts import BIASES, FEED_FORWARDS, NORMS, POSITIONS
from chinchilla_jax.model.rope_scaling import KINDS
from tests.interop.exports import CASES, export

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "chinchilla_jax" / "interop" / "hf" / "templates"
HERE = sys.executable if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers") else None
TORCH = os.environ.get("CHINCHILLA_JAX_TORCH", HERE)
# How a model is computed, trained or begun, and not what it is.
NO_MATTER = {"attention", "scan_layers", "init_scale"}


@pytest.mark.skipif(TORCH is None, reason="CHINCHILLA_JAX_TORCH names no Python with torch")
def test_transformers_computes_what_this_code_computes(tmp_path):
    for name in CASES:
        export(name, tmp_path / "exports", lambda line: None)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [TORCH, ROOT / "tests" / "interop" / "check_torch.py", tmp_path / "exports"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    print(done.stdout)
    assert done.returncode == 0 and f"{len(CASES)} models" in done.stdout, done.stdout + done.stderr


def strings(name):
    """The texts in a template's code."""
    tree = ast.parse((TEMPLATES / name).read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_the_code_beside_weights_reads_every_setting_that_a_model_has():
    read = strings("modeling_chinchilla_jax.py") | strings("configuration_chinchilla_jax.py")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields - read <= NO_MATTER
    module = ast.parse((TEMPLATES / "modeling_chinchilla_jax.py").read_text())
    (biases,) = (node.value for node in module.body if isinstance(node, ast.AnnAssign) and node.target.id == "_BIASES")
    there = {word: set(products) for word, products in ast.literal_eval(biases).items()}
    assert there == {word: set(products) for word, products in BIASES.items()}
    # A new word needs a branch there, and a case among the exports.
    cases = [model for _, model in CASES.values()]
    for key, words in (("position", POSITIONS), ("norm", NORMS), ("feed_forward", FEED_FORWARDS), ("biases", BIASES)):
        assert {getattr(model, key) for model in cases} == set(words)
    assert {model.rope_scaling.split()[0] for model in cases if model.rope_scaling} == set(KINDS)


def test_a_config_names_the_code_beside_it(tmp_path):
    folder = export("chinchilla", tmp_path, lambda line: None)
    said = json.loads((folder / "config.json").read_text())
    assert said["model_type"] == "chinchilla_jax" and said["auto_map"] == config(ModelConfig())["auto_map"]
    for target in said["auto_map"].values():
        file, _, name = target.partition(".")
        assert "--" not in target and f"{file}.py" in CODE
        classes = [node.name for node in ast.parse((folder / f"{file}.py").read_text()).body if hasattr(node, "bases")]
        assert name in classes
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
