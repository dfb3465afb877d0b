"""What the meter is asked and what it says; the compiler's own schedules."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest

from chinchilla_jax.base.chips import kernel_chips
from chinchilla_jax.tools.tpu_meter import CompileError, MeterError
from chinchilla_jax.tools.tpu_meter import __main__ as command
from chinchilla_jax.tools.tpu_meter import compile as compilation
from chinchilla_jax.tools.tpu_meter.measure import measure
from chinchilla_jax.tools.tpu_meter.program import parse_program
from chinchilla_jax.tools.tpu_meter.report import kernel_report, program_report, render
from chinchilla_jax.tools.tpu_meter.selftest import selftest
from tests.tools.tpu_meter.schedules import CHIP, PROGRAM, table_kernel

needs_compiler = [pytest.mark.compiler,
                  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                     reason="no TPU compiler: pip install 'chinchilla_jax[compiler]'")]  # fmt: skip


# ---- what is asked, and what is said


def test_an_unknown_generation_is_named():
    with pytest.raises(MeterError, match="unknown TPU generation 'v5'.*did you mean.*v4, v5e, v5p, v6e, v7x"):
        measure("m:f", "v5")


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeterError, match=r"libtpu is not installed: pip install 'chinchilla_jax\[compiler\]'"):
        measure("m:f")


def test_a_folder_with_other_dumps_is_not_measured_into(tmp_path):
    (tmp_path / "old").write_text("")
    with pytest.raises(MeterError, match="is not empty"):
        measure("m:f", keep=tmp_path)


def test_measuring_does_not_import_jax():
    code = "import sys, chinchilla_jax.tools.tpu_meter.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def measured(monkeypatch):
    """The command line with `measure` answered by a kernel of 8 trips, 132 cycles."""
    kernels = [kernel_report("k", table_kernel(), CHIP, parse_program(PROGRAM).constant_operands("direct.1"))]
    report = program_report(kernels, CHIP, build="m:f", kwargs={"n": 1}, device_kind="TPU v5 lite", jax="0", libtpu="0",
                            flops=132 * 2 * 4 * 128**2 / 2)  # fmt: skip
    monkeypatch.setattr(command, "measure", lambda *_: report)
    return report


def test_the_command_prints_the_report_and_writes_all_of_it(measured, tmp_path, capsys):
    assert command.main(["m:f", "--json", str(tmp_path / "r.json"), "-v"]) == 0
    out = capsys.readouterr().out
    assert "cycles 132," in out and "predicated 0x9: 16 bundles, ran 4 of 8" in out and "= 50.0% of the peak" in out
    assert out.strip() == render(measured, verbose=True)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(measured)))


@pytest.mark.parametrize(("most", "code"), [("132", 0), ("131", 1)])
def test_the_command_fails_above_the_cycles_allowed(measured, capsys, most, code):
    assert command.main(["m:f", "--max-cycles", most]) == code
    assert ("132 cycles, more than the 131 allowed" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize(("argv", "words"), [
    ([], "name a builder"), (["m:f", "--selftest"], "name a builder"), (["m:f", "--kwargs", "{"], "is not JSON"),
    (["m:f", "--kwargs", "[1]"], "must be a JSON object"),
])  # fmt: skip
def test_the_command_says_what_is_wrong_with_its_flags(capsys, argv, words):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert words in capsys.readouterr().err


def test_the_command_gives_an_error_one_line_and_code_2(capsys):
    assert command.main(["m:f", "--gen", "v9"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown TPU generation 'v9'")


# ---- with the compiler

# Cycles of the self-test's matmul as jax 0.10.2 and libtpu 0.0.42.1 schedule it.
MATMUL_CYCLES = {"v4": 74_688, "v5e": 146_750, "v5p": 74_724, "v6e": 49_923, "v7x": 50_950}


@pytest.mark.parametrize("gen", [
    pytest.param(gen, marks=needs_compiler + ([] if gen == "v5e" else [pytest.mark.long])) for gen in kernel_chips()
])  # fmt: skip
def test_the_dumps_of_the_compiler_are_understood(gen):
    report = selftest(gen)
    versions = importlib.metadata.version("jax"), report.libtpu
    if versions == ("0.10.2", "0.0.42.1"):
        assert report.cycles == MATMUL_CYCLES[gen], "same compiler, same schedule: the meter reads it differently"
    assert report.cycles == report.cycles_low


def scratch_too_large():
    """A builder: a kernel that asks for 256 MiB of VMEM."""
    import jax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    array = jax.ShapeDtypeStruct((8, 128), "float32")

    def copy(x_ref, out_ref, scratch_ref):
        scratch_ref[:8] = x_ref[...]
        out_ref[...] = scratch_ref[:8]

    return pl.pallas_call(copy, out_shape=array, scratch_shapes=[pltpu.VMEM((2**19, 128), "float32")]), (array,)


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def test_what_does_not_compile_gives_the_compilers_words(self):
        with pytest.raises(CompileError, match="RESOURCE_EXHAUSTED(.|\n)*space=vmem"):
            measure(f"{__name__}:scratch_too_large")
        with pytest.raises(CompileError, match="ModuleNotFoundError: No module named 'no_such_module'$"):
            measure("no_such_module:build")
