"""Where sizes are centred: by the config's own words, published laws, or finished runs."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws.published import surface
from chinchilla_jax.study import ladder
from chinchilla_jax.study.guess import guess, published_surfaces
from chinchilla_jax.study.plan import plan
from tests.study.cases import paper_config, width_config

FIGURE_4 = pathlib.Path(__file__).parent.parent / "scaling" / "data" / "chinchilla_fig4_points.csv"


def test_the_published_guesses_are_the_printed_optima():
    """Hoffmann et al. 2022: Table 3 (67B at 5.76e23), Table A3 (1B at 1.20e20); equation 4 under 6 N D for surfaces."""
    config = paper_config(convention="6nd")

    def at(name, budget):
        return guess(dataclasses.replace(config, study=dataclasses.replace(config.study, guess=name))).params(budget)

    assert at("hoffmann-1", 5.76e23) == pytest.approx(67e9, rel=0.02)
    assert at("hoffmann-2", 1.20e20) == pytest.approx(1e9, rel=0.02)
    assert at("hoffmann2022_unrounded", 5.76e23) == pytest.approx(4.0361e10, rel=1e-3)
    assert at("besiroglu2024", 5.76e23) == pytest.approx(7.2249e10, rel=1e-3)
    assert all(1e9 < at(name, 5.76e23) < 1e12 for name in published_surfaces())


def test_a_surface_is_minimised_under_the_count_of_the_study():
    """Small models cost far more than 6 N per token, so the same law wants another N there."""
    config = width_config(guess="besiroglu2024", convention="executed")
    law, budget = surface("besiroglu2024"), 1e13
    found = guess(config).params(budget)

    def loss(params):
        model = ladder.nearest(config, params, exact=True).model
        per_param = ladder.flops_per_token(config, model, "executed") / count_parameters(model).total
        return float(law.loss(params, budget / (per_param * params)))

    grid = found * np.exp(np.linspace(-1.5, 1.5, 13))
    assert int(np.argmin([loss(n) for n in grid])) in (5, 6, 7)
    assert abs(math.log(found / float(law.optimum(budget)[0]))) > 0.03


@pytest.mark.parametrize("name", ["hoffmann-1", "besiroglu2024", "N = 0.2 C^0.48"])
def test_the_sizes_of_a_plan_surround_the_guess_and_the_header_says_whose_it_is(name):
    config = paper_config(guess=name)
    made = plan(config)
    for budget, optimum in made.header["guess"]["params"]:
        assert optimum == pytest.approx(guess(config).params(budget))
        sizes = [run.params for run in made.runs if run.budget == budget]
        assert sum(n < optimum for n in sizes) >= 3 and sum(n > optimum for n in sizes) >= 3
    assert made.header["guess"]["provenance"] == guess(config).provenance


def write_study(folder, law, convention):
    """A finished study of 3 budgets x 7 sizes that follows `law` exactly under C = 6 N D."""
    lines = []
    for budget in (1e11, 4e11, 1.6e12):
        for step in range(-3, 4):
            params = float(law.optimum(budget)[0]) * 1.5**step
            tokens = budget / (6 * params)
            name = f"c{budget:.1e}-{step + 3}"
            facts = {
                "name": name,
                "role": "isoflop",
                "budget": budget,
                "params": params,
                "tokens": tokens,
                "flops": budget,
                "convention": convention,
            }
            (folder / "runs" / name).mkdir(parents=True)
            result = facts | {"loss": float(law.loss(params, tokens)), "diverged": False}
            (folder / "runs" / name / "result.json").write_text(json.dumps(result))
            lines.append(json.dumps(facts))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def test_a_finished_study_is_the_next_ones_guess(tmp_path):
    law = Surface(2.2, 60.0, 300.0, 0.32, 0.36)
    write_study(tmp_path, law, "6nd")
    same = guess(width_config(guess=str(tmp_path), convention="6nd"))
    assert same.params(6.4e12) == pytest.approx(float(law.optimum(6.4e12)[0]), rel=0.05)
    assert "approach 2 of the 21 runs" in same.provenance
    # Counted otherwise, the power law of C would be another's; the surface serves every count.
    other = guess(width_config(guess=str(tmp_path), convention="executed"))
    assert "approach 3 of the 21 runs" in other.provenance
    planted = guess(width_config(guess="besiroglu2024", convention="executed"))
    assert planted.provenance != other.provenance


def test_a_table_of_runs_is_a_guess():
    for convention, approach in (("6nd", 2), ("table_a4", 3)):
        made = guess(paper_config(guess=str(FIGURE_4), convention=convention))
        assert f"approach {approach} of the 245 runs" in made.provenance
        assert 3e10 < made.params(5.76e23) < 2e11  # the paper's approaches span 40 to 70 billion


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hofmann-1", r"did you mean 'hoffmann-1'\?"),
        ("studies/none", "no published law and no file"),
        ("D/N = 20, N = 0.1 C^0.5", "write 'D/N = 20, a = 0.5' with numbers"),
        ("D/N = 20 C^0.1", "write 'D/N = 20, a = 0.5' with numbers"),
        ("a = 0.5", "write 'D/N = 20, a = 0.5' with numbers"),
        ("N = 0.1 D^0.5", "'D^0.5' is unknown".replace("^", r"\^")),
        ("configs", "no manifest.jsonl|no such|study directory"),
    ],
)
def test_a_guess_that_cannot_be_read_is_refused(text, told, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent.parent)
    with pytest.raises(ConfigError, match=told) as refused:
        plan(width_config(guess=text))
    assert refused.value.key == "study.guess"


def test_runs_that_do_not_say_which_size_is_best_are_no_guess(tmp_path):
    rng, law = np.random.default_rng(1), Surface(1.8, 480.0, 2100.0, 0.35, 0.37)
    rows = ["params,tokens,loss"]
    for i, params in enumerate(np.geomspace(5e7, 5e9, 24)):
        tokens = 20 * params * 1.1 ** (i % 3 - 1.0)
        rows.append(f"{params},{tokens},{float(law.loss(params, tokens)) * (1 + 0.008 * rng.standard_normal())}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(rows) + "\n")
    with pytest.raises(ConfigError, match="do not say which N is best.*other token counts"):
        guess(width_config(guess=str(table)))
