"""IsoFLOP studies: from text to the predicted, trained and checked compute-optimal model of the next budget.

    python -m chinchilla_jax study --config=configs/isoflop.py:cpu --study=studies/cpu

NAME after the colon:

    cpu          4 budgets, 6 sizes each, Debian's documentation; a laptop or two server cores. Expected on two cores in
                 about 15 minutes: all profiles with an interior minimum, loss 2.48 at 1.02e13 FLOPs and 386k
                 parameters, predicted within 1.5%
    cpu_long     the same study at 8 times the FLOPs: its smallest budget is the largest of `cpu`. 2.6 hours on two busy
                 cores; four interior minima, but loss 2.08 at 8.19e13 FLOPs and 979k parameters where 2.19 was
                 predicted: the model had learned what smaller ones had not (chinchilla_jax/study/README.md)
    tiny         seconds, on the text that comes with the package: the test of the whole pipeline, fits mean nothing
    chinchilla   the 9 budgets of Hoffmann et al. 2022 (6e18 to 3e21 FLOPs) on the 50 published shapes, MassiveText's
                 mixture; 16B parameters at the top, so for a pod. Set data.source to a folder whose domains are
                 MassiveWeb, Books, C4, News, GitHub and Wikipedia.

A study stopped at any point goes on where it was when the command is given again. `plan --dry_run` instead of `study`
prints the runs and their cost and trains nothing.

With --config.study.schedule=trunk --config.optimizer.schedule=cooldown_sqrt each size is trained once, at a constant
rate, and every budget is a cooldown that branches off: the runs of `cpu` and `chinchilla` at 69% of the FLOPs.
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
    did_you_mean,
)


def cpu(factor: float = 1.0) -> RunConfig:
    """Small models on Debian's documentation; `factor` multiplies every budget.

    Only the width varies: a step from two layers to three, or from one head to two, would show in the profiles. Four
    heads at every width: with a single one some seeds learn late (`noise`, with model.n_heads=1, model.n_kv_heads=1 and
    model.head_dim=64). The learning rate of `cpu` falls with D as well as with N, as the best one did over cells of 53k
    to 439k parameters and 0.7M to 3.4M tokens. The predicted model is trained twice: two workers then have two held-out
    runs each, and the difference shows how far a single run can be trusted. Unrolled layers and a microbatch of 4 x 128
    tokens are the fastest form on a CPU core, and a batch this small gives the small budgets enough steps.
    """
    return RunConfig(
        model=ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512,
                          scan_layers=False),
        optimizer=OptimizerConfig(weight_decay=0.1, b2=0.99, clip_norm=0.3, final_lr_fraction=0.1),
        data=DataConfig(source="auto", vocab_size=512, seq_len=128),
        train=TrainConfig(batch_size=4, microbatches=1, log_every=50, checkpoint_every=4000,
                          eval_sequences=1024),
        study=StudyConfig(name="cpu" if factor == 1 else "cpu_long",
                          budgets=tuple(factor * c for c in (3.2e11, 6.4e11, 1.28e12, 2.56e12)), sizes=6,
                          size_ratio=1.45, guess="D/N = 10, a = 0.55", ladder="width",
                          recipe="lr = 260 N^-0.6 D^-0.25", holdout_seeds=2,
                          flops_per_second=6e10),
    )  # fmt: skip


def tiny() -> RunConfig:
    """A few steps per run on the shipped text.

    Runs this short would all want the smallest model. The learning rate therefore grows with N, from too low to too
    high, which gives every profile a minimum for the fits to find; it says nothing about language.
    """
    return RunConfig(
        model=ModelConfig(n_layers=2, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=512),
        data=DataConfig(source="shipped", vocab_size=512, seq_len=64, validation_fraction=0.05),
        train=TrainConfig(batch_size=2, microbatches=1, log_every=10, eval_sequences=32),
        study=StudyConfig(name="tiny", budgets=(5e9, 7e9, 1e10, 1.4e10), sizes=6, size_ratio=1.4,
                          guess="D/N = 0.3", holdout_factor=2.0, aspect_ratio=24.0, recipe="lr = 8e-14 N^2.2",
                          flops_per_second=3e9),
    )  # fmt: skip


def chinchilla() -> RunConfig:
    """The paper's grid. Its learning rates run from 2e-4 to 1.25e-4 (appendix D.1): a power of N of -0.087."""
    return RunConfig(
        model=ModelConfig(n_layers=12, d_model=1024, n_heads=16, n_kv_heads=16, head_dim=64, d_ff=4096,
                          vocab_size=32000),
        optimizer=OptimizerConfig(weight_decay=0.1, final_lr_fraction=0.1),
        data=DataConfig(source="text:massivetext", mixture="massivetext-chinchilla", vocab_size=32000, seq_len=2048),
        train=TrainConfig(batch_size=256, microbatches=1, compute_dtype="bfloat16", remat="attention", log_every=100,
                          eval_every=5000, eval_sequences=2048, checkpoint_every=1000),
        study=StudyConfig(name="chinchilla",
                          budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21), convention="table_a4",
                          sizes=9, size_ratio=1.35, ladder="chinchilla", guess="D/N = 20",
                          recipe="lr = 9.4e-4 N^-0.087", warmup_fraction=0.01, flops_per_second=1e14),
    )  # fmt: skip


STUDIES = {"cpu": cpu, "cpu_long": lambda: cpu(8.0), "tiny": tiny, "chinchilla": chinchilla}


def get_config(name: str = "cpu") -> ConfigDict:
    """The study `name` as a template for `plan` and `study`."""
    if name not in STUDIES:
        raise ConfigError("--config=configs/isoflop.py", f"unknown study {name!r}{did_you_mean(name, STUDIES)}; one of "
                          f"{', '.join(STUDIES)}")  # fmt: skip
    return ConfigDict(dataclasses.asdict(STUDIES[name]()))
