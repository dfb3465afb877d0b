"""How are tokens made, one after the other? Prompts in one pass, then a compiled step a token, on a cache.

    for tokens_B in generate(model, prompts, new_tokens=100, sampling=GREEDY):
        ...

Prompts of unequal length are padded on the left, so that all rows write their next token in the same place; padding is
seen by nothing. The cache has room for a round number of tokens: prompts of many lengths share compiled programs.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.generation.sampling import GREEDY, Sampling, choose, keys_of
from chinchilla_jax.interop.trained import Trained
from chinchilla_jax.model.cache import Cache
from chinchilla_jax.model.parts import vectors
from chinchilla_jax.model.positions import keys_of_distances
from chinchilla_jax.model.transformer import logits
from chinchilla_jax.parallel.attention import project
from chinchilla_jax.parallel.rules import partition_spec
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.step import make_program, model_of, on_mesh

# A token's row cannot be split: what a mesh splits tokens over is left to rows, heads and widths.
_WHOLE_ROWS = ("length=", "residual_length=")


class Decoder(NamedTuple):
    """The compiled functions that read prompts and add to them, of one model on one mesh.

    Attributes:
      prefill: `(params, tokens_BxS, length, starts, capacity)` to logits and cache: the first `length` of the S tokens
        are the prompts, which begin at `starts` `[B]` (None: all at 0); `capacity` is static.
      extend: `(params, cache, tokens_BxS)` to logits and cache: S tokens more in each row. It takes over the cache.
    Logits are float32 `[B, V]` of the token after the last.
    """

    prefill: jax.stages.Wrapped
    extend: jax.stages.Wrapped
    batch_sharding: NamedSharding  # of tokens `[B, S]`


def make_decoder(config: RunConfig, mesh: Mesh | AbstractMesh) -> Decoder:
    """The decoder of a config on a mesh; equal shapes share compilations."""
    return _make_decoder(shape_key(with_whole_rows(config)), mesh)


def with_whole_rows(config: RunConfig) -> RunConfig:
    """The config, with no tokens of a row split over the mesh."""
    rules = tuple(dict.fromkeys((*config.mesh.rules, *_WHOLE_ROWS)))
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=rules))


@functools.lru_cache(maxsize=64)
def _make_decoder(config: RunConfig, mesh: Mesh | AbstractMesh) -> Decoder:
    params = jax.tree.map(lambda x: x.sharding, make_program(config, mesh).abstract.params)
    batch = NamedSharding(mesh, partition_spec(("batch", None)))
    tied = config.model.tie_embeddings

    def prefill(params: dict, tokens_BxS: jax.Array, length: jax.Array, starts: Any, capacity: int) -> tuple:
        out, cache = forward(config, params, tokens_BxS, Cache(starts=starts), at(length - 1, tied))
        cache = cache.with_room(capacity)._replace(length=length, distances=distances_of(config, params, capacity))
        return out, cache

    def extend(params: dict, cache: Cache, tokens_BxS: jax.Array) -> tuple:
        return forward(config, params, tokens_BxS, cache, at(tokens_BxS.shape[1] - 1, tied))

    def jit(function: Callable, **options: Any) -> jax.stages.Wrapped:
        return jax.jit(on_mesh(function, mesh, config.mesh), **options)

    return Decoder(
        jit(prefill, static_argnums=4, in_shardings=(params, batch, None, None)),
        jit(extend, donate_argnums=1, in_shardings=(params, None, batch)),
        batch,
    )


def forward(
    config: RunConfig, params: dict, tokens_BxS: jax.Array, cache: Cache, read_out: Callable
) -> tuple[Any, Cache]:
    """What `read_out` makes of the last layer's output of these tokens, and the cache with them in it."""
    out, after, _ = model_of(config).apply({"params": params}, tokens_BxS, None, read_out, cache)
    assert after is not None
    return out, after


def at(position: int | jax.Array, tied: bool) -> Callable:
    """A `read_out` of the model: the logits of one position, `[B, V]`."""

    def read_out(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None) -> jax.Array:
        one_Bx1xD = jax.lax.dynamic_slice_in_dim(x_BxSxD, position, 1, axis=1)
        return logits(one_Bx1xD, output_VxD, bias_V, tied)[:, 0]

    return read_out


def distances_of(config: RunConfig, params: dict, capacity: int) -> Any:
    """The keys of all distances that a cache of this capacity holds; None of a model without relative positions."""
    model, dtype = config.model, jnp.dtype(config.train.compute_dtype)
    if model.position != "relative":
        return None

    def of_layer(layer: dict) -> jax.Array:
        return keys_of_distances(layer["attention"]["relative"], model, capacity, dtype, project)

    if model.scan_layers:
        return jax.lax.map(of_layer, params["layers"])
    return tuple(of_layer(params[f"layer_{i}"]) for i in range(model.n_layers))


def as_used(config: RunConfig, params: Any) -> Any:
    """Weights as decoding reads them: matrices in the compute type, which they would be cast to with every token.

    Vectors stay float32, as norms use them so. Arrays, or their shapes.
    """
    dtype, small = jnp.dtype(config.train.compute_dtype), vectors(config.model)

    def cast(path: tuple, x: Any) -> Any:
        if path[-1].key in small:
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def ready(model: Trained) -> Trained:
    """The model as it decodes fastest: weights as they are used, and on a CPU one for each layer."""
    model = unrolled(model) if jax.default_backend() == "cpu" else model
    return dataclasses.replace(model, params=as_used(model.config, model.params))


def unrolled(model: Trained) -> Trained:
    """The same model with a weight of its own for each layer, where layers are scanned.

    On a CPU a step then reads each weight where it lies; a scan would copy it first.
    """
    config = model.config
    if not config.model.scan_layers:
        return model
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan_layers=False))
    placed = jax.tree.map(lambda x: x.sharding, make_program(config, model.mesh).abstract.params)
    count = config.model.n_layers

    def apart(params: dict) -> dict:
        layers = {f"layer_{i}": jax.tree.map(operator.itemgetter(i), params["layers"]) for i in range(count)}
        return {name: x for name, x in params.items() if name != "layers"} | layers

    return dataclasses.replace(model, config=config, params=jax.jit(apart, out_shardings=placed)(model.params))


class Reading:
    """A model that has read prompts, and goes on reading what is added to them.

    Attributes:
      logits_BxV: float32, of the token after the last of each row; rows may be more than prompts, for the mesh.
      allowed: tokens from here on are in no text; None if that is not known.
    """

    def __init__(self, model: Trained, prompts: Sequence[Sequence[int]], new_tokens: int):
        """Reads the prompts, token ids, and makes room for `new_tokens` more. Raises ConfigError as `generate`."""
        if not prompts or not min(map(len, prompts)):
            raise ConfigError("prompt", "is empty: give at least one token")
        longest = max(map(len, prompts))
        needed, table = longest + new_tokens, model.config.model.max_position
        if model.config.model.position == "learned" and needed > table:
            told = (
                f"{longest} tokens and {new_tokens} new ones are more than the {table} positions that the model knows"
            )
            raise ConfigError("prompt", told)
        self._decoder, self._params = make_decoder(model.config, model.mesh), model.params
        self.allowed = model.tokenizer.vocab_size if model.tokenizer else None
        capacity = room_for(needed)
        tokens_BxS, starts = _padded(prompts, min(round_up(longest), capacity), model.config.mesh.rows)
        placed = jax.device_put(tokens_BxS, self._decoder.batch_sharding)
        read = self._decoder.prefill(model.params, placed, jnp.int32(longest), starts, capacity)
        self.logits_BxV, self._cache = read

    def extend(self, tokens_B: jax.Array) -> None:
        """Adds a token to each row."""
        self.logits_BxV, self._cache = self._decoder.extend(self._params, self._cache, tokens_B[:, None])


def generate(
    model: Trained,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """The next tokens of all prompts, int32 `[B]` at a time, `new_tokens` times. Stop asking when you have enough.

    Args:
      prompts: token ids, at least one each.

    Raises:
      ConfigError: a prompt is empty, or longer than the model's table of positions with the new tokens.
    """
    reading, rows, waiting = Reading(model, prompts, new_tokens), len(prompts), None
    for step in range(new_tokens):
        tokens_B = next_tokens(reading.logits_BxV, sampling, jnp.uint32(seed), jnp.int32(step), reading.allowed)
        if step + 1 < new_tokens:  # the next step is under way before this one's tokens are looked at
            reading.extend(tokens_B)
        if waiting is not None:
            yield np.asarray(waiting)[:rows]
        waiting = tokens_B
    if waiting is not None:
        yield np.asarray(waiting)[:rows]


def room_for(tokens: int) -> int:
    """Tokens of a cache that will hold as many: every step reads all of it, so at most 127 more from 128 on."""
    return round_up(tokens) if tokens <= 128 else -(-tokens // 128) * 128


def round_up(tokens: int) -> int:
    """The least power of two, from 16 on, that is as many; above 1024 the least multiple of 512."""
    return max(16, 1 << (tokens - 1).bit_length()) if tokens <= 1024 else -(-tokens // 512) * 512


def _padded(prompts: Sequence[Sequence[int]], width: int, multiple: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens `[B, width]`: prompts that end in one column, and where they begin. B is a multiple of `multiple`."""
    rows = -(-len(prompts) // multiple) * multiple
    longest = max(map(len, prompts))
    tokens, starts = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        starts[row] = longest - len(prompt)
        tokens[row, starts[row] : longest] = prompt
    return tokens, starts if starts.any() else None


@functools.partial(jax.jit, static_argnums=(1, 4))
def next_tokens(
    logits_BxV: jax.Array, sampling: Sampling, seed: jax.Array, step: jax.Array, allowed: int | None
) -> jax.Array:
    """A token for each row; those that no text has, as an embedding padded to a round size has some, never come."""
    if allowed is not None and allowed < logits_BxV.shape[1]:
        logits_BxV = jnp.where(jnp.arange(logits_BxV.shape[1]) < allowed, logits_BxV, -jnp.inf)
    return choose(logits_BxV, sampling, keys_of(seed, logits_BxV.shape[0], step))
