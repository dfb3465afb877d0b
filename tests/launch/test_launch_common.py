"""What back-ends share: names, verdicts, headway, packing, money, secrets."""

import pytest

from chinchilla_jax.base import files
from chinchilla_jax.launch.backend import Headway, hosts_of, job_name, verdict
from chinchilla_jax.launch.command import Done, LaunchError, redact, remote
from chinchilla_jax.launch.money import Price, Spent, estimate, saving_line
from chinchilla_jax.launch.pack import pack
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.study.folder import run_folder


def test_names_are_labels_and_studies_of_one_name_differ():
    names = [job_name(study) for study in ("gs://b/Mine_1", "gs://c/Mine_1", "/x/" + "y" * 99, "/x/---", "/")]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 30 and name[0].isalpha() and name.replace("-", "").isalnum() for name in names)
    with pytest.raises(LaunchError, match="--name=9a"):
        job_name("x", "9a")


@pytest.mark.parametrize(("codes", "said"), [
    ([0, 0], "done"), ([42, 42], "again"), ([1, 1], "failed"), ([2, 0], "failed"),
    ([1, 42], "again"), ([1, 134], "again"), ([1, None], "again"), ([0, -9], "again"), ([0, 137], "again"),
])  # fmt: skip
def test_a_gang_is_judged_together_and_a_lost_host_excuses_the_others(codes, said):
    assert verdict(codes) == said


def test_hosts_of_slices():
    names = ["v5e-1", "v5e-4", "v5e-8", "v5e-16", "v5e-256", "v4-8", "v4-16", "v5p-512", "2xv5e-16"]
    assert [hosts_of(parse_slice(name)) for name in names] == [1, 1, 1, 4, 64, 1, 2, 64, 4]
    assert hosts_of(parse_slice("v6e-8"), small_on_one=False) == 2


def test_three_starts_without_a_checkpoint_are_the_last(job, study):
    run = job.runs()[0]
    path = run_folder(study, run.name)
    headway = Headway(job, 1)
    headway.start()
    files.write_json(path / "lease.json", {"worker": "1"})
    headway.look()
    (path / "checkpoints" / "step_10").mkdir(parents=True)
    for _ in range(3):
        headway.start()
    (path / "checkpoints" / "step_20.orbax-checkpoint-tmp").mkdir()  # not whole
    with pytest.raises(LaunchError, match=f"started 3 times without a new checkpoint .{run.name}"):
        headway.start()
    (path / "checkpoints" / "step_20").mkdir()
    headway.start()


def test_another_workers_checkpoint_is_no_headway(job, study):
    path = run_folder(study, job.runs()[0].name)
    files.write_json(path / "lease.json", {"worker": "0"})
    headway = Headway(job, 1)
    for step in range(3):
        headway.start()
        (path / "checkpoints" / f"step_{step}").mkdir(parents=True)
    with pytest.raises(LaunchError, match="no run yet"):
        headway.start()


def test_longest_first_is_within_graham_of_the_best_packing(manifest):
    runs = manifest.runs
    seconds = {run.name: run.estimated_seconds for run in runs}
    for slices in (1, 2, 5, len(runs) + 3):
        packed = pack(runs, seconds, slices)
        assert sorted(name for names in packed.assigned for name in names) == sorted(seconds)
        assert sum(packed.loads) == pytest.approx(sum(seconds.values()))
        least = max(sum(seconds.values()) / slices, max(seconds.values()))
        assert least <= packed.makespan * (1 + 1e-9) and packed.makespan <= least * (4 / 3 + 1)
        assert 1 <= packed.enough <= slices
    # More slices than runs do not help: as many end as early.
    assert pack(runs, seconds, len(runs) + 3).enough <= len(runs)


def test_money_of_a_manifest(job):
    slice_ = job.needs_one_slice
    seconds = dict.fromkeys((run.name for run in job.runs()), 3600.0)
    said = estimate(job.runs(), 2, slice_, Price(2.0, 100.0), 0.4, seconds)
    assert said.busy_chip_hours == pytest.approx(48) and said.held_chip_hours == pytest.approx(64)
    assert "$96.00" in said.lines()[1] and "$128.00" in said.lines()[1] and "predicted, no hardware" in said.lines()[0]
    said.check()
    with pytest.raises(LaunchError, match=r"\$96.00.*--budget_usd=95"):
        estimate(job.runs(), 2, slice_, Price(2.0, 95.0), 0.4, seconds).check()
    guess = estimate(job.runs(), 1, slice_, Price(), 0.5, {})
    flops = sum(run.spent("executed") for run in job.runs())
    assert guess.busy_chip_hours == pytest.approx(flops / (197e12 * 0.5) / 3600)


def test_what_was_spent_outlives_the_launcher(tmp_path):
    Spent(tmp_path / "spent.json", Price(1.0, 2.0)).add(3600.0)
    again = Spent(tmp_path / "spent.json", Price(1.0, 2.0))
    assert again.chip_hours == 1.0 and not again.over()
    again.add(3600.0)
    assert again.over() and "$2.00" in again.line()


def test_credentials_are_not_shown():
    token = "ya29.a0AfB_byC-x.y"
    text = f"Bearer {token} WANDB_API_KEY=abc123 access_token=xyz password=hunter2 -----BEGIN PRIVATE KEY-----\nMII\n"
    shown = redact(text)
    assert not any(secret in shown for secret in (token, "abc123", "xyz", "hunter2", "MII"))
    assert token not in Done(1, "", f"ERROR: bad token {token}").why()


def test_words_for_another_shell_are_quoted():
    assert remote(["cd", "a b"], ["echo", "$(rm -rf x)", "'"]) == """cd 'a b' && echo '$(rm -rf x)' ''"'"''"""


def test_runs_on_preemptible_slices_are_to_be_saved_often_enough(job, study):
    seconds = dict.fromkeys((run.name for run in job.runs()), 10 * 3600.0)
    spent = job.spent()
    life, known = spent.life(16)
    assert (life, known) == (12 * 3600.0, "assumed")
    line = saving_line(job.runs(), seconds, life, known)
    assert "3 runs are saved every" in line and "every 8 min is best" in line and "train.checkpoint_every" in line
    assert not saving_line(job.runs(), dict.fromkeys(seconds, 60.0), life, known)
    spent.add(16 * 3600.0 * 4, 4)
    assert job.spent().life(16) == (3600.0, "4 were taken away so far")
