"""stub"""
from __future__ import annotations
import dataclasses, math
from chinchilla_jax.scaling.read.runs import Curve


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate goes: `kind` as in the configs; all others are shares, `warmup` and `cooldown` of D,
    `final` of the peak."""

    kind: str
    warmup: float = 0.0
    final: float = 0.1
    cooldown: float = 0.0

    def rate(self, share: float) -> float:
        """The learning rate at a share of the training, over its peak."""
        if share < self.warmup:
            return share / self.warmup
        if self.kind == "constant":
            return 1.0
        if self.kind in ("cooldown", "cooldown_sqrt"):
            left = min((1.0 - share) / self.cooldown, 1.0) if self.cooldown else 1.0
            height = left if self.kind == "cooldown" else 1.0 - math.sqrt(1.0 - left)
        else:
            along = (share - self.warmup) / max(1.0 - self.warmup, 1e-9)
            height = 1.0 - along if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(along, 1.0)))
        return self.final + (1.0 - self.final) * max(height, 0.0)

    def resembles(self, other: Schedule) -> bool:
        """Whether the rates of both go the same way, give or take a few percent of the training."""
        near = all(abs(getattr(self, name) - getattr(other, name)) < 0.05 for name in ("warmup", "final", "cooldown"))
        return self.kind == other.kind and near


@dataclasses.dataclass(frozen=True)
class Running:
    """A training under way: planned `params` N, `tokens` D and `flops` C, counted as the finished runs' are; `curve` so
    far; `schedule` where it is known; `seed` as in `Run`."""

    name: str
    params: float
    tokens: float
    flops: float
    curve: Curve
    schedule: Schedule | None = None
    seed: str = ""
