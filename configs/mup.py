r"""Hyper-parameters for every width: tuned on a narrow model, carried over by muP. The loss of a wide model foretold.

NAME after the colon:

    study    an IsoFLOP study of the family, of which only the width varies
    WIDTH    one run of d_model = WIDTH, a multiple of 8, on 200k tokens with the study's recipe

A grid on a proxy, which prints the best recipe, 'mup lr = 0.251487 D^-0.25, base = 64, init = 0.5' (30 runs, 18 minutes
on a busy core); then runs of several widths, of which the narrow ones foretell the widest:

    python -m chinchilla_jax tune --config=configs/mup.py --inits=0.5,1,2 --temperatures=1,2 --study=studies/mup \
        --config.study.recipe="mup lr = 0.01 (D/4e5)^-0.25, base = 64"
    python -m chinchilla_jax data --config=configs/mup.py
    for width in 32 40 48 64 80 96 128; do
        python -m chinchilla_jax train --config=configs/mup.py:$width --workdir=runs/mup/$width
        python -m chinchilla_jax train --config=configs/mup.py:$width --workdir=runs/mup/$width-1 --config.train.seed=1
    done
    python -m chinchilla_jax predict --across=width --runs=runs/mup

Expected, with the first seed alone of width 128: 3.394 predicted for it (95% of one run 3.11 to 3.68), 3.410 trained.
At so few tokens the runs scatter by 1.9% about the law.
"""

import dataclasses

from ml_collections import ConfigDict

from chinchilla_jax.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StudyConfig,
    TrainConfig,
)
from chinchilla_jax.study.ladder import flops_per_token
from chinchilla_jax.study.recipe import with_recipe

TOKENS = 200_000  # of every run of a width


def study(width: int = 64) -> RunConfig:
    """Models of two layers and four heads on Debian's documentation, as `configs/isoflop.py:cpu`."""
    return RunConfig(
        model=ModelConfig(n_layers=2, d_model=width, n_heads=4, n_kv_heads=4, head_dim=width // 4, d_ff=4 * width,
                          vocab_size=512, scan_layers=False),
        optimizer=OptimizerConfig(weight_decay=0.1, b2=0.99, clip_norm=0.3, final_lr_fraction=0.1),
        data=DataConfig(source="auto", vocab_size=512, seq_len=128),
        train=TrainConfig(batch_size=4, microbatches=1, log_every=50, eval_sequences=512),
        study=StudyConfig(name="mup", budgets=(1.6e11, 3.2e11, 6.4e11), sizes=6, size_ratio=1.45, ladder="width",
                          guess="D/N = 10, a = 0.55", recipe="mup lr = 0.01 (D/4e5)^-0.25, base = 64, init = 0.5",
                          flops_per_second=6e10),
    )  # fmt: skip


def run(width: int) -> RunConfig:
    """The run of one width, by the study's recipe."""
    config = study(width)
    chosen, _ = with_recipe(config, TOKENS * flops_per_token(config, config.model))
    steps = TOKENS // (chosen.train.batch_size * chosen.data.seq_len)
    train = dataclasses.replace(chosen.train, train_tokens=TOKENS)
    optimizer = dataclasses.replace(chosen.optimizer, warmup_steps=steps // 20)
    return dataclasses.replace(chosen, train=train, optimizer=optimizer, study=None)


def get_config(name: str = "study") -> ConfigDict:
    """The study, or the run of a width."""
    if name != "study" and not (name.isdigit() and int(name) >= 16 and int(name) % 8 == 0):
        known = "study, or a width: a multiple of 8 from 16 on"
        raise ConfigError("--config=configs/mup.py", f"unknown name {name!r}; {known}")
    return ConfigDict(dataclasses.asdict(study() if name == "study" else run(int(name))))
