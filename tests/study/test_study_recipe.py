"""How runs are trained: learning rate and batch by a formula or a published recipe."""

import dataclasses

import pytest

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.study import recipe
from chinchilla_jax.study.plan import plan
from chinchilla_jax.study.recipe import parse, read_recipe, with_recipe
from tests.study.cases import LARGE, SMALL, paper_config, width_config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr = N^-0.5", "must begin with a positive number"),
        ("lr = -1 N^-0.5", "must begin with a positive number"),
        ("lr = 0", "must begin with a positive number"),
        (
            "lr = 1 M^-0.5",
            r"'M\^-0.5' is unknown; after the number come powers such as N\^-0.5, of N, N_ne, D, C, C_ne",
        ),
        ("lr = 1 N^", r"'\^' is unknown"),
        ("lr = 1 N^-0.5 + 3", "is unknown"),
        ("rate = 1 N^-0.5", r"write NAME = NUMBER ... with NAME one of lr, batch"),
        ("lr = 1, lr = 2", "says twice what lr is"),
        ("batch = 0.58 D^0.571", "has no learning rate"),
        ("deepsek", r"unknown recipe 'deepsek' \(did you mean 'deepseek'\?\)"),
        ("", "unknown recipe ''"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(text, told):
    with pytest.raises(ConfigError, match=told) as refused:
        plan(width_config(recipe=text))
    assert refused.value.key == "study.recipe"


def test_the_published_recipes_have_the_printed_constants():
    """A change here is a change of what the papers print: arXiv 2401.02954 equation 1, arXiv 2503.04715."""
    deepseek, step_law = read_recipe("deepseek"), read_recipe("step-law")
    assert deepseek.lr.at(C_ne=1e20) == pytest.approx(0.3118 * 1e20**-0.1250)
    assert deepseek.batch.at(C_ne=1e20) == pytest.approx(0.2920 * 1e20**0.3271)
    assert step_law.lr.at(N_ne=1e9, D=1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step_law.batch.at(D=1e11) == pytest.approx(0.58 * 1e11**0.571)
    assert "2401.02954" in deepseek.source and "2503.04715" in step_law.source


def test_c_without_vocabulary_is_deepseeks_m_times_d():
    """M = 72 L d^2 + 12 L d s (arXiv 2401.02954, equation 2); `table_a4` adds the softmax, 9 L h s per token."""
    config = paper_config(recipe="deepseek")
    known = recipe._variables(config, 1e20)
    m = 72 * 12 * 1024**2 + 12 * 12 * 1024 * 2048
    assert known["C_ne"] / known["D"] == pytest.approx(m + 9 * 12 * 16 * 2048)
    assert known["N_ne"] == count_parameters(LARGE).non_embedding


def test_learning_rate_and_batch_of_every_run_follow_the_recipe_and_say_so():
    config = paper_config(recipe="step-law")
    batches = set()
    for run in plan(config).runs:
        resolved = run.run_config()
        lr = 1.79 * run.params_non_embedding**-0.713 * run.tokens**0.307
        batch = 0.58 * run.tokens**0.571
        assert resolved.optimizer.peak_lr == pytest.approx(lr, rel=2e-3)
        tokens = resolved.train.batch_size * resolved.data.seq_len
        assert tokens == pytest.approx(batch, rel=max(0.002, 128 * 2048 / batch))  # whole rows of a microbatch
        assert "2503.04715" in run.recipe and f"{resolved.train.batch_size} x 2048" in run.recipe
        assert abs(run.cost / run.budget - 1) <= 0.01
        batches.add(tokens)
    assert len(batches) > 10


def test_deepseeks_batch_is_one_per_budget():
    by_budget = {}
    for run in plan(paper_config(recipe="deepseek")).runs:
        by_budget.setdefault(run.budget, set()).add(run.config["train"]["batch_size"])
    sizes = [batch for _, (batch,) in sorted(by_budget.items())]
    assert sizes == sorted(sizes) and sizes[-1] > 4 * sizes[0]
    assert sizes[0] * 2048 == pytest.approx(0.2920 * 6e18**0.3271, rel=0.01)


@pytest.mark.parametrize(
    ("wanted", "batch_size", "microbatches"),
    [
        (0.2, 2, 1),
        (3.2, 4, 1),
        (7.0, 6, 1),
        (8.0, 8, 1),
        (11.0, 8, 1),
        (13.0, 16, 2),
        (100.0, 96, 12),
    ],
)
def test_a_batch_is_whole_microbatches_spread_over_the_devices(wanted, batch_size, microbatches):
    """Rows of a microbatch (8 here) fit the memory and stay; only a smaller batch has fewer, even over 2 devices."""
    recipe_text = f"lr = 1, batch = {wanted * 64}"
    config = width_config(batch_size=16, microbatches=2, mesh=MeshConfig(data=2), recipe=recipe_text)
    made = with_recipe(config, 1e12)[0].train
    assert made.microbatches == microbatches
    assert abs(made.batch_size - batch_size) <= (2 if wanted == 7.0 else 0)
    assert made.batch_size % (2 * made.microbatches) == 0


def test_a_recipe_without_a_batch_leaves_that_of_the_config():
    made, provenance = with_recipe(width_config(recipe="lr = 0.5 N^-0.5"), 1e12)
    assert (made.train.batch_size, made.train.microbatches) == (8, 2)
    assert made.optimizer.peak_lr == pytest.approx(0.5 * count_parameters(SMALL).total ** -0.5, rel=1e-3)
    assert "as in the config" in provenance and "N = " in provenance and "D = " not in provenance


def test_runs_of_one_trunk_share_its_recipe():
    config = paper_config(recipe="step-law", schedule="trunk")
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule="cooldown"))
    made = {run.name: run for run in plan(config).runs}
    for run in made.values():
        if run.trunk:
            trunk = made[run.trunk].run_config()
            assert run.run_config().optimizer.peak_lr == trunk.optimizer.peak_lr
            assert run.run_config().train.batch_size == trunk.train.batch_size
            assert abs(run.cost / run.budget - 1) <= 0.01


def test_a_formula_is_a_number_times_powers():
    laws = parse("study.recipe", "lr=1.79 N_ne^-0.713 D^0.307 , batch = .58*D**0.571", ("lr", "batch"), ("N_ne", "D"))
    assert laws["lr"].at(N_ne=1e9, D=1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert laws["batch"].at(N_ne=1e9, D=1e11) == pytest.approx(0.58 * 1e11**0.571)
    assert str(laws["lr"]) == "1.79 N_ne^-0.713 D^0.307"
    assert parse("k", "lr = 3e-4", ("lr",), ("N",))["lr"].at(N=5.0) == 3e-4
    assert parse("k", "lr = 2 N", ("lr",), ("N",))["lr"].at(N=5.0) == 10.0


def test_a_variable_may_be_measured_in_a_unit():
    law = parse("k", "lr = 0.0063 (D/2.5e9)^-0.3 * ( B / 262144 ) ** 0.5", ("lr",), ("D", "B"))["lr"]
    assert law.at(D=2.5e9, B=262144) == pytest.approx(0.0063)
    assert law.at(D=2.5e10, B=4 * 262144) == pytest.approx(2 * 0.0063 * 10**-0.3)
    for text in ("lr = 1 (D/0)^2", "lr = 1 (M/3)", "lr = 1 (D/x)"):
        with pytest.raises(ConfigError, match="is unknown"):
            parse("k", text, ("lr",), ("D",))


def test_by_mup_every_run_has_the_parametrisation_and_one_law_of_the_rate():
    """Delphi's dependence on batch and horizon; where widths share their heads these grow from those at the base."""
    text = "mup lr = 0.004 (D/1e6)^-0.3 (B/512)^0.5, base = 32, init = 0.5, temperature = 2"
    config = width_config(recipe=text)
    runs = plan(config).runs
    assert len({run.config["model"]["d_model"] for run in runs}) > 3
    for run in runs:
        resolved = run.run_config()
        model = resolved.model
        assert (model.base_width, model.base_head_dim, model.init_scale, model.output_scale) == (32, 16, 0.5, 0.5)
        assert model.attention_scale == (None if model.d_model == 32 else pytest.approx(4.0 * 2 / model.d_model))
        assert resolved.optimizer.peak_lr == pytest.approx(0.004 * (run.tokens / 1e6) ** -0.3, rel=2e-3)
        assert "by muP, base = 32" in run.recipe and "B = 512" in run.recipe
        assert run.config_hash == resolved.content_hash() and abs(run.cost / run.budget - 1) <= 0.01
    plain = {run.params: run for run in plan(width_config()).runs}
    assert {run.params for run in runs} == set(plain), "the parametrisation weighs nothing"


def test_by_mup_heads_that_keep_their_width_keep_their_scores():
    made, _ = with_recipe(width_config(ladder="generated", recipe="mup lr = 0.01, base = 16"), 1e12)
    assert made.model == dataclasses.replace(SMALL, base_width=16) and made.model.attention_scale is None


def test_a_recipe_by_mup_leaves_what_it_does_not_name():
    model = dataclasses.replace(SMALL, init_scale=0.25, output_scale=3.0)
    made, _ = with_recipe(width_config(model, recipe="mup lr = 0.01, base = 16, init = 2"), 1e12)
    assert (made.model.init_scale, made.model.output_scale) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mup lr = 0.01", "add 'base = 64', a whole number"),
        ("mup lr = 0.01, base = 63.5", "a whole number"),
        ("mup lr = 0.01, base = 64 N^0.1", "base is one number for all runs"),
        ("mup base = 64", "has no learning rate"),
        ("mup lr = 0.01, base = 64, temprature = 2", "did you mean 'temperature'"),
        ("mup lr = 0.01, base = 31", "the 2 heads would have a width of 15.5; take a multiple of 2"),
        ("lr = 0.01, base = 64", "NAME one of lr, batch"),
        ("lr = 0.01, batch = 2 B", "B is the batch itself"),
    ],
)
def test_a_recipe_by_mup_that_cannot_be_read_is_refused(text, told):
    with pytest.raises(ConfigError, match=told) as refused:
        with_recipe(width_config(recipe=text), 1e12)
    assert refused.value.key == "study.recipe"


def test_a_model_that_has_another_base_is_refused():
    model = dataclasses.replace(SMALL, base_width=32)
    with pytest.raises(ConfigError, match="32, but study.recipe says base = 16: leave it at 0") as refused:
        with_recipe(width_config(model, recipe="mup lr = 0.01, base = 16"), 1e12)
    assert refused.value.key == "model.base_width"


@pytest.mark.parametrize(
    "text",
    ["lr = 1 N^-0.5", "lr = 2 D^0.5, batch = 3 D^0.5", "mup lr = 0.004 D^-0.3, base = 64, init = 0.5, temperature = 2"],
)
def test_a_recipe_is_written_as_it_is_read(text):
    assert read_recipe(text).text == text


@pytest.mark.parametrize("recipe", ["lr = 1 N^999", "lr = 1e30 N^-999", "lr = 1, batch = 1e300 D^5"])
def test_a_recipe_that_gives_no_number_is_refused_where_it_does(recipe):
    with pytest.raises(ConfigError, match="study.recipe: .* nothing to train with"):
        with_recipe(width_config(recipe=recipe), 1e12)
