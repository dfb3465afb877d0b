"""What a compilation leaves behind is read, or refused with the libtpu that would do."""

import json

import pytest

from chinchilla_jax.tools.tpu_meter import TRIED_LIBTPU, DumpError
from chinchilla_jax.tools.tpu_meter import compile as compilation
from tests.tools.tpu_meter.schedules import PROGRAM


def dumps(folder, program=PROGRAM, **kernels):
    """A folder as a compilation leaves it: `program`, and a schedule for each kernel named."""
    (folder / compilation.PROGRAM).write_text(program)
    (folder / compilation.META).write_text(json.dumps({"flops": None, "jax": "0", "device_kind": "TPU"}))
    for name, text in kernels.items():
        (folder / f"17-{name.replace('_', '.')}-01-{compilation.SCHEDULE}.txt").write_text(text)
    return compilation.read_dumps(folder)


def test_calls_of_the_same_code_share_its_schedule(tmp_path):
    found = dumps(tmp_path, looped_2="0 : { }\n0x1 : { }", other_3="0 : { }")
    assert len(found.schedule("direct.1").bundles) == 2
    assert len(found.schedule("other.3").bundles) == 1


def test_a_program_that_cannot_be_read_names_the_libtpu_that_can_be(tmp_path):
    with pytest.raises(DumpError, match=f"HloModule.*{TRIED_LIBTPU}"):
        dumps(tmp_path, program="module @jit_f {}")


@pytest.mark.parametrize(("text", "words"), [("nothing", "no bundles"), ("0 : { }\n0x2 : { }", "calls itself 0x2")])
def test_a_schedule_that_cannot_be_read_names_the_libtpu_that_can_be(tmp_path, text, words):
    with pytest.raises(DumpError, match=rf"{words}.*private to libtpu.*{TRIED_LIBTPU}"):
        dumps(tmp_path, other_3=text).schedule("other.3")


def test_a_kernel_without_a_schedule_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "libtpu_version", lambda: "9.9")
    with pytest.raises(DumpError, match=rf"libtpu 9.9 dumped no schedule of the kernel 'other.3'.*{TRIED_LIBTPU}"):
        dumps(tmp_path, looped_2="0 : { }").schedule("other.3")
