"""The config: what it accepts, what it refuses and in which words, and its identity."""

import dataclasses
import json
import os
import subprocess
import sys

import ml_collections
import pytest

from chinchilla_jax.config import (
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StudyConfig,
    TrainConfig,
)

# Every field may be doubled or replaced on its own here without breaking a rule.
BASE = RunConfig(
    model=ModelConfig(n_heads=4, n_kv_heads=2, position="rope", vocab_size=4096, feed_forward="top_k", experts=4,
                      active_experts=2),
    data=DataConfig(teacher="propositions.jsonl"), study=StudyConfig(),
)  # fmt: skip
OTHER_WORDS = {
    "model.position": "none", "model.feed_forward": "top_k_swiglu", "model.norm": "layernorm", "model.biases": "none",
    "model.attention": "plain", "optimizer.schedule": "cooldown", "data.source": "shipped", "data.data_dir": "else",
    "data.mixture": "uniform", "data.tokenizer": "words.model", "data.text_field": "body",
    "data.teacher": "else.jsonl", "data.teacher_labels": ["<yes>", "<no>"],
    "data.filters": ["quality"],
    "mesh.rules": ["mlp="], "train.compute_dtype": "bfloat16", "train.remat": "full", "train.tracker": "wandb",
    "study.name": "else",
    "study.convention": "6nd", "model.base_head_dim": 32, "model.rope_scaling": "linear 2",
    "study.ladder": "chinchilla", "study.guess": "besiroglu2024", "study.recipe": "deepseek", "study.schedule": "trunk",
    "study.methods": ["plain", "patch"],
}  # fmt: skip
FIELDS = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(RunConfig)
    if section.name != "method"
    for field in dataclasses.fields(getattr(BASE, section.name))
]


def set_in(values, key, value):
    """`values` with the dotted key set; sections are made as needed."""
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return values


def another(key, value):
    """Some other valid value for a field of BASE."""
    if key in OTHER_WORDS:
        return OTHER_WORDS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value + (value == 0)
    return [2 * v for v in value] if isinstance(value, list) else value * 1.01 + 0.001


REFUSALS = [
    # dotted key, value, what the message must tell besides the key
    ("model.n_layer", 2, r"unknown key \(did you mean 'n_layers'\?\); known: n_layers, d_model"),
    ("optimiser", {}, r"unknown key \(did you mean 'optimizer'\?\); known: model"),
    ("study.budget", [1e9], r"did you mean 'budgets'\?"),
    ("train.zzz", 1, r"unknown key; known: train_tokens"),
    ("model.d_model", "64", r"expected int, got str '64'"),
    ("model.d_model", 64.5, r"expected int, got float 64\.5"),
    ("model.d_model", None, r"expected int, got NoneType None"),
    ("model.d_model", True, r"expected int, got bool True"),
    ("optimizer.peak_lr", True, r"expected float, got bool True"),
    ("optimizer.peak_lr", "1e-3", r"expected float, got str '1e-3'"),
    ("model.tie_embeddings", 1, r"expected bool, got int 1"),
    ("model", 3, r"expected a section with keys, got 3"),
    ("study.budgets", 1e11, r"expected a list, got 1e\+?11|expected a list, got 100000000000\.0"),
    ("study.budgets[1]", [1e11, "3e11"], r"expected float, got str '3e11'"),
    ("study.budgets", [], r"needs positive FLOP budgets"),
    ("study.budgets", [1e11, float("nan")], r"needs positive FLOP budgets"),
    ("study.budgets", [1e11, 1e11], r"lists a budget twice"),
    ("study.size_ratio", 1.0, r"must be at least 1.01, got 1\.0"),
    ("study.seeds", 2, r"expected a list, got 2"),
    ("study.seeds", [0], r"1 to 1000, or one for each budget, got \(0,\)"),
    ("study.seeds", [1, 2], r"one for each budget, got \(1, 2\)"),
    ("study.seeds[0]", [1.5], r"expected int, got float 1\.5"),
    ("study.holdout_seeds", 0, r"must be positive and finite, got 0"),
    ("study.schedule", "trunks", r"unknown value 'trunks' \(did you mean 'trunk'\?\); one of matched, trunk"),
    ("study.tokens_per_param", 20.0, r"unknown key; known: name, budgets"),
    ("optimizer.schedule", "cooldown_root", r"one of cosine, constant, cooldown, cooldown_sqrt"),
    ("study.convention", "6dn", r"unknown value '6dn' \(did you mean '6nd'\?\); one of table_a4, appendix_f, 6nd"),
    ("model.position", "rotary", r"unknown value 'rotary'.*; one of relative, rope, xpos, learned, none"),
    ("model.attention", "flash", r"unknown value 'flash'.*; one of auto, fused, plain, blockwise"),
    ("model.feed_forward", "gleu", r"did you mean 'gelu'\?"),
    ("model.n_layers", 0, r"must be positive and finite, got 0"),
    ("model.norm_eps", float("nan"), r"must be positive and finite, got nan"),
    ("optimizer.peak_lr", float("inf"), r"must be positive and finite, got inf"),
    ("optimizer.weight_decay", -0.1, r"must be finite and not negative, got -0\.1"),
    ("optimizer.b2", 1.0, r"must lie in \[0, 1\), got 1\.0"),
    ("optimizer.final_lr_fraction", 1.5, r"must lie in \[0, 1\], got 1\.5"),
    ("train.double_batch_at", 1.0, r"must lie in \[0, 1\), got 1\.0"),
    ("train.microbatches", 3, r"must divide batch_size=16, got 3"),
    ("train.train_tokens", 100, r"100 tokens are less than one batch of 16 x 128"),
    ("data.validation_fraction", 1.0, r"must lie in \[0, 1\), got 1\.0"),
    ("train.seed", 10**26, "must be at most 4,294,967,295"),
    ("train.seed", 2**32, "must be at most 4,294,967,295"),
    ("train.train_tokens", 10**400, "must be at most 1,000,000,000,000,000,000"),
    ("model.n_layers", 99999999999, "must be at most 10,000"),
    ("model.d_model", 10**9, "must be at most 1,000,000"),
    ("model.head_dim", 10**26, "must be at most 100,000"),
    ("model.norm_eps", 1e308, "must be at most 1e.37"),
    ("optimizer.eps", 1e-320, "must be 0, or at least 1e-37"),
    ("study.size_ratio", 1e308, "must be at most 100"),
    ("study.size_ratio", 1.0000001, "must be at least 1.01"),
    ("study.sizes", 10**26, "must be at most 1,000"),
    ("data.source", "debain", r"did you mean 'debian'\?.*one of auto, debian, pypi, shipped, tfds:, text:, jsonl:"),
    ("data.source", "tfds:", r"needs a name or path after the colon"),
    ("data.vocab_size", 260, r"need at least 300, got 260"),
    ("mesh.data", 0, r"must be positive and finite, got 0"),
    ("mesh.rules", ["mlp"], r"expected LOGICAL=AXIS or .*axes of data, fsdp, context, tensor; got 'mlp'"),
    ("mesh.rules", ["embed=fsdp+"], r"expected LOGICAL=AXIS or"),
    ("mesh.rules", ["embed=fsdp+tensors"], r"axes of data, fsdp, context, tensor; got 'embed=fsdp\+tensors'"),
]


@pytest.mark.parametrize(("key", "value", "told"), REFUSALS, ids=[f"{key}={value}" for key, value, _ in REFUSALS])
def test_a_refusal_names_the_dotted_key_and_what_to_do(key, value, told):
    values = set_in({}, key.partition("[")[0], value)
    with pytest.raises(ConfigError, match=told) as refusal:
        RunConfig.from_dict(values)
    assert refusal.value.key == key
    assert str(refusal.value).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("values", "key", "told"),
    [
        ({"model": {"n_heads": 4, "n_kv_heads": 3}}, "model.n_kv_heads", "must divide n_heads=4, got 3"),
        ({"model": {"n_heads": 4}}, "model.n_kv_heads", "relative positions are defined for n_kv_heads == n_heads"),
        ({"model": {"position": "rope", "head_dim": 5}}, "model.head_dim", "must be even, got 5"),
        ({"model": {"d_model": 63}}, "model.d_model", "must be even, got 63"),
        ({"data": {"vocab_size": 2000}}, "model.vocab_size", "do not hold the data.vocab_size=2000 tokens"),
        ({"model": {"position": "learned", "max_position": 64}}, "data.seq_len", "exceeds model.max_position=64"),
        ({"mesh": {"data": 3}}, "train.batch_size", r"mesh.data \* mesh.fsdp = 3 devices; use a multiple of 3"),
        ({"mesh": {"data": 4, "fsdp": 2}, "train": {"microbatches": 4}}, "train.batch_size", "use a multiple of 32"),
        ({"mesh": {"tensor": 4}}, "model.n_heads", "2 does not divide over mesh.tensor=4"),
        ({"mesh": {"tensor": 2}, "model": {"position": "rope", "n_kv_heads": 1}}, "model.n_kv_heads", "mesh.tensor=2"),
        ({"mesh": {"tensor": 2}, "model": {"d_ff": 255}}, "model.d_ff", "255 does not divide over mesh.tensor=2"),
        ({"mesh": {"tensor": 2}, "model": {"vocab_size": 1025}}, "model.vocab_size", "1025 does not divide over mesh"),
        ({"mesh": {"fsdp": 16}, "model": {"d_model": 40}}, "model.d_model", "40 does not divide over mesh.fsdp=16"),
        ({"mesh": {"context": 16}, "model": {"d_model": 40}}, "model.d_model", "does not divide over mesh.context=16"),
        ({"mesh": {"context": 16, "fsdp": 8}, "train": {"batch_size": 16}}, "model.d_model",
         r"64 does not divide over mesh.fsdp=8 \* mesh.context=16"),
        ({"data": {"teacher_share": 0.5}}, "data.teacher_share", "0.5 of the rows, but data.teacher names no prop"),
        ({"data": {"teacher": "p.jsonl", "teacher_share": 1.0}}, "data.teacher_share", r"must lie in \[0, 1\)"),
        ({"data": {"teacher": "p.jsonl", "teacher_weight": 0.0}}, "data.teacher_weight", "must be positive"),
        ({"data": {"filters": ["qualty"]}}, "data.filters", "did you mean 'quality'"),
        ({"data": {"filters": ["language="]}}, "data.filters", "near_duplicates, language=..., unlike="),
        ({"data": {"filters": ["near_duplicates"]}}, "data.filters", "set data.sharded=True as well"),
        ({"data": {"teacher_labels": ["a"]}}, "data.teacher_labels", "two different pieces, for true and false, or"),
        ({"data": {"teacher_labels": ["a", "a"]}}, "data.teacher_labels", "give two different pieces"),
        ({"data": {"teacher": "p.jsonl"}, "method": {"name": "patch"}}, "data.teacher", "without method.name=patch"),
        ({"mesh": {"context": 2, "tensor": 2}, "data": {"seq_len": 130}}, "data.seq_len",
         r"130 does not divide over mesh.context=2 \* mesh.tensor=2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, key, told):
    with pytest.raises(ConfigError, match=told) as refusal:
        RunConfig.from_dict(values)
    assert refusal.value.key == key


def test_a_config_that_is_not_a_mapping_is_refused():
    with pytest.raises(ConfigError, match="^config: expected a section with keys"):
        RunConfig.from_dict([1, 2])


def test_numbers_take_the_type_of_the_field():
    config = RunConfig.from_dict({"train": {"train_tokens": 1e6}, "optimizer": {"peak_lr": 1}})
    assert config.train.train_tokens == 10**6 and type(config.train.train_tokens) is int
    assert config.optimizer.peak_lr == 1.0 and type(config.optimizer.peak_lr) is float


def test_what_a_mapping_leaves_out_keeps_its_default():
    assert RunConfig.from_dict({}) == RunConfig()
    assert RunConfig.from_dict({"model": {"n_layers": 5}}) == RunConfig(model=ModelConfig(n_layers=5))
    assert RunConfig.from_dict({"study": None}).study is None


@pytest.mark.parametrize("config", [RunConfig(), BASE], ids=["defaults", "with a study"])
def test_a_config_survives_the_round_trip_through_dict_json_and_config_dict(config):
    values = config.to_dict()
    assert RunConfig.from_dict(values) == config
    assert RunConfig.from_dict(json.loads(json.dumps(values))) == config
    assert RunConfig.from_dict(ml_collections.ConfigDict(values)) == config
    assert RunConfig.from_dict(ml_collections.FrozenConfigDict(values)) == config


@pytest.mark.parametrize("key", [key for key in FIELDS if key != "train.tracker"])
def test_every_field_counts_in_the_content_hash(key):
    values = BASE.to_dict()
    section, name = key.split(".")
    after = RunConfig.from_dict(set_in(values, key, another(key, values[section][name])))
    assert after != BASE
    assert after.content_hash() != BASE.content_hash()


def test_the_study_counts_in_the_content_hash():
    assert dataclasses.replace(BASE, study=None).content_hash() != BASE.content_hash()


def test_keys_that_came_later_leave_the_hash_as_it_was_before_them():
    assert RunConfig().content_hash() == "8962d4e4dfb8"
    assert RunConfig(study=StudyConfig()).content_hash() == "0cd9c681e2c6"


def test_equal_configs_have_equal_hashes_however_they_were_written():
    whole = RunConfig(optimizer=OptimizerConfig(peak_lr=1), study=StudyConfig(budgets=(10**9, 10**10)))
    same = RunConfig(optimizer=OptimizerConfig(peak_lr=1.0), study=StudyConfig(budgets=(1e9, 1e10)))
    assert whole == same and whole.content_hash() == same.content_hash()
    sections = ((name, values) for name, values in reversed(BASE.to_dict().items()) if values is not None)
    backwards = {name: dict(reversed(values.items())) for name, values in sections}
    assert RunConfig.from_dict(backwards).content_hash() == BASE.content_hash()
    assert len(BASE.content_hash()) == 12 and int(BASE.content_hash(), 16) >= 0


def test_the_content_hash_is_the_same_in_another_process():
    code = (
        "import json, sys; from chinchilla_jax.config import RunConfig;"
        "print(RunConfig.from_dict(json.load(sys.stdin)).content_hash())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run([sys.executable, "-c", code], input=json.dumps(BASE.to_dict()), env=environment, text=True,
                            capture_output=True, check=True)  # fmt: skip
    assert answer.stdout.strip() == BASE.content_hash()


@pytest.mark.parametrize("section", ["model", "optimizer", "data", "mesh", "train", "study"])
def test_a_config_cannot_be_changed_in_place(section):
    part = getattr(BASE, section)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(BASE, section, None)
    assert hash(part) == hash(dataclasses.replace(part))


def test_a_section_made_by_itself_obeys_the_same_rules():
    for make in (
        lambda: ModelConfig(n_layers=0),
        lambda: MeshConfig(data=-1),
        lambda: OptimizerConfig(peak_lr=float("nan")),
        lambda: TrainConfig(batch_size=4, microbatches=3),
        lambda: dataclasses.replace(BASE.model, norm="batchnorm"),
    ):
        with pytest.raises(ConfigError):
            make()


def test_settings_are_few():
    """A new behaviour is a function or a class; a setting more needs a reason, and this number changed with it."""
    assert len(FIELDS) <= 89


def test_the_mesh_is_as_large_as_the_product_of_its_axes():
    assert MeshConfig(data=2, fsdp=3, tensor=4, context=5).size == 120
    assert MeshConfig(2, 3, 4, 5).shape == (2, 3, 5, 4), "data, fsdp, context, tensor"
