"""One command, one table: every mode on every task with every seed, and what a guess would get."""

import json
import statistics

import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.transfer import table
from chinchilla_jax.evaluation.transfer.table import Plan, compare, lines
from chinchilla_jax.evaluation.transfer.train import MODES, Outcome
from chinchilla_jax.training.loop import train


@pytest.fixture
def few(monkeypatch):
    """Few held-out examples."""
    monkeypatch.setattr(table, "HELD_OUT", {"validation": 32, "test": 96})


def test_the_first_seed_chooses_the_rate_and_all_see_the_same_examples(model, few, monkeypatch):
    seen = []

    def pretended(model, mode, classes, rows, validation, test, steps, rate, seed, on_step):
        seen.append((mode, rate, seed, rows.tokens.tobytes(), test.tokens.tobytes()))
        return Outcome(
            validation=0.9 - abs(rate - 0.01), test=0.1 * seed + (mode == MODES["full"]) * 0.5, loss=1.0, trained=7
        )

    monkeypatch.setattr(table, "fit", pretended)
    said = []
    plan = Plan(("listops", "digits"), ("scratch", "full"), seeds=3, steps=2, rates=(0.1, 0.01))
    record = compare(model, plan, said.append)
    assert len(seen) == plan.fits == len(said) == 2 * 2 * 4 and "16 of 16 done, about 0 s left" in said[-1]
    assert [(rate, seed) for _, rate, seed, *_ in seen[:4]] == [(0.1, 0), (0.01, 0), (0.01, 1), (0.01, 2)]
    assert len({rows for *_, rows, _ in seen}) == 2 * 3 and len({test for *_, test in seen}) == 2
    full = record["tasks"]["listops"]["modes"]["full"]
    assert full["rate"] == 0.01 and full["tried"] == {"0.1": pytest.approx(0.81), "0.01": 0.9}
    assert full["mean"] == pytest.approx(0.6) and full["deviation"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))
    assert record["tasks"]["digits"]["chance"] >= 0.1
    shown = lines(record)
    assert shown[1].split() == ["trained", "listops", "digits"] and "60.0 ± 10.0" in shown[3]
    assert shown[-1].startswith("commonest class") and len(shown) == 5
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (Plan(tasks=("listop",)), r"tasks: unknown value 'listop' \(did you mean 'listops'\?\)"),
        (Plan(modes=("full", "full")), "modes: give different ones of scratch, full"),
        (Plan(tasks=()), "tasks: give different ones"),
        (Plan(rates=(0.0,)), "rates: need positive learning rates"),
    ],
)
def test_what_cannot_be_compared_is_refused(plan, told):
    with pytest.raises(ConfigError, match=told):
        plan.check()


def test_the_command_compares_the_ways_of_a_run_and_writes_the_record(tiny_run, tmp_path, few, capsys):
    train(tiny_run, tmp_path / "run", echo=lambda line: None)
    command = ["transfer", str(tmp_path / "run"), "--tasks=listops", "--modes=full,frozen", "--seeds=2", "--steps=2"]
    assert cli.main([*command, f"--output={tmp_path}/out/table.json"]) == 0
    out = capsys.readouterr().out
    assert "listops frozen seed 1: " in out and "commonest class" in out and "of 2 seeds; 2 steps of 32" in out
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    modes = record["tasks"]["listops"]["modes"]
    assert list(modes) == ["full", "frozen"] and record["step"] == 4
    assert modes["frozen"]["trained_share"] < 0.1 and modes["full"]["trained_share"] == 1.0
    assert all(0 <= accuracy <= 1 for mode in modes.values() for accuracy in mode["accuracies"])
    assert cli.main([*command, "--rates=1e30", f"--output={tmp_path}/diverged.json"]) == 0
    assert json.loads((tmp_path / "diverged.json").read_text())["tasks"]["listops"]["modes"]["full"]["loss"][0] is None
    capsys.readouterr()
    assert cli.main(command) == 0
    again = capsys.readouterr().out.splitlines()[-4:]
    assert again == out.splitlines()[-4:]
