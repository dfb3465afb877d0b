"""Shapes: in the family, at their sizes, on a monotone ladder."""

import dataclasses

import pytest

from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.study import ladder
from chinchilla_jax.study.folder import MANIFEST, write_manifest
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.plan import plan, verification
from tests.study.cases import SHAPE, study_config


def test_the_ladder_is_monotone_and_near_its_ratio(config):
    rungs = ladder.ladder(config, [guess(config).params(budget) for budget in config.study.budgets])
    for small, large in zip(rungs, rungs[1:], strict=False):
        assert large.model.n_layers >= small.model.n_layers and large.model.d_model >= small.model.d_model
        assert 1.5**0.5 < large.params / small.params < 1.5**2
        assert large.params == count_parameters(large.model).total


@pytest.mark.parametrize(
    "template",
    [
        SHAPE,
        dataclasses.replace(
            SHAPE, position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False, d_ff=176
        ),
        dataclasses.replace(SHAPE, position="rope", n_heads=4, n_kv_heads=2, head_dim=16),
        dataclasses.replace(SHAPE, position="learned", norm="layernorm", biases="all"),
    ],
)
@pytest.mark.parametrize("params", [3e4, 3e5, 2e7, 3e9])
def test_shapes_stay_in_the_family_and_hit_the_size(template, params):
    rung = ladder.nearest(study_config(template, aspect_ratio=32.0), params, exact=True)
    if params >= 3e5:
        assert rung.params == pytest.approx(params, rel=0.05)
    made = rung.model
    assert made.n_heads * made.head_dim == made.d_model
    assert made.d_ff / made.d_model == pytest.approx(template.d_ff / template.d_model, rel=0.2)
    fixed = ("position", "feed_forward", "norm", "biases", "tie_embeddings", "vocab_size")
    assert all(getattr(made, name) == getattr(template, name) for name in fixed)
    if template.n_kv_heads < template.n_heads and made.n_heads > 1:
        assert made.n_kv_heads < made.n_heads


@pytest.mark.parametrize("position", ["relative", "rope"])
def test_all_shapes_of_a_width_ladder_have_the_depth_and_the_heads_of_the_template(tmp_path, position):
    model = dataclasses.replace(SHAPE, position=position, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=16)
    config = study_config(model, ladder="width")
    made = plan(config)
    write_manifest(tmp_path / MANIFEST, made)
    rungs = ladder.ladder(config, [guess(config).params(budget) for budget in config.study.budgets])
    shapes = [rung.model for rung in rungs]
    shapes += [run.run_config().model for run in (*made.runs, *verification(tmp_path, 400_000.0).runs)]
    assert len({shape.d_model for shape in shapes}) > 6
    for shape in shapes:
        assert (shape.n_layers, shape.n_heads, shape.n_kv_heads) == (2, 4, 4)
        assert shape.n_heads * shape.head_dim == shape.d_model
        assert shape.head_dim % 2 == 0 or position == "relative"


def test_every_rung_of_a_model_with_experts_can_be_split_among_them():
    template = dataclasses.replace(SHAPE, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=288, position="none",
                                   feed_forward="top_k", experts=12, active_experts=3)  # fmt: skip
    config = study_config(template, ladder="width")
    shapes = [rung.model for rung in ladder.ladder(config, [guess(config).params(b) for b in config.study.budgets])]
    assert len({shape.d_ff for shape in shapes}) > 6
    assert all(shape.d_ff % 24 == 0 and shape.active_experts == 3 for shape in shapes)


def test_held_out_shapes_of_a_width_ladder_hit_their_sizes():
    model = dataclasses.replace(SHAPE, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=16)
    for params in (5e4, 2e5, 4e5, 8e5):
        rung = ladder.nearest(study_config(model, ladder="width"), params, exact=True)
        assert rung.params == pytest.approx(params, rel=0.1)
        assert rung.params == count_parameters(rung.model).total


def test_the_chinchilla_ladder_uses_published_shapes():
    model = dataclasses.replace(SHAPE, vocab_size=32000)
    config = study_config(
        model,
        batch_size=64,
        budgets=(1e19, 1e20, 1e21),
        ladder="chinchilla",
        guess="D/N = 20",
        size_ratio=1.35,
        convention="table_a4",
    )
    published = {(m.model.n_layers, m.model.d_model, m.model.n_heads, m.params) for m in ladder.published(model)}
    assert len(published) == 50
    for run in plan(config).runs:
        m = run.run_config().model
        assert (m.n_layers, m.d_model, m.n_heads, run.params) in published
