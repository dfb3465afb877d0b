"""What a run is: frozen, typed, validated configuration.

A config file under `configs/` returns an `ml_collections.ConfigDict`; command-line overrides are applied to it, and
then, once, at the edge, `RunConfig.from_dict` turns it into the dataclasses below. Nothing past that point reads a
ConfigDict, so a misspelt key, a wrong type or an impossible value is met before any work starts, as a `ConfigError`
that names the key and the fix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.config_values import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ConfigError,
    Section,
    build,
    key,
)
from chinchilla_jax.base.config_values import did_you_mean as did_you_mean  # for those who read configs
from chinchilla_jax.config_data import SOURCES as SOURCES
from chinchilla_jax.config_data import DataConfig
from chinchilla_jax.config_study import CONVENTIONS as CONVENTIONS
from chinchilla_jax.config_study import StudyConfig
from chinchilla_jax.method import Method
from chinchilla_jax.model.parts import BIASES, FEED_FORWARDS, NORMS, POSITIONS

ATTENTIONS = ("auto", "fused", "plain", "blockwise", "cudnn")
REMAT_POLICIES = ("none", "full", "attention", "dots")
COOLDOWNS = ("cooldown", "cooldown_sqrt")
SCHEDULES = ("cosine", "constant", *COOLDOWNS)
DTYPES = ("float32", "bfloat16")
TRACKERS = ("tensorboard", "wandb", "trackio")  # `training/record/trackers.py`


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The shape of a decoder. Gopher, Chinchilla, GPT-3 and LLaMA differ only in these values.

    `biases`: `none`; `gopher` (feed-forward, attention output and logits, as the published counts imply); `all`
    (GPT-3: every projection and every norm); `attention` or `feed_forward` (every projection there). `n_heads *
    head_dim` need not equal `d_model`. `attention` says how it is computed, not what: `kernels/attention.py`.
    Experts (`model/experts.py`): `experts` share the `d_ff` inner units of `ds_moe`, `top_k` and `top_k_swiglu`, and
    with the latter two a token meets `active_experts` of them (0: all); `attention_experts` share the query heads of
    each group of keys. Their routers are one matrix, or two with `router_width` units between them.

    `base_width`: 0 is the standard parametrisation. Otherwise initialisation, learning rates and logits are such that
    what suits a model of that `d_model` suits every width (muP, Yang et al. 2022, arXiv 2203.03466, table 8); at
    `d_model = base_width` both are the same. `base_head_dim` is the width of a head there: 0 or `head_dim` where wider
    models have more heads, `head_dim * base_width / d_model` where they have wider ones. `init_scale` multiplies the
    initial deviations of all matrices, `output_scale` the logits less their bias: 1 / temperature.

    `rope_scaling`: nothing, `linear FACTOR` or `llama3 FACTOR LOW HIGH LENGTH` (`model/rope_scaling.py`).
    """

    n_layers: int = key(2, POSITIVE, most=10**4)
    d_model: int = key(64, POSITIVE, most=10**6)
    n_heads: int = key(2, POSITIVE, most=10**5)
    n_kv_heads: int = key(2, POSITIVE, most=10**5)
    head_dim: int = key(32, POSITIVE, most=10**5)
    d_ff: int = key(256, POSITIVE, most=10**7)
    vocab_size: int = key(1024, POSITIVE, most=10**8)
    position: str = key("relative", one_of=POSITIONS)
    feed_forward: str = key("gelu", one_of=FEED_FORWARDS)
    norm: str = key("rmsnorm", one_of=NORMS)
    norm_eps: float = key(1e-5, POSITIVE)
    biases: str = key("gopher", one_of=BIASES)
    tie_embeddings: bool = True
    max_position: int = key(2048, POSITIVE, most=10**9)
    rope_theta: float = key(10000.0, POSITIVE)
    attention: str = key("auto", one_of=ATTENTIONS)
    scan_layers: bool = True
    experts: int = key(1, POSITIVE, most=10**6, later=True)
    active_experts: int = key(0, NOT_NEGATIVE, later=True)
    attention_experts: int = key(1, POSITIVE, most=10**4, later=True)
    router_width: int = key(0, NOT_NEGATIVE, later=True)
    base_width: int = key(0, NOT_NEGATIVE, later=True)
    base_head_dim: int = key(0, NOT_NEGATIVE, later=True)
    init_scale: float = key(1.0, POSITIVE, later=True)
    output_scale: float = key(1.0, POSITIVE, later=True)
    rope_scaling: str = key("", later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_heads % self.n_kv_heads:
            raise ConfigError("n_kv_heads", f"must divide n_heads={self.n_heads}, got {self.n_kv_heads}")
        if (shared := self.n_heads // self.n_kv_heads) % self.attention_experts:
            told = f"must divide the {shared} query heads of a group of keys (n_heads / n_kv_heads)"
            raise ConfigError("attention_experts", f"{told}, got {self.attention_experts}")
        POSITIONS[self.position].check(self)
        FEED_FORWARDS[self.feed_forward].check(self)
        if self.router_width and not self.has_router:
            raise ConfigError("router_width", f"{self.router_width}, but the model has no router: no experts")
        if self.base_head_dim not in (0, self.head_dim):
            self._check_base_heads()

    def _check_base_heads(self) -> None:
        if not self.base_width:
            raise ConfigError("base_head_dim", "belongs to muP: set base_width, or leave it at 0")
        if self.base_head_dim * self.d_model != self.head_dim * self.base_width:
            more, wider = f"0 where wider models have more heads of {self.head_dim}", self.head_dim / self.widening
            grown = f"head_dim * base_width / d_model = {wider:g} where they have wider ones"
            raise ConfigError("base_head_dim", f"must be {more}, or {grown}; got {self.base_head_dim}")

    @property
    def d_attn(self) -> int:
        """Width of all query heads together, n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def has_router(self) -> bool:
        """Whether anything in it is shared out among experts."""
        return self.attention_experts > 1 or "router" in FEED_FORWARDS[self.feed_forward].weights(self)

    @property
    def widening(self) -> float:
        """d_model / base_width, by which muP divides rates and logits; 1 in the standard parametrisation."""
        return self.d_model / self.base_width if self.base_width else 1.0

    @property
    def attention_scale(self) -> float | None:
        """What scores are multiplied by; None: 1 / sqrt(head_dim), as at the base. Keys and queries of trained models
        are correlated, so scores of heads that grow with the width go with 1 / head_dim."""
        same = self.base_head_dim in (0, self.head_dim)
        return None if same else math.sqrt(self.base_head_dim) / self.head_dim


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW, which without weight decay is Adam, and the learning rate over the run.

    `schedule`: `cosine` (warm-up, then a cosine that reaches `final_lr_fraction * peak_lr` at the last step; Hoffmann
    et al. 2022, appendix B), `cooldown` (constant, then linear to that value over the last `cooldown_fraction` of the
    tokens), `cooldown_sqrt` (the same with the shape 1 - sqrt; Haegele et al. 2024) or `constant`.
    `router_loss`: factor of the routers' own loss, which is minimised besides, in every layer (`model/experts.py`).
    """

    peak_lr: float = key(1e-3, POSITIVE)
    schedule: str = key("cosine", one_of=SCHEDULES)
    warmup_steps: int = key(0, NOT_NEGATIVE)
    final_lr_fraction: float = key(0.1, SHARE)
    cooldown_fraction: float = key(0.2, SHARE)
    b1: float = key(0.9, BELOW_ONE)
    b2: float = key(0.95, BELOW_ONE)
    eps: float = key(1e-8, POSITIVE)
    weight_decay: float = key(0.1, NOT_NEGATIVE)
    clip_norm: float = key(1.0, POSITIVE)
    z_loss: float = key(0.0, NOT_NEGATIVE)
    router_loss: float = key(0.0, NOT_NEGATIVE, later=True)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each mesh axis; their product is the number of devices a run uses.

    `data` and `fsdp` split the rows of a batch, `context` the tokens of a row, `tensor` heads and inner widths; weights
    are stored in parts over `fsdp`, `context` and `tensor`. `expert` splits the experts of sparse layers, and rows as
    `data` does. `rules` overrides what a logical axis is split over
    (`parallel/rules.py`): `embed=data+fsdp`, or `mlp=` for nothing. Sizes must still divide as without it.
    """

    data: int = key(1, POSITIVE)
    fsdp: int = key(1, POSITIVE)
    tensor: int = key(1, POSITIVE)
    context: int = key(1, POSITIVE)
    rules: tuple[str, ...] = key((), later=True)
    expert: int = key(1, POSITIVE, later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in self.rules:
            logical, equals, axes = rule.partition("=")
            if not (logical and equals) or (axes and not set(axes.split("+")) <= set(self.axes)):
                told = f"expected LOGICAL=AXIS or LOGICAL=AXIS+AXIS with axes of {', '.join(self.axes)}; got {rule!r}"
                raise ConfigError("rules", told)

    @property
    def axes(self) -> dict[str, int]:
        """Devices along each axis, in the order of the mesh: neighbours in the last axis are the closest.

        There is an `expert` axis only if it has several devices.
        """
        names = ("data", "fsdp", *(("expert",) if self.expert > 1 else ()), "context", "tensor")
        return {axis: getattr(self, axis) for axis in names}

    @property
    def shape(self) -> tuple[int, ...]:
        """Devices along each of `axes`."""
        return tuple(self.axes.values())

    @property
    def rows(self) -> int:
        """Over how many devices the rows of a batch are split."""
        return self.data * self.fsdp * self.expert

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """How long, how wide and how often. `batch_size` is in sequences over all devices; 0 turns an interval off.

    `double_batch_at` is the fraction of the horizon after which the batch doubles (0.5 in Gopher and Chinchilla).
    `keep_checkpoints`: so many checkpoints stay for good, equally far apart in the logarithm of the tokens
    (`training/schedule.py`), for those who look at a training's way (`evaluation/trajectories/`).
    `tracker` draws the metrics beside those in the run's files.
    """

    train_tokens: int = key(1_000_000, POSITIVE)
    batch_size: int = key(16, POSITIVE, most=10**9)
    microbatches: int = key(1, POSITIVE, most=10**7)
    double_batch_at: float = key(0.0, BELOW_ONE)
    seed: int = key(0, NOT_NEGATIVE, most=2**32 - 1)
    compute_dtype: str = key("float32", one_of=DTYPES)
    remat: str = key("none", one_of=REMAT_POLICIES)
    log_every: int = key(50, POSITIVE)
    eval_every: int = key(0, NOT_NEGATIVE)
    eval_sequences: int = key(512, POSITIVE)
    checkpoint_every: int = key(0, NOT_NEGATIVE)
    keep_checkpoints: int = key(0, NOT_NEGATIVE, later=True)
    tracker: str = key("tensorboard", one_of=TRACKERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.microbatches:
            raise ConfigError("microbatches", f"must divide batch_size={self.batch_size}, got {self.microbatches}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run, complete: nothing else decides what it computes.

    `method` says how it is trained if not by plain next-token prediction (`method.py`).
    """

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    study: StudyConfig | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        model, data, mesh, train = self.model, self.data, self.mesh, self.train
        rows, batch = mesh.rows, train.batch_size
        if (batch // train.microbatches) % rows:
            split = "mesh.data * mesh.fsdp" + (" * mesh.expert" if mesh.expert > 1 else "")
            told = f"{batch} sequences in {train.microbatches} microbatches do not divide over {split}"
            fix = f"use a multiple of {rows * train.microbatches}"
            raise ConfigError("train.batch_size", f"{told} = {rows} devices; {fix}")
        if train.train_tokens < batch * data.seq_len:
            told = f"{train.train_tokens} tokens are less than one batch of {batch} x {data.seq_len}"
            raise ConfigError("train.train_tokens", told)
        if data.vocab_size > model.vocab_size:
            told = f"{model.vocab_size} rows do not hold the data.vocab_size={data.vocab_size} tokens"
            raise ConfigError("model.vocab_size", f"{told}; use at least that many")
        table = POSITIONS[model.position].table(model).get("position")
        if table and data.seq_len > table.shape[0]:
            raise ConfigError("data.seq_len", f"{data.seq_len} exceeds model.max_position={table.shape[0]}")
        if self.optimizer.router_loss and not model.has_router:
            told = f"{self.optimizer.router_loss}, but the model has no experts; set it to 0, or model.feed_forward"
            raise ConfigError("optimizer.router_loss", f"{told} to one with experts")
        FEED_FORWARDS[model.feed_forward].check_mesh(model, mesh)
        for name in ("n_heads", "n_kv_heads", "d_ff", "vocab_size"):
            if (value := getattr(model, name)) % mesh.tensor:
                raise ConfigError(f"model.{name}", f"{value} does not divide over mesh.tensor={mesh.tensor}")
        for name, value, axes in (
            ("model.d_model", model.d_model, ("fsdp", "context")),
            ("data.seq_len", data.seq_len, ("context", "tensor")),
        ):
            used = {axis: mesh.axes[axis] for axis in axes if mesh.axes[axis] > 1}
            if value % math.prod(used.values()):
                over = " * ".join(f"mesh.{axis}={devices}" for axis, devices in used.items())
                raise ConfigError(name, f"{value} does not divide over {over}")
        if self.method is not None:
            self.method.check(self)

    @property
    def study_section(self) -> StudyConfig:
        """`study`, which a study's config has. Raises ConfigError if it is missing."""
        if self.study is None:
            raise ConfigError("study", "the config has no study section; start from configs/isoflop.py")
        return self.study

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Validated config from nested mappings (a ConfigDict, or a parsed `config.json`).

        Raises:
          ConfigError: unknown key, wrong type or impossible value; names the dotted key.
        """
        return build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, JSON-safe; `from_dict` inverts it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def content_hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON. Equal configs have equal hashes.

        A key marked `later` is left out at its default: a config keeps the hash it had before there was such a key.
        `train.tracker` is left out always: nothing that is computed depends on it.
        """
        config = RunConfig.from_dict(self.to_dict())  # a float given as 1 is 1.0 from here on
        canonical = config.to_dict()
        del canonical["train"]["tracker"]
        if self.method is None:
            del canonical["method"]
        for name, section in vars(config).items():
            for field in dataclasses.fields(section) if section is not None else ():
                if field.metadata.get("later") and getattr(section, field.name) == field.default:
                    del canonical[name][field.name]
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]
