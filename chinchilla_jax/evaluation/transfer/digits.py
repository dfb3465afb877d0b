"""Which digit is in a picture, read row by row, a symbol a pixel? The pictures are drawn here: no data set is needed.

A digit is a few strokes in a unit square, turned, sheared, stretched, moved and bent at random, and sampled on a grid
of 8 x 8 in four levels of grey, with noise. MNIST, which Lu et al. 2021 use, is larger and has real hands.
"""

from __future__ import annotations

import numpy as np

SIDE = 8
SYMBOLS = (".", "-", "+", "#", "/")  # from white to black; the last ends a row
_ROW_END = 4
_PEN, _NOISE = 0.11, 0.1
_TURN, _BEND, _MOVE = 0.18, 0.04, 0.05  # standard deviations
# Corners of the line that makes a digit: x to the right, y down.
_STROKES = (
    ((0.5, 0.1), (0.75, 0.25), (0.75, 0.75), (0.5, 0.9), (0.25, 0.75), (0.25, 0.25), (0.5, 0.1)),
    ((0.35, 0.25), (0.55, 0.1), (0.55, 0.9)),
    ((0.25, 0.3), (0.4, 0.1), (0.65, 0.12), (0.72, 0.32), (0.25, 0.9), (0.75, 0.9)),
    ((0.27, 0.12), (0.72, 0.12), (0.47, 0.45), (0.72, 0.65), (0.6, 0.88), (0.27, 0.85)),
    ((0.65, 0.9), (0.65, 0.1), (0.22, 0.65), (0.8, 0.65)),
    ((0.72, 0.1), (0.32, 0.1), (0.3, 0.45), (0.6, 0.42), (0.73, 0.65), (0.55, 0.9), (0.27, 0.85)),
    ((0.65, 0.1), (0.35, 0.35), (0.27, 0.65), (0.42, 0.9), (0.65, 0.85), (0.72, 0.65), (0.5, 0.5), (0.3, 0.62)),
    ((0.25, 0.1), (0.75, 0.1), (0.42, 0.9)),
    ((0.5, 0.48), (0.3, 0.3), (0.5, 0.1), (0.7, 0.3), (0.5, 0.48), (0.27, 0.7), (0.5, 0.9), (0.73, 0.7), (0.5, 0.48)),
    ((0.7, 0.38), (0.5, 0.5), (0.3, 0.38), (0.33, 0.15), (0.55, 0.1), (0.7, 0.25), (0.7, 0.38), (0.6, 0.9)),
)
_MOST = max(map(len, _STROKES))
# Those with fewer corners stay at the last.
_CORNERS_10xKx2 = np.array([[*stroke, *[stroke[-1]] * (_MOST - len(stroke))] for stroke in _STROKES])
_PIXELS_Px2 = np.stack(np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE] * 2), axis=-1).reshape(-1, 2)


def draw(rng: np.random.Generator, count: int) -> list[tuple[list[int], int]]:
    """Pictures: the symbols of each, as numbers of `SYMBOLS`, and which digit it is of."""
    digits_N = rng.integers(10, size=count)
    levels_NxRxC = np.clip((pictures(rng, digits_N) * 4).astype(int), 0, 3)
    symbols = np.pad(levels_NxRxC, ((0, 0), (0, 0), (0, 1)), constant_values=_ROW_END).reshape(count, -1)
    return list(zip(symbols.tolist(), digits_N.tolist(), strict=True))


def pictures(rng: np.random.Generator, digits_N: np.ndarray) -> np.ndarray:
    """Digits drawn at random: float `[N, 8, 8]`, about 0 (white) to 1 (black)."""
    n = len(digits_N)
    turn_N, shear_N = rng.normal(0.0, _TURN, (2, n))
    rotation_Nx2x2 = np.array([[np.cos(turn_N), -np.sin(turn_N)], [np.sin(turn_N), np.cos(turn_N)]]).transpose(2, 0, 1)
    shear_Nx2x2 = np.eye(2) + shear_N[:, None, None] * np.array([[0.0, 1.0], [0.0, 0.0]])
    form_Nx2x2 = rotation_Nx2x2 @ shear_Nx2x2 * rng.uniform(0.8, 1.1, (n, 1, 2))
    corners_NxKx2 = _CORNERS_10xKx2[digits_N] - 0.5 + rng.normal(0.0, _BEND, (n, _MOST, 2))
    corners_NxKx2 = corners_NxKx2 @ form_Nx2x2.transpose(0, 2, 1) + 0.5 + rng.normal(0.0, _MOVE, (n, 1, 2))
    begin_NxLx2, along_NxLx2 = corners_NxKx2[:, :-1], np.diff(corners_NxKx2, axis=1)
    from_begin_NxPxLx2 = _PIXELS_Px2[:, None] - begin_NxLx2[:, None]
    # Where on each line the nearest point to each pixel lies: 0 at its beginning, 1 at its end.
    share_NxPxL = np.einsum("npli,nli->npl", from_begin_NxPxLx2, along_NxLx2)
    share_NxPxL = np.clip(share_NxPxL / ((along_NxLx2**2).sum(-1)[:, None] + 1e-9), 0.0, 1.0)
    nearest_NxPxLx2 = from_begin_NxPxLx2 - share_NxPxL[..., None] * along_NxLx2[:, None]
    distance_NxP = np.sqrt((nearest_NxPxLx2**2).sum(-1)).min(axis=2)
    ink_NxP = np.exp(-((distance_NxP / _PEN) ** 2)) + rng.normal(0.0, _NOISE, distance_NxP.shape)
    return ink_NxP.reshape(n, SIDE, SIDE)
