"""What can go wrong between a builder and its cycles?"""

TRIED_LIBTPU = "0.0.42.1"
INSTALL = "pip install 'chinchilla_jax[compiler]'"


class MeterError(RuntimeError):
    """A kernel that cannot be measured; the message says why and what to do."""


class CompileError(MeterError):
    """The builder or the compiler refused; the message ends with the last lines it printed."""


class DumpError(MeterError):
    """A dump of the compiler that the meter cannot read."""

    def __init__(self, what: str):
        super().__init__(f"{what}; the dump format is private to libtpu and was tried with {TRIED_LIBTPU}: "
                         f"install that one ({INSTALL} with constraints.txt)")  # fmt: skip
