"""Signals that end a command: each as Ctrl-C does, so that whatever the command holds is put in order and said."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ENDING", "Stopped", "handled", "stoppable", "stopped_by", "undisturbed"]

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


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
def handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Inside, ``handler`` gets those of these signals that are not ignored (``nohup``); only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that would end the process without a word raises `Stopped`."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    with handled(stop, *(number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL)):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, signals that end the command wait until the end of the block; for the few lines that must not be half done."""
    waiting: list[int] = []
    try:
        with handled(lambda number, frame: waiting.append(number), *ENDING):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)
