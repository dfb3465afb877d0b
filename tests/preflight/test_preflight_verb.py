"""`preflight` from the command line: compiles once, says what fits, and names the nearest setting where it does not."""

import importlib.util
import json
import re
import textwrap

import pytest

from chinchilla_jax import cli
from chinchilla_jax.preflight import check as checks
from chinchilla_jax.preflight import compiled
from chinchilla_jax.preflight.predict import KernelCycles, shape_of
from chinchilla_jax.preflight.program.traffic import Sent
from chinchilla_jax.preflight.step import CompiledStep, Memory, Refusal, Traffic
from tests.compiling import needs_compiler

GIB = 2**30
CONFIG = """
    import dataclasses
    from ml_collections import ConfigDict
    from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig

    def get_config():
        model = ModelConfig(n_layers=2, d_model=256, n_heads=2, n_kv_heads=2, head_dim=128, d_ff=512, vocab_size=1280)
        return ConfigDict(dataclasses.asdict(RunConfig(
            model, data=DataConfig(vocab_size=1280, seq_len=512), mesh=MeshConfig(fsdp=4),
            train=TrainConfig(batch_size=16, train_tokens=10**9, compute_dtype="bfloat16", remat="none"))))
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@pytest.fixture
def run(capsys, config_file, tmp_path):
    """(exit code, stdout, stderr) of `preflight` of the config on four chips, with a cache of its own."""

    def preflight(*argv, slice_="v5e-4"):
        where = [f"--config={config_file}", f"--slice={slice_}", f"--cache={tmp_path}/cache"]
        code = cli.main(["preflight", *where, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return preflight


@pytest.fixture
def compiler(monkeypatch):
    """A compiler of one line, under which a step needs 20 GiB divided by its microbatches; lists what it was asked."""
    asked = []

    def compile_step(config, slice_, objective):
        sequences = config.train.batch_size
        asked.append((config.train.microbatches, config.train.remat, sequences))
        needs, usable = 20 * GIB // config.train.microbatches, 16 * GIB
        memory = Memory(GIB, 2 * GIB, 0, 0, needs - 3 * GIB, 0, needs, usable)
        links = {"data": 0, "fsdp": 2, "context": 0, "tensor": 0}
        if needs > usable:
            return CompiledStep(sequences, memory, links, 3.0, Refusal(needs, usable, "too large")), ""
        traffic = (Traffic("all-gather", ("fsdp",), True, True, 3, 6, GIB, GIB // 2, 0),)
        sent = (Sent(True, "all-gather", ("fsdp",), 110.0, 100.0), Sent(True, "all", (), 110.0, 100.0))
        return CompiledStep(
            sequences,
            memory,
            links,
            60.0,
            matmul_flops=10**12,
            cycles=10**7,
            hbm_bytes=10**9,
            kernels={"attention_forward": 2 * config.train.microbatches},
            traffic=traffic,
            sent=sent,
        ), "text"

    def kernel_cycles(config, slice_, cache):
        return KernelCycles({"attention_forward": 1000.0}, *shape_of(config, slice_))

    monkeypatch.setattr(compiled, "compile_step", compile_step)
    monkeypatch.setattr(compiled, "usable_hbm", lambda generation: 16 * GIB)
    monkeypatch.setattr(checks, "kernel_cycles", kernel_cycles)
    return asked


FITS = "--config.train.microbatches=2"


def test_a_step_that_fits_is_told_with_memory_traffic_time_and_cost(run, compiler):
    code, out, err = run(FITS, "--price=2")
    assert (code, err) == (0, "")
    for words in (
        "v5e-4: 4 chips, 2x2",
        "peak                          10.000",
        "headroom 6.000 (38%)",
        "all-gather",
        "1.00 GiB",
        "512.0 MiB",
        "4 x attention_forward",
        "chip-hours, $",
        "(6nd)",
        "(executed)",
        "a layer sends 110 B a microbatch, 1.10 times the least",
    ):
        assert words in out
    times = [line for line in out.splitlines() if re.match(r"(time|run|assumed) .*\(", line.strip())]
    assert len(times) == 3 and all("predicted, no hardware" in line for line in times)


def test_a_second_time_it_is_not_compiled_unless_something_changed(run, compiler):
    first, second = run(FITS), run(FITS, "--config.optimizer.peak_lr=0.5", "--config.train.seed=3")
    assert len(compiler) == 1 and "compiled in 60 s" in first[1] and "from the cache" in second[1]
    run(FITS, "--config.model.d_ff=1024")
    assert len(compiler) == 2


def test_what_does_not_fit_gives_2_the_compilers_figure_and_flags_that_do(run, compiler):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "does not fit: the compiler needs 20.00 GiB and has 16.00 (too large)" in out
    assert compiler[0] == (1, "none", 16)
    flags = re.search(r"nearest setting that fits: (.*)", out)[1].split()
    assert run(*flags)[0] == 0 and compiler[-1][0] >= 2


def test_a_program_that_is_not_understood_fits_but_is_not_timed(run, compiler, monkeypatch):
    monkeypatch.setattr(
        compiled,
        "compile_step",
        lambda config, slice_, objective: (
            CompiledStep(config.train.batch_size, Memory(1, 2, 0, 0, 0, 0, 9, 16), {}, 1.0, unread="a new opcode"),
            "",
        ),
    )
    code, out, _ = run()
    assert code == 0 and "not timed, since the compiled program was not understood: a new opcode" in out
    assert "tokens/s" not in out


def test_nothing_that_fits_is_said_so(run, compiler, monkeypatch):
    monkeypatch.setattr(
        compiled,
        "compile_step",
        lambda config, slice_, objective: (
            CompiledStep(16, Memory(1, 2, 0, 0, 0, 0, 0, 16), {}, 1.0, Refusal(10**15, 16, "far too large")),
            "",
        ),
    )
    code, out, _ = run()
    assert code == 2 and "none found: more chips, or a smaller batch, are needed" in out


def test_choosing_tells_every_setting_it_compiled_and_flags_to_paste(run, compiler, tmp_path):
    code, out, _ = run("--choose", "--compiles=2", f"--output={tmp_path}/out.json")
    assert code == 0
    facts = json.loads((tmp_path / "out.json").read_text())
    assert [row["words"] for row in facts["tried"] if row["seconds"]] == 2 * ["fits with 38% to spare"]
    assert len(facts["tried"]) == len(set(compiler)) and all(row["why"] for row in facts["not_compiled"])
    assert f"chosen: {facts['chosen']}" in out and run(*facts["chosen"].split())[0] == 0
    assert facts["fits"] and facts["steps"]["16"]["cached"], "the one chosen was compiled while choosing"


def test_everything_printed_is_in_the_file(run, compiler, tmp_path):
    _, out, _ = run(FITS, "--price=2", f"--output={tmp_path}/out.json")
    facts = json.loads((tmp_path / "out.json").read_text())
    step = facts["steps"]["16"]
    assert step["program"]["memory"]["peak"] == 10 * GIB and step["program"]["traffic"][0]["wire_bytes"] == GIB // 2
    assert f"{step['seconds']['total']:9.4f}" in out and f"{facts['run']['days']:,.2f} days" in out
    assert facts["fits"] and facts["slice"]["chips"] == 4 and facts["basis"] == "predicted, no hardware"
    assert facts["ledger"]["params"] > 10**6 and facts["run"]["dollars"] == 2 * facts["run"]["chip_hours"]


def test_of_a_batch_that_doubles_the_larger_step_is_compiled_or_both(run, compiler):
    doubles = (FITS, "--config.train.double_batch_at=0.5")
    _, out, _ = run(*doubles)
    assert [sequences for *_, sequences in compiler] == [32] and "as many tokens/s are assumed" in out
    _, out, _ = run(*doubles, "--every_batch")
    assert [sequences for *_, sequences in compiler] == [32, 16] and "assumed; --every_batch" not in out
    run("--config.train.batch_size=32", FITS)
    assert len(compiler) == 2, "a run twice as wide has the same step"


@pytest.mark.parametrize(("argv", "slice_", "words"), [
    ([], "v5e-16", "the slice is v5e-16: 16 chips, 4x4; 1 x 4 x 1 x 1 has 4 devices: use --config.mesh.data=1 "
                   "--config.mesh.fsdp=16"),
    ([], "2xv5e-4", "data a multiple of the slices|use --config.mesh.data=2"),
    ([], "v5e-5", "nearest: v5e-4 or v5e-8"),
    (["--study=x"], "v5e-4", "give either --config=FILE or --study=DIR"),
    (["--price=nan"], "v5e-4", "--price=nan: dollars of a chip-hour must be a number"),
    (["--output=configs"], "v5e-4", "--output=configs: must name a JSON file"),
    (["--cache=setup.py"], "v5e-4", "--cache: setup.py cannot be made"),
])  # fmt: skip
def test_mistakes_are_one_line_with_the_fix(run, compiler, argv, slice_, words):
    code, _, err = run(*argv, slice_=slice_)
    assert code == 2 and len(err.splitlines()) == 1 and re.search(words, err) and not compiler


def test_without_a_slice_or_a_compiler_the_fix_is_named(run, monkeypatch, config_file, capsys, tmp_path):
    assert cli.main(["preflight", f"--config={config_file}"]) == 2
    assert "--slice=NAME is missing" in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name))
    code, _, err = run()
    assert code == 2 and "pip install 'chinchilla_jax[compiler]'" in err


def test_every_distinct_step_of_a_study_is_compiled_once(capsys, compiler, tmp_path):
    study = tmp_path / "study"
    tiny = ["--config=configs/isoflop.py:tiny", "--config.train.microbatches=2"]
    assert cli.main(["plan", *tiny, f"--study={study}"]) == 0
    argv = ["preflight", f"--study={study}", "--slice=v5e-1", f"--cache={tmp_path}/cache"]
    capsys.readouterr()
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    runs = [json.loads(line) for line in (study / "manifest.jsonl").read_text().splitlines()[1:]]
    shapes = {json.dumps([run["config"]["model"], run["config"]["train"]["batch_size"]]) for run in runs}
    assert len(compiler) == len(shapes) < len(runs) and f"{len(runs)} of {len(runs)} runs fit" in out
    assert all(run["name"] in out for run in runs)


def test_every_stage_of_a_run_with_a_method_is_compiled_and_has_to_fit(capsys, compiler, tmp_path):
    """Growth from one layer: the small model, the ramp of the larger one, and its ordinary step."""
    config = tmp_path / "growing.py"
    config.write_text(
        "import dataclasses, ml_collections\n"
        "from chinchilla_jax.config import RunConfig, TrainConfig\n"
        "from chinchilla_jax.method import Growth, GrowthStage\n"
        "def get_config():\n"
        "    method = Growth(stages=(GrowthStage(share=0.5, n_layers=1),))\n"
        "    config = RunConfig(train=TrainConfig(microbatches=2, train_tokens=488 * 16 * 128), method=method)\n"
        "    return ml_collections.ConfigDict(dataclasses.asdict(config))\n"
    )
    argv = ["preflight", f"--config={config}", "--slice=v5e-1", f"--cache={tmp_path}/cache"]
    assert cli.main([*argv, f"--output={tmp_path}/facts.json"]) == 0
    out, facts = capsys.readouterr().out, json.loads((tmp_path / "facts.json").read_text())
    assert len(compiler) == 3 and "stage 2 of 3" in out and "MaskedNextToken" in out and "every stage fits" in out
    assert [stage["config"]["model"]["n_layers"] for stage in facts["stages"]] == [1, 2, 2] and facts["fits"]
    counted = [stage["ledger"]["flops"]["6nd"] for stage in facts["stages"]]
    assert facts["flops"]["6nd"] == pytest.approx(sum(counted))
    assert cli.main([*argv, "--choose"]) == 2
    assert "--choose is for plain training" in capsys.readouterr().err
    assert cli.main([*argv, "--config.train.microbatches=1"]) == 2, "no stage fits"
    assert "stages 1, 2, 3 do not fit" in capsys.readouterr().out


def test_a_study_with_a_run_that_does_not_fit_gives_2(capsys, compiler, tmp_path):
    study = tmp_path / "study"
    assert cli.main(["plan", "--config=configs/isoflop.py:tiny", f"--study={study}"]) == 0
    assert cli.main(["preflight", f"--study={study}", "--slice=v5e-1", f"--cache={tmp_path}/cache"]) == 2
    assert cli.main(["preflight", f"--study={study}", "--slice=v5e-4", f"--cache={tmp_path}/cache"]) == 2
    out, err = capsys.readouterr()
    assert "mesh: run c5.0e9-n20.6k: the slice is v5e-4: 4 chips" in err and len(err.splitlines()) == 1
    assert "0 of 24 runs fit" in out and out.count("no: the compiler needs 20.00 GiB and has 16.00") == 24


def test_a_plan_for_a_slice_is_written_with_its_predictions_or_refused(capsys, compiler, tmp_path):
    argv = ["plan", "--config=configs/isoflop.py:tiny", f"--cache={tmp_path}/cache", "--slice=v5e-1"]
    assert cli.main([*argv, f"--study={tmp_path}/a"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "runs do not fit v5e-1: c5.0e9-n" in err and not (tmp_path / "a").exists()
    assert cli.main([*argv, f"--study={tmp_path}/b", "--config.train.microbatches=2"]) == 0
    runs = [json.loads(line) for line in (tmp_path / "b" / "manifest.jsonl").read_text().splitlines()[1:]]
    assert all(run["preflight"]["peak_bytes"] == 10 * GIB and run["preflight"]["chip_hours"] > 0 for run in runs)
    again = ["plan", "--config=configs/isoflop.py:tiny", f"--study={tmp_path}/b", "--config.train.microbatches=2"]
    assert cli.main(again) == 0, "what was predicted is no part of the plan"


def test_a_cached_step_of_another_form_is_compiled_anew(run, compiler, tmp_path):
    run(FITS)
    for path in (tmp_path / "cache").glob("*.json"):
        path.write_text('{"sequences": 16}')
    assert run(FITS)[0] == 0 and len(compiler) == 2


def test_a_step_with_a_kernel_that_was_not_measured_is_not_compared_or_priced(run, compiler, monkeypatch):
    def not_measured(config, slice_, cache):
        return KernelCycles({}, *shape_of(config, slice_), "no dump")

    monkeypatch.setattr(checks, "kernel_cycles", not_measured)
    code, out, _ = run(FITS, "--price=2")
    assert code == 0 and "not measured and counted as nothing: attention_forward: no dump" in out
    assert "chip-hours" not in out and "$" not in out
    code, out, _ = run("--choose", "--compiles=1")
    assert "fits, but is not timed: kernels were not measured (attention_forward: no dump)" in out
    assert "of the settings that fit none could be timed" in out and "chosen" not in out


def test_flags_of_the_compiler_in_the_environment_are_part_of_what_is_cached(run, compiler, monkeypatch):
    run(FITS)
    run(FITS)
    assert len(compiler) == 1
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false")
    run(FITS)
    assert len(compiler) == 2


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def test_a_small_step_is_compiled_measured_and_cached(self, run, tmp_path):
        code, out, err = run(f"--output={tmp_path}/out.json")
        assert code == 0, err
        step = json.loads((tmp_path / "out.json").read_text())["steps"]["16"]
        memory, parameters = step["program"]["memory"], 1280 * 256 + 2 * (4 * 256**2 + 2 * 256 * 512)
        assert parameters < memory["parameters"] < 2 * parameters, "float32 over 4 chips, and r's weights, and biases"
        assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
        assert memory["usable"] == 15.75 * GIB and 0 < memory["peak"] < GIB
        assert (
            set(step["program"]["kernels"])
            == {"attention_forward", "attention_backward"}
            == set(step["attention"]["calls"])
        )
        assert step["seconds"]["total"] > step["seconds"]["attention"] > 0 and not step["seconds"]["unmeasured"]
        assert {tuple(group["axes"]) for group in step["program"]["traffic"]} >= {("fsdp",)}
        assert all(row["minimum"] for row in step["program"]["sent"] if not row["axes"])
        assert "from the cache" in run()[1]

    def test_a_step_that_is_too_large_gets_exit_2_and_the_compilers_figure(self, run):
        code, out, err = run("--config.model.d_model=16384", "--config.model.d_ff=65536", "--compiles=1")
        assert code == 2, err
        assert re.search(r"the compiler needs \d+\.\d+ GiB and has 15\.75", out) and "none " in out
