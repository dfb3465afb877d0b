"""A finished run answers for another one of the same config."""

import dataclasses

from chinchilla_jax.study.execute.reuse import reuse
from chinchilla_jax.study.folder import (
    read_result,
    run_folder,
)
from tests.study.cases import quiet


def test_a_branch_answers_with_its_loss_and_without_the_seconds_of_its_tail(study, small_plan, finish):
    whole = small_plan.runs[0]
    branch = dataclasses.replace(whole, name="branch", trunk="trunk", fork_step=1)
    finish(None, run_folder(study, branch.name), branch.facts(), loss=2.5)
    reuse(study, [whole], [branch], quiet)
    result = read_result(study, whole.name)
    assert (result["loss"], result["reused"], result["reused_seconds"]) == (2.5, "branch", None)
    assert not {"trunk", "fork_step", "flops_spent"} & result.keys()
