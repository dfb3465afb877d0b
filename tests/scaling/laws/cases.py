"""Constants that several tests of laws plant, and which constants move along a flat direction."""

INTERACTION = {
    "alpha": 0.1,
    "a1": -0.1,
    "b1": -0.45,
    "beta": -0.1,
    "a2": 40.0,
    "b2": 0.4,
    "gamma": -0.1,
    "a3": 12.0,
    "b3": -1.2,
}

# Of the newer forms of the surface.
SKALING = {"E": 1.7, "alpha": 0.5, "beta": 0.55, "k": 0.6, "R": 9.0, "A": 260.0}
SATURATING = {"E": 1.6, "L0": 10.4, "alpha": 0.36, "beta": 0.4, "a": 40.0, "b": 230.0}
OVERFITTING = SATURATING | {"gamma": 0.35, "delta": 0.6, "c": 20.0}


def moving(direction):
    """The constants that move by a tenth of the largest change or more."""
    largest = max(abs(move) for move in direction.values())
    return {name for name, move in direction.items() if abs(move) >= 0.1 * largest}
