"""Names of weights elsewhere: every weight of a family has one, and each tensor is read into the right place."""

import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.layout import Name
from chinchilla_jax.interop.names import NAMES
from chinchilla_jax.model.parts import NORMS, block_weights, end_weights
from chinchilla_jax.presets import preset
from tests.interop.arrays import parameters_from


@pytest.mark.parametrize(("family", "name"), [("llama", "llama-65b"), ("gpt2", "gpt3-175b")])
def test_a_family_has_a_name_for_each_of_its_weights_and_no_others(family, name):
    model = preset(name).model
    modules = {**block_weights(model), "final_norm": NORMS[model.norm].weights(model)}
    paths = {f"{module}/{weight}" for module, weights in modules.items() for weight in weights}
    assert NAMES[family].keys() == paths | end_weights(model).keys()
    assert {"{layer}" in names.tensor for path, names in NAMES[family].items() if path.split("/")[0] in
            block_weights(model)} == {True}  # fmt: skip


@pytest.mark.parametrize("scan", [False, True])
def test_tensors_of_all_layers_come_transposed_and_in_parts_as_their_names_say(scan):
    model = ModelConfig(n_layers=3, d_model=4, n_heads=1, n_kv_heads=1, head_dim=2, d_ff=6, vocab_size=5,
                        position="none", biases="none", scan_layers=scan)  # fmt: skip
    declared = {**block_weights(model), "final_norm": NORMS[model.norm].weights(model)}
    names = {f"{module}/{weight}": Name(f"{{layer}}.{module}.{weight}") for module in declared
             for weight in declared[module]}  # fmt: skip
    names |= {"embedding": Name("embedding"), "final_norm/gain": Name("gain")}
    names["feed_forward/up"] = Name("up.{layer}", transposed=True)
    names |= {f"attention/{name}": Name("qkv.{layer}", part=i) for i, name in enumerate(("query", "key", "value"))}
    rng = np.random.default_rng(0)
    tensors = {"embedding": rng.random((5, 4), np.float32), "gain": rng.random(4, np.float32)}
    for layer in range(3):
        tensors |= {f"up.{layer}": rng.random((6, 4), np.float32), f"qkv.{layer}": rng.random((4, 6), np.float32)}
        for path, name in names.items():
            module, _, weight = path.partition("/")
            if name.tensor.startswith("{layer}"):
                d, rest = 4, np.prod(declared[module][weight].shape) // 4
                shape = declared[module][weight].shape
                shape = shape if len(shape) < 3 else (d, rest) if shape[0] == d else (rest, d)
                tensors[name.tensor.format(layer=layer)] = rng.random(shape, np.float32)
    params = parameters_from(tensors, names, model)
    for layer in range(3):
        module = params["layers"] if scan else params[f"layer_{layer}"]
        found = {name: module["attention"][name] for name in ("query", "key", "value")} | module["feed_forward"]
        found = {name: array[layer] for name, array in found.items()} if scan else found
        np.testing.assert_array_equal(found["up"], tensors[f"up.{layer}"].T)
        np.testing.assert_array_equal(found["key"][:, 0], tensors[f"qkv.{layer}"][:, 2:4])
        np.testing.assert_array_equal(found["down"], tensors[f"{layer}.feed_forward.down"])


def test_a_weight_without_a_name_elsewhere_is_refused():
    model = ModelConfig(n_layers=1, position="none", tie_embeddings=False)
    with pytest.raises(KeyError, match="output"):
        parameters_from({"transformer.wte.weight": np.zeros((1024, 64))}, NAMES["gpt2"], model)
