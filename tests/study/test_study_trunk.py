"""Trunk studies: one constant-rate run per size, a cooldown branch for every budget, planned, trained and fitted."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax.base.files import write_json
from chinchilla_jax.config import ConfigError
from chinchilla_jax.data import prepare
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.study.execute import lease, worker
from chinchilla_jax.study.execute.status import estimate, run_status, status
from chinchilla_jax.study.execute.worker import work_alone
from chinchilla_jax.study.folder import MANIFEST, StudyError, read_manifest, read_result, run_folder, write_manifest
from chinchilla_jax.study.plan import describe, executed, plan
from chinchilla_jax.training import loop
from chinchilla_jax.training.record.metrics import read_metrics
from configs.isoflop import tiny
from tests.study.cases import quiet

BUDGETS = (2e9, 4e9)


def trunk_config(data_dir="data", **optimizer):
    """The tiny study with one layer, shorter sequences and two budgets, on trunks."""
    config = tiny()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, n_layers=1),
        data=dataclasses.replace(config.data, data_dir=data_dir, seq_len=32),
        optimizer=dataclasses.replace(config.optimizer, **{"schedule": "cooldown_sqrt"} | optimizer),
        study=dataclasses.replace(
            config.study, budgets=BUDGETS, ladder="width", schedule="trunk", recipe="lr = 8e-13 N^2.2"
        ),
    )


@pytest.fixture(scope="module")
def manifest():
    """Its plan."""
    return plan(trunk_config())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the study trained by one worker; `order` has the names as they were trained."""
    folder = tmp_path_factory.mktemp("trunks")
    config = trunk_config(str(folder / "data"))
    prepare(config.data, quiet)
    write_manifest(folder / MANIFEST, plan(config))
    order = []

    def train(config, workdir, facts, **more):
        order.append(facts["name"])
        return loop.train(config, workdir, facts=facts, **more)

    work_alone(folder, MANIFEST, 0, quiet, train)
    return folder, order


def branches(manifest):
    return [run for run in manifest.runs if run.trunk]


def trunks(manifest):
    return {run.name: run for run in manifest.runs if run.role == "trunk"}


# --- The plan ---


def test_every_size_has_one_trunk_and_every_size_and_budget_a_branch_of_it(manifest):
    sizes = [run.params for run in trunks(manifest).values()]
    assert len(set(sizes)) == len(sizes)
    assert {run.role for run in branches(manifest)} == {"isoflop"}
    assert len(manifest.runs) == len(sizes) + len(branches(manifest))
    for run in branches(manifest):
        assert trunks(manifest)[run.trunk].params == run.params
    for budget in BUDGETS:
        assert sum(run.budget == budget for run in branches(manifest)) == 6
    shared = [run.params for run in branches(manifest)]
    assert len(set(shared)) < len(shared), "no size serves two budgets"


def test_the_runs_of_a_trunk_study_are_those_of_a_matched_one(manifest):
    """Sizes, tokens and FLOPs do not depend on how the runs are trained; a branch counts its whole way."""
    config = trunk_config()
    apart = plan(dataclasses.replace(config, study=dataclasses.replace(config.study, schedule="matched")))
    facts = {(r.name, r.params, r.tokens, r.cost, r.budget) for r in apart.runs}
    assert {(r.name, r.params, r.tokens, r.cost, r.budget) for r in branches(manifest)} == facts
    for run in branches(manifest):
        assert abs(run.cost / run.budget - 1) <= 0.01
        assert run.run_config().train.train_tokens == run.tokens


def test_a_trunk_is_constant_ends_at_its_last_fork_and_keeps_every_fork(manifest):
    for name, trunk in trunks(manifest).items():
        forks = {run.fork_step for run in branches(manifest) if run.trunk == name}
        config = trunk.run_config()
        assert set(trunk.keep_steps) == forks and config.optimizer.schedule == "constant"
        assert trunk.tokens == max(forks) * config.train.batch_size * config.data.seq_len
        for run in branches(manifest):
            if run.trunk == name:
                assert run.fork_tokens / run.tokens == pytest.approx(0.8, abs=0.03)
                assert run.run_config().optimizer.warmup_steps == config.optimizer.warmup_steps
                assert run.run_config().optimizer.peak_lr == config.optimizer.peak_lr


def test_flops_spent_are_those_of_trunks_and_tails_and_the_saving_is_stated(manifest):
    shared, apart = executed(manifest.runs)
    tails = sum(r.flops["executed"] * (r.tokens - r.fork_tokens) / r.tokens for r in branches(manifest))
    assert shared == pytest.approx(tails + sum(r.flops["executed"] for r in trunks(manifest).values()))
    assert apart == sum(r.flops["executed"] for r in branches(manifest))
    # By hand: a size with horizons D1 < D2 costs 0.8 D2 + 0.2 (D1 + D2) instead of D1 + D2.
    costs = {}
    for run in branches(manifest):
        costs.setdefault(run.trunk, []).append(run.flops["executed"])
    assert shared == pytest.approx(sum(0.8 * max(c) + 0.2 * sum(c) for c in costs.values()), rel=0.01)
    lines = []
    describe(manifest, 2, lines.append)
    said = next(line for line in lines if "saved" in line)
    assert f"{shared:.3g}" in said and f"{apart:.3g}" in said and f"{apart - shared:.3g} saved" in said
    assert f"{1 - shared / apart:.0%}; executed" in said
    assert any(f"{sum(r.spent() for r in manifest.runs):.3g} FLOPs (executed)" in line for line in lines)


def test_more_budgets_share_more():
    config = trunk_config()
    saved = []
    for budgets in ((2e9, 4e9), (2e9, 2.8e9, 4e9), (2e9, 2.4e9, 2.8e9, 3.3e9, 4e9)):
        shared, apart = executed(
            plan(dataclasses.replace(config, study=dataclasses.replace(config.study, budgets=budgets))).runs
        )
        saved.append(1 - shared / apart)
    assert saved == sorted(saved) and saved[-1] > 0.5


def test_a_manifest_of_trunks_survives_its_file(tmp_path, manifest):
    write_manifest(tmp_path / MANIFEST, manifest)
    assert read_manifest(tmp_path / MANIFEST) == manifest
    assert write_manifest(tmp_path / MANIFEST, plan(trunk_config())) is False


def test_the_estimate_lets_branches_wait_for_their_trunk(manifest):
    one, many = estimate(manifest.runs, 1), estimate(manifest.runs, 100)
    assert one == pytest.approx(sum(run.estimated_seconds for run in manifest.runs))
    seconds = {name: run.estimated_seconds for name, run in trunks(manifest).items()}
    assert many == pytest.approx(max(seconds[run.trunk] + run.estimated_seconds for run in branches(manifest)))


@pytest.mark.parametrize(
    ("optimizer", "key"),
    [
        ({"schedule": "cosine"}, "optimizer.schedule"),
        ({"cooldown_fraction": 0.0}, "optimizer.cooldown_fraction"),
        ({"cooldown_fraction": 1.0}, "optimizer.cooldown_fraction"),
    ],
)
def test_a_schedule_without_a_cooldown_is_refused(optimizer, key):
    with pytest.raises(ConfigError, match="study.schedule=trunk needs") as error:
        plan(trunk_config(**optimizer))
    assert error.value.key == key


def test_every_seed_has_its_own_trunks(manifest):
    config = trunk_config()
    made = plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2,))))
    assert [run for run in made.runs if not run.name.endswith("-s1")] == list(manifest.runs)
    assert len(made.runs) == 2 * len(manifest.runs)
    assert made.runs == plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2, 2)))).runs
    for run in branches(made):
        trunk = trunks(made)[run.trunk]
        assert trunk.config["train"]["seed"] == run.config["train"]["seed"]
        assert trunk.name.endswith("-s1") == run.name.endswith("-s1") and run.fork_step in trunk.keep_steps


def test_seeds_that_differ_between_budgets_are_refused_on_trunks():
    config = trunk_config()
    with pytest.raises(ConfigError, match=r"give one number, study.seeds=\(2,\), or take study.schedule=matched") as no:
        plan(dataclasses.replace(config, study=dataclasses.replace(config.study, seeds=(2, 1))))
    assert no.value.key == "study.seeds"


# --- Working through it ---


def test_a_branch_waits_for_its_trunk_even_if_somebody_else_trains_that(tmp_path, manifest):
    write_manifest(tmp_path / MANIFEST, manifest)
    held = {name: lease.claim(run_folder(tmp_path, name), tmp_path, "other") for name in trunks(manifest)}
    assert worker._claim_next(tmp_path, manifest.runs, "0") is None
    first = branches(manifest)[0]
    write_json(run_folder(tmp_path, first.trunk) / "result.json", {"loss": 3.0})
    run, mine = worker._claim_next(tmp_path, manifest.runs, "0")
    assert run.trunk == first.trunk
    mine.release()
    for other in held.values():
        other.release()


def test_of_a_trunk_that_diverged_the_branches_it_reached_are_trained(tmp_path, manifest, finish):
    write_manifest(tmp_path / MANIFEST, manifest)
    victim = next(run for run in trunks(manifest).values() if len(run.keep_steps) == 2)
    trained = []

    def train(config, folder, facts, echo, fork=None, keep=()):
        if facts["name"] == victim.name:
            (folder / "checkpoints" / f"step_{min(keep)}").mkdir(parents=True)
            raise loop.Diverged("loss is nan")
        trained.append(facts["name"])
        return finish(config, folder, facts)

    work_alone(tmp_path, MANIFEST, 0, quiet, train)
    early, late = sorted((run for run in branches(manifest) if run.trunk == victim.name), key=lambda r: r.fork_step)
    assert early.name in trained and late.name not in trained
    assert read_result(tmp_path, late.name)["diverged"] and victim.name in read_result(tmp_path, late.name)["error"]
    assert read_result(tmp_path, early.name)["loss"] == 3.0


def test_a_branch_begins_at_no_progress(tmp_path, manifest):
    run = branches(manifest)[0]
    run_folder(tmp_path, run.name).mkdir(parents=True)
    for tokens, share in ((run.fork_tokens, 0.0), ((run.fork_tokens + run.tokens) // 2, 0.5)):
        line = json.dumps({"step": 5, "tokens": tokens, "loss": 4.5})
        (run_folder(tmp_path, run.name) / "metrics.jsonl").write_text(line + "\n")
        assert run_status(tmp_path, run).progress == pytest.approx(share, abs=0.01)


# --- Trained ---


def test_trunks_are_trained_first_and_everything_once(trained):
    folder, order = trained
    manifest = read_manifest(folder / MANIFEST)
    assert sorted(order) == sorted(run.name for run in manifest.runs)
    assert set(order[: len(trunks(manifest))]) == set(trunks(manifest))
    assert all(row.state == "done" for row in status(folder, quiet))


def test_trunks_keep_exactly_what_their_branches_left_from(trained):
    folder, _ = trained
    for name, trunk in trunks(read_manifest(folder / MANIFEST)).items():
        kept = {path.name for path in (run_folder(folder, name) / "checkpoints").iterdir()}
        assert kept == {f"step_{step}" for step in trunk.keep_steps}


def test_up_to_the_fork_a_branch_has_the_metrics_of_its_trunk(trained):
    folder, _ = trained
    compared = 0
    for run in branches(read_manifest(folder / MANIFEST)):
        trunk, branch = (
            [r for r in read_metrics(run_folder(folder, name)) if r["step"] <= run.fork_step and "loss" in r]
            for name in (run.trunk, run.name)
        )
        assert trunk == branch
        compared += len(trunk)
    assert compared > 100


def test_a_branch_is_the_run_that_goes_the_whole_way(trained, tmp_path):
    folder, _ = trained
    run = max(branches(read_manifest(folder / MANIFEST)), key=lambda run: run.params)
    direct = loop.train(run.run_config(), tmp_path, facts=run.facts(), echo=quiet)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (run_folder(folder, run.name) / "metrics.jsonl").read_bytes()
    assert direct["validation"] == read_result(folder, run.name)["validation"]


def test_fits_take_the_branches_with_the_n_d_and_c_of_the_whole_way(trained):
    folder, _ = trained
    manifest = read_manifest(folder / MANIFEST)
    runs = {run.name: run for run in load_runs(folder).role("isoflop")}
    assert set(runs) == {run.name for run in branches(manifest)}
    for planned in branches(manifest):
        run, result = runs[planned.name], read_result(folder, planned.name)
        assert (run.params, run.tokens, run.flops, run.budget) == (
            planned.params,
            planned.tokens,
            planned.cost,
            planned.budget,
        )
        assert result["trunk"] == planned.trunk and result["flops_spent"] == pytest.approx(planned.spent())
        assert 0 < result["flops_spent"] < 0.25 * run.flops
    fit = fit_isoflop(tuple(runs.values()), resampling=None)
    assert len(fit.profiles) == len(BUDGETS)
    assert np.isfinite(float(fit.params_law.at(1e10)))


def test_what_is_missing_and_only_that_is_trained_again(trained):
    folder, order = trained
    manifest = read_manifest(folder / MANIFEST)
    victim = branches(manifest)[3]
    before = {run.name: (run_folder(folder, run.name) / "result.json").read_bytes() for run in manifest.runs}
    result = run_folder(folder, victim.name) / "result.json"
    metrics = (run_folder(folder, victim.name) / "metrics.jsonl").read_bytes()
    for path in sorted(run_folder(folder, victim.name).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = []

    def train(config, workdir, facts, **more):
        again.append(facts["name"])
        return loop.train(config, workdir, facts=facts, **more)

    work_alone(folder, MANIFEST, 0, quiet, train)
    assert again == [victim.name]
    assert (run_folder(folder, victim.name) / "metrics.jsonl").read_bytes() == metrics
    assert json.loads(result.read_bytes())["validation"] == json.loads(before[victim.name])["validation"]
    assert all(
        (run_folder(folder, name) / "result.json").read_bytes() == text
        for name, text in before.items()
        if name != victim.name
    )


def test_another_plan_in_the_same_folder_is_refused(trained):
    folder, _ = trained
    with pytest.raises(StudyError, match="another plan"):
        write_manifest(folder / MANIFEST, plan(trunk_config(schedule="cooldown")))
