"""How well was a run's wall time used? Shares of it, and utilisation under each FLOP convention.

    startup      from the call of `train` to the loop: data, mesh, weights or their restoring; the profiler's edges
    compile      tracing, lowering and compiling, or loading from the compilation cache, whatever asked for it
    input_wait   devices without work while the host makes the next batch and places it
    step         everything else between two bookings in the loop: a step runs, or the host logs and dispatches
    evaluation   validation
    checkpoint   the loop stands still for a checkpoint; what is written while steps run costs nothing
    lost         steps, input wait and evaluations that a restart has to do again

`clock.Clock` books every second under one of them; goodput is the share of `step`. Seconds of a checkpoint that has no
parts, from before they were kept, are `unsplit`: in the total, but in no share and no utilisation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTS = ("startup", "compile", "input_wait", "step", "evaluation", "checkpoint", "lost")
DONE_AGAIN = ("input_wait", "step", "evaluation")  # after a restart, if newer than the checkpoint
UNSPLIT = "unsplit"


def last_stamp(workdir: Path, window: int = 65536) -> dict[str, Any] | None:
    """The newest line of a run's timing.jsonl that says where the time went; None without one.

    Args:
      window: only the last so many bytes are read.
    """
    try:
        with open(Path(workdir) / "timing.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - window))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut at the window's start, or the line a process was killed in
        if isinstance(record, dict) and isinstance(record.get("time"), dict) and "seconds" in record:
            return record
    return None


def _split(parts: Mapping[str, float]) -> float:
    return sum(parts.get(part, 0.0) for part in PARTS)


def goodput(parts: Mapping[str, float]) -> float:
    """Share of the time in `step`: 0 to 1."""
    total = _split(parts)
    return parts.get("step", 0.0) / total if total > 0 else 0.0


def utilisation(
    parts: Mapping[str, float], tokens: int, flops_per_token: Mapping[str, float], peak: float
) -> dict[str, dict[str, float]]:
    """Share of the peak by FLOP convention, over `step` time alone and over `all` time.

    Args:
      parts: seconds by part.
      tokens: of the steps in `parts["step"]`; steps done twice count once.
      flops_per_token: training FLOPs by convention, see `ledger`.
      peak: FLOP/s of all devices of the mesh.
    """
    spans = {"step": parts.get("step", 0.0), "all": _split(parts)}
    return {
        over: {c: tokens * flops / seconds / peak if seconds > 0 else 0.0 for c, flops in flops_per_token.items()}
        for over, seconds in spans.items()
    }


def time_line(parts: Mapping[str, float], used: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """`time: step 91.2%, compile 4.0%, ...; utilisation 41.0% of peak (6nd), 48.0% (executed)`; the last is of steps.

    Args:
      parts: seconds by part, of a run or summed over some. Below 0.05% they are left out.
      used: as `utilisation` gives it.
    """
    total = _split(parts)
    shares = sorted(((parts.get(part, 0.0) / total, part) for part in PARTS), reverse=True) if total > 0 else []
    line = "time: " + (
        ", ".join(f"{part.replace('_', ' ')} {share:.1%}" for share, part in shares if share >= 0.0005)
        or "nothing booked yet"
    )
    if used:
        step = used["step"]
        line += f"; utilisation {step['6nd']:.1%} of peak (6nd), {step['executed']:.1%} (executed)"
    return line
