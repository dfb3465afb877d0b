"""Planted trainings: curves of a known law under a cosine, with noise that all runs share and noise of each its own."""

import math

import numpy as np

from chinchilla_jax.scaling.read.in_flight import Running, Schedule
from chinchilla_jax.scaling.read.runs import Curve, Run

COSINE = Schedule("cosine", 0.05, 0.1)
BATCH = 500.0  # tokens of a step; a line is every 50 steps
LINE = 50 * BATCH


def log_loss(params, total, tokens, schedule=COSINE):
    """ln of the training loss after `tokens` of `total`: data, size, and what a high rate still costs."""
    rates = np.array([schedule.rate(float(share)) for share in np.asarray(tokens) / total])
    return np.log(1.5 + 30.0 / params**0.3 + 180.0 / np.asarray(tokens) ** 0.4) + 0.06 * rates


def planted(name, params, total, rng, luck=None, own=0.002, schedule=COSINE, drift=0.0):
    """A finished run; `luck` is ln noise by line, which all runs share; `drift` how far its ln loss wanders off."""
    tokens = np.arange(LINE, total + 1.0, LINE)
    luck = np.zeros(len(tokens)) if luck is None else luck[: len(tokens)]
    wander = drift * np.cumsum(rng.standard_normal(len(tokens))) / math.sqrt(len(tokens))
    own_noise = own * rng.standard_normal(len(tokens) + 1)
    curve = log_loss(params, total, tokens - 0.5 * LINE, schedule) + luck + wander + own_noise[1:]
    loss = math.exp(float(log_loss(params, total, [total], schedule)[0]) + wander[-1] + own_noise[0])
    return Run(name, params, total, 6 * params * total, loss, 6 * params * total, curve=Curve(tokens, np.exp(curve)))


def study(seed=0, shared=0.01, own=0.002, drift=0.0):
    """Four budgets of five sizes, read in the same order of batches."""
    rng = np.random.default_rng(seed)
    luck = shared * rng.standard_normal(2000)
    runs = []
    for budget in (2e11, 4e11, 8e11, 1.6e12):
        for size in range(-2, 3):
            params = math.sqrt(budget / 60) * 1.4**size
            total = round(budget / 6 / params / LINE) * LINE
            runs.append(planted(f"c{budget:.0e}-{size}", params, total, rng, luck, own, drift=drift))
    return runs


def under_way(run, share, schedule=None):
    """The run when a share of its training was done."""
    keep = run.curve.tokens <= share * run.tokens
    return Running(run.name, run.params, run.tokens, run.flops, Curve(run.curve.tokens[keep], run.curve.loss[keep]),
                   schedule, run.seed)  # fmt: skip
