"""Texts of compiled programs, written by hand: on a mesh of 1 x 2 x 4 devices unless a test says otherwise."""

SHAPE = {"data": 1, "fsdp": 2, "tensor": 4}


def module(entry, *computations, devices=8, head=""):
    """The text of a scheduled module whose entry has these lines; the last is its root."""

    def block(name, lines):
        *first, last = [line.strip() for line in lines.strip().splitlines()]
        body = [*(f"  {line}" for line in first), f"  ROOT {last}"]
        return "\n".join([f"{name} (p: f32[]) -> f32[] {{", *body, "}", ""])

    blocks = [block(f"%{name}", lines) for name, lines in computations] + [block("ENTRY %main", entry)]
    return f"HloModule m, is_scheduled=true, {head}num_partitions={devices}\n\n" + "\n".join(blocks)


def brief(program):
    return [(c.kind, c.axes, c.group, c.bytes, c.wire_bytes, c.trips) for c in program.collectives]


def fusion(body, operands="%p", result="f32[256]{0}", opcode="fusion", **settings):
    entry = f"""%p = f32[256]{{0}} parameter(0)
                %f = {result} {opcode}({operands}), kind=kCustom, calls=%fused"""
    return module(entry, ("fused", body), **settings)
