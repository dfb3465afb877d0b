"""LLaMA 7B, 13B, 33B and 65B (Touvron et al. 2023, table 2 and section 2).

    python -m chinchilla_jax train --config=configs/llama.py:7b --workdir=runs/llama_7b
    python -m chinchilla_jax preflight --config=configs/llama.py:65b --slice=v5p-1024

Published: shapes, AdamW (0.9, 0.95), weight decay 0.1, clipping at 1, 2000 warm-up steps, a cosine to a tenth, batches
of 4M tokens, sequences of 2048; 1.0T tokens for 7B and 13B, 1.4T for 33B and 65B. Not published: Adam's epsilon,
initialisation, precision.

Set data.source to a folder with the domains CommonCrawl, C4, Github, Wikipedia, Books, ArXiv and StackExchange, and the
mesh to your slice: data * fsdp has to divide the 2048 sequences of a batch. That of 65B is for v5p-1024 (512 chips),
where `preflight` says (libtpu 0.0.42.1, no hardware): 29.3 of 95.74 GiB at the peak, 13.8 s a step, 53 days, 51% of the
chips' peak (6ND).
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

# name: peak learning rate, tokens, mesh (fsdp, tensor)
PUBLISHED = {
    "7b": (3e-4, 1_000_000_000_000, (64, 1)),
    "13b": (3e-4, 1_000_000_000_000, (128, 1)),
    "33b": (1.5e-4, 1_400_000_000_000, (256, 1)),
    "65b": (1.5e-4, 1_400_000_000_000, (64, 8)),
}


def get_config(name: str = "7b") -> ConfigDict:
    """The run of the model `name` as published; the mesh is ours."""
    if name not in PUBLISHED:
        raise ConfigError("--config=configs/llama.py", f"unknown model {name!r}{did_you_mean(name, PUBLISHED)}; one of "
                          f"{', '.join(PUBLISHED)}")  # fmt: skip
    peak_lr, tokens, (fsdp, tensor) = PUBLISHED[name]
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=preset(f"llama-{name}").model,
        optimizer=OptimizerConfig(peak_lr=peak_lr, warmup_steps=2000, final_lr_fraction=0.1, b1=0.9, b2=0.95,
                                  weight_decay=0.1, clip_norm=1.0),
        data=DataConfig(source="text:llama_data", mixture="llama", vocab_size=32000, seq_len=2048),
        mesh=MeshConfig(data=1, fsdp=fsdp, tensor=tensor),
        train=TrainConfig(train_tokens=tokens, batch_size=2048,
                          compute_dtype="bfloat16", remat="attention", log_every=100, eval_every=5000,
                          eval_sequences=2048, checkpoint_every=500),
    )))  # fmt: skip
