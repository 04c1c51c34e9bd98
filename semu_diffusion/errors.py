"""The one exception that means "the input is at fault, not the program"."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from the user: the message is one line that says what was wrong and what to do.

    The commands print it without a traceback and exit with code 2.
    """
