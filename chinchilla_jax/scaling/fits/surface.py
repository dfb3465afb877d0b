"""The law L(N, D) = E + A / N^alpha + B / D^beta of Hoffmann et al. 2022, and where it is lowest at a given budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from chinchilla_jax.scaling.fits.minimise import minimise_on_grid

FlopsPerToken = float | Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token; fields are scalars or bootstrap replicates [B]."""

    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    @property
    def a(self) -> np.ndarray:
        """Exponent of N*(C) = G (C/6)^a, eq. 4: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> np.ndarray:
        """Exponent of D*(C), eq. 4: alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss of a run with `params` N and `tokens` D; broadcasts with the fields."""
        return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)

    def columns(self) -> Surface:
        """The same with fields [..., 1], to be evaluated at many points each."""
        return Surface(*(np.asarray(getattr(self, field.name))[..., None] for field in dataclasses.fields(self)))

    def slopes(self, params: np.ndarray, tokens: np.ndarray, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """[..., 5] of a law of scalars at (N, D): d ln L by ln A', ln B', ln E, alpha and beta.

        A' and B' are the terms at the `centre` of ln N and ln D; without one they are A and B.
        """
        x, y = np.log(params) - centre[0], np.log(tokens) - centre[1]
        loss = self.loss(params, tokens)
        of_n, of_d = self.A * np.power(params, -self.alpha) / loss, self.B * np.power(tokens, -self.beta) / loss
        return np.stack([of_n, of_d, self.E / loss, -of_n * x, -of_d * y], -1)

    def optimum(
        self, flops: float | np.ndarray, flops_per: FlopsPerToken = 6.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """N*, D* and the loss there for a budget of `flops`, a number or one for each replicate.

        `flops_per` is a number c for C = c N D (eq. 4 in closed form), or a function from N [..., G] to the training
        FLOPs of one token; then N* is found by a grid over ln N refined around its best point.
        """
        c = 6.0 if callable(flops_per) else flops_per
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
        params, tokens = g * (flops / c) ** self.a, (flops / c) ** self.b / g
        if callable(flops_per):
            column = self.columns()
            spend = np.asarray(flops)[..., None]
            grid = np.log(params)[..., None] + np.linspace(-7.0, 7.0, 141)
            log_params = minimise_on_grid(
                lambda x: column.loss(np.exp(x), spend / flops_per(np.exp(x))), grid, rounds=6, points=21
            )
            params = np.exp(log_params)
            tokens = flops / flops_per(params)
        return params, tokens, self.loss(params, tokens)
