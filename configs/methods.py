"""Ways to train at equal compute: growth, patches and mixtures of experts beside plain training.

    python -m chinchilla_jax methods --config=configs/methods.py:cpu --study=studies/methods

NAME after the colon:

    cpu    plain at C / 2, C and 2 C, the others at C = 7e11 FLOPs executed, two sizes, four seeds; Debian's
           documentation, a laptop or two server cores. Expected on two cores in 15 minutes: gains of 0.87 (growth),
           0.63 (patches), 0.94 (ds_moe) and 1.78 (top_k), each within 5% (chinchilla_jax/methods/README.md)
    tiny   seconds, on the text that comes with the package: the test of the whole comparison; its figures mean nothing

Add a way by --config.study.methods, as "('plain', 'patch size=2 share=0.5')" (`study/ways.py`).
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

WAYS = (
    "plain",
    "growth share=0.5 factor=2",
    "patch size=4 share=0.667",
    "ds_moe experts=16 router_loss=0.01",
    "top_k experts=8 active=2 router_loss=0.01",
)


def cpu() -> RunConfig:
    """The models of `isoflop.py:cpu`, whose head grows with the width: half of the heads are half of the width."""
    return RunConfig(
        model=ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512,
                          scan_layers=False),
        optimizer=OptimizerConfig(weight_decay=0.1, b2=0.99, clip_norm=0.3, final_lr_fraction=0.1),
        data=DataConfig(source="auto", vocab_size=512, seq_len=128),
        train=TrainConfig(batch_size=4, microbatches=1, log_every=25, checkpoint_every=4000, eval_sequences=1024),
        study=StudyConfig(name="methods", budgets=(3.5e11, 7e11, 1.4e12), sizes=2, size_ratio=1.5,
                          guess="D/N = 10, a = 0.55", ladder="width", recipe="lr = 260 N^-0.6 D^-0.25", seeds=(4,),
                          flops_per_second=6e10, methods=WAYS),
    )  # fmt: skip


def tiny() -> RunConfig:
    """A few steps a run."""
    study = dataclasses.replace(cpu().study, name="tiny", budgets=(4e9, 8e9, 1.6e10), seeds=(2,), recipe="lr = 0.01",
                                guess="N = 60000 C^0")  # fmt: skip
    train = TrainConfig(batch_size=2, log_every=5, eval_sequences=32)
    data = DataConfig(source="shipped", vocab_size=512, seq_len=64, validation_fraction=0.05)
    return dataclasses.replace(cpu(), data=data, train=train, study=study)


STUDIES = {"cpu": cpu, "tiny": tiny}


def get_config(name: str = "cpu") -> ConfigDict:
    """The comparison `name`, for `methods`."""
    if name not in STUDIES:
        raise ConfigError("--config=configs/methods.py", f"unknown comparison {name!r}{did_you_mean(name, STUDIES)}; "
                          f"one of {', '.join(STUDIES)}")  # fmt: skip
    return ConfigDict(dataclasses.asdict(STUDIES[name]()))
