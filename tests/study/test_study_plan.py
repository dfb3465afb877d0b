"""Plans: runs on budget, sizes on both sides, shapes shared, names from the ledger, seeds, what they cost."""

import dataclasses
import json
import math

import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.ledger import count_parameters, count_run
from chinchilla_jax.study import ladder
from chinchilla_jax.study.cell import TOLERANCE
from chinchilla_jax.study.execute.status import estimate
from chinchilla_jax.study.folder import MANIFEST, VERIFICATION, StudyError, read_manifest, write_manifest
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.plan import describe, plan, seeds_at, verification
from tests.study.cases import study_config


def test_every_run_spends_its_budget_and_its_horizon_is_its_tokens(manifest, config):
    for run in manifest.runs:
        resolved = run.run_config()
        assert abs(run.flops[run.convention] / run.budget - 1) <= TOLERANCE
        assert resolved.train.train_tokens == run.tokens
        assert run.tokens % (config.train.batch_size * config.data.seq_len) == 0
        # Counted anew from the config that will be trained.
        again = count_run(resolved)
        assert again.flops == run.flops and again.parameters.total == run.params
        assert resolved.study is None and resolved.content_hash() == run.config_hash


@pytest.mark.parametrize("convention", ["executed", "table_a4", "appendix_f", "6nd"])
def test_budgets_are_met_under_the_convention_of_the_study(convention):
    made = plan(study_config(convention=convention))
    assert all(abs(run.flops[convention] / run.budget - 1) <= TOLERANCE for run in made.runs)


def test_each_budget_has_three_sizes_on_both_sides_of_its_predicted_optimum(manifest, config):
    for budget in config.study.budgets:
        optimum = guess(config).params(budget)
        sizes = [run.params for run in manifest.runs if run.budget == budget]
        assert len(sizes) <= config.study.sizes
        assert sum(n < optimum for n in sizes) >= 3 and sum(n > optimum for n in sizes) >= 3


def test_the_predicted_optimum_trains_the_tokens_per_parameter_asked_for(config):
    middle = math.prod(config.study.budgets) ** (1 / len(config.study.budgets))
    params = guess(config).params(middle)
    model = ladder.nearest(config, params, exact=True).model
    tokens = middle / ladder.flops_per_token(config, model, "executed")
    assert tokens / count_parameters(model).total == pytest.approx(5.0, rel=0.2)  # shapes are discrete
    assert guess(config).params(100 * middle) == pytest.approx(10 * params)


def test_budgets_share_shapes(manifest):
    shapes = {json.dumps(run.config["model"], sort_keys=True) for run in manifest.runs}
    assert len(shapes) < 0.6 * len(manifest.runs)


def test_names_come_from_the_ledger_and_are_unique(manifest):
    names = [run.name for run in manifest.runs]
    assert len(set(names)) == len(names)
    run = manifest.runs[0]
    assert run.name.startswith("c1.0e11-n") and run.name.endswith("k")
    assert float(run.name.split("-n")[1][:-1]) == pytest.approx(run.params / 1e3, rel=5e-3)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)


def test_the_learning_rate_falls_with_size_and_warm_up_scales_with_the_run(manifest, config):
    for run in manifest.runs:
        resolved = run.run_config()
        steps = run.tokens // (config.train.batch_size * config.data.seq_len)
        assert resolved.optimizer.peak_lr == pytest.approx(run.params**-0.5, rel=1e-3)
        assert resolved.optimizer.warmup_steps == pytest.approx(0.05 * steps, abs=1)
        assert "peak_lr = 1 N^-0.5" in run.recipe and f"of {steps} steps" in run.recipe


def test_runs_too_short_to_meet_the_budget_are_dropped_and_listed():
    made = plan(study_config(batch_size=96, budgets=(2e11, 1e12), sizes=9, size_ratio=1.35))
    assert made.header["dropped"]
    for row in made.header["dropped"]:
        assert "more than 1%" in row["reason"]
        assert not any(run.budget == row["budget"] and run.params == row["params"] for run in made.runs)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"budgets": (1e6, 2e6)}, "study.budgets", "needed on each side"),
        ({"budgets": (1e10, 9e11)}, "study.budgets", "smallest shape"),
        ({"sizes": 5}, "study.sizes", "three on each side"),
    ],
)
def test_a_study_that_cannot_be_planned_names_the_key(changes, key, words):
    with pytest.raises(ConfigError, match=words) as error:
        plan(study_config(**changes))
    assert error.value.key == key


def test_a_batch_that_doubles_is_refused(config):
    doubling = dataclasses.replace(config, train=dataclasses.replace(config.train, double_batch_at=0.5))
    with pytest.raises(ConfigError, match=r"train\.double_batch_at"):
        plan(doubling)


def test_the_header_says_where_the_plan_comes_from(manifest, config):
    header = json.loads(manifest.text().splitlines()[0])["manifest"]
    assert header["study"] == "isoflop" and header["study_hash"] == config.content_hash()
    assert header["package"].startswith("chinchilla_jax ") and "revision" in header
    assert manifest.template() == config


def test_verification_hits_the_predicted_size_at_the_held_out_budget(tmp_path, manifest, config):
    write_manifest(tmp_path / MANIFEST, manifest)
    made = verification(tmp_path, 400_000.0)
    assert [run.role for run in made.runs] == ["predicted", "half", "double"]
    for run, wanted in zip(made.runs, (4e5, 2e5, 8e5), strict=True):
        assert run.params == pytest.approx(wanted, rel=0.05)
        assert run.budget == 4 * 9e11 and abs(run.cost / run.budget - 1) <= TOLERANCE
    assert not {run.name for run in made.runs} & {run.name for run in manifest.runs}
    assert verification(tmp_path, 400_000.0) == made
    with pytest.raises(StudyError, match="another plan"):
        verification(tmp_path, 900_000.0)
    assert read_manifest(tmp_path / VERIFICATION) == made


def test_replicates_are_ordinary_runs_with_the_seeds_after_the_configs_own(manifest, config):
    seeded = dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(3, 1, 2)))
    made = plan(seeded)
    first = [run for run in made.runs if not run.name[-3:-1] == "-s"]
    assert first == list(manifest.runs), "the first seed is the run there would be without"
    for budget, seeds in zip(sorted(config.study.budgets), (3, 1, 2), strict=True):
        for run in (run for run in first if run.budget == budget):
            names = [run.name, *(f"{run.name}-s{i}" for i in range(1, seeds))]
            own = [other for other in made.runs if other.name in names]
            assert [other.name for other in own] == names and {other.role for other in own} == {"isoflop"}
            assert [other.config["train"]["seed"] for other in own] == list(range(seeds))
            assert [other.facts()["seed"] for other in own] == list(range(seeds))
            assert len({other.config_hash for other in own}) == seeds
            for other in own:
                assert other.run_config().content_hash() == other.config_hash
                for same in ("params", "tokens", "cost", "recipe", "estimated_seconds"):
                    assert getattr(other, same) == getattr(run, same)
    assert len(made.runs) == sum(seeds_at(seeded, run.budget) for run in first)


def test_the_seeds_are_those_of_the_budgets_in_rising_order():
    config = study_config(budgets=(9e11, 1e11, 3e11), seeds=(3, 1, 2))
    assert [seeds_at(config, budget) for budget in (1e11, 3e11, 9e11)] == [3, 1, 2]


def test_repeated_sizes_do_not_count_as_sizes_beside_the_optimum():
    """What is refused with one seed is refused with two."""
    for seeds in ((1,), (2,)):
        with pytest.raises(ConfigError, match="needed on each side"):
            plan(study_config(budgets=(1e10, 9e11), seeds=seeds))


def test_the_predicted_model_is_trained_with_several_seeds(tmp_path, config):
    two = dataclasses.replace(
        config,
        study=dataclasses.replace(config.study, holdout_seeds=2),
        train=dataclasses.replace(config.train, seed=5),
    )
    write_manifest(tmp_path / MANIFEST, plan(two))
    made = verification(tmp_path, 400_000.0)
    assert [run.role for run in made.runs] == ["predicted", "predicted", "half", "double"]
    one, other = made.runs[:2]
    assert other.name == f"{one.name}-s1" and other.config["train"]["seed"] == 6
    assert (other.params, other.tokens, other.budget) == (one.params, one.tokens, one.budget)


def test_cost_and_time_are_printed_and_every_drop_has_its_line(manifest):
    lines = []
    describe(manifest, 2, lines.append)
    text = "\n".join(lines)
    assert all(run.name in text for run in manifest.runs)
    assert sum(line.startswith("dropped:") for line in lines) == len(manifest.header["dropped"])
    total = sum(run.cost for run in manifest.runs)
    assert f"{len(manifest.runs)} runs, {total:.3g} FLOPs (executed)" in text and "2 workers" in text
    assert "5 tokens per parameter at C = 3e+11" in text and "peak_lr = 1 N^-0.5, batch as in the config" in text
    assert f"3 held-out runs of 3.6e+12 FLOPs: with them {total + 3 * 3.6e12:.3g} in all" in lines[-1]
    one, two = estimate(manifest.runs, 1), estimate(manifest.runs, 2)
    assert one == pytest.approx(sum(run.estimated_seconds for run in manifest.runs)) and one / 2 <= two < one


def test_planned_costs_include_the_seeds(config):
    lines = []
    seeded = plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2,), holdout_seeds=2)))
    describe(seeded, 2, lines.append)
    total = sum(run.cost for run in seeded.runs)
    assert total == pytest.approx(2 * sum(run.cost for run in plan(config).runs))
    assert f"{len(seeded.runs)} runs, {total:.3g} FLOPs (executed)" in "\n".join(lines)
    assert f"4 held-out runs of 3.6e+12 FLOPs: with them {total + 4 * 3.6e12:.3g} in all" in lines[-1]
