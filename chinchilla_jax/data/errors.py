"""What goes wrong with data, in one type."""

from chinchilla_jax.base.errors import ExplainedError


class DataError(ExplainedError, ValueError):
    """Text, a tokenizer or a token store that cannot be used. The message names the file and what to do about it."""
