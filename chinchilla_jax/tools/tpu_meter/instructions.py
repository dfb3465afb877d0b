"""What does one scalar instruction of a schedule do to a core?

Each instruction becomes a function without arguments that acts on a `Core`. Vector instructions become nothing: no
vector value decides where the program goes. The forms that are read:

    %s3 = sadd.s32 1, %s2                            also (!%p1), before the operands: a predicate
    %s3 = smov (%p1, %s2), 0                         0 if %p1, else %s2
    %9 = sst [smem:[#allocation7 + $0x1]] (%p1), %s2
    %s3 = sld [smem:[#allocation7]]
    %5 = dma.hbm_to_vmem [thread:$0] (%p1), source, granules, target, ...
    %s0 = inlined_call_operand.hbm [shape: ..., index: 0, kind: input, ...]
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable, Mapping

from chinchilla_jax.tools.tpu_meter import DumpError
from chinchilla_jax.tools.tpu_meter.bundles import Instruction
from chinchilla_jax.tools.tpu_meter.program import Words
from chinchilla_jax.tools.tpu_meter.values import Value, address_sum, negation, same, scalar_function, select

Reader = Callable[[], Value]
Action = Callable[[], None]

# Addresses are made up; what matters is that no two of them, nor an operand's in units of 16 bytes, coincide.
_ALLOCATION, _ALLOCATION_STRIDE = 0x2000000, 0x8000
_OPERAND, _OPERAND_STRIDE = 0x1234, 0x100000

_WITHOUT_EFFECT = ("cld", "cst", "sfence", "cfence", "shalt", "vsyncadd", "reloc", "sbr", "sphi", "compiler")
_THREAD = re.compile(r"\[thread:\$\d+\]\s*")
_PREDICATED = re.compile(r"\(([^()]*)\)\s*,?\s*(.*)", re.S)
_STORE = re.compile(r"\[smem:(\[[^\]]*\])\]\s*(?:\((!?%\w+)\))?\s*,?\s*(.*)")
_LOAD = re.compile(r"\[smem:(\[[^\]]*\])\]")
_COPY = re.compile(r"dma\.(\w+)_to_(\w+)")


class Core:
    """Registers, scalar memory and counters of one core while its scalar program runs.

    `copied` holds bytes by route (`hbm->vmem`), `step_bytes` those of HBM since the last step began, `unresolved` how
    often what was not known mattered, `unmodelled` the instructions in the schedule that the meter cannot execute.
    """

    def __init__(self, constants: Mapping[int, Words], granule: int, number: int = 0, unknown: str = "run"):
        self.constants, self.granule, self.unknown = constants, granule, unknown
        self.registers: dict[str, Value] = {}
        self.memory: dict[int, Value] = {}
        self.operand_at: dict[int, int] = {}
        self.copied: collections.Counter[str] = collections.Counter()
        self.unresolved: collections.Counter[str] = collections.Counter()
        self.unmodelled: collections.Counter[str] = collections.Counter()
        self.step_bytes = 0
        self._allocations: dict[str, int] = {}
        self.memory[self.allocation("#allocation0")] = number

    def allocation(self, name: str) -> int:
        """The address of a named piece of memory."""
        return self._allocations.setdefault(name, _ALLOCATION + _ALLOCATION_STRIDE * len(self._allocations))


def split_operands(text: str) -> list[str]:
    """Operands between commas, those inside brackets left whole."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def read_operand(core: Core, token: str) -> Reader:
    """Reads a register, a negated predicate, an address or a number; None for anything else."""
    if token.startswith("!"):
        return _negated(read_operand(core, token[1:]))
    if token.startswith("%"):
        return functools.partial(core.registers.get, token[1:])
    if token.startswith("["):
        return _read_address(core, token)
    number = None
    if re.fullmatch(r"-?\d+", token):
        number = int(token) & 0xFFFFFFFF
    elif re.fullmatch(r"\$?0x[0-9a-f]+", token):
        number = int(token.lstrip("$"), 16)
    return functools.partial(same, number)


def _negated(read: Reader) -> Reader:
    def negated() -> Value:
        return negation(read())

    return negated


def _read_address(core: Core, token: str) -> Reader:
    """Reads `[#allocation7 + $0x1]`, or the same behind the name of a memory: `[smem:[%s2]]`."""
    inner = re.sub(r"^\[(?:\w+:)?\[?", "", token).split("]")[0]
    terms = []
    for part in (part.strip() for part in inner.split("+")):
        terms.append(read_operand(core, str(core.allocation(part)) if part.startswith("#") else part))

    def address() -> Value:
        return address_sum(*[read() for read in terms])

    return address


def translate(core: Core, instruction: Instruction) -> Action | None:
    """The effect of an instruction on `core`; None if it has none that the meter follows."""
    result, opcode, arguments = instruction
    name = opcode.split(".")[0]
    if name.startswith("v") or name in _WITHOUT_EFFECT:
        return None
    if opcode.startswith("inlined_call_operand"):
        core.registers[result] = _call_operand(core, arguments)
        return None
    if name == "sst":
        return _store(core, arguments)
    if name == "sld":
        return _load(core, result, arguments)
    predicate = otherwise = None
    arguments = _THREAD.sub("", arguments, count=1)
    if match := _PREDICATED.match(arguments):
        predicate, *old = (read_operand(core, token) for token in split_operands(match[1]))
        otherwise = old[0] if old else None
        arguments = match[2]
    if name == "dma":
        return _copy(core, opcode, predicate, arguments)
    operands = [read_operand(core, token) for token in split_operands(re.sub(r"\[resolvable:\$\w+\]", "", arguments))]
    function = scalar_function(opcode, len(operands))
    if function is None:
        core.unmodelled[opcode] += 1
        return functools.partial(core.registers.__setitem__, result, None)
    return _compute(core, result, function, operands, predicate if otherwise else None, otherwise)


def _compute(
    core: Core,
    result: str,
    function: Callable[..., Value],
    operands: list[Reader],
    predicate: Reader | None,
    otherwise: Reader | None,
) -> Action:
    registers = core.registers

    def compute() -> None:
        registers[result] = function(*[read() for read in operands])

    if predicate is None or otherwise is None:
        return compute

    def choose() -> None:
        registers[result] = select(predicate(), function(*[read() for read in operands]), otherwise())

    return choose


def _call_operand(core: Core, arguments: str) -> Value:
    """The address of an operand or result of the kernel, or the value of a scalar that is passed as such."""
    match = re.search(r"index: (\d+)", arguments)
    index = int(match[1]) if match else 0
    if "<no memory space>" in arguments:  # an extent of a dynamic grid
        return core.constants.get(index, {}).get(0)
    address = _OPERAND + _OPERAND_STRIDE * index
    if "kind: input" in arguments:
        core.operand_at[address] = core.operand_at[address << 4] = index
    return address


def _store(core: Core, arguments: str) -> Action | None:
    match = _STORE.match(arguments)
    if not match:
        return None
    address, value = _read_address(core, match[1]), read_operand(core, match[3])
    predicate = read_operand(core, match[2]) if match[2] else None
    memory = core.memory

    def store() -> None:
        where = address()
        if where is not None:
            memory[where] = select(True if predicate is None else predicate(), value(), memory.get(where))

    return store


def _load(core: Core, result: str, arguments: str) -> Action:
    match = _LOAD.match(arguments)
    if not match:
        return functools.partial(core.registers.__setitem__, result, None)
    address, memory, registers = _read_address(core, match[1]), core.memory, core.registers

    def load() -> None:
        where = address()
        registers[result] = None if where is None else memory.get(where)

    return load


def _copy(core: Core, opcode: str, predicate: Reader | None, arguments: str) -> Action | None:
    """A copy between memories. One into scalar memory brings the words of a constant with it."""
    match, operands = _COPY.match(opcode), split_operands(arguments)
    if opcode.startswith("dma.done"):  # a wait
        return None
    if not match:
        core.unmodelled[opcode] += 1
        return None
    if len(operands) < 3:
        raise DumpError(f"a copy without source, size and target: {opcode} {arguments}")
    source_memory, target_memory = match.groups()
    route, in_hbm = f"{source_memory}->{target_memory}", "hbm" in match.groups()
    read_source, read_size, read_target = (read_operand(core, token) for token in operands[:3])

    def copy() -> None:
        condition = True if predicate is None else predicate()
        if condition is None:
            core.unresolved["copy"] += 1
            condition = core.unknown == "run"
        if not condition:
            return
        source, size, target = read_source(), read_size(), read_target()
        if size is None:
            core.unresolved["size of a copy"] += 1
            size = 0
        core.copied[route] += size * core.granule
        if in_hbm:
            core.step_bytes += size * core.granule
        if target_memory == "smem" and target is not None:
            words = {} if source is None else core.constants.get(core.operand_at.get(source, -1), {})
            for offset, word in words.items():
                core.memory[target + offset] = word

    return copy
