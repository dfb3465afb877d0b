"""The command line: each mistake gives exit code 2 and one line that names it, and nothing is left behind."""

import pathlib
import subprocess
import sys

import pytest

from chinchilla_jax import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = f"--config={ROOT}/configs/isoflop.py:tiny"


def run(capsys, *argv):
    """(exit code, stdout, stderr) of a command."""
    code = cli.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("argv", "words"), [
    ([], ["a verb is missing", "presets"]),
    (["pln"], ["unknown verb 'pln'", "did you mean 'plan'"]),
    (["plan", "--cnfig=x"], ["unknown flag --cnfig", "did you mean '--config'"]),
    (["plan"], ["--config=FILE[:NAME] is missing"]),
    (["plan", f"--config={ROOT}/configs/isoflp.py"], ["no config file", "did you mean 'isoflop.py'"]),
    (["plan", f"--config={ROOT}/configs/isoflop.py:cpuu"], ["unknown study 'cpuu'", "did you mean 'cpu'"]),
    (["plan", f"--config={ROOT}/configs/llama.py:6b"], ["unknown model '6b'", "65b"]),
    (["plan", TINY], ["--study=DIR is missing"]),
    (["train", TINY], ["--workdir=DIR is missing"]),
    (["plan", "--config.train.seed=1"], ["no --config=FILE[:NAME]"]),
    (["plan", TINY, "--config.optimizer.peak_lrr=1"], ["--config.optimizer.peak_lrr", "did you mean 'peak_lr'"]),
    (["plan", TINY, "--config.optimiser.peak_lr=1"], ["optimiser", "did you mean 'optimizer'"]),
    (["plan", TINY, "--config.optimizer.peak_lr=fast"], ["--config.optimizer.peak_lr=fast", "float"]),
    (["plan", TINY, "--config.model.position=ropes", "--dry_run"], ["model.position", "did you mean 'rope'"]),
    (["plan", TINY, "--config.study.sizes=3", "--dry_run"], ["study.sizes", "at least 6"]),
    (["plan", TINY, "--config.study.budgets=(1.0,2.0)", "--dry_run"], ["study.budgets"]),
    (["plan", TINY, "--dry_run", "extra"], ["unexpected argument 'extra'"]),
    (["plan", TINY, "--dry_run", "--workers=two"], ["--workers=two"]),
    (["plan", TINY, "--dry_run", "--workers=0"], ["workers"]),
    (["status"], ["--study=DIR is missing"]),
    (["status", "--study=/nowhere"], ["no such manifest", "plan --config"]),
    (["work", "--study=/nowhere"], ["no such manifest"]),
    (["fit", "--study=/nowhere"], ["no such file"]),
    (["fit"], ["give either --study=DIR or --runs=PATH"]),
    (["fit", "--study=a", "--runs=b"], ["give either"]),
    (["predict", "--runs=/nowhere.csv", "--budget=1e12"], ["no such file"]),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, words):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert len(err.splitlines()) == 1 and err.startswith("chinchilla_jax: ")
    for word in words:
        assert word in err


@pytest.mark.parametrize(("text", "words"), [
    ("def get_config(:\n", "SyntaxError"),
    ("x = 1\n", "no get_config()"),
    ("def get_config():\n    return {}\n", "must return a ConfigDict"),
    ("def get_config():\n    return 1 / 0\n", ":2: ZeroDivisionError"),
])  # fmt: skip
def test_a_broken_config_file_is_told_with_its_line(capsys, tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    code, _, err = run(capsys, "plan", f"--config={tmp_path}/broken.py", "--dry_run")
    assert code == 2 and len(err.splitlines()) == 1 and words in err and "broken.py" in err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_that_names_its_flags(capsys, verb):
    code, out, err = run(capsys, verb, "--help")
    assert code == 0 and not err
    assert all(f"--{flag}" in out for flag in cli.VERBS[verb].flags) and len(out.splitlines()[2]) > 30
    assert f"    {verb} " in run(capsys, "--help")[1] or f"    {verb}\n" in run(capsys, "--help")[1]


def test_flags_of_each_verb_do_not_change_by_accident():
    assert {name: verb.flags for name, verb in cli.VERBS.items()} == {
        "data": ("config",),
        "plan": ("config", "study", "workers", "dry_run"),
        "train": ("config", "workdir"),
        "work": ("study", "manifest", "workers", "worker", "parent"),
        "status": ("study",),
        "fit": ("study", "runs", "columns", "curves"),
        "predict": ("study", "runs", "columns", "curves", "budget", "verify"),
        "report": ("study", "runs", "columns", "curves", "budget"),
        "study": ("config", "study", "workers"),
        "presets": (),
    }


@pytest.mark.parametrize("config", [
    "isoflop.py:cpu", "isoflop.py:cpu_long", "isoflop.py:tiny", "isoflop.py:chinchilla",
])  # fmt: skip
def test_every_study_of_the_configs_can_be_planned(capsys, config, tmp_path):
    study = tmp_path / "study"
    code, out, err = run(capsys, "plan", f"--config={ROOT}/configs/{config}", "--dry_run", f"--study={study}")
    assert code == 0, err
    assert "runs, " in out.splitlines()[-1] and not study.exists()


@pytest.mark.parametrize("config", [
    "chinchilla_70b.py", "llama.py:7b", "llama.py:13b", "llama.py:33b", "llama.py:65b", "gopher.py:44m",
    "gopher.py:117m", "gopher.py:417m", "gopher.py:1.4b", "gopher.py:7.1b", "gopher.py:280b",
])  # fmt: skip
def test_every_run_config_is_valid(capsys, config, tmp_path):
    # Up to the first thing that is not there: the data.
    code, _, err = run(capsys, "train", f"--config={ROOT}/configs/{config}", f"--workdir={tmp_path}",
                       f"--config.data.data_dir={tmp_path}/data")  # fmt: skip
    assert code == 2 and "prepare it first" in err


def test_plan_writes_once_and_status_shows_it(capsys, tmp_path):
    assert run(capsys, "plan", TINY, f"--study={tmp_path}")[0] == 0
    code, out, _ = run(capsys, "plan", TINY, f"--study={tmp_path}")
    assert code == 0 and "holds this plan already" in out
    code, _, err = run(capsys, "plan", TINY, f"--study={tmp_path}", "--config.train.seed=5")
    assert code == 2 and "holds another plan" in err and len(err.splitlines()) == 1
    code, out, _ = run(capsys, "status", f"--study={tmp_path}")
    assert code == 0 and "0 done, 0 running, 0 failed, 24 waiting" in out


def test_settings_are_applied_in_any_order_and_form(capsys, tmp_path):
    argv = ["--config.study.budgets=(6e9,9e9)", "--config", f"{ROOT}/configs/isoflop.py:tiny", "--config.train.seed=7"]
    assert run(capsys, "plan", *argv, f"--study={tmp_path}")[0] == 0
    text = (tmp_path / "manifest.jsonl").read_text()
    assert '"seed": 7' in text and "c6.0e9-" in text and "c9.0e9-" in text


def test_presets_show_printed_and_counted_sizes(capsys):
    code, out, _ = run(capsys, "presets")
    assert code == 0 and len(out.splitlines()) > 60
    row = next(line for line in out.splitlines() if line.startswith("llama-7b"))
    assert "6,738,415,616" in row and "2302.13971" in row


def test_the_module_runs_and_light_verbs_do_not_import_jax():
    code = ("import sys; from chinchilla_jax.cli import main; "
            f"assert main(['plan', {TINY!r}, '--dry_run']) == 0; assert 'jax' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "chinchilla_jax", "pln"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
