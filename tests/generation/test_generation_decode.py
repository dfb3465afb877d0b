"""Token by token with a cache, a model says what it says of whole rows, and no row depends on its neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.generation.decode import generate, make_decoder, ready, room_for, round_up, unrolled
from chinchilla_jax.generation.sampling import Sampling
from chinchilla_jax.interop.trained import for_use
from chinchilla_jax.model.cache import cache_bytes
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.model.transformer import Transformer

PROMPTS = [[5, 9, 17, 4, 33], [7], [3, 40, 41], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]
NEW = 9
LLAMA = {"norm": "rmsnorm", "biases": "none", "tie_embeddings": False}
FAMILIES = [
    *((position, {}) for position in POSITIONS),
    ("relative", {"scan_layers": False}),
    ("rope", LLAMA | {"feed_forward": "swiglu"}),
    ("rope", LLAMA | {"feed_forward": "top_k_swiglu", "experts": 4, "active_experts": 2}),
    ("learned", {"norm": "layernorm", "biases": "all", "scan_layers": False}),
    ("relative", {"feed_forward": "ds_moe", "experts": 4}),
]


def logits_of(model, rows):
    return Transformer(model.config.model).apply({"params": model.params}, jnp.asarray(rows))[0]


def greedy_by_whole_rows(model, prompt):
    """The likeliest tokens by passes over the whole row, again and again."""
    row, apply = list(prompt), jax.jit(lambda rows: logits_of(model, rows))
    for _ in range(NEW):
        padded = np.zeros((1, len(prompt) + NEW), np.int32)
        padded[0, : len(row)] = row
        row.append(int(np.argmax(apply(padded)[0, len(row) - 1])))
    return row[len(prompt) :]


def tokens(model, prompts, *args):
    return np.stack(list(generate(model, prompts, NEW, *args)), axis=1)


@pytest.mark.parametrize(("position", "changes"), FAMILIES)
def test_unequal_prompts_go_on_together_as_each_does_alone_without_a_cache(trained, position, changes):
    model = trained(position, **changes)
    np.testing.assert_array_equal(tokens(model, PROMPTS), [greedy_by_whole_rows(model, prompt) for prompt in PROMPTS])


@pytest.mark.parametrize("position", ["relative", "rope", "xpos", "learned"])
def test_logits_of_a_cache_filled_in_pieces_are_those_of_the_whole_row(trained, position):
    model, rows = trained(position), np.random.default_rng(0).integers(0, 320, (2, 16)).astype(np.int32)
    decoder, expected = make_decoder(model.config, model.mesh), logits_of(model, rows)
    out, cache = decoder.prefill(model.params, rows[:, :8], jnp.int32(8), None, 16)
    np.testing.assert_allclose(out, expected[:, 7], atol=1e-4)
    for start, stop in ((8, 11), (11, 12), (12, 16)):
        out, cache = decoder.extend(model.params, cache, rows[:, start:stop])
        np.testing.assert_allclose(out, expected[:, stop - 1], atol=1e-4)
    assert cache.length == 16  # full to the last place


MESHES = [
    {"fsdp": 4, "context": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"data": 2, "tensor": 4}, marks=pytest.mark.long),
]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("position", ["relative", "rope"])
def test_eight_devices_say_what_one_says(trained, position, mesh):
    alone, together = trained(position), trained(position, MeshConfig(**mesh))
    np.testing.assert_array_equal(tokens(together, PROMPTS), tokens(alone, PROMPTS))
    decoder, rows = make_decoder(together.config, together.mesh), np.ones((8, 16), np.int32)
    cache = decoder.prefill(together.params, rows, jnp.int32(16), None, 32)[1]
    part, mesh = cache.keys.sharding.shard_shape(cache.keys.shape), together.config.mesh
    assert (part[1], part[2]) == (8 // mesh.rows, alone.config.model.n_kv_heads // mesh.tensor)


@pytest.mark.parametrize("position", ["relative", "rope"])
def test_layers_taken_apart_and_weights_cast_say_the_same(trained, position):
    model = trained(position)
    np.testing.assert_array_equal(tokens(unrolled(model), PROMPTS), tokens(model, PROMPTS))
    half = for_use(model.config, compute_dtype="bfloat16")
    model = dataclasses.replace(model, config=half)
    np.testing.assert_array_equal(tokens(ready(model), PROMPTS), tokens(unrolled(model), PROMPTS))
    kinds = {path[-1].key: x.dtype for path, x in jax.tree_util.tree_leaves_with_path(ready(model).params)}
    assert (kinds["query"], kinds["gain"]) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("position", ["relative", "rope"])
def test_the_cache_is_as_large_as_computed(trained, position):
    model = trained(position)
    cache = make_decoder(model.config, model.mesh).prefill(model.params, np.ones((3, 16), np.int32), 16, None, 64)[1]
    held = sum(x.nbytes for x in (cache.keys, cache.values, cache.distances) if x is not None)
    assert held == cache_bytes(model.config.model, 3, 64, 4)


def test_a_step_is_compiled_once(trained):
    model = trained("rope", d_ff=56)
    decoder = make_decoder(model.config, model.mesh)
    for prompts in (PROMPTS, [p[:8] for p in PROMPTS], [[*p, 7, 7] for p in PROMPTS]):
        tokens(model, prompts)
    assert decoder.extend._cache_size() == 1


def test_what_a_row_says_depends_on_its_seed_and_place_alone(trained):
    model, sampling = trained("rope"), Sampling(temperature=0.9, top_k=50, top_p=0.95)
    together = tokens(model, PROMPTS, sampling, 3)
    np.testing.assert_array_equal(tokens(model, PROMPTS[:2], sampling, 3), together[:2])
    assert not np.array_equal(tokens(model, PROMPTS, sampling, 4), together)


def test_a_prompt_that_cannot_be_continued_is_refused(trained):
    with pytest.raises(ConfigError, match="empty"):
        next(generate(trained("rope"), [[1], []], 4))
    with pytest.raises(ConfigError, match="60 tokens and 5 new ones are more than the 64 positions"):
        next(generate(trained("learned"), [[1] * 60], 5))
    assert [round_up(n) for n in (1, 16, 17, 1000, 1025, 1537)] == [16, 16, 32, 1024, 1536, 2048]
    assert [room_for(n) for n in (1, 17, 128, 129, 300, 1025)] == [16, 32, 128, 256, 384, 1152]
