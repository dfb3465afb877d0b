"""One of the 50 models of Hoffmann et al. 2022 (table A9), 44M to 16B, at one of the nine budgets of figure 3.

    python -m chinchilla_jax train --config=configs/chinchilla_study.py:16183m --workdir=runs/chinchilla_16183m
    python -m chinchilla_jax preflight --config=configs/chinchilla_study.py:16183m --slice=v5e-256

The whole study is `configs/isoflop.py:chinchilla`. This is for a single run of it: the largest budget, 3e21 FLOPs, and
the settings of that study. Set data.source to a folder with the domains MassiveWeb, Books, C4, News, GitHub and
Wikipedia, and the mesh to your slice; it is that of v5e-256 here where heads and width divide over it.

What `preflight` says of 16183m on v5e-256 (libtpu 0.0.42.1, no hardware): 3.7 of 15.75 GiB at the peak, 2.3 s a step,
1.6 days, 44% of the chips' peak (6ND).
"""

import dataclasses
import math

from ml_collections import ConfigDict

from chinchilla_jax.config import (
    ConfigError,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    did_you_mean,
)
from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.presets import presets

BUDGET = 3e21
MODELS = {name.removeprefix("study-"): p.model for name, p in presets().items() if name.startswith("study-")}


def get_config(name: str = "16183m") -> ConfigDict:
    """The run of the model of `name` million parameters at the largest budget."""
    if name not in MODELS:
        raise ConfigError("--config=configs/chinchilla_study.py", f"unknown model {name!r}"
                          f"{did_you_mean(name, MODELS)}; one of {', '.join(MODELS)}")  # fmt: skip
    # Of a weight each device has 16 rows or a multiple: in other parts the compiler does not scatter a gradient, but
    # adds it up whole on every device.
    fsdp = math.gcd(MODELS[name].d_model // 16, 256)
    tokens = round(BUDGET / train_flops_per_token(MODELS[name], 2048, "table_a4"))
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=MODELS[name],
        optimizer=OptimizerConfig(peak_lr=1.25e-4, warmup_steps=500, final_lr_fraction=0.1, weight_decay=0.1),
        data=DataConfig(source="text:massivetext", mixture="massivetext-chinchilla", vocab_size=32000, seq_len=2048),
        mesh=MeshConfig(fsdp=fsdp, tensor=math.gcd(256 // fsdp, MODELS[name].n_heads)),
        train=TrainConfig(train_tokens=tokens, batch_size=256, compute_dtype="bfloat16", remat="attention",
                          log_every=100, eval_every=5000, eval_sequences=2048, checkpoint_every=1000),
    )))  # fmt: skip
