"""One run of a study: whole steps on its budget, a name from its role, the same run again with another seed."""

import dataclasses

import pytest

from chinchilla_jax.study.cell import OffBudget, matched, replicate, size_name, steps_on
from chinchilla_jax.study.ladder import flops_per_token


@pytest.fixture
def config(small_plan):
    """The small study."""
    return small_plan.template()


@pytest.mark.parametrize(("steps", "spent"), [(50.0, 50), (50.4, 50), (70.6, 71)])
def test_steps_are_whole_and_spend_the_budget(config, steps, spent):
    per_step = config.train.batch_size * config.data.seq_len * flops_per_token(config, config.model)
    assert steps_on(config, steps * per_step) == spent


def test_a_budget_that_no_whole_number_of_steps_spends_is_refused_with_the_distance(config):
    per_step = config.train.batch_size * config.data.seq_len * flops_per_token(config, config.model)
    with pytest.raises(OffBudget, match=r"^10 steps of 256 tokens spend -3.8% against the budget, more than 1%$"):
        steps_on(config, 10.4 * per_step)


@pytest.mark.parametrize(
    ("role", "name"), [("isoflop", "c6.0e11-n"), ("predicted", "h6.0e11-n"), ("half", "h6.0e11-n")]
)
def test_a_name_begins_with_what_the_role_and_the_budget_are(config, role, name):
    run = matched(config, config.model, 6e11, role)
    assert (run.name, run.role, run.budget) == (name, role, 6e11)


def test_a_branch_that_is_trained_again_goes_the_whole_way(config):
    run = matched(config, config.model, 6e11, "isoflop")
    branch = dataclasses.replace(run, trunk="trunk-n1k", fork_step=run.tokens // 256 // 2)
    branch = dataclasses.replace(branch, estimated_seconds=branch.spent("executed") / config.study.flops_per_second)
    again = replicate(branch, 2)
    assert (again.trunk, again.fork_step) == (None, 0) and again.config["train"]["seed"] == config.train.seed + 2
    assert again.estimated_seconds == pytest.approx(run.estimated_seconds)
    assert again.run_config().content_hash() == again.config_hash != run.config_hash


@pytest.mark.parametrize(
    ("params", "digits", "name"),
    [(158123, 3, "158k"), (70061956352, 3, "70.1b"), (158123, 5, "158.12k"), (999.6, 3, "1k"), (12, 3, "12")],
)
def test_sizes_are_written_in_so_many_digits(params, digits, name):
    assert size_name(params, digits) == name
