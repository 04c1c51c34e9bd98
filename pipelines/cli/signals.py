"""Signals that end a command: each as Ctrl-C does, so that whatever the command holds is put in order and said."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from semu_diffusion.files import ENDING, handled

__all__ = ["Stopped", "stoppable", "stopped_by"]


class Stopped(KeyboardInterrupt):
    """The command was ended by the signal ``number``."""

    def __init__(self, number: int, *said: object) -> None:
        super().__init__(*said)
        self.number = number


def stopped_by(stop: KeyboardInterrupt) -> tuple[str, int]:
    """The name of what stopped the command, and the exit code that shells know for it."""
    number = getattr(stop, "number", signal.SIGINT)
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name, 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that would end the process without a word raises `Stopped`."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    with handled(stop, *(number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL)):
        yield
