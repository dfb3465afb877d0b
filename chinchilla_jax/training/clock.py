"""Where a run's time goes."""

from __future__ import annotations

import contextlib
import time


class Clock:
    """Splits wall time into start-up, the first step (compilation included), training, evaluation and checkpoints.

    Args:
      started: `time.perf_counter()` when the run began.
      seconds_before: time spent before a restart, from the checkpoint.
      flops_per_token: executed training FLOPs per token.
    """

    def __init__(self, started: float, seconds_before: float, flops_per_token: float):
        self._started, self._before, self._flops_per_token = started, seconds_before, flops_per_token
        self._parts = {"startup": 0.0, "first_step": 0.0, "training": 0.0, "evaluation": 0.0, "checkpoint": 0.0}
        self._mark = started
        self._window = (0, 0.0)  # tokens, seconds
        self._trained_tokens = 0

    def seconds(self) -> float:
        """Seconds spent on the run so far, restarts included."""
        return self._before + time.perf_counter() - self._started

    def lap(self, part: str, tokens: int = 0) -> None:
        """Books the time since the last booking under `part`."""
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        self._parts[part] += elapsed
        if part == "training":
            self._trained_tokens += tokens
            self._window = (self._window[0] + tokens, self._window[1] + elapsed)

    @contextlib.contextmanager
    def spent(self, part: str):
        """Books a block under `part`, and what came before it under training."""
        self.lap("training")
        yield
        self.lap(part)

    def window(self) -> dict[str, float]:
        """Tokens/s and FLOP/s since the last call; empty if nothing was trained since."""
        tokens, seconds = self._window
        self._window = (0, 0.0)
        if not tokens:
            return {}
        return {"tokens_per_second": tokens / seconds, "flops_per_second": tokens * self._flops_per_token / seconds}

    def tokens_per_second(self) -> float:
        """Average over this process's training time, the first step left out."""
        return self._trained_tokens / self._parts["training"] if self._parts["training"] else 0.0

    def flops_per_second(self) -> float:
        """Executed FLOP/s, likewise."""
        return self.tokens_per_second() * self._flops_per_token

    def parts(self) -> dict[str, float]:
        """Seconds by part, of this process."""
        return dict(self._parts)
