"""One job in several processes, as ``torchrun`` or ``accelerate launch`` start them: who does which part, and how parts meet.

Every process runs the same program with the same seeds, so each knows what the others do. What costs is shared out: the pieces
of samples, the rows of a training batch. The rest is done by all alike; files and words are the first process's alone. In one
process, and inside `apart`, every function here gives back what it is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from semu_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "apart",
    "average",
    "each",
    "first",
    "is_first",
    "join",
    "number",
    "part",
    "processes",
    "share",
    "summed",
    "together",
]

Part = TypeVar("Part")
Made = TypeVar("Made")

_together: ContextVar[bool] = ContextVar("together", default=False)


def processes() -> int:
    """How many processes are at this job: those of the launch inside `together`, else this one alone."""
    return int(os.environ.get("WORLD_SIZE") or 1) if _together.get() else 1


def number() -> int:
    """Which of them this one is, from 0."""
    return 0 if processes() == 1 else int(os.environ.get("RANK") or 0)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return number() == 0


@contextmanager
def together() -> Iterator[None]:
    """Inside, the processes of a launch are at one job, as a command is; outside, each works for itself."""
    yield from _being(True)


@contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works for itself again: on rows of a benchmark, which need nothing of each other."""
    yield from _being(False)


def _being(joint: bool) -> Iterator[None]:
    token = _together.set(joint)
    try:
        yield
    finally:
        _together.reset(token)


def each(parts: Sequence[Part], make: Callable[[Part], Made]) -> Iterator[Made]:
    """``make`` of every part, in order, the processes taking turns; ``make`` gives tensors or containers of them.

    What another process made arrives on the CPU. The parts are the same in all processes.
    """
    count = processes()
    if count == 1:
        yield from map(make, parts)
        return
    from accelerate.utils import gather_object, send_to_device

    join()
    for start in range(0, len(parts), count):
        mine = parts[start + number() : start + number() + 1]
        made = [send_to_device(make(part), "cpu") for part in mine]
        yield from gather_object(made)


def share(count: int) -> list[int] | None:
    """Which of ``count`` rows of a batch are this process's: every n-th, so that a batch of several kinds stays one.

    None for all of them, in one process. A process for which there is no row has row 0, which its `part` does not count.
    """
    return None if processes() == 1 else list(range(number(), count, processes())) or [0]


def part(count: int) -> float:
    """What a mean over this process's `share` of ``count`` rows counts, so that the `average` over processes is their mean."""
    rows = len(range(number(), count, processes()))
    return 1.0 if processes() == 1 else processes() * rows / count


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Change the tensors, in place and one by one, to their means over the processes."""
    if processes() == 1:
        return
    import torch

    join()
    with torch.no_grad():
        for one in tensors:
            whole = one.contiguous()
            torch.distributed.all_reduce(whole)
            one.copy_(whole / processes())


def first(tensors: Made) -> Made:
    """The first process's tensors, in whatever containers, on the CPU; the given ones in one process."""
    if processes() == 1:
        return tensors
    from accelerate.utils import broadcast_object_list, send_to_device

    join()
    found: list[Made] = broadcast_object_list([send_to_device(tensors, "cpu")])
    return found[0]


def summed(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of all processes together."""
    if processes() == 1:
        return dict(counts)
    from accelerate.utils import gather_object

    join()
    return {name: sum(one.get(name, 0) for one in gather_object([dict(counts)])) for name in counts}


def join(cpu: bool = False) -> None:
    """Enter the group of processes: by NCCL where there are GPUs, ``cuda`` then being each one's own; on the CPU by gloo.

    Raises InputError where the launch has not said all that is needed: without it each process would keep its share alone.
    """
    if processes() == 1:
        return
    import torch
    from accelerate import PartialState

    try:
        state = PartialState(cpu=cpu or not torch.cuda.is_available())  # the first call decides
        formed = (state.num_processes, state.process_index) == (processes(), number())
    except ValueError:  # of accelerate: an address is missing
        formed = False
    if not formed:
        raise InputError(
            f"WORLD_SIZE is {processes()}, but no such group of processes was formed: start them with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
