"""Which flags do the verbs take, and what do they mean?"""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from chinchilla_jax.base.errors import UsageError


def define(names: tuple[str, ...], values: flags.FlagValues) -> None:
    """Adds the flags of a verb to `values`; names that are not here (`config`) are defined elsewhere."""
    one_of = {"flag_values": values}
    known = {
        "study": lambda: flags.DEFINE_string("study", None, "Folder of the study.", **one_of),
        "workdir": lambda: flags.DEFINE_string("workdir", None, "Folder of the run.", **one_of),
        "profile": lambda: flags.DEFINE_string("profile", None, "Steps to trace into WORKDIR/profile, as START:STOP: "
                                               "100:105 are steps 100 to 104.", **one_of),
        "runs": lambda: flags.DEFINE_string("runs", None, "Table of runs (CSV, JSON lines, Parquet, .xlsx), run "
                                            "directory or folder of run directories, instead of a study.", **one_of),
        "columns": lambda: flags.DEFINE_string(
            "columns", None, "Which column holds what, where the guess is wrong: FIELD:COLUMN,... as in "
            "params:N,tokens:D*1e9,loss:val_loss,flops:C. A field may name its count (params_non_embedding, "
            "flops_6nd), a column its multiplier; FIELD:- is no column; curves.FIELD is for --curves.", **one_of),
        "curves": lambda: flags.DEFINE_string("curves", None, "Second table, with a row for each point of the runs' "
                                              "training curves: run, tokens (or step, or flops), loss.", **one_of),
        "where": lambda: flags.DEFINE_multi_string("where", None, "Only rows with this value: COLUMN=VALUE[,VALUE]; "
                                                   "may be given again for another column.", **one_of),
        "by": lambda: flags.DEFINE_string("by", None, "Column: one fit for each of its values, side by side.",
                                          **one_of),
        "best_per_cell": lambda: flags.DEFINE_boolean(
            "best_per_cell", False, "Where runs of one N and D differ in a setting (learning rate, batch), keep those "
            "of the lowest loss.", **one_of),
        "budget": lambda: flags.DEFINE_float("budget", None, "FLOPs to predict for.", lower_bound=1.0, **one_of),
        "workers": lambda: flags.DEFINE_integer("workers", None, "Runs that train at the same time, each on the "
                                                "study.cores that were planned for it. Default: as many as there are "
                                                "cores for; 2 with accelerators.", lower_bound=1, **one_of),
        "manifest": lambda: flags.DEFINE_string("manifest", "manifest.jsonl", "Which manifest of the study.", **one_of),
        "worker": lambda: flags.DEFINE_integer("worker", None, "Be this one worker, counted from 0, instead of "
                                               "starting --workers of them.", lower_bound=0, **one_of),
        "standby": lambda: flags.DEFINE_boolean("standby", False, "Get ready as standard input says, and wait for a "
                                                "line there before beginning.", **one_of),
        "parent": lambda: flags.DEFINE_integer("parent", None, "Process without which to stop.", **one_of),
        "coordinator": lambda: flags.DEFINE_string(
            "coordinator", None, "HOST:PORT of process 0, where several processes do one run; on TPU slices it is "
            "found without. Also JAX_COORDINATOR_ADDRESS.", **one_of),
        "processes": lambda: flags.DEFINE_integer("processes", None, "How many they are. Also JAX_NUM_PROCESSES.",
                                                  **one_of),
        "process": lambda: flags.DEFINE_integer("process", None, "Which of them this is, from 0. Also JAX_PROCESS_ID.",
                                                **one_of),
        "peer_timeout": lambda: flags.DEFINE_integer("peer_timeout", 100, "Seconds of silence after which a process is "
                                                     "given up.", lower_bound=1, **one_of),
        "join_timeout": lambda: flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all processes at the "
                                                     "start.", lower_bound=1, **one_of),
        "chip": lambda: flags.DEFINE_string("chip", None, "Kind of chip the budget is in: v4, v5e, v5p, v6e, ...",
                                            **one_of),
        "chips": lambda: flags.DEFINE_float("chips", None, "Number of chips.", **one_of),
        "days": lambda: flags.DEFINE_float("days", None, "Days they run.", **one_of),
        "utilisation": lambda: flags.DEFINE_float("utilisation", 0.4, "Share of their bfloat16 peak that the model "
                                                  "gets.", **one_of),
        "law": lambda: flags.DEFINE_string("law", None, "Published laws to ask, by name and comma, e.g. besiroglu2024.",
                                           **one_of),
        "params": lambda: flags.DEFINE_float("params", None, "N is given.", **one_of),
        "tokens": lambda: flags.DEFINE_float("tokens", None, "D is given.", **one_of),
        "unique_tokens": lambda: flags.DEFINE_float("unique_tokens", None, "No more than these tokens exist; more are "
                                                    "repeats.", **one_of),
        "inference_tokens": lambda: flags.DEFINE_float("inference_tokens", None, "Tokens the model will serve.",
                                                       **one_of),
        "inputs": lambda: flags.DEFINE_string("inputs", None, "What a law needs besides N and D: NAME:VALUE,... as in "
                                              "granularity:8 or sparsity:0.9.", **one_of),
        "more_runs": lambda: flags.DEFINE_integer("more_runs", None, "Propose this many further runs, those that "
                                                  "narrow the prediction most.", **one_of),
        "preset": lambda: flags.DEFINE_enum("preset", "corrected", ["corrected", "paper"], "The fits as corrected, or "
                                            "as the paper did them.", **one_of),
        "variants": lambda: flags.DEFINE_boolean("variants", False, "Also fit every variant of approaches 2 and 3.",
                                                 **one_of),
        "explain": lambda: flags.DEFINE_boolean("explain", False, "Also say what the preset does, and why.", **one_of),
        "replicates": lambda: flags.DEFINE_integer("replicates", 1000, "Bootstrap replicates; 0: no intervals.",
                                                   lower_bound=0, **one_of),
        "seed": lambda: flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.", **one_of),
        "output": lambda: flags.DEFINE_string("output", None, "Also write the answer there: a JSON file, or the folder "
                                              "of a report.", **one_of),
        "verify": lambda: flags.DEFINE_boolean("verify", False, "Also plan the runs that check the prediction.",
                                               **one_of),
        "slice": lambda: flags.DEFINE_string("slice", None, "TPU slice: v5e-16, v5p-512, 2xv5e-256, v5p:8x8x8.",
                                             **one_of),
        "choose": lambda: flags.DEFINE_boolean("choose", False, "Search mesh, microbatches and remat policy for the "
                                               "best predicted time that fits.", **one_of),
        "compiles": lambda: flags.DEFINE_integer("compiles", 3, "Settings that must fit before one is chosen; up to "
                                                 "three times as many are compiled.", lower_bound=1, **one_of),
        "every_batch": lambda: flags.DEFINE_boolean("every_batch", False, "Of a run whose batch doubles look at both "
                                                    "steps, not the larger only.", **one_of),
        "price": lambda: flags.DEFINE_float("price", None, "Dollars per chip-hour.", lower_bound=0.0, **one_of),
        "cache": lambda: flags.DEFINE_string("cache", None, "Folder of compiled results; otherwise of "
                                             "CHINCHILLA_JAX_CACHE, or ~/.cache/chinchilla_jax/preflight.", **one_of),
        "keep_hlo": lambda: flags.DEFINE_boolean("keep_hlo", False, "Also keep the text of compiled programs there.",
                                                 **one_of),
        "cells": lambda: flags.DEFINE_string("cells", None, "Which runs: NAME,BUDGET:nearest,...; by default the size "
                                             "nearest the guessed optimum of three budgets.", **one_of),
        "seeds": lambda: flags.DEFINE_integer("seeds", 6, "How many seeds each.", lower_bound=2, **one_of),
        "rates": lambda: flags.DEFINE_string("rates", "0.7,1,1.4", "Factors on the peak learning rate.", **one_of),
        "dry_run": lambda: flags.DEFINE_boolean("dry_run", False, "Print, write nothing.", **one_of),
    }  # fmt: skip
    for name in names:
        if name in known:
            known[name]()


def budget(values: flags.FlagValues, echo: Callable[[str], None]) -> float | None:
    """FLOPs of --budget, or of --chip, --chips, --days and --utilisation; None if none of them is given.

    Raises:
      UsageError: both are given, or some of the latter are missing.
    """
    parts = {name: values[name].value for name in ("chip", "chips", "days")}
    if not any(parts.values()):
        return values.budget
    if values.budget:
        raise UsageError("give either --budget or --chip, --chips and --days")
    missing = [f"--{name}" for name, value in parts.items() if not value]
    if missing:
        raise UsageError(f"{', '.join(missing)} is missing: a budget in chip-days is --chip=v4 --chips=1024 --days=30")
    from chinchilla_jax.base.chips import chip_days

    flops = chip_days(**parts, utilisation=values.utilisation)
    echo(f"{parts['chips']:g} {parts['chip']} chips for {parts['days']:g} days at {values.utilisation:.0%} of their "
          f"peak: C = {flops:.4g} FLOPs")  # fmt: skip
    return flops


def parse_inputs(text: str | None) -> dict[str, float]:
    """`granularity:8,sparsity:0.9` as a mapping.

    Raises:
      UsageError: a part that does not read NAME:VALUE.
    """
    found = {}
    for part in filter(None, (text or "").split(",")):
        name, colon, value = part.partition(":")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--inputs={text}: {part!r} should read NAME:VALUE, e.g. granularity:8") from None
    return found
