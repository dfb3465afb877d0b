"""FLM-101B: a model that grows from 16B over 51B to 101B parameters (Li et al. 2023, arXiv 2309.03852, table 1).

    python -m chinchilla_jax train --config=configs/flm_101b.py --workdir=runs/flm_101b
    python -m chinchilla_jax preflight --config=configs/flm_101b.py --slice=v5p-1024

Published: the last shape (80 layers, width 10240, 80 heads of 128, vocabulary 100,256, context 2048), the tokens of
each stage (245.37, 39.64 and 26.54 billion, English and Chinese), a pre-norm GPT-3 block with xPos, AdamW (0.9, 0.95),
weight decay 0.1, clipping at 1, one cosine from 4e-4 to 6e-6 with a warm-up of 4,608,000 samples and, after each
growth, of 230,400: 2000 and 100 steps of 2304 rows.

Ours: the shapes of the first two stages, which are published nowhere (12 L d^2 + V d gives 16B for 34 layers of 6144
and 51B for 62 layers of 8192); the ramp; 2304 rows in the last stage too, where the paper prints 2160; the mesh. The
rates are one curve, as the text says. Those that the table prints for the start of the later stages, 3.4e-4 and 2e-4,
lie on no cosine that ends with the tokens: over 311.55 billion it has come down to 4.8e-5 and 1.3e-5 by then.

C as 6ND over the stages is 51.8 zettaFLOPs by the printed sizes, 51.9 by these shapes; the paper prints 52.76. Its
21.54 days against 76.74 from scratch, 3.56 times less, follow from the days and tokens that it prints by stage; days
from the utilisations that it prints come out 9 to 15% lower.

`preflight` says of v5p-1024 (512 chips; libtpu 0.0.42.1, no hardware): every stage fits, at most 14.5 of 95.74 GiB;
4.3, 12.2 and 23.2 s a step, 45, 50 and 53% of the chips' peak (6ND), 5.3 days in all.
"""

import dataclasses

from ml_collections import ConfigDict

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.method import Growth, GrowthStage

TOKENS = (245.37e9, 39.64e9, 26.54e9)


def get_config() -> ConfigDict:
    """The run as published; what is ours is said above."""
    total = sum(TOKENS)
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=ModelConfig(n_layers=80, d_model=10240, n_heads=80, n_kv_heads=80, head_dim=128, d_ff=40960,
                          vocab_size=100256, position="xpos", norm="layernorm", biases="all", max_position=2048),
        optimizer=OptimizerConfig(peak_lr=4e-4, final_lr_fraction=6e-6 / 4e-4, warmup_steps=2000, b1=0.9, b2=0.95,
                                  weight_decay=0.1, clip_norm=1.0),
        data=DataConfig(source="text:flm_data", tokenizer="flm.model", vocab_size=100256, seq_len=2048),
        mesh=MeshConfig(data=1, fsdp=64, tensor=8),
        train=TrainConfig(train_tokens=int(total), batch_size=2304, microbatches=4, compute_dtype="bfloat16",
                          remat="attention", log_every=100, eval_every=2000, eval_sequences=2048,
                          checkpoint_every=500),
        method=Growth(stages=(GrowthStage(share=TOKENS[0] / total, n_layers=34, d_model=6144, n_heads=48,
                                          n_kv_heads=48, d_ff=24576),
                              GrowthStage(share=TOKENS[1] / total, n_layers=62, d_model=8192, n_heads=64,
                                          n_kv_heads=64, d_ff=32768)),
                      ramp=0.1, warmup_steps=100),
    )))  # fmt: skip
