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


def moving(direction):
    """The constants that move by a tenth of the largest change or more."""
    largest = max(abs(move) for move in direction.values())
    return {name for name, move in direction.items() if abs(move) >= 0.1 * largest}
