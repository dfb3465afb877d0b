"""What depends on the step alone: batch size, tokens seen, learning rate. Plain Python numbers, no arrays.

The learning rate is an input of the compiled step, so runs that differ only in budget share one compilation.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable

from chinchilla_jax.config import COOLDOWNS, OptimizerConfig, RunConfig

FIRST_KEPT = 0.01  # of a run's tokens: before that there is little to see


def is_due(every: int, step: int) -> bool:
    """Whether `step` ends an interval of `every` steps; one of 0 has no end."""
    return every > 0 and step % every == 0


def log_spaced(number: int, tokens: Callable[[int], int], total_steps: int) -> tuple[int, ...]:
    """`number` steps, rising, the last is `total_steps`: after each the first whose `tokens` are as many as wanted.

    These are equally far apart in the logarithm, from `FIRST_KEPT` of all tokens on. Where two of them fall into one
    step the second is the next one; a run of fewer steps gives all it has.
    """
    number, last = min(number, total_steps), tokens(total_steps)
    steps = [0]
    for after in reversed(range(number)):
        wanted = math.floor(last * FIRST_KEPT ** (after / max(number - 1, 1)))
        step = bisect.bisect_left(range(total_steps), wanted, key=tokens)
        steps.append(min(max(step, steps[-1] + 1), total_steps - after))
    return tuple(steps[1:])


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """Sequences per step: `batch_size`, and twice that from `double_batch_at` of the horizon on.

    Gopher 280B and Chinchilla 70B double midway (Hoffmann et al. 2022, Table 4). `total_steps` are the whole steps
    nearest to `train_tokens`.
    """

    batch_size: int
    steps_before_doubling: int
    total_steps: int
    seq_len: int

    def sequences(self, step: int) -> int:
        """Sequences in the batch of `step`."""
        return self.batch_size * (2 if step >= self.steps_before_doubling else 1)

    def first_sequence(self, step: int) -> int:
        """Sequences consumed before `step`: the position in the data."""
        return self.batch_size * (step + max(0, step - self.steps_before_doubling))

    def tokens(self, step: int) -> int:
        """Tokens consumed before `step`; `tokens(total_steps)` is the run's D."""
        return self.first_sequence(step) * self.seq_len


def learning_rate(optimizer: OptimizerConfig, batches: BatchSchedule, step: int) -> float:
    """Learning rate of `step`: linear warm-up over `warmup_steps`, then the schedule.

    `cosine` falls to `final_lr_fraction` of the peak at the last step: the cycle is matched to the horizon, in tokens,
    so that it stays matched when the batch doubles (Hoffmann et al. 2022, appendix B). `constant` stays at the peak.
    `cooldown` and `cooldown_sqrt` stay there too and fall to the same value over the last `cooldown_fraction` of the
    tokens, linearly or as 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392): until then a run does not know its horizon.
    """
    peak, final = optimizer.peak_lr, optimizer.final_lr_fraction
    if step < optimizer.warmup_steps:
        return peak * (step + 1) / (optimizer.warmup_steps + 1)
    if optimizer.schedule == "constant":
        return peak
    start, end = batches.tokens(optimizer.warmup_steps), batches.tokens(batches.total_steps - 1)
    if optimizer.schedule in COOLDOWNS:
        length = optimizer.cooldown_fraction * batches.tokens(batches.total_steps)
        left = (end - batches.tokens(step)) / length if length else 1.0
        if left >= 1.0:
            return peak
        height = left if optimizer.schedule == "cooldown" else 1.0 - math.sqrt(1.0 - left)
        return peak * (final + (1.0 - final) * height)
    progress = min(1.0, (batches.tokens(step) - start) / (end - start)) if end > start else 1.0
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def cooldown_start(optimizer: OptimizerConfig, batches: BatchSchedule) -> int:
    """The first step after warm-up whose rate is below the peak: a `constant` run is the same up to there."""
    steps = range(optimizer.warmup_steps, batches.total_steps)
    is_below = bisect.bisect_left(steps, True, key=lambda s: learning_rate(optimizer, batches, s) < optimizer.peak_lr)
    return optimizer.warmup_steps + is_below


def steps_of(config: RunConfig) -> BatchSchedule:
    """The batch schedule of a run."""
    train, seq_len = config.train, config.data.seq_len
    size, sequences = train.batch_size, train.train_tokens / seq_len
    if not train.double_batch_at:
        steps = max(1, round(sequences / size))
        return BatchSchedule(size, steps, steps, seq_len)
    before = round(sequences * train.double_batch_at / size)
    after = round((sequences - before * size) / (2 * size))
    return BatchSchedule(size, before, max(1, before + after), seq_len)
