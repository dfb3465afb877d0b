"""The command line: each mistake gives exit code 2 and one line that names it, and nothing is left behind."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from chinchilla_jax import cli
from chinchilla_jax.cli import verbs
from chinchilla_jax.cli.flags import PATHS
from chinchilla_jax.scaling.fits.surface import Surface
from configs.isoflop import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = f"--config={ROOT}/configs/isoflop.py:tiny"


def run(capsys, *argv):
    """(exit code, stdout, stderr) of a command."""
    code = cli.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _named_paths():
    """Commands that name a path in storage that is not known, by each flag of each verb and each kind of word."""
    for verb, entry in verbs.VERBS.items():
        config = [TINY] if "config" in entry.flags else []
        for flag in sorted(set(entry.flags) & set(PATHS)):
            yield [verb, *config, f"--{flag}=s3://b/x"]
        if entry.words:
            yield [verb, "classify", "s3://b/x"] if verb == "trajectories" else [verb, "s3://b/x", "s3://b/x"]
    yield ["plan", "--config=s3://b/x"]
    for key in ("data_dir", "source", "tokenizer"):
        setting = f"--config.data.{key}={'text:' if key == 'source' else ''}s3://b/x"
        yield ["data", TINY, setting]
        yield ["train", TINY, "--workdir=run", setting]


@pytest.mark.parametrize("argv", list(_named_paths()), ids=" ".join)
def test_storage_that_is_not_known_is_named_and_nothing_is_made(capsys, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *argv)
    assert code == 2 and err.count("\n") == 1 and "s3://b/x: storage s3:// is not known" in err
    assert list(tmp_path.iterdir()) == []


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
    (["train", TINY, f"--workdir={__file__}/run"], ["--workdir=", "test_cli.py is a file; name a folder"]),
    (["plan", "--config.train.seed=1"], ["no --config=FILE[:NAME]"]),
    (["plan", TINY, "--config.optimizer.peak_lrr=1"], ["--config.optimizer.peak_lrr", "did you mean 'peak_lr'"]),
    (["plan", TINY, "--noconfig.model.tie_embeddings=3"], ["--noconfig.model.tie_embeddings", "takes no value"]),
    (["plan", TINY, "--config.optimiser.peak_lr=1"], ["optimiser", "did you mean 'optimizer'"]),
    (["plan", TINY, "--config.optimizer.peak_lr=fast"], ["--config.optimizer.peak_lr=fast", "float"]),
    (["plan", TINY, "--config.train.batch_size=1e5"], ["--config.train.batch_size=1e5: expected a whole number (int): "
                                                       "write 100000"]),
    (["plan", TINY, "--config.train.batch_size", "2.5"], ["--config.train.batch_size=2.5: expected a whole number"]),
    (["plan", TINY, "--config.data.mask_documents=maybe"], ["expected true or false", "the config has False"]),
    (["plan", TINY, "--config.model.position=ropes", "--dry_run"], ["model.position", "did you mean 'rope'"]),
    (["plan", TINY, "--config.study.sizes=3", "--dry_run"], ["study.sizes", "at least 6"]),
    (["plan", TINY, "--config.study.budgets=(1.0,2.0)", "--dry_run"], ["study.budgets"]),
    (["plan", TINY, "--config.method.name=patch", "--dry_run"], ["this config has no section method"]),
    (["plan", TINY, "--config.study.methods=('plain','pach')", "--dry_run"], ["study.methods", "did you mean 'patch'"]),
    (["methods", TINY, "--dry_run"], ["study.methods: needs a way to train beside 'plain'"]),
    (["plan", TINY, "--dry_run", "extra"], ["unexpected argument 'extra'"]),
    (["plan", TINY, "--dry_run", "--workers=two"], ["--workers=two"]),
    (["plan", TINY, "--dry_run", "--workers=0"], ["workers"]),
    (["status"], ["--study=DIR is missing"]),
    (["transfer"], ["which model?"]),
    (["transfer", "x", "y"], ["unexpected argument 'y'"]),
    (["transfer", "x", "--modes=fozen"], ["modes", "did you mean 'frozen'"]),
    (["transfer", "x", "--rates=fast"], ["--rates=fast", "1e-3,3e-4"]),
    (["transfer", "x", "--output=table"], ["--output=table", "FILE.json"]),
    (["generate"], ["which model?", "run or of a study"]),
    (["generate", "/nowhere"], ["/nowhere", "no config.json"]),
    (["generate", "x", "--mesh=tenser:2"], ["--mesh=tenser:2", "data, fsdp, context, tensor"]),
    (["generate", "x", "--top_p=0"], ["top_p", "(0, 1]"]),
    (["evaluate"], ["which model?", "run or of a study"]),
    (["evaluate", "/nowhere"], ["/nowhere", "no config.json"]),
    (["evaluate", "x", "--suite=lama"], ["suite", "did you mean 'llama'"]),
    (["evaluate", "x", "--tasks=a", "--suite=llama"], ["leave --tasks out"]),
    (["evaluate", "x", "--tasks=tiny", "--include=/nowhere"], ["--include=/nowhere: no such folder"]),
    (["trajectories"], ["which action?", "collect, classify, match, plot, contrast"]),
    (["trajectories", "colect"], ["unknown action 'colect'", "collect"]),
    (["trajectories", "collect", "--output=x.npz"], ["which runs?"]),
    (["trajectories", "collect", "runs/x"], ["--output=FILE.npz"]),
    (["trajectories", "collect", "/nowhere", "--output=x.npz"], ["/nowhere", "no config.json"]),
    (["trajectories", "match"], ["takes one file", "got 0"]),
    (["trajectories", "match", "/nowhere.npz"], ["/nowhere.npz: no such file", "trajectories collect"]),
    (["trajectories", "match", __file__], ["test_cli.py: holds no trajectories"]),
    (["trajectories", "match", "x", "--after=10"], ["match takes no --after", "--output"]),
    (["trajectories", "classify", __file__, "--after=ten"], ["test_cli.py: holds no trajectories"]),
    (["trajectories", "plot", "x", "--output=x.svg"], ["--output=x.svg", "--output=FILE.png"]),
    (["trajectories", "plot", "x", "--output=x.png", "--after=110"], ["--after=110", "below 100"]),
    (["trajectories", "contrast", "x"], ["which two runs?"]),
    (["trajectories", "contrast", "x", "y", "--factors=1"], ["--factors=1", "two numbers"]),
    (["status", "--study=/nowhere"], ["no such manifest", "plan --config"]),
    (["work", "--study=/nowhere"], ["no such manifest"]),
    (["launch", "--study=x"], ["--backend", "local, tpu_vm, gke, slurm, ssh"]),
    (["launch", "--study=x", "--backend=tpu"], ["unknown back-end 'tpu'", "one of local"]),
    (["launch", "--study=/nowhere", "--backend=local"], ["no such manifest"]),
    (["launch", "begin", "--study=x"], ["unexpected 'begin'", "status, stop"]),
    (["launch", "--study=x", "--backend=local", "--slice=v5e-16"], ["not for local", "--workers"]),
    (["launch", "--study=x", "--backend=tpu_vm"], ["--zone=ZONE is missing"]),
    (["launch", "--study=x", "--backend=tpu_vm", "--zone=z", "--spot", "--reserved"], ["one or the other"]),
    (["launch", "--study=x", "--backend=gke"], ["--image=IMAGE is missing", "launch/Dockerfile"]),
    (["launch", "--study=x", "--backend=ssh"], ["--hosts=HOST,HOST"]),
    (["launch", "--study=x", "--backend=ssh", "--hosts=-oProxyCommand=x"], ["no host"]),
    (["launch", "--study=x", "--backend=slurm", "--hosts=a,b"], ["is a number"]),
    (["launch", "--study=x", "--backend=local", "--name=My"], ["--name=My", "a-z, 0-9 and -"]),
    (["launch", "--study=x", "--backend=local", "--labels=A"], ["--labels: 'A'", "KEY:VALUE"]),
    (["launch", "--study=x", "--backend=local", "--price=nan"], ["dollars must be a number"]),
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


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_has_help_that_names_its_flags(capsys, verb):
    code, out, err = run(capsys, verb, "--help")
    assert code == 0 and not err
    assert all(f"--{flag}" in out for flag in verbs.VERBS[verb].flags) and len(out.splitlines()[2]) > 30
    assert f"    {verb} " in run(capsys, "--help")[1] or f"    {verb}\n" in run(capsys, "--help")[1]


PROCESSES = ("coordinator", "processes", "process", "peer_timeout", "join_timeout")


def test_flags_of_each_verb_do_not_change_by_accident():
    source = ("study", "runs", "columns", "curves", "where", "by", "best_per_cell")
    fits = ("preset", "replicates", "seed", "output")
    budget, model = ("budget", "chip", "chips", "days", "utilisation"), ("step", "tokenizer", "mesh", "compute_dtype")
    assert {name: verb.flags for name, verb in verbs.VERBS.items()} == {
        "data": ("config",),
        "plan": ("config", "study", "workers", "dry_run", "slice", "cache", "next", "purse", "number", "quantity",
                 "budget"),
        "preflight": ("config", "study", "manifest", "slice", "choose", "compiles", "every_batch", "price", "output",
                      "cache", "keep_hlo", "generate"),
        "train": ("config", "workdir", "profile", "init_from", *PROCESSES),
        "work": ("study", "manifest", "workers", "worker", "standby", "parent", *PROCESSES),
        "launch": ("study", "manifest", "backend", "slice", "slices", "workers", "dry_run", "name", "labels", "price",
                   "budget_usd", "preflight", "cache", "utilisation", "zone", "project", "spot", "reserved",
                   "runtime_version", "wait_hours", "service_account", "image", "namespace", "queue", "volume", "hosts",
                   "sbatch"),
        "status": ("study",),
        "fit": (*source, *fits, "variants", "explain", "save", "losses", "errors"),
        "predict": ("config", *source, "fit", "law", "across", *budget, "params", "tokens", "unique_tokens",
                    "inference_tokens", "inputs", "experts", "serve", "throughput", "price", "reference", *fits,
                    "register", "verify"),
        "suggest": (*source, "fit", *budget, "purse", "number", "quantity", "output"),
        "verify": (),
        "report": (*source, "fit", *budget, *fits),
        "compare": ("runs", "columns", "where", "by", "best_per_cell", "reference", *budget, "replicates", "seed",
                    "output"),
        "forecast": ("study", "runs", "columns", "curves", "where", "output"),
        "study": ("config", "study", "workers"),
        "methods": ("config", "study", "workers", "dry_run"),
        "noise": ("config", "study", "cells", "seeds", "rates", "workers", "dry_run"),
        "tune": ("config", "study", "cells", "seeds", "rates", "inits", "temperatures", "workers", "dry_run"),
        "transfer": (*model, "tasks", "modes", "seeds", "steps", "rates", "output"),
        "generate": (*model, "prompts", "chat", "new_tokens", "temperature", "top_k", "top_p", "stop", "seed"),
        "evaluate": (*model, "tasks", "suite", "heldout", "rules", "data", "include", "limit", "fewshot", "begin",
                     "seed", "output"),
        "trajectories": ("output", "sequences", "after", "mesh", "compute_dtype", "factors", "prompts", "new_tokens",
                         "temperature", "top_k", "top_p", "stop", "seed"),
        "import": (),
        "export": ("step", "format", "dtype"),
        "presets": (),
        "paper": (),
    }


def test_a_flag_that_is_gone_names_what_does_its_work(capsys):
    code, _, err = run(capsys, "predict", "--runs=somewhere", "--more_runs=3")
    assert code == 2 and "--more_runs is gone" in err and "suggest --purse=FLOPS --number=COUNT" in err


@pytest.mark.parametrize("config", [
    "isoflop.py:cpu", "isoflop.py:cpu_long", "isoflop.py:tiny", "isoflop.py:chinchilla", "mup.py:study",
])  # fmt: skip
def test_every_study_of_the_configs_can_be_planned(capsys, config, tmp_path):
    study = tmp_path / "study"
    code, out, err = run(capsys, "plan", f"--config={ROOT}/configs/{config}", "--dry_run", f"--study={study}")
    assert code == 0, err
    assert any(" runs, " in line and " FLOPs (" in line for line in out.splitlines()) and not study.exists()


@pytest.mark.parametrize("config", [
    "mup.py:64", "chinchilla_70b.py", "llama.py:7b", "llama.py:13b", "llama.py:33b", "llama.py:65b", "gopher.py:44m",
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


LAW = Surface(1.8, 480.0, 2100.0, 0.35, 0.37)
SIZES = [1e7 * 10 ** (i / 3) for i in range(7)]


def table(path, rows, header="params,tokens,loss"):
    """A CSV file of these rows."""
    path.write_text("\n".join([header, *(",".join(repr(value) for value in row) for row in rows)]) + "\n")
    return path


def row(params, tokens):
    """A run that lies on the law."""
    return params, tokens, float(LAW.loss(params, tokens))


@pytest.mark.parametrize(("rows", "words"), [
    ([row(n, 1e9 + n) for n in SIZES[:3]], ["needs 6 runs, got 3"]),
    ([row(n, 1e18 / 6 / n) for n in SIZES], ["cannot be told apart"]),
    ([row(1e8, 10.0 * n) for n in SIZES], ["1 distinct N"]),
    ([row(n, 1e9) for n in SIZES], ["1 distinct D"]),
    ([(n, 1e9, -1.0) for n in SIZES], ["no loss is above 0, the floor of a loss"]),
    ([(n, 1e9, "x") for n in SIZES], ["no column for loss", "loss holds no numbers"]),
    ([], ["no rows below the header"]),
], ids=["too few runs", "one budget only", "all N equal", "all D equal", "loss below the floor", "text", "no rows"]
)  # fmt: skip
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_data_that_cannot_carry_a_fit_are_refused_with_the_reason(capsys, tmp_path, verb, rows, words):
    path = table(tmp_path / "runs.csv", rows)
    code, _, err = run(capsys, verb, f"--runs={path}", *(["--budget=1e21"] if verb == "predict" else []))
    assert code == 2 and len(err.splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(("argv", "words"), [
    (["--columns=params:M"], ["no column 'M' for params", "there are size, D, val"]),
    (["--columns=params:sizes"], ["did you mean 'size'"]),
    (["--columns=parms:size"], ["'parms' is no field of a run", "did you mean 'params'"]),
    (["--columns=size"], ["'size' is not FIELD:COLUMN"]),
    ([], ["no column for params, loss among size, D, val", "--columns=params:COLUMN"]),
    (["--columns=params:size,loss:val", "--curves=/nowhere.csv"], ["--curves needs names to join by"]),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["fit", "predict", "report"])
def test_columns_that_do_not_fit_the_table_are_told(capsys, tmp_path, verb, argv, words):
    path = table(tmp_path / "runs.csv", [row(1e7, 1e9)], "size,D,val")
    code, _, err = run(capsys, verb, f"--runs={path}", *argv)
    assert code == 2 and len(err.splitlines()) == 1 and not list(tmp_path.glob("report*"))
    for word in words:
        assert word in err


def test_columns_and_their_multipliers_reach_the_fit(capsys, tmp_path):
    rows = [row(n, d) for n in SIZES for d in (1e9, 1e10, 1e11)]
    path = table(tmp_path / "runs.csv", [(n / 1e6, d, loss) for n, d, loss in rows], "size,D,val")
    code, out, err = run(capsys, "fit", f"--runs={path}", "--columns=params:size*1e6,loss:val")
    assert code == 0, err
    assert all(constant in out for constant in ("1.8000", "480", "0.350", "2100", "0.370")), "the law planted in N"


@pytest.mark.parametrize(("name", "content", "words"), [
    ("runs.csv.gz", b"\x1f\x8b\x08", "compressed with gzip"), ("runs.csv", b"\x89PNG\r\n\0", "not a text file"),
    ("runs.xlsx", b"PK\x03\x04", "Excel"), ("runs.csv", b"", "the file is empty"),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["fit", "predict", "report"])
def test_a_binary_or_empty_table_is_refused_by_name(capsys, tmp_path, verb, name, content, words):
    (tmp_path / name).write_bytes(content)
    code, _, err = run(capsys, verb, f"--runs={tmp_path / name}")
    assert code == 2 and len(err.splitlines()) == 1 and name in err and words in err


@pytest.fixture
def trained(capsys, tmp_path):
    """A study planned by `plan`, whose results lie on a law instead of having been trained."""
    study = tmp_path / "study"
    assert run(capsys, "plan", TINY, f"--study={study}")[0] == 0
    law = Surface(2.0, 40.0, 40.0 * 0.3**0.4, 0.4, 0.4)
    for line in (study / "manifest.jsonl").read_text().splitlines()[1:]:
        planned = json.loads(line)
        result = {key: planned[key] for key in ("name", "role", "budget", "convention", "params", "tokens")}
        result |= {"flops": planned["flops"][planned["convention"]], "diverged": False,
                   "loss": float(law.loss(planned["params"], planned["tokens"]))}  # fmt: skip
        folder = study / "runs" / planned["name"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    return study


def test_predict_verify_plans_the_held_out_runs(capsys, trained):
    code, out, err = run(capsys, "predict", f"--study={trained}", "--verify")
    assert code == 0, err
    lines = [json.loads(line) for line in (trained / "verification.jsonl").read_text().splitlines()]
    assert [line["role"] for line in lines[1:]] == ["predicted", "half", "double"]
    assert {line["budget"] for line in lines[1:]} == {2.0 * 1.4e10}
    assert all(line["name"] in out for line in lines[1:])


@pytest.mark.parametrize("argv", [["--runs=x.csv"], ["--study=x", "--budget=1e12"], ["--params=1e9"]])
def test_predict_verify_is_for_the_held_out_budget_of_a_study(capsys, argv):
    code, _, err = run(capsys, "predict", *argv, "--verify")
    assert code == 2 and "predict --verify plans a study's held-out runs: give --study=DIR and no budget or law" in err


@pytest.mark.parametrize(("file", "content"), [
    ("config.json", "{"), ("config.json", "[]"), ("config.json", "{}"), ("config.json", '{"config": []}'),
    ("config.json", b"\xff"), ("result.json", "{"), ("result.json", "{}"), ("result.json", '{"loss": "low"}'),
    ("result.json", '{"loss": null, "diverged": true}'),
])  # fmt: skip
def test_a_damaged_file_in_a_workdir_is_named(capsys, tmp_path, file, content):
    config = dataclasses.replace(tiny(), study=None)
    right = {"hash": config.content_hash(), "config": config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(right))
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.iterdir())
    code, _, err = run(capsys, "train", TINY, f"--workdir={tmp_path}")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{tmp_path / file} is damaged" in err and "delete that file" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared data of `tiny`."""
    folder = tmp_path_factory.mktemp("data")
    assert cli.main(["data", TINY, f"--config.data.data_dir={folder}"]) == 0
    return folder


def test_train_refuses_a_store_whose_tokenizer_was_replaced(capsys, tmp_path, prepared):
    other = tmp_path / "other"
    assert run(capsys, "data", TINY, f"--config.data.data_dir={other}", "--config.data.vocab_size=400")[0] == 0
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (path,) = copy.glob("store/*/tokenizer.model")
    (foreign,) = other.glob("store/*/tokenizer.model")
    shutil.copy(foreign, path)
    code, _, err = run(capsys, "train", TINY, f"--config.data.data_dir={copy}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{path}: is tokenizer" in err and "prepare the data again" in err
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_damaged_store(capsys, tmp_path, prepared):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (path,) = copy.glob("store/*/store.json")
    path.write_text(path.read_text()[:-20])
    code, _, err = run(capsys, "train", TINY, f"--config.data.data_dir={copy}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{path}: not valid JSON" in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "code"), [(["presets"], 0), (["plan", "--config=configs/isoflop.py:tiny"], 42)])
def test_a_reader_that_has_seen_enough_ends_what_only_prints_and_is_no_success_of_work(words, code, tmp_path):
    study = [f"--study={tmp_path}"] if words[0] == "plan" else []
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "chinchilla_jax", *words, *study]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert run.returncode == code, run.stderr
    assert (b"nobody reads its output" in run.stderr) is (code != 0)


def test_sigterm_stops_work_wherever_it_is_and_may_be_followed_by_a_start(monkeypatch, capsys):
    def terminated(values):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(verbs.VERBS, "data", dataclasses.replace(verbs.VERBS["data"], run=terminated))
    assert cli.main(["data", "--config=configs/isoflop.py:tiny"]) == 42
    assert "start again to go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
