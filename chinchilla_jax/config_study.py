"""What is a study? The section of a config that `plan` turns into a manifest."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.base.config_values import POSITIVE, SHARE, ConfigError, Section, key

CONVENTIONS = ("table_a4", "appendix_f", "6nd", "executed")
LADDERS = ("generated", "width", "chinchilla")
STUDY_SCHEDULES = ("matched", "trunk")


@dataclasses.dataclass(frozen=True)
class StudyConfig(Section):
    """An IsoFLOP study: what `plan` turns into a manifest.

    `budgets` in FLOPs under `convention`; `sizes` per budget on a geometric ladder of parameters with ratio
    `size_ratio`, centred on `guess`; the held-out budget is `holdout_factor` times the largest.
    `guess` says which N is expected to be optimal: `D/N = 20, a = 0.5` (so many tokens per parameter at the geometric
    middle of the budgets, N* ~ C^a from there), `N = 0.0992 C^0.4981`, a published law (`hoffmann-1`,
    `besiroglu2024`, ...), or the folder of a study or a table of runs, whose fit is taken (`study/guess.py`).
    `recipe` gives learning rate and batch: `lr = 1 N^-0.5` (batch as in `train.batch_size`), `lr = 1 N^-0.5, batch = 2
    D^0.5` (in tokens), `deepseek` or `step-law` (`study/recipe.py`); warm-up is a fraction of the steps.
    `schedule`: `matched` (every run on its own, to its own horizon) or `trunk` (per size one run at constant rate, from
    which a cooldown branches off for every budget; needs a cooldown as `optimizer.schedule`).
    `ladder`: `generated` (shapes of the family of `model`, depth and width near `aspect_ratio` = d_model / n_layers),
    `width` (only the width varies: at depths of a few layers each step of depth would show in the profiles) or
    `chinchilla` (the 50 published study models).
    `seeds` is how many times every run of a budget is trained, with `train.seed` and the seeds after it: one number, or
    one for each budget in rising order; `holdout_seeds` the same for the held-out run of the predicted size.
    `flops_per_second` is what one worker sustains; only the estimates of time read it.
    `cores` is how many cores of a CPU each run computes with, whatever else is free: a loss depends on it to the last
    bits. Accelerators do not read it.
    `methods` are ways to train every run of the plan, each at the same C (`study/ways.py`); empty means plain alone.
    """

    name: str = "isoflop"
    budgets: tuple[float, ...] = (1e11, 3e11, 9e11, 2.7e12)
    convention: str = key("executed", one_of=CONVENTIONS)
    sizes: int = key(7, POSITIVE, most=1000)
    size_ratio: float = key(1.6, POSITIVE, most=100.0)
    guess: str = "D/N = 20, a = 0.5"
    holdout_factor: float = key(4.0, POSITIVE, most=1e6)
    ladder: str = key("generated", one_of=LADDERS)
    aspect_ratio: float = key(32.0, POSITIVE, most=1e5)
    recipe: str = "lr = 1 N^-0.5"
    schedule: str = key("matched", one_of=STUDY_SCHEDULES)
    warmup_fraction: float = key(0.05, SHARE)
    flops_per_second: float = key(1e10, POSITIVE)
    seeds: tuple[int, ...] = key((1,), later=True)
    holdout_seeds: int = key(1, POSITIVE, most=1000, later=True)
    cores: int = key(1, POSITIVE, most=10**5, later=True)
    methods: tuple[str, ...] = key((), later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets or not all(1.0 <= b <= 1e37 for b in self.budgets):
            raise ConfigError("budgets", f"needs positive FLOP budgets, of 1 to 1e37, got {self.budgets}")
        if len(set(self.budgets)) != len(self.budgets):
            raise ConfigError("budgets", f"lists a budget twice: {self.budgets}")
        if self.size_ratio < 1.01:
            raise ConfigError("size_ratio", f"must be at least 1.01, got {self.size_ratio}")
        if len(self.seeds) not in (1, len(self.budgets)) or not all(1 <= n <= 1000 for n in self.seeds):
            raise ConfigError("seeds", f"give one number of runs, 1 to 1000, or one for each budget, got {self.seeds}")
