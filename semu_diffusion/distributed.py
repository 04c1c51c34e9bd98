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
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["apart", "average", "each", "is_first", "join", "number", "processes", "share", "summed"]

Part = TypeVar("Part")
Made = TypeVar("Made")

_apart: ContextVar[bool] = ContextVar("apart", default=False)


def processes() -> int:
    """How many processes are at this job."""
    return 1 if _apart.get() else int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Which of them this one is, from 0."""
    return 0 if processes() == 1 else int(os.environ.get("RANK") or 0)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return number() == 0


@contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works for itself: on rows of a benchmark, which need nothing of each other."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


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
    """Change the tensors, in place, to their means over the processes."""
    if processes() == 1 or not tensors:
        return
    import torch
    from accelerate.utils import reduce

    join()
    with torch.no_grad():
        flat = reduce(torch.cat([one.float().reshape(-1) for one in tensors]), "mean")
        for one, mean in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
            one.copy_(mean.view_as(one))


def summed(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of all processes together."""
    if processes() == 1:
        return dict(counts)
    from accelerate.utils import gather_object

    join()
    return {name: sum(one.get(name, 0) for one in gather_object([dict(counts)])) for name in counts}


@cache
def join() -> None:
    """Enter the group of processes, once: by NCCL where there are GPUs, ``cuda`` then being each one's own; else by gloo."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
