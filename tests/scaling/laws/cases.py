"""Constants that several tests of laws plant."""

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
