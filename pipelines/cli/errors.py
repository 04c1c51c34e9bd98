"""From an exception to one clear line and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from semu_diffusion.distributed import is_first, together
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.pipelines.cli.signals import stoppable, stopped_by
from semu_diffusion.pipelines.cli.terminal import only_letters, silence

__all__ = ["run_guarded"]


def run_guarded(program: str, job: Callable[[], int | None]) -> int:
    """Run ``job``; turn bad input into one line on standard error and exit code 2, Ctrl-C into 130, SIGTERM into 143.

    A reader that goes away (``| head``) ends it without a word, with the code of a program that SIGPIPE ends. What a terminal
    would obey in a foreign name (escape codes) or does not have in its alphabet is shown as a question mark. Of several
    processes at one job the first speaks for all.
    """
    with together(), only_letters() if is_first() else silence():
        return _guarded(program, job)


def _guarded(program: str, job: Callable[[], int | None]) -> int:
    try:
        with _notices_in_a_line(program), stoppable():
            return _flushed(job)
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is still in the buffer goes nowhere when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt as stop:
        name, code = stopped_by(stop)
        print(f"\n{program}: stopped by {name}. {stop}".rstrip(), file=sys.stderr)
        return code
    except Exception as error:
        found = _memory_trouble(error) or _file_trouble(error)
        if found is None:
            raise
        message = found
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _flushed(job: Callable[[], int | None]) -> int:
    """The job's code, when all that it printed has gone out: a reader that left or a full disk is found here, not later."""
    try:
        code = job() or 0
    except SystemExit:  # argparse has printed the help
        sys.stdout.flush()
        raise
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


@contextmanager
def _notices_in_a_line(program: str) -> Iterator[None]:
    """Inside, a `Notice` is one line on standard error, once; other warnings are as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        other, told = warnings.showwarning, set()

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, Notice):
                if str(message) in told:
                    return
                told.add(str(message))
                print(f"{program}: {message}", file=sys.stderr)
            else:
                other(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def _memory_trouble(error: Exception) -> str | None:
    """One line if a GPU's or the machine's memory was not enough; torch is not imported to learn that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error):
        return "out of memory; take a smaller --batch-size, another --device or fewer --layers"
    return None


def _file_trouble(error: Exception) -> str | None:
    """One line on an error of the file system; None for any other. safetensors hides the code in its message."""
    hidden = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "no home folder is known here for a path that begins with ~: write the path out"
    if not isinstance(error, OSError) and hidden is None:
        return None
    code = error.errno if isinstance(error, OSError) else int(hidden.group(1)) if hidden else None
    where = getattr(error, "filename", None) or "the output folder"
    if code in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"no space left on the device ({where}); free some or choose another --output"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read {where}; choose another folder with --output"
    if isinstance(error, OSError) and error.strerror:
        return f"{where}: {error.strerror}" if error.filename else error.strerror
    return None
