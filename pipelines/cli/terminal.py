"""What is printed for people: nothing that a terminal would obey, nothing that it cannot show."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

__all__ = ["only_letters", "silence"]

# control characters but tab and line feed, and what turns the direction of writing
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
BARS = re.compile("(?!\r|\x1b\\[A)" + OBEYED.pattern)  # progress bars go back, and up a line, on standard error


class _Printed:
    """A text stream that shows a question mark for what a terminal would obey; names come from foreign files."""

    def __init__(self, stream: Any, obeyed: re.Pattern[str]) -> None:
        self._stream, self._obeyed = stream, obeyed

    def write(self, text: str) -> int:
        self._stream.write(self._obeyed.sub("?", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def only_letters() -> Iterator[None]:
    """Inside, standard output and error take any text; one that is closed (``2>&-``, pythonw) leads nowhere, and with standard
    input open its number is no other file's, into which the messages of C libraries would go."""
    before = sys.stdout, sys.stderr
    with ExitStack() as opened:
        there: list[Any] = [stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")) for stream in before]
        for stream in before:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        found: Any = (_Printed(there[0], OBEYED), _Printed(there[1], BARS))
        sys.stdout, sys.stderr = found
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def silence() -> Iterator[None]:
    """Inside, nothing is printed; what is raised still is."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield
