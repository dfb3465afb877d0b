"""The Gopher family, 44M to 280B (Rae et al. 2021, table 1 and section 3): 300B tokens of MassiveText.

    python -m chinchilla_jax train --config=configs/gopher.py:417m --workdir=runs/gopher_417m
    python -m chinchilla_jax preflight --config=configs/gopher.py:280b --slice=v4-4096 --every_batch

Published: shapes, Adam, the learning rates below after 1500 warm-up steps with a cosine to a tenth, batches of 0.25M,
2M and 3M tokens (the last doubles midway), gradients clipped at 1, and at 0.25 from 7.1B on; sequences of 2048. Not
published: betas and epsilon, here 0.9, 0.95 and 1e-8. The paper's 7.1B and 280B kept bfloat16 weights with stochastic
rounding; here, as in Chinchilla, float32 master weights (which its authors found at least as good).

Set data.source to a folder with the domains MassiveWeb, Books, C4, News, GitHub and Wikipedia, and the mesh to your
slice. That of 280B is for v4-4096 (2048 chips), where `preflight` says (libtpu 0.0.42.1, no hardware), for batches of
3M and 6M tokens: 13.0 and 22.6 of 30.75 GiB at the peak, 15.3 and 28.8 s a step, 16 days, 65% of the chips' peak (6ND).
"""

import dataclasses

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
from chinchilla_jax.presets import preset

# name: peak learning rate, sequences per batch, batch doubles midway, clipping, mesh (fsdp, tensor)
PUBLISHED = {
    "44m": (6e-4, 128, False, 1.0, (8, 1)),
    "117m": (6e-4, 128, False, 1.0, (8, 1)),
    "417m": (2e-4, 128, False, 1.0, (16, 1)),
    "1.4b": (2e-4, 128, False, 1.0, (32, 1)),
    "7.1b": (1.2e-4, 1024, False, 0.25, (128, 1)),
    "280b": (4e-5, 1536, True, 0.25, (256, 8)),
}


def get_config(name: str = "417m") -> ConfigDict:
    """The run of the model `name` as published; the mesh is ours."""
    if name not in PUBLISHED:
        raise ConfigError("--config=configs/gopher.py", f"unknown model {name!r}{did_you_mean(name, PUBLISHED)}; one "
                          f"of {', '.join(PUBLISHED)}")  # fmt: skip
    peak_lr, sequences, doubles, clip_norm, (fsdp, tensor) = PUBLISHED[name]
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=preset(f"gopher-{name}").model,
        optimizer=OptimizerConfig(peak_lr=peak_lr, warmup_steps=1500, final_lr_fraction=0.1, weight_decay=0.0,
                                  clip_norm=clip_norm),
        data=DataConfig(source="text:massivetext", mixture="massivetext-gopher", vocab_size=32000, seq_len=2048),
        mesh=MeshConfig(data=1, fsdp=fsdp, tensor=tensor),
        train=TrainConfig(train_tokens=300_000_000_000, batch_size=sequences, double_batch_at=0.5 if doubles else 0.0,
                          compute_dtype="bfloat16", remat="attention", log_every=100, eval_every=5000,
                          eval_sequences=2 * sequences, checkpoint_every=500),
    )))  # fmt: skip
