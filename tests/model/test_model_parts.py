"""Parts of a block: what they declare is what is built, counted and trained, also of a part that a test adds."""

import dataclasses
import itertools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from chinchilla_jax.config import ConfigError, DataConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.ledger import count_parameters, forward_flops_per_sequence
from chinchilla_jax.model.parts import (
    BIASES,
    FEED_FORWARDS,
    NORMS,
    POSITIONS,
    FeedForward,
    Weight,
    block_weights,
    end_weights,
    matrix,
    vectors,
)
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.step import make_program

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)


@dataclasses.dataclass(eq=False)
class Bilinear(FeedForward):
    """down(side(x) * up(x) * scale), and if asked to the sum of squares of what it adds."""

    reports: bool = False

    def weights(self, c):
        side = matrix(c, (c.d_model, c.d_ff), ("embed", "mlp"), c.d_model)
        return {**super().weights(c), "side": side, "scale": Weight((c.d_ff,), ("mlp",), mean=1.0)}

    def compute(self, x, w, c, dtype):
        w = {name: weight.astype(dtype) for name, weight in w.items()}
        y = ((x @ w["side"]) * (x @ w["up"]) * w["scale"]) @ w["down"]
        return y, {"layers": jnp.ones(()), "squares": jnp.sum(y * y)} if self.reports else {}


@pytest.fixture
def shape(monkeypatch):
    """The shape of a model with a feed-forward layer that the package does not have."""
    monkeypatch.setitem(FEED_FORWARDS, "bilinear", Bilinear(""))
    monkeypatch.setitem(FEED_FORWARDS, "reporting", Bilinear("", reports=True))
    return ModelConfig(n_layers=3, d_model=16, d_ff=24, head_dim=8, vocab_size=512, biases="none",
                       feed_forward="bilinear")  # fmt: skip


def test_what_is_built_is_what_the_parts_declare():
    parts = [*itertools.product(POSITIONS, ("gelu", "swiglu"), NORMS, BIASES)]
    parts += [("rope", kind, "rmsnorm", "all") for kind in FEED_FORWARDS.keys() - {"gelu", "swiglu"}]
    for position, kind, norm, biases in parts:
        model = ModelConfig(position=position, feed_forward=kind, norm=norm, biases=biases, scan_layers=False)
        boxed = jax.eval_shape(Transformer(model).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32))
        block = block_weights(model)
        declared = {f"layer_{i}": block for i in range(model.n_layers)}
        declared |= {**end_weights(model), "final_norm": NORMS[norm].weights(model)}
        is_box = {"is_leaf": lambda leaf: isinstance(leaf, nn.Partitioned)}
        built = jax.tree.map(lambda box: (box.value.shape, box.names), boxed["params"], **is_box)
        is_weight = {"is_leaf": lambda leaf: isinstance(leaf, Weight)}
        assert built == jax.tree.map(lambda weight: (weight.shape, weight.axes), declared, **is_weight)


@pytest.mark.parametrize("part", [*NORMS.values(), *POSITIONS.values(), *FEED_FORWARDS.values()], ids=repr)
def test_a_part_finds_its_function(part):
    with pytest.raises(TypeError, match=rf"{part.function.partition('.')[2]}\(\) missing"):
        part.compute()


def test_a_part_added_by_a_test_trains(shape):
    config = RunConfig(model=shape, data=DataConfig(vocab_size=512, seq_len=6),
                       train=TrainConfig(batch_size=2, train_tokens=10**4))  # fmt: skip
    program = make_program(config, make_mesh(config.mesh))
    batch = {"inputs": TOKENS[None], "targets": TOKENS[None] + 1, "weights": np.ones((1, 2, 6), np.float32)}
    state = program.init(jax.random.key(0))
    losses = []
    for _ in range(3):
        state, metrics = program.step(state, batch, np.float32(0.01))
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    built = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert built == count_parameters(shape).total
    assert count_parameters(shape).feed_forward == 3 * (3 * 16 * 24 + 24)
    assert "scale" in vectors(shape), "a vector of a new part is not decayed"


def products(jaxpr):
    """FLOPs of the matrix products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * equation.outvars[0].aval.size * np.prod([equation.invars[0].aval.shape[i] for i in contracted])
        total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def test_a_part_added_by_a_test_has_its_flops_counted(shape):
    model = dataclasses.replace(shape, scan_layers=False, attention="plain", position="none")
    params = jax.eval_shape(Transformer(model).init, jax.random.key(0), TOKENS)
    traced = jax.make_jaxpr(Transformer(model).apply)(params, TOKENS)
    terms = forward_flops_per_sequence(model, TOKENS.shape[1], "executed")
    assert terms["feed_forward"] == 3 * 2 * 6 * 3 * 16 * 24
    assert products(traced.jaxpr) == len(TOKENS) * (sum(terms.values()) - terms["softmax"])


def test_auxiliary_sums_of_all_layers_are_added_up_scanned_or_not(shape):
    model = dataclasses.replace(shape, feed_forward="reporting", scan_layers=False)
    params = flax.linen.meta.unbox(jax.jit(Transformer(model).init)(jax.random.key(0), TOKENS))["params"]
    layers = [params.pop(f"layer_{i}") for i in range(3)]
    scanned = {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    apart = {**params, **{f"layer_{i}": layer for i, layer in enumerate(layers)}}
    _, _, sums = jax.jit(Transformer(model).apply)({"params": apart}, TOKENS)
    _, _, same = jax.jit(Transformer(dataclasses.replace(model, scan_layers=True)).apply)({"params": scanned}, TOKENS)
    assert sums.keys() == same.keys() == {"layers", "squares"}
    assert sums["layers"] == same["layers"] == 3
    np.testing.assert_allclose(sums["squares"], same["squares"], rtol=1e-5)


def test_a_part_nobody_registered_is_refused_with_the_words_there_are(shape):
    with pytest.raises(ConfigError, match=r"'bilinar' \(did you mean 'bilinear'\?\); one of gelu, .*, bilinear"):
        dataclasses.replace(shape, feed_forward="bilinar")
