"""What goes wrong with data, in one type."""


class DataError(ValueError):
    """Text, a tokenizer or a token store that cannot be used. The message names the file and what to do about it."""
