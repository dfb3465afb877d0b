"""Which flags do the verbs take, and what do they mean?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from chinchilla_jax.base import files


def _flag(define: Callable, text: str, default: Any = None, **options: Any) -> Callable:
    """A function that defines a flag of one type, given its name."""
    return functools.partial(define, default=default, help=text, **options)


_text = functools.partial(_flag, flags.DEFINE_string)
_texts = functools.partial(_flag, flags.DEFINE_multi_string)
_switch = functools.partial(_flag, flags.DEFINE_boolean, default=False)
_number = functools.partial(_flag, flags.DEFINE_float)
_whole = functools.partial(_flag, flags.DEFINE_integer)

FLAGS = {
    # Where a study or a run is, and how it is worked on.
    "study": _text("Folder of the study."),
    "workdir": _text("Folder of the run; `forecast`: which runs of the study, RUN,RUN."),
    "manifest": _text("Which manifest of the study.", "manifest.jsonl"),
    "workers": _whole(
        "Runs that train at the same time, each on the study.cores that were planned for it. Default: as many as "
        "there are cores for; 2 with accelerators.",
        lower_bound=1,
    ),
    "worker": _whole("Be this one worker, counted from 0, instead of starting --workers of them.", lower_bound=0),
    "standby": _switch("Get ready as standard input says, and wait for a line there before beginning."),
    "parent": _whole("Process without which to stop."),
    "profile": _text("Steps to trace into WORKDIR/profile, as START:STOP: 100:105 are steps 100 to 104."),
    "dry_run": _switch("Print, write nothing."),
    # The processes of one run.
    "coordinator": _text(
        "HOST:PORT of process 0, where several processes do one run; on TPU slices it is found without. Also "
        "JAX_COORDINATOR_ADDRESS."
    ),
    "processes": _whole("How many they are. Also JAX_NUM_PROCESSES."),
    "process": _whole("Which of them this is, from 0. Also JAX_PROCESS_ID."),
    "peer_timeout": _whole("Seconds of silence after which a process is given up.", 100, lower_bound=1),
    "join_timeout": _whole("Seconds to wait for all processes at the start.", 300, lower_bound=1),
    # Which finished runs are read, and how.
    "runs": _text(
        "Table of runs (CSV, JSON lines, Parquet, .xlsx), run directory or folder of run directories, instead of "
        "a study."
    ),
    "columns": _text(
        "Which column holds what, where the guess is wrong: FIELD:COLUMN,... as in "
        "params:N,tokens:D*1e9,loss:val_loss,flops:C. A field may name its count (params_non_embedding, "
        "flops_6nd), a column its multiplier; FIELD:- is no column; curves.FIELD is for --curves."
    ),
    "curves": _text(
        "Second table, with a row for each point of the runs' training curves: run, tokens (or step, or flops), loss."
    ),
    "where": _texts("Only rows with this value: COLUMN=VALUE[,VALUE]; may be given again for another column."),
    "fit": _text("A fit that `fit --save` wrote, instead of a study or a table."),
    "save": _text("Also keep the fits and their runs in this file, NAME.npz."),
    "by": _text("Column: one fit for each of its values, side by side."),
    "best_per_cell": _switch(
        "Where runs of one N and D differ in a setting (learning rate, batch), keep those of the lowest loss."
    ),
    # How they are fitted, and where the answer goes.
    "preset": _flag(
        flags.DEFINE_enum,
        "The fits as corrected, or as the paper did them.",
        "corrected",
        enum_values=["corrected", "paper"],
    ),
    "replicates": _whole("Bootstrap replicates; 0: no intervals.", 1000, lower_bound=0),
    "seed": _whole("Seed of what is drawn.", 0),
    "output": _text("Also write the answer there: a JSON file, or the folder of a report."),
    "variants": _switch("Also fit every variant of approaches 2 and 3."),
    "losses": _text(
        "Fit several losses, each by itself: all, or the names of columns (of a study: domains of its mixture)."
    ),
    "errors": _text(
        "Columns of downstream errors or accuracies, 0 to 1, to predict through the loss; tasks: all that `evaluate` "
        "asked."
    ),
    "explain": _switch("Also say what the preset does, and why."),
    # A budget, and the other questions of `predict`.
    "budget": _number("FLOPs to predict for.", lower_bound=1.0),
    "chip": _text("Kind of chip the budget is in, or with --experts that serves: v4, v5e, v5p, v6e, ..."),
    "chips": _number("Number of chips."),
    "days": _number("Days they run."),
    "utilisation": _number("Share of their bfloat16 peak that the model gets.", 0.4),
    "law": _text(
        "Published laws to ask, by name and comma, e.g. besiroglu2024; or FILE.json that states a form and its "
        "constants."
    ),
    "across": _flag(
        flags.DEFINE_enum, "Predict from narrow runs on as many tokens what a wide one loses.", enum_values=["width"]
    ),
    "params": _number("N is given."),
    "tokens": _number("D is given."),
    "unique_tokens": _number("No more than these tokens exist; more are repeats."),
    "inference_tokens": _number("Tokens the model will serve."),
    "inputs": _text("What a law needs besides N and D: NAME:VALUE,... as in granularity:8 or sparsity:0.9."),
    "experts": _text("How many experts, when the mixture is also served: numbers to compare, 1,4,8,16; 1 is dense."),
    "serve": _text(
        "Traffic, mixture and bounds for --experts: NAME:VALUE,... of prompt and output (mean tokens of a request), "
        "top_k (2), routed_share (1/3), expert_size (1), kv_share (1), weight_bytes (2), value_bytes (2), most_chips, "
        "max_loss, max_cost."
    ),
    "throughput": _text(
        "Output tokens/s, measured or stated, that scale the roofline of --experts: PARAMS:TOKENS:CHIPS of a dense "
        "model with the same traffic."
    ),
    "register": _text("Also put the prediction on record in this file, NAME.json, before its run is trained."),
    "verify": _switch("Also plan the runs that check the prediction."),
    "reference": _text("Arm, or with `predict` number of experts, to compare with. Default: the first."),
    # The next runs.
    "next": _switch("Plan further runs of a study, those that narrow its prediction the most."),
    "purse": _number("FLOPs for all next runs together.", lower_bound=1.0),
    "number": _whole("At most so many next runs.", 8, lower_bound=1),
    "quantity": _flag(
        flags.DEFINE_enum, "What they are to narrow: the loss, or N*.", "loss", enum_values=["loss", "params"]
    ),
    # What `preflight` compiles for, and how.
    "slice": _text("TPU slice: v5e-16, v5p-512, 2xv5e-256, v5p:8x8x8."),
    "choose": _switch("Search mesh, microbatches and remat policy for the best predicted time that fits."),
    "compiles": _whole(
        "Settings that must fit before one is chosen; up to three times as many are compiled.", 3, lower_bound=1
    ),
    "every_batch": _switch("Of a run whose batch doubles look at both steps, not the larger only."),
    "generate": _text("Look at decoding: ROWS:PROMPT:NEW rows, tokens of a prompt and new ones, as 8:1024:256."),
    "price": _number("Dollars per chip-hour.", lower_bound=0.0),
    "cache": _text(
        "Folder of compiled results; otherwise of CHINCHILLA_JAX_CACHE, or ~/.cache/chinchilla_jax/preflight."
    ),
    "keep_hlo": _switch("Also keep the text of compiled programs there."),
    # Where `launch` trains.
    "backend": _text("Where: local, tpu_vm, gke, slurm, ssh."),
    "slices": _whole("How many of them, each of which trains a run at a time.", 1, lower_bound=1),
    "name": _text("Name of the job, a-z, 0-9 and -. Default: made from the path of the study."),
    "labels": _text("Labels of what is started: KEY:VALUE,..."),
    "budget_usd": _number("Dollars that may be spent; needs --price.", lower_bound=0.0),
    "preflight": _switch("First compile each distinct step for the slice; refuse runs that do not fit.", default=True),
    "zone": _text("tpu_vm: zone of the slices."),
    "project": _text("tpu_vm: project. Default: gcloud's own."),
    "spot": _switch("tpu_vm, gke: cheap slices that may be taken away at any time."),
    "reserved": _switch("tpu_vm: slices of a reservation."),
    "runtime_version": _text("tpu_vm: software of the machines. Default: as Google's table says."),
    "wait_hours": _number("tpu_vm: without a slice, after which a worker is given up.", 24.0, lower_bound=0.1),
    "service_account": _text("tpu_vm, gke: as whom workers read and write buckets."),
    "image": _text("gke: image that pods run; launch/Dockerfile makes one."),
    "namespace": _text("gke: namespace.", "default"),
    "queue": _text("gke: local queue of Kueue."),
    "volume": _text("gke: persistent volume that pods mount, CLAIM:/PATH."),
    "hosts": _text("ssh: HOST,HOST,... shared equally by the slices. slurm: nodes of each slice. Default: 1."),
    "sbatch": _texts("slurm: further option of sbatch, as --sbatch=--partition=gpu; may be given again."),
    # Trained models.
    "init_from": _text("Run, or folder of weights, to begin training with instead of random weights."),
    "step": _whole("Which checkpoint of the run. Default: the newest that can be read.", lower_bound=0),
    "format": _text("How weights are written: llama, gpt2, mixtral, chinchilla_jax; auto: as fits the model.", "auto"),
    "dtype": _text("Type of the weights: float32, bfloat16, float16; stored: as they are.", "stored"),
    # What `noise` and `tune` train.
    "cells": _text(
        "Which runs: NAME,BUDGET:nearest,...; by default the size nearest the guessed optimum of three budgets, of "
        "`tune` that of the smallest."
    ),
    "seeds": _whole("How many seeds each. Default: 6; of `tune` 1, of `transfer` 3.", lower_bound=2),
    "rates": _text(
        "Factors on the peak learning rate. Default: 0.7,1,1.4; of `tune` 0.25,0.5,1,2,4. `transfer`: learning rates, "
        "1e-3 by default."
    ),
    "inits": _text("Factors on the initial deviation of the recipe.", "1"),
    "temperatures": _text("Factors on the temperature of the recipe, by which logits are divided.", "1"),
    # What a trained model is made to learn besides.
    "modes": _text("In which ways, MODE,MODE. Default: scratch,full,frozen,embeddings."),
    "steps": _whole("Steps of each training. Default: 1000.", lower_bound=1),
    # A trained model, and the text it makes.
    "tokenizer": _text("Tokenizer (.model, tokenizer.json, a folder with one), where the model's folder has none."),
    "mesh": _text("Devices it lies on, as AXIS:DEVICES,...: tensor:4 or fsdp:2,tensor:4. Default: one."),
    "compute_dtype": _flag(
        flags.DEFINE_enum, "To compute in. Default: as it was trained.", enum_values=["float32", "bfloat16"]
    ),
    "prompts": _text("File of prompts, one a line."),
    "chat": _switch("Go on with each line of standard input."),
    "new_tokens": _whole("Tokens to add, at most.", 100, lower_bound=1),
    "temperature": _number("Divides the logits; 0: always the likeliest token.", 0.0, lower_bound=0.0),
    "top_k": _whole("Only the likeliest tokens, so many; 0: all.", 0, lower_bound=0),
    "top_p": _number("Only the likeliest tokens, of this probability together.", 1.0),
    "stop": _texts("End before this text; may be given again for another."),
    # What a model is asked.
    "suite": _text("The tasks of a paper: chinchilla, gopher, llama."),
    "data": _text("Folder of data sets, PATH/NAME/SPLIT.parquet, that tasks of the harness are asked with."),
    "include": _text("Folder of tasks of yours, as YAML files of the harness."),
    "fewshot": _whole("Examples before a question of the harness. Default: as the task says.", lower_bound=0),
    "tasks": _text(
        "Names of tasks, by comma; that of a family or a group is all of theirs. Default: heldout; of `transfer` "
        "listops,digits."
    ),
    "heldout": _text("Token store whose held-out text tasks are made of. Default: that of the run."),
    "rules": _text("Labelled texts for iq_symbolic_mapping in place of its own: a table or a folder of them."),
    "limit": _whole("Questions of a task, at most.", lower_bound=1),
    "begin": _switch("Texts begin with the token that began them in training.", default=True),
    # The way of training runs.
    "sequences": _whole("Held-out rows to look at. Default: as many as the runs' own evaluations.", lower_bound=1),
    "after": _text("Trends from these percentages of the training on: PERCENT,... Default: 10,40,70; of `plot` 10."),
    "factors": _text("Of the probabilities of the smaller and the larger run: NUMBER,NUMBER.", "1,-1"),
}


# Those that name a folder or a file.
PATHS = (
    "study", "workdir", "manifest", "runs", "curves", "fit", "save", "law", "register", "output", "cache", "init_from",
    "tokenizer", "prompts", "data", "include", "heldout", "rules",
)  # fmt: skip


# Those of them that may lie in a bucket. What else is read is mapped into memory, streamed, or given to other packages.
IN_BUCKETS = ("workdir", "study")


def check_paths(values: flags.FlagValues) -> None:
    """Raises `StorageError` where a flag names a path in storage that is not known, or not known to it."""
    for name in (name for name in PATHS if name in values and values[name].value):
        try:
            here = files.path if name in IN_BUCKETS else files.here
            here(values[name].value)
        except files.StorageError as error:
            raise files.StorageError(f"--{name}={error}") from None


def define(names: tuple[str, ...], values: flags.FlagValues) -> None:
    """Adds the flags of a verb to `values`, but `config`, which `config_flag` defines."""
    for name in names:
        if name != "config":
            FLAGS[name](name, flag_values=values)
