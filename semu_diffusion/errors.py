"""The one exception that means "the input is at fault, not the program", and the one warning: "this was decided for you"."""

__all__ = ["InputError", "Notice", "reason"]


class InputError(ValueError):
    """Bad input from the user: the message is one line that says what was wrong and what to do.

    The commands print it without a traceback and exit with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(_one_line(str(message)))


class Notice(UserWarning):
    """What was decided for the user, and may be meant otherwise. The commands print it as one line."""

    def __init__(self, message: object) -> None:
        super().__init__(_one_line(str(message)))


def _one_line(text: str) -> str:
    """Without what a terminal would obey: a message cites words of files that strangers wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def reason(error: BaseException, most: int = 200) -> str:
    """What an error of another library says, at most so many letters in one line; its class where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
