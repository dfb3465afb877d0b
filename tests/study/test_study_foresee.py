"""Before a study: how sure its prediction will be, from the noise that is known, or how to measure it."""

import dataclasses
import json
import re

import pytest

from chinchilla_jax.base.files import write_json
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.study.folder import (
    MANIFEST,
    NOISE_RESULT,
    StudyError,
    read_manifest,
    run_folder,
    write_manifest,
)
from chinchilla_jax.study.foresee import foresee, known_noise, repeated
from chinchilla_jax.study.plan import plan

LAW = Surface(2.0, 300.0, 900.0, 0.4, 0.42)


def words(manifest, study=None):
    """What is printed about `manifest`, in one line."""
    lines = []
    foresee(manifest, study, lines.append)
    assert len(lines) == 1
    return lines[0]


def with_study(manifest, **changes):
    """The plan of the same config with another study section."""
    config = manifest.template()
    return plan(dataclasses.replace(config, study=dataclasses.replace(config.study, **changes)))


@pytest.fixture
def replicated(tmp_path, small_plan, finish):
    """A finished study with two seeds, 1% apart, on a law."""
    manifest = with_study(small_plan, budgets=(1e11, 2e11, 6e11), seeds=(2,))
    write_manifest(tmp_path / MANIFEST, manifest)
    for run in manifest.runs:
        loss = float(LAW.loss(run.params, run.tokens)) * (1.01 if run.name.endswith("-s1") else 1.0)
        finish(None, run_folder(tmp_path, run.name), run.facts(), loss=loss)
    return tmp_path


def test_without_known_noise_it_says_how_to_measure_it(small_plan, study):
    for folder in (None, study, study / "nowhere"):
        assert "not known yet" in words(small_plan, folder) and "chinchilla_jax noise" in words(small_plan, folder)


def test_what_was_measured_is_used(small_plan, study):
    write_json(study / NOISE_RESULT, {"noise": 0.003, "freedom": 15})
    line = words(small_plan, study)
    assert line.startswith(f"at 0.30% noise from run to run ({study / NOISE_RESULT}, 15 degrees of freedom) the ")
    assert "besiroglu2024 scaled to this study" in line
    half, factor = re.search(r"within \+-([\d.]+)% \(95%\), N\* within a factor ([\d.]+);", line).groups()
    assert 0.1 < float(half) < 20.0 and 1.0 < float(factor) < 5.0
    write_json(study / NOISE_RESULT, {"noise": 0.3, "freedom": 15})
    lines = []
    foresee(small_plan, study, lines.append)  # so much noise leaves the constants of approach 3 open too
    assert "will not determine its constants: at 37.57% noise" in lines[0]
    assert "cannot be fitted: add sizes (study.sizes) or seeds (study.seeds)" in lines[1] and len(lines) == 2


def test_two_runs_alone_say_nothing_about_noise(study, small_plan):
    for measured in ({"noise": 0.003, "freedom": 1}, {"noise": None, "freedom": 0}):
        write_json(study / NOISE_RESULT, measured)
        assert known_noise(study, small_plan.template()) is None
    (study / NOISE_RESULT).write_text("{")
    with pytest.raises(StudyError, match="not valid JSON"):
        known_noise(study, small_plan.template())


def test_repeated_seeds_say_it(replicated):
    noise, freedom = repeated(replicated)
    assert noise == pytest.approx(0.01 / 2**0.5, rel=0.01) and freedom == 18
    assert "0.70% noise from run to run (runs of" in words(read_manifest(replicated / MANIFEST), replicated)


def test_the_study_that_the_guess_names_gives_noise_and_law(replicated, small_plan):
    after = with_study(small_plan, guess=str(replicated), budgets=(2e11, 4e11, 8e11))
    line = words(after)
    assert f"runs of {replicated} that differ in their seed" in line
    assert line.endswith(f"simulated with the fit of {replicated}")


def test_a_law_in_other_flops_is_not_taken(replicated, small_plan):
    after = with_study(small_plan, guess=str(replicated), budgets=(2e11, 4e11, 8e11), convention="6nd")
    assert words(after).endswith("besiroglu2024 scaled to this study")


def test_a_published_surface_is_its_own_law(small_plan, study):
    write_json(study / NOISE_RESULT, {"noise": 0.001, "freedom": 9})
    after = with_study(small_plan, guess="besiroglu2024", budgets=(1e14, 2e14, 4e14))
    assert words(after, study).endswith("simulated with besiroglu2024")


def test_diverged_and_unfinished_runs_are_no_repeats(replicated):
    for number, path in enumerate(sorted(replicated.glob("runs/*-s1/result.json"))):
        if number % 2:
            path.unlink()
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"diverged": True, "loss": None}))
    assert repeated(replicated)[1] == 0
    assert known_noise(replicated, read_manifest(replicated / MANIFEST).template()) is None
