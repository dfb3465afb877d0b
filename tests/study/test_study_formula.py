"""Power laws written in a config, and what is said about those that cannot be read."""

import pytest

from chinchilla_jax.study.formula import parse


def test_a_formula_is_a_number_times_powers():
    laws = parse("study.recipe", "lr=1.79 N_ne^-0.713 D^0.307 , batch = .58*D**0.571", ("lr", "batch"), ("N_ne", "D"))
    assert laws["lr"].at(N_ne=1e9, D=1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert laws["batch"].at(N_ne=1e9, D=1e11) == pytest.approx(0.58 * 1e11**0.571)
    assert str(laws["lr"]) == "1.79 N_ne^-0.713 D^0.307"
    assert parse("k", "lr = 3e-4", ("lr",), ("N",))["lr"].at(N=5.0) == 3e-4
    assert parse("k", "lr = 2 N", ("lr",), ("N",))["lr"].at(N=5.0) == 10.0
