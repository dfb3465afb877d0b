"""Chinchilla 70B (Hoffmann et al. 2022, table 4 and appendix G): 1.4T tokens of MassiveText.

    python -m chinchilla_jax train --config=configs/chinchilla_70b.py:v5p-1024 --workdir=runs/chinchilla_70b
    python -m chinchilla_jax preflight --config=configs/chinchilla_70b.py:v5p-1024 --slice=v5p-1024 --every_batch

Published: shape, AdamW, peak learning rate 1e-4 with a cosine to a tenth over the whole run, a batch of 1.5M tokens
that doubles midway, bfloat16 compute with float32 master weights, sequences of 2048. Not published, and taken from
Gopher or from habit: 1500 warm-up steps, betas 0.9 and 0.95, weight decay 0.1, clipping at 1.

Set data.source to a folder with the domains MassiveWeb, Books, C4, News, GitHub and Wikipedia. Expected: a loss near
1.94 nats per token by the paper's own fit, 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 on its own text.

What `preflight` says of each slice, for batches of 1.5M and 3M tokens (predicted by the compiler of libtpu 0.0.42.1, no
hardware): peak HBM of a chip in GiB, seconds of a step, then days and utilisation (6ND) of the whole run:

    v4-1024   512 chips    12.2, 21.9 of 30.75     8.63, 16.66    87.3 days   56%
    v4-2048   1024 chips    6.2, 11.1              4.50,  8.66    45.5        54%
    v4-4096   2048 chips    3.4,  5.6              2.43,  4.50    24.1        52%
    v5p-1024  512 chips    12.3, 22.0 of 95.74     4.81,  9.49    49.2        59%
    v5p-2048  1024 chips    6.3, 11.2              2.47,  4.83    25.2        58%
    v5p-4096  2048 chips    3.4,  5.7              1.34,  2.47    13.3        57%
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

# fsdp covers two sides of the grid of chips and tensor the third: a gather over all three becomes an all-reduce.
MESHES = {
    "v4-1024": MeshConfig(fsdp=64, tensor=8),
    "v4-2048": MeshConfig(fsdp=128, tensor=8),
    "v4-4096": MeshConfig(fsdp=256, tensor=8),
    "v5p-1024": MeshConfig(fsdp=64, tensor=8),
    "v5p-2048": MeshConfig(fsdp=128, tensor=8),
    "v5p-4096": MeshConfig(fsdp=256, tensor=8),
}


def get_config(slice_name: str = "v5p-1024") -> ConfigDict:
    """The run as published, on a slice; the mesh is ours."""
    if slice_name not in MESHES:
        raise ConfigError("--config=configs/chinchilla_70b.py", f"no mesh for a slice {slice_name!r}"
                          f"{did_you_mean(slice_name, MESHES)}; one of {', '.join(MESHES)}")  # fmt: skip
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=preset("chinchilla-70b").model,
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=1500, final_lr_fraction=0.1, weight_decay=0.1,
                                  clip_norm=1.0),
        data=DataConfig(source="text:massivetext", mixture="massivetext-chinchilla", vocab_size=32000, seq_len=2048),
        mesh=MESHES[slice_name],
        train=TrainConfig(train_tokens=1_400_000_000_000, batch_size=768, double_batch_at=0.5,
                          compute_dtype="bfloat16", remat="attention", log_every=100, eval_every=5000,
                          eval_sequences=3072, checkpoint_every=500),
    )))  # fmt: skip
