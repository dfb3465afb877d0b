"""What is a block composed of? Each part with its weights, their logical axes, and what multiplying by them costs.

The tables below hold the parts by the words that a config has for them. A part declares its weights: `layers.create`
makes the arrays, the ledger counts them, and preflight says what sending them costs; none of them knows one part from
another. A new part is a class here, in its table, and its function in a module beside this one. JAX is imported only to
compute: a plan is counted without it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from chinchilla_jax.base.config_values import ConfigError
from chinchilla_jax.model.rope_scaling import read_scaling

if TYPE_CHECKING:
    from chinchilla_jax.config import MeshConfig, ModelConfig

Axes = tuple[str | None, ...]


class Weight(NamedTuple):
    """A float32 array: its shape, its logical axes, and the normal distribution that it is drawn from at the start.

    `rate` multiplies the learning rate of its Adam step; weight decay keeps the learning rate of the run.
    """

    shape: tuple[int, ...]
    axes: Axes
    deviation: float = 0.0
    mean: float = 0.0
    rate: float = 1.0


Weights = dict[str, Weight]


def matrix(c: ModelConfig, shape: tuple[int, ...], axes: Axes, fan_in: int, scale: float = 1.0) -> Weight:
    """A weight between two sides that grow with the width: standard deviation `init_scale * scale / sqrt(fan_in)`.

    Under muP the learning rate goes with 1 / d_model: each number of the output adds up `fan_in` changes of one sign.
    """
    return Weight(shape, axes, deviation=c.init_scale * scale / math.sqrt(fan_in), rate=1.0 / c.widening)


def table(c: ModelConfig, shape: tuple[int, ...], axes: Axes) -> Weight:
    """A weight of which one side grows with the width and the other, of tokens or positions, does not.

    Standard deviation `init_scale / sqrt(d_model)`; under muP that at the base width, at any width.
    """
    return Weight(shape, axes, deviation=c.init_scale / math.sqrt(c.base_width or c.d_model))


def residual_scale(c: ModelConfig) -> float:
    """Initial scale of what a block adds to the residual stream: 1 / sqrt(2 L), two additions a layer (GPT-2)."""
    return 1.0 / math.sqrt(2.0 * c.n_layers)


def count(weights: Iterable[Weight]) -> int:
    """How many numbers there are in all of them."""
    return sum(math.prod(weight.shape) for weight in weights)


@dataclasses.dataclass(eq=False)
class Part:
    """Something that computes with weights of its own, by `function`, the name of one in a module beside this."""

    function: str

    def weights(self, c: ModelConfig) -> Weights:
        """Those of one layer, in the order of the random numbers that they are drawn with."""
        return {}

    def compute(self, *arguments: Any) -> Any:
        """What the function makes of the arguments; the kinds of parts below say which."""
        module, _, name = self.function.partition(".")
        return getattr(importlib.import_module(f"chinchilla_jax.model.{module}"), name)(*arguments)


@dataclasses.dataclass(eq=False)
class Norm(Part):
    """From x, its weights, config and type: x scaled, and moved if there is a bias."""

    bias: bool = False

    def weights(self, c: ModelConfig) -> Weights:
        gain = {"gain": Weight((c.d_model,), ("norm",), mean=1.0)}
        return {**gain, "bias": Weight((c.d_model,), ("norm",))} if self.bias else gain


@dataclasses.dataclass(eq=False)
class FeedForward(Part):
    """Up, a nonlinearity, down; in gated ones a second matrix beside `up`.

    From x, its weights, config and type: what is added to the residual stream, laid out as the stream is; and the
    layer's auxiliary sums by name. `takes` names an attribute of the block that the function is given besides.
    """

    gated: bool = False
    takes: str = ""

    def check(self, c: ModelConfig) -> None:
        """Raises `ConfigError` for a shape that it cannot serve."""
        for key, usual in (("experts", 1), ("active_experts", 0)):
            if (value := getattr(c, key)) != usual:
                which = "feed_forward=ds_moe, top_k or top_k_swiglu"
                raise ConfigError(key, f"{value}, but feed_forward={c.feed_forward} has no experts; use {which}")

    def check_mesh(self, c: ModelConfig, mesh: MeshConfig) -> None:
        """Raises `ConfigError` for a mesh that its experts cannot be split on."""
        if mesh.expert > 1:
            told = (
                f"{mesh.expert}, but model.feed_forward={c.feed_forward} has no experts to split over it; set it to 1"
            )
            raise ConfigError("mesh.expert", told)

    def weights(self, c: ModelConfig) -> Weights:
        return self._of_width(c, c.d_ff)

    def _of_width(self, c: ModelConfig, width: int) -> Weights:
        up, up_bias = matrix(c, (c.d_model, width), ("embed", "mlp"), c.d_model), Weight((width,), ("mlp",))
        down = matrix(c, (width, c.d_model), ("mlp", "embed"), width, residual_scale(c))
        weights = {"up": up, "down": down, "up_bias": up_bias}
        if self.gated:
            weights |= {"gate": up, "gate_bias": up_bias}
        weights["down_bias"] = Weight((c.d_model,), ("norm",))
        biases = "feed_forward" in BIASES[c.biases]
        return {name: weight for name, weight in weights.items() if biases or not name.endswith("_bias")}

    def used(self, c: ModelConfig) -> Weights:
        """The weights that one token meets in training: all of them, unless it is sent to some experts only."""
        return self.weights(c)

    def width(self, c: ModelConfig) -> int:
        """How many inner units a token meets in training."""
        return c.d_ff

    def flops(self, c: ModelConfig, tokens: int) -> float:
        """Of a forward pass in one layer: a token is multiplied by every matrix that it meets."""
        return 2.0 * tokens * count(weight for weight in self.used(c).values() if is_matrix(weight))


@dataclasses.dataclass(eq=False)
class DenseExperts(FeedForward):
    """DS-MoE: the inner units are shared out among experts, and each expert is weighed by a router (`experts.ds_moe`).

    `d_ff` is the width of all experts together. A token meets all of them in training.
    """

    takes: str = "select"

    def check(self, c: ModelConfig) -> None:
        _whole_experts(c)
        if c.active_experts:
            told = "ds_moe trains all experts; how many are used afterwards is no setting (evaluation/experts.py)"
            raise ConfigError("active_experts", f"must be 0, got {c.active_experts}: {told}")

    def weights(self, c: ModelConfig) -> Weights:
        return {**super().weights(c), **router(c, c.experts)}

    def check_mesh(self, c: ModelConfig, mesh: MeshConfig) -> None:
        super().check_mesh(c, mesh)
        if c.experts > 1 and c.experts % mesh.tensor:
            told = f"{c.experts} do not divide over mesh.tensor={mesh.tensor}, which splits the layer between experts"
            raise ConfigError("model.experts", told)


@dataclasses.dataclass(eq=False)
class SparseExperts(FeedForward):
    """A token is sent to the `active_experts` that its router likes best, in training too (`experts.top_k`).

    `d_ff` is the width of all experts together. With a bias, every expert has one for its inner units, and the layer
    one for what it adds.
    """

    takes: str = "mix"

    def check(self, c: ModelConfig) -> None:
        _whole_experts(c)
        if c.active_experts > c.experts:
            raise ConfigError("active_experts", f"must not be above experts={c.experts}, got {c.active_experts}")

    def check_mesh(self, c: ModelConfig, mesh: MeshConfig) -> None:
        if c.experts % mesh.expert:
            raise ConfigError("model.experts", f"{c.experts} do not divide over mesh.expert={mesh.expert}")
        if (width := c.d_ff // c.experts) % mesh.tensor:
            told = f"{width} units of an expert (d_ff / experts) do not divide over mesh.tensor={mesh.tensor}"
            raise ConfigError("model.d_ff", told)

    def weights(self, c: ModelConfig) -> Weights:
        return self._weights(c, c.experts)

    def used(self, c: ModelConfig) -> Weights:
        return self._weights(c, c.active_experts or c.experts)

    def width(self, c: ModelConfig) -> int:
        return c.d_ff // c.experts * (c.active_experts or c.experts)

    def _weights(self, c: ModelConfig, experts: int) -> Weights:
        """Those of so many experts, and the router of all."""
        weights = self._of_width(c, c.d_ff // c.experts)
        for name, weight in weights.items():
            if "mlp" in weight.axes:
                weights[name] = weight._replace(shape=(experts, *weight.shape), axes=("experts", *weight.axes))
        return {**weights, **router(c, c.experts)}


def _whole_experts(c: ModelConfig) -> None:
    if c.d_ff % c.experts:
        raise ConfigError("experts", f"must divide d_ff={c.d_ff}, the width of all experts together, got {c.experts}")


def router(c: ModelConfig, experts: int) -> Weights:
    """The weights that score experts for a token: one matrix, or two with `router_width` units between them."""
    if not c.router_width:
        return {"router": matrix(c, (c.d_model, experts), ("embed", None), c.d_model)}
    into = matrix(c, (c.d_model, c.router_width), ("embed", None), c.d_model)
    return {"router": into, "router_output": matrix(c, (c.router_width, experts), ("router", None), c.router_width)}


def is_matrix(weight: Weight) -> bool:
    """Whether tokens are multiplied by it. Gains, biases, and u and v are vectors, if one for each head or expert."""
    return not {"embed", "router"}.isdisjoint(weight.axes)


@dataclasses.dataclass(eq=False)
class Position(Part):
    """How the position of a token enters. This one: not at all, and the base of the others.

    From the weights of one layer's attention, config, `positions.Span`, type and the function that projects distances:
    arguments of `kernels.attention.attention` by name. `kernel_form` is what the attention kernels do for it: `none`,
    `relative` (scores of distances) or `rope` (pairs of numbers of a head are rotated, so `head_dim` is even).
    `scales`: whether `rope_scaling` may lengthen its waves.
    """

    function: str = "positions.nothing"
    kernel_form: str = "none"
    learned: bool = False
    scales: bool = False

    def check(self, c: ModelConfig) -> None:
        """Raises `ConfigError` for a shape that it cannot serve."""
        if self.kernel_form == "rope" and c.head_dim % 2:
            raise ConfigError("head_dim", f"rotary positions rotate pairs: must be even, got {c.head_dim}")
        if c.rope_scaling and not self.scales:
            told = f"{c.rope_scaling!r}, but position={c.position} has nothing to scale; leave it empty, or use rope"
            raise ConfigError("rope_scaling", told)
        read_scaling(c.rope_scaling)

    def table(self, c: ModelConfig) -> Weights:
        """A table `position` beside the embedding, of which a token adds the row of its position (GPT); or nothing."""
        axes = (None, "embed")
        return {"position": table(c, (c.max_position, c.d_model), axes)} if self.learned else {}

    def flops(self, c: ModelConfig, seq_len: int) -> dict[str, float]:
        """Of a forward pass of one sequence in one layer, by term, besides those of attention without positions."""
        return {}

    def pass_flops(self, c: ModelConfig, seq_len: int) -> float:
        """Of a training pass in one layer, whatever the number of sequences in it."""
        return 0.0


class Relative(Position):
    """Scores of distances, from projected sinusoids (Transformer-XL, Dai et al. 2019)."""

    def check(self, c: ModelConfig) -> None:
        super().check(c)
        if c.d_model % 2:
            raise ConfigError("d_model", f"sinusoids come in pairs: must be even, got {c.d_model}")
        if c.n_kv_heads != c.n_heads:
            raise ConfigError("n_kv_heads", "relative positions are defined for n_kv_heads == n_heads")

    def weights(self, c: ModelConfig) -> Weights:
        bias = Weight((c.n_heads, c.head_dim), ("heads", "head_dim"))
        axes = ("embed", "heads", "head_dim")
        return {"relative": matrix(c, (c.d_model, c.n_heads, c.head_dim), axes, c.d_model), "u": bias, "v": bias}

    def flops(self, c: ModelConfig, seq_len: int) -> dict[str, float]:
        return {"relative_scores": 2.0 * seq_len * seq_len * c.d_attn}

    def pass_flops(self, c: ModelConfig, seq_len: int) -> float:
        # The sinusoids are constants, so the backward pass has one product here and not two.
        return 2.0 * 2.0 * seq_len * c.d_model * c.d_attn


NORMS = {"rmsnorm": Norm("layers.rmsnorm"), "layernorm": Norm("layers.layernorm", bias=True)}
POSITIONS = {
    "relative": Relative("positions.relative", "relative"),
    "rope": Position("positions.rope", "rope", scales=True),
    "xpos": Position("positions.faded_rope", "rope"),
    "learned": Position(learned=True),
    "none": Position(),
}
FEED_FORWARDS = {
    "gelu": FeedForward("layers.gelu"),
    "swiglu": FeedForward("layers.swiglu", gated=True),
    "ds_moe": DenseExperts("experts.ds_moe"),
    "top_k": SparseExperts("experts.top_k"),
    "top_k_swiglu": SparseExperts("experts.top_k", gated=True),
}
# Which products have a bias. That of a norm belongs to the norm.
BIASES = {
    "none": frozenset(),
    "gopher": frozenset({"feed_forward", "attention_output", "logits"}),
    "attention": frozenset({"attention_output", "query_key_value"}),
    "feed_forward": frozenset({"feed_forward"}),
    "all": frozenset({"feed_forward", "attention_output", "query_key_value"}),
}


def is_experts(weight: Weight) -> bool:
    """Whether it holds a matrix or a bias for each of several experts, which may lie on different devices."""
    return "experts" in weight.axes


def attention_weights(c: ModelConfig) -> Weights:
    """Those of one layer's attention, in the order of the random numbers that they are drawn with."""
    heads = {"query": c.n_heads, "key": c.n_kv_heads, "value": c.n_kv_heads}
    axes = ("embed", "heads", "head_dim")
    weights = {name: matrix(c, (c.d_model, n, c.head_dim), axes, c.d_model) for name, n in heads.items()}
    if "query_key_value" in BIASES[c.biases]:
        weights |= {f"{name}_bias": Weight((n, c.head_dim), axes[1:]) for name, n in heads.items()}
    weights |= POSITIONS[c.position].weights(c)
    shape = (c.n_heads, c.head_dim, c.d_model)
    weights["output"] = matrix(c, shape, (*axes[1:], "embed"), c.d_attn, residual_scale(c))
    if "attention_output" in BIASES[c.biases]:
        weights["output_bias"] = Weight((c.d_model,), ("norm",))
    return weights | attention_router(c)


def attention_router(c: ModelConfig) -> Weights:
    """What scores the experts of one layer's attention, if it has several."""
    return router(c, c.attention_experts) if c.attention_experts > 1 else {}


def attention_flops(c: ModelConfig, seq_len: int) -> dict[str, float]:
    """Of a forward pass of one sequence in one layer, by term. Scores are those of the full S x S square."""
    s, d, a = seq_len, c.d_model, c.d_attn
    return {
        "qkv": 2.0 * s * d * (a + 2 * c.n_kv_heads * c.head_dim),
        "scores": 2.0 * s * s * a,
        "softmax": 3.0 * c.n_heads * s * s,
        "values": 2.0 * s * s * a,
        "attention_output": 2.0 * s * a * d,
    }


def block_weights(c: ModelConfig) -> dict[str, Weights]:
    """Those of one layer, by module."""
    norm, feed_forward = NORMS[c.norm].weights(c), FEED_FORWARDS[c.feed_forward].weights(c)
    attention = attention_weights(c)
    return {"attention_norm": norm, "attention": attention, "feed_forward_norm": norm, "feed_forward": feed_forward}


def vectors(c: ModelConfig) -> frozenset[str]:
    """Names of the weights that are not matrices: gains, biases, and u and v. Weight decay leaves them alone."""
    groups = [*block_weights(c).values(), NORMS[c.norm].weights(c), end_weights(c)]
    return frozenset(name for group in groups for name, weight in group.items() if not is_matrix(weight))


def rates(c: ModelConfig) -> dict[tuple[str, ...], float]:
    """Factors on learning rates of the weights that have one other than 1: by module and name in a layer, else by name.

    An attention's `output` is a matrix, that of the model a table: names alone would not do.
    """
    groups = {(module,): weights for module, weights in block_weights(c).items()} | {(): end_weights(c)}
    return {(*at, name): w.rate for at, weights in groups.items() for name, w in weights.items() if w.rate != 1.0}


def end_weights(c: ModelConfig) -> Weights:
    """Those before and after the layers but for the final norm, in the order of the random numbers."""
    shape, axes = (c.vocab_size, c.d_model), ("vocab", "embed")
    weights = {"embedding": table(c, shape, axes), **POSITIONS[c.position].table(c)}
    if not c.tie_embeddings:
        weights["output"] = table(c, shape[::-1], axes[::-1])
    if "logits" in BIASES[c.biases]:
        weights["output_bias"] = Weight((c.vocab_size,), ("vocab",))
    return weights
