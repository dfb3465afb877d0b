"""A loop runs as often as its counter says, or is named as one that is not understood."""

import pytest

from chinchilla_jax.preflight.program.program import read_program
from tests.preflight.hlo_texts import SHAPE, module


def loop(start, body, condition):
    """A program whose only loop holds an all-reduce; element 0 of its state counts, 1 and 2 are carried."""
    state = "(s32[], s32[], f32[256])"
    entry = f"""%n = s32[] parameter(0)
                %x = f32[256]{{0}} parameter(1)
                %i = s32[] constant({start})
                %ten = s32[] constant(10)
                %tuple = {state} tuple(%i, %ten, %x)
                %while = {state} while(%tuple), condition=%condition, body=%body, metadata={{op_name="jit(f)/while"}}"""
    parts = """%s = (s32[], s32[], f32[256]) parameter(0)
               %i = s32[] get-tuple-element(%s), index=0
               %n = s32[] get-tuple-element(%s), index=1"""
    inner = f"""{parts}
                %x = f32[256]{{0}} get-tuple-element(%s), index=2
                %y = f32[256]{{0}} all-reduce(%x), replica_groups={{}}, to_apply=%add
                %z = f32[256]{{0}} negate(%y), backend_config={{"estimated_cycles":"11"}}
                {body}
                %out = {state} tuple(%next, %n, %y)"""
    add = "%a = f32[] parameter(0)\n%b = f32[] parameter(1)\n%c = f32[] add(%a, %b)"
    return module(entry, ("add", add), ("body", inner), ("condition", f"{parts}\n{condition}"))


@pytest.mark.parametrize(("start", "step", "condition", "trips"), [
    (0, 1, "%l = s32[] constant(7)\n%c = pred[] compare(%i, %l), direction=LT", 7),
    (0, 1, "%c = pred[] compare(%i, %n), direction=LT", 10),
    (3, 2, "%c = pred[] compare(%i, %n), direction=LT", 4),
    (3, 2, "%c = pred[] compare(%n, %i), direction=GE", 4),
    (4, 3, "%c = pred[] compare(%i, %n), direction=NE", 2),
    (4, 3, "%c = pred[] compare(%i, %n), direction=LE", 3),
    (12, -1, "%c = pred[] compare(%i, %n), direction=GT", 2),
    (12, 1, "%c = pred[] compare(%i, %n), direction=LT", 0),
    (0, 1, "%one = s32[] constant(1)\n%m = s32[] subtract(%n, %one)\n"
           "%c = pred[] compare(%i, %m), direction=LT", 9),
])  # fmt: skip
def test_a_loop_that_counts_has_its_trips(start, step, condition, trips):
    text = loop(start, f"%d = s32[] constant({step})\n%next = s32[] add(%i, %d)", condition)
    program = read_program(text, SHAPE)
    assert [(c.trips, c.loops) for c in program.collectives] == [(trips, ("while",))] and program.unknown_loops == {}
    assert program.cycles == 11 * trips


def test_a_limit_that_an_outer_loop_carries_is_found():
    inner = loop(
        0, "%d = s32[] constant(1)\n%next = s32[] add(%i, %d)", "%c = pred[] compare(%i, %n), direction=LT"
    ).partition("ENTRY")[0]
    state = "(s32[], s32[], f32[256])"
    inner = inner.replace("%body", "%inner").replace("%condition", "%inner_condition")
    body = f"""%s = {state} parameter(0)
               %i = s32[] get-tuple-element(%s), index=0
               %n = s32[] get-tuple-element(%s), index=1
               %x = f32[256]{{0}} get-tuple-element(%s), index=2
               %zero = s32[] constant(0)
               %t = {state} tuple(%zero, %n, %x)
               %w = {state} while(%t), condition=%inner_condition, body=%inner
               %y = f32[256]{{0}} get-tuple-element(%w), index=2
               %one = s32[] constant(1)
               %j = s32[] add(%i, %one)
               %out = {state} tuple(%j, %n, %y)"""
    text = loop(0, "%next = s32[] copy(%i)", "%c = pred[] compare(%i, %n), direction=LT")
    head, entry = inner.split("\n", 1), text[text.index("ENTRY") :]
    condition = text[text.index("%condition (") : text.index("ENTRY")]
    outer = module(body).split("\n\n")[1].replace("ENTRY %main", "%body")
    program = read_program("\n".join([head[0], head[1], outer, condition, entry]), SHAPE)
    assert [(c.trips, c.loops) for c in program.collectives] == [(100, ("while", "w"))]


@pytest.mark.parametrize(("body", "condition"), [
    ("%next = s32[] multiply(%i, %n)", "%c = pred[] compare(%i, %n), direction=LT"),
    ("%d = s32[] constant(4)\n%next = s32[] add(%i, %d)", "%c = pred[] compare(%i, %n), direction=NE"),
    ("%d = s32[] constant(1)\n%next = s32[] add(%i, %d)", "%l = s32[] custom-call(%n), custom_call_target=\"f\"\n"
                                                          "%c = pred[] compare(%i, %l), direction=LT"),
])  # fmt: skip
def test_a_loop_whose_trips_cannot_be_found_is_named_and_counted_once(body, condition):
    program = read_program(loop(1, body, condition), SHAPE)
    assert program.unknown_loops == {"while": "while jit(f)/while"}
    assert [(c.trips, c.loops) for c in program.collectives] == [(1, ("while",))]
