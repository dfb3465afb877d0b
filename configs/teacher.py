"""A teacher signal: propositions that are true or false among the text (FreeLM; as FLM-101B has it).

    python -m chinchilla_jax.tools.parity data/parity.jsonl
    python -m chinchilla_jax data --config=configs/teacher.py
    python -m chinchilla_jax train --config=configs/teacher.py --workdir=runs/teacher

Half of the rows are text, half are propositions such as {"text": "an even number before n: k t", "label": false}, of
which only the label counts. Expected in one or two minutes on two cores: teacher_accuracy on 71 propositions that were
held out, 0.49 at step 250, 0.99 at step 500, 1.00 at the end; loss of the text 3.105. Without propositions, and with
the same rows of text in each step, it is 3.103:

    python -m chinchilla_jax train --config=configs/teacher.py --workdir=runs/text --config.data.teacher_share=0 \\
        --config.train.batch_size=16 --config.train.train_tokens=768000

FLM-101B's labels are two emoji. Here they are two control pieces; --config.data.teacher_labels="('A', 'B')" names other
pieces of the tokenizer, for true and false.
"""

import dataclasses

from ml_collections import ConfigDict

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig


def get_config() -> ConfigDict:
    """A model of 141 thousand parameters, on the text that comes with the package."""
    return ConfigDict(dataclasses.asdict(RunConfig(
        model=ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512,
                          scan_layers=False),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=50, b2=0.99),
        data=DataConfig(source="shipped", vocab_size=512, seq_len=32, validation_fraction=0.1,
                        teacher="data/parity.jsonl", teacher_share=0.5, teacher_weight=8.0),
        train=TrainConfig(train_tokens=1500 * 32 * 32, batch_size=32, log_every=100, eval_every=250,
                          eval_sequences=512),
    )))  # fmt: skip
