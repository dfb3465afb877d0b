"""A chinchilla_jax model in plain torch, for transformers: Gopher, Chinchilla and all else that its configs can say.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Copied beside the weights by `python -m chinchilla_jax export`. It computes what that code computes, to the rounding of
float32: pre-norm blocks; positions relative (Transformer-XL, Dai et al. 2019), rotary, xPos, learned or none; RMSNorm
or LayerNorm; GELU, SwiGLU and experts. Tensors have the names and axes that they have there, as
`layers.3.attention.query` of `[d_model, n_heads, head_dim]`. Softmax, norms, routers and logits are float32.

`generate` works, with prompts of unequal length padded on the left. Only the plain dynamic cache is served, and there
is one form of attention, with all scores in memory. Names end in axes: B rows, S tokens, T keys, D width, H heads, G
heads of keys, K numbers of a head, F inner units, V tokens of the vocabulary, E experts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_chinchilla_jax import ChinchillaJaxConfig

# What the tokens so far are called: `cache` since transformers 5.24.
_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"
_HIDDEN = -1e30  # of a score: finite, so that a token of padding, which sees nothing, has no NaN
_BIASES: dict[str, tuple[str, ...]] = {
    "none": (),
    "gopher": ("feed_forward", "attention_output", "logits"),
    "attention": ("attention_output", "query_key_value"),
    "feed_forward": ("feed_forward",),
    "all": ("feed_forward", "attention_output", "query_key_value"),
}


class _Part(nn.Module):
    """A part of the model with tensors of its own, which `add` declares; `c` holds the model's settings."""

    def __init__(self, config: ChinchillaJaxConfig):
        super().__init__()
        self.c: dict[str, Any] = config.model
        self.biases = _BIASES[self.c["biases"]]

    def add(self, **shapes: tuple[int, ...]) -> None:
        """Tensors by name. They are zero until they are loaded."""
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def add_router(self, experts: int) -> None:
        """What scores experts: one matrix, or two."""
        width = self.c["router_width"]
        self.add(router=(self.c["d_model"], width or experts))
        if width:
            self.add(router_output=(width, experts))

    def shares(self, x_BxSxD: Tensor) -> Tensor:
        """Of experts for each token, their softmax: float32 `[B, S, E]`."""
        scores = x_BxSxD @ self.router
        if self.c["router_width"]:
            scores = F.gelu(scores, approximate="tanh") @ self.router_output
        return scores.float().softmax(-1)

    def plus(self, x: Tensor, bias: str) -> Tensor:
        """x with a bias, if there is one by that name."""
        return x + getattr(self, bias) if hasattr(self, bias) else x


class Norm(_Part):
    """RMSNorm, or LayerNorm with its bias; in float32."""

    def __init__(self, config: ChinchillaJaxConfig):
        super().__init__(config)
        self.add(gain=(self.c["d_model"],))
        if self.c["norm"] == "layernorm":
            self.add(bias=(self.c["d_model"],))

    def forward(self, x_BxSxD: Tensor) -> Tensor:
        x = x_BxSxD.float()
        if self.c["norm"] == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c["norm_eps"]) * self.gain.float()
        return self.plus(x, "bias").to(x_BxSxD.dtype)


def _scaled(frequencies: Tensor, text: str) -> Tensor:
    """Frequencies of rotary positions that reach farther: `linear FACTOR`, `llama3 FACTOR LOW HIGH LENGTH`."""
    kind, *numbers = text.split() or [""]
    values = [float(number) for number in numbers]
    if kind == "linear":
        return frequencies / values[0]
    if kind == "llama3":
        factor, low, high, length = values
        kept = ((length * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0.0, 1.0)
        return frequencies * ((1 - kept) / factor + kept)
    return frequencies


def _turned(x_BxHxSxK: Tensor, turn_2xSxK: Tensor) -> Tensor:
    """Queries or keys with the pairs (i, i + K/2) of each head rotated."""
    x = x_BxHxSxK.float()
    swapped = torch.cat(x.chunk(2, -1)[::-1], -1)
    return (x * turn_2xSxK[0] + swapped * turn_2xSxK[1]).to(x_BxHxSxK.dtype)


class Attention(_Part):
    """Causal attention with one of the kinds of positions."""

    def __init__(self, config: ChinchillaJaxConfig, layer: int):
        super().__init__(config)
        c, self.layer = self.c, layer
        d, h, g, k = c["d_model"], c["n_heads"], c["n_kv_heads"], c["head_dim"]
        self.add(query=(d, h, k), key=(d, g, k), value=(d, g, k), output=(h, k, d))
        if "query_key_value" in self.biases:
            self.add(query_bias=(h, k), key_bias=(g, k), value_bias=(g, k))
        if "attention_output" in self.biases:
            self.add(output_bias=(d,))
        if c["position"] == "relative":
            self.add(relative=(d, h, k), u=(h, k), v=(h, k))
        if c["attention_experts"] > 1:
            self.add_router(c["attention_experts"])
        base = c["base_head_dim"]
        self.scale = 1 / math.sqrt(k) if base in (0, k) else math.sqrt(base) / k
        self._distances: tuple[Any, Tensor] | None = None

    def forward(self, x_BxSxD: Tensor, visible_BxSxT: Tensor, start: int, cache: DynamicCache | None) -> Tensor:
        """What is added to the residual stream, of the tokens from position `start` on."""
        q, k, v = (self._projected(x_BxSxD, name) for name in ("query", "key", "value"))
        total = start + q.shape[2]
        if self.c["position"] in ("rope", "xpos"):
            q_turn, k_turn = self._turns(start, total, cache is not None, q.device)
            q, k = _turned(q, q_turn), _turned(k, k_turn)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        if self.c["position"] == "relative":
            scores = (q + self.u[:, None]) @ k.transpose(2, 3) + self._relative_scores(q, start, total)
        else:
            scores = q @ k.transpose(2, 3)
        scores = (scores.float() * self.scale).masked_fill(~visible_BxSxT[:, None], _HIDDEN)
        out_BxHxSxK = scores.softmax(-1).to(v.dtype) @ v
        if (experts := self.c["attention_experts"]) > 1:  # of a group of keys the i-th query head is expert i's
            shares_BxSxH = experts * self.shares(x_BxSxD).repeat(1, 1, q.shape[1] // experts)
            out_BxHxSxK = out_BxHxSxK * shares_BxSxH.transpose(1, 2)[..., None].to(v.dtype)
        return self.plus(torch.einsum("bhsk,hkd->bsd", out_BxHxSxK, self.output), "output_bias")

    def _projected(self, x_BxSxD: Tensor, name: str) -> Tensor:
        x_BxSxHxK = torch.einsum("bsd,dhk->bshk", x_BxSxD, getattr(self, name))
        return self.plus(x_BxSxHxK, f"{name}_bias").transpose(1, 2)

    def _turns(self, start: int, total: int, cached: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotations of the queries and of the keys of these tokens, `[2, S, K]` each, in float32."""
        c, half = self.c, self.c["head_dim"] // 2
        at = torch.arange(half, dtype=torch.float32, device=device) / half
        positions = torch.arange(start, total, dtype=torch.float32, device=device)[:, None]
        if c["position"] == "rope":
            turn = self._turn(positions * _scaled(c["rope_theta"] ** -at, c["rope_scaling"]))
            return turn, turn
        # xPos fades with the distance. Cached keys are rotated already, so there the middle cannot move.
        positions = positions - (c["max_position"] if cached else total) // 2
        fading = (((at + 0.4) / 1.4) ** (positions / 512.0)).repeat(1, 2)
        turn = self._turn(positions * c["rope_theta"] ** -at)
        return turn * fading, turn / fading

    @staticmethod
    def _turn(angles_SxI: Tensor) -> Tensor:
        cos, sin = angles_SxI.cos(), angles_SxI.sin()
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])

    def _relative_scores(self, q_BxHxSxK: Tensor, start: int, total: int) -> Tensor:
        """`(q + v) . r` of the distance of each query and key, `[B, H, S, T]`; arbitrary for keys in the future."""
        r_HxTxK = self._keys_of_distances(total)
        by_distance_BxHxSxT = (q_BxHxSxK + self.v[:, None]) @ r_HxTxK.transpose(1, 2)
        positions = torch.arange(total, device=q_BxHxSxK.device)
        distances_SxT = (positions[start:, None] - positions).clamp(min=0)
        return by_distance_BxHxSxT.gather(3, distances_SxT.expand_as(by_distance_BxHxSxT))

    def _keys_of_distances(self, count: int) -> Tensor:
        """Projected sinusoids of the distances 0 to `count` - 1, `[H, T, K]`. While nothing is trained they are kept:
        one token would otherwise cost a product for every token before it."""
        if torch.is_grad_enabled():
            return self._made(count)
        w = self.relative
        of = w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version
        if self._distances is None or self._distances[0] != of or self._distances[1].shape[1] < count:
            self._distances = of, self._made(1 << (count - 1).bit_length())
        return self._distances[1][:, :count]

    def _made(self, count: int) -> Tensor:
        d, device = self.c["d_model"], self.relative.device
        frequencies = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float32, device=device) / d)
        angles = torch.arange(count, dtype=torch.float32, device=device)[:, None] * frequencies
        sinusoids = torch.cat([angles.sin(), angles.cos()], -1).to(self.relative.dtype)
        return torch.einsum("td,dhk->htk", sinusoids, self.relative)


class FeedForward(_Part):
    """GELU or SwiGLU; of DS-MoE, whose inner units are weighed; or sparse, where a token meets some experts."""

    def __init__(self, config: ChinchillaJaxConfig):
        super().__init__(config)
        c = self.c
        kind, d = c["feed_forward"], c["d_model"]
        self.sparse, gated = kind.startswith("top_k"), kind.endswith("swiglu")
        experts = (c["experts"],) if self.sparse else ()
        width = c["d_ff"] // c["experts"] if self.sparse else c["d_ff"]
        inner = ("up", "gate") if gated else ("up",)
        self.add(down=(*experts, width, d), **{name: (*experts, d, width) for name in inner})
        if "feed_forward" in self.biases:
            self.add(down_bias=(d,), **{f"{name}_bias": (*experts, width) for name in inner})
        if self.sparse or kind == "ds_moe":
            self.add_router(c["experts"])

    def forward(self, x_BxSxD: Tensor) -> Tensor:
        if self.sparse:
            return self.plus(self._mixed(x_BxSxD), "down_bias")
        h_BxSxF = self._inner(x_BxSxD)
        if self.c["feed_forward"] == "ds_moe":
            experts = self.c["experts"]
            shares_BxSxE = (experts * self.shares(x_BxSxD)).to(h_BxSxF.dtype)
            h_BxSxF = h_BxSxF * shares_BxSxE.repeat_interleave(h_BxSxF.shape[-1] // experts, -1)
        return self.plus(h_BxSxF @ self.down, "down_bias")

    def _inner(self, x: Tensor, expert: int | None = None) -> Tensor:
        """The inner units, of one expert if there are several."""
        mine = {name: w if expert is None else w[expert] for name, w in self.named_parameters(recurse=False)
                if name.startswith(("up", "gate"))}  # fmt: skip
        up, gate = (x @ mine[name] + mine.get(f"{name}_bias", 0) if name in mine else None for name in ("up", "gate"))
        return F.gelu(up, approximate="tanh") if gate is None else F.silu(gate) * up

    def _mixed(self, x_BxSxD: Tensor) -> Tensor:
        """Each token through the experts with the largest shares, weighed by these, over their sum."""
        count = self.c["active_experts"] or self.c["experts"]
        gates, chosen = self.shares(x_BxSxD).topk(count, -1)
        gates = (gates / gates.sum(-1, keepdim=True)).to(x_BxSxD.dtype)
        y_BxSxD = torch.zeros_like(x_BxSxD)
        for expert in range(self.c["experts"]):
            here = (chosen == expert).any(-1)
            weights = (gates * (chosen == expert)).sum(-1)[here]
            y_BxSxD[here] += weights[:, None] * (self._inner(x_BxSxD[here], expert) @ self.down[expert])
        return y_BxSxD


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ChinchillaJaxConfig, layer: int):
        super().__init__()
        self.attention_norm, self.attention = Norm(config), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = Norm(config), FeedForward(config)

    def forward(self, x_BxSxD: Tensor, *seen: Any) -> Tensor:
        x_BxSxD = x_BxSxD + self.attention(self.attention_norm(x_BxSxD), *seen)
        return x_BxSxD + self.feed_forward(self.feed_forward_norm(x_BxSxD))


class ChinchillaJaxForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its logits."""

    config_class = ChinchillaJaxConfig
    _no_split_modules = ["Block"]
    _supports_cache_class = True

    def __init__(self, config: ChinchillaJaxConfig):
        super().__init__(config)
        c = self.c = config.model
        vocabulary, d = c["vocab_size"], c["d_model"]
        self.embedding = nn.Parameter(torch.zeros(vocabulary, d))
        if c["position"] == "learned":
            self.position = nn.Parameter(torch.zeros(c["max_position"], d))
        if not c["tie_embeddings"]:
            self.output = nn.Parameter(torch.zeros(d, vocabulary))
        if "logits" in _BIASES[c["biases"]]:
            self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(c["n_layers"]))
        self.final_norm = Norm(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: all tensors are in the files."""

    def get_input_embeddings(self) -> nn.Module:
        """A view of the embedding, as a module."""
        return nn.Embedding(*self.embedding.shape, _weight=self.embedding)

    def get_output_embeddings(self) -> None:
        """None: the logits are made here."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Float32 logits `[B, S, V]` of the next tokens, of the last `logits_to_keep` positions if that is not 0.

        `attention_mask` is `[B, T]`, of all tokens so far, with 0 for padding, which is on the left. `labels` are ids
        `[B, S]`, shifted here; those of -100 do not count. `past_key_values` is another name of `cache`. Other
        arguments are ignored.
        """
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        start = 0 if cache is None else int(cache.get_seq_length())
        x_BxSxD = F.embedding(input_ids, self.embedding)
        if self.c["position"] == "learned":
            x_BxSxD = x_BxSxD + self.position[self._positions(input_ids, attention_mask, start)]
        visible_BxSxT = self._visible(input_ids, attention_mask, start)
        for layer in self.layers:
            x_BxSxD = layer(x_BxSxD, visible_BxSxT, start, cache)
        x_BxSxD = self.final_norm(x_BxSxD[:, -logits_to_keep:] if logits_to_keep else x_BxSxD)
        logits_BxSxV = self._logits(x_BxSxD)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BxSxV[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits_BxSxV.device))
        return CausalLMOutputWithPast(loss=loss, logits=logits_BxSxV, **{_CACHE: cache})

    def _logits(self, x_BxSxD: Tensor) -> Tensor:
        widening = self.c["d_model"] / self.c["base_width"] if self.c["base_width"] else 1.0
        if (factor := self.c["output_scale"] / widening) != 1.0:
            x_BxSxD = (x_BxSxD.float() * factor).to(x_BxSxD.dtype)
        logits = (x_BxSxD @ (self.embedding.T if self.c["tie_embeddings"] else self.output)).float()
        return logits + self.output_bias.float() if hasattr(self, "output_bias") else logits

    @staticmethod
    def _positions(input_ids: Tensor, mask: Tensor | None, start: int) -> Tensor:
        """Of these tokens in their texts, `[B, S]` or `[S]`: a text begins behind its padding."""
        if mask is None:
            return torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, start:]

    @staticmethod
    def _visible(input_ids: Tensor, mask: Tensor | None, start: int) -> Tensor:
        """Which tokens each of these sees, `[B, S, T]`, or `[1, S, T]`."""
        positions = torch.arange(start + input_ids.shape[1], device=input_ids.device)
        causal_SxT = positions <= positions[start:, None]
        if mask is None:
            return causal_SxT[None]
        if mask.shape != (input_ids.shape[0], len(positions)):
            raise ValueError(f"attention_mask is {list(mask.shape)}; it must say of all {len(positions)} tokens so far")
        return causal_SxT & mask[:, None, :].bool()
