"""Which part of a config do the compiled programs depend on? Needs no JAX, so that a cache can be asked first."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import RunConfig


def shape_key(config: RunConfig) -> RunConfig:
    """The part of a config that the compiled programs depend on: equal keys share compilations."""
    blank_optimizer = dataclasses.replace(
        config.optimizer, peak_lr=1.0, schedule="cosine", warmup_steps=0, final_lr_fraction=0.0, cooldown_fraction=0.0
    )
    train = dataclasses.replace(
        config.train,
        train_tokens=config.train.batch_size * config.data.seq_len,
        seed=0,
        double_batch_at=0.0,
        log_every=1,
        eval_every=0,
        eval_sequences=1,
        checkpoint_every=0,
        keep_checkpoints=0,
        tracker="tensorboard",
    )
    teacher = "some" if config.data.has_teacher else ""  # its batches have one array more
    data = dataclasses.replace(config.data, source="auto", data_dir="", mixture="", tokenizer="", text_field="")
    data = dataclasses.replace(data, teacher=teacher, teacher_share=0.1, teacher_weight=1.0, teacher_labels=())
    return dataclasses.replace(config, optimizer=blank_optimizer, train=train, data=data, study=None, method=None)
