"""An erasure in a process of its own: the command's own run, which tells how far it is and stops as Ctrl-C stops it.

A process, because a model that is loaded in one thread must not meet what the loaders of diffusers and transformers change of
torch in another, and because what Ctrl-C does is done to a process.
"""

from __future__ import annotations

import _thread
import dataclasses
import io
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig

__all__ = ["Job", "State", "run_told"]

LOST = 1  # the exit code of a process that ended without a word
AGAIN = 20.0  # seconds: an interrupt that meets a callback of the garbage collector is lost


@dataclass(frozen=True)
class State:
    """How far a job is: ``done`` of ``total`` in ``stage``; when it is over, its exit ``code`` and what it ``said``."""

    stage: str = "starting"
    done: int = 0
    total: int = 0
    detail: str = ""
    stopping: bool = False
    code: int | None = None
    said: tuple[str, ...] = ()


class Job:
    """An erasure that has begun, in the run folder that its config names."""

    def __init__(self, config: EraseClassConfig | EraseConceptConfig) -> None:
        self.config, self.folder = config, Path(str(config.output))
        self.state = State()
        spawn = multiprocessing.get_context("spawn")  # a fork would take over threads and locks of the server
        self._connection, other = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(config, other))
        self._process.start()
        other.close()  # the process holds it now, and when it goes, nobody does
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def title(self) -> str:
        return " + ".join(self.config.forget if isinstance(self.config, EraseClassConfig) else self.config.concept)

    @property
    def over(self) -> bool:
        return self.state.code is not None

    def stop(self) -> None:
        """Stop it, as Ctrl-C does; what is in its run folder stays, and run.json says ``interrupted``."""
        if not self.over:
            self.state = dataclasses.replace(self.state, stopping=True)
            with suppress(OSError):  # it ended just now
                self._connection.send("stop")

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        self._process.join(timeout)

    def _listen(self) -> None:
        said: tuple[str, ...] = ()
        with suppress(EOFError, OSError):
            while True:
                found = self._connection.recv()
                if isinstance(found, State):
                    self.state = dataclasses.replace(found, stopping=self.state.stopping)
                else:
                    said = found
        self._process.join()
        code = self._process.exitcode
        self.state = dataclasses.replace(self.state, code=LOST if code is None else code, said=said)


class _Told(Progress):
    """Progress that is sent instead of drawn."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(io.StringIO())
        self._connection = connection

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        with suppress(OSError):  # the server went; that it is to stop is heard from the other thread
            self._connection.send(State(stage, done, total, detail))


def _work(config: Any, connection: Connection) -> None:
    """The process."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C on the server's terminal reaches the server, which stops its jobs, each once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the server ignores it (``nohup``)
    sys.exit(run_told(config, connection))


def run_told(config: Any, connection: Connection) -> int:
    """Run the command; send its `State` as it goes, and at its end the lines that it said. Its exit code."""
    classes = isinstance(config, EraseClassConfig)
    program, said, over = "erase-class" if classes else "erase-concept", io.StringIO(), threading.Event()

    def job() -> int:
        threading.Thread(target=_stop_when_told, args=(connection, over), daemon=True).start()
        from semu_diffusion.pipelines.runs.erase import erase_classes, erase_concepts

        told = _Told(connection)
        return erase_classes(config, told) if classes else erase_concepts(config, told)

    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            return run_guarded(program, job)
    finally:
        over.set()
        lines = [line.removeprefix(f"{program}: ") for line in said.getvalue().splitlines() if line.startswith(program)]
        with suppress(OSError):
            connection.send(tuple(lines))


def _stop_when_told(connection: Connection, over: threading.Event) -> None:
    """Interrupts the main thread at a word of the server, or when the server is gone, unless the run is over."""
    with suppress(EOFError, OSError):
        connection.recv()
    while not over.is_set():
        _thread.interrupt_main(signal.SIGINT)
        over.wait(AGAIN)
