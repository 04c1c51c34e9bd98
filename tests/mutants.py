"""What is done to files of strangers, by a seed: other values, cut and flipped bytes, endless nesting."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BYTES", "TEXTS", "Hang", "cut", "flip", "other_value", "within"]

WRONG: list[Any] = [None, True, -1, 0, 1e38, -1e38, 1e999, float("nan"), 10**400, "", "x\x1b[2J\n", [], {}, [[]], "full", 2.5]


NAMES = (
    *("id2label", "null_class", "trained_betas", "thresholding", "safety_checker", "class_embed_type", "concept", "dtype"),
    *("quantization_config", "shift_factor", "steps_offset", "variant", "auto_map"),
)


class Hang(BaseException):
    """What is read takes too long; no handler of errors takes it for one."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Inside, `Hang` after so many seconds; on the main thread alone."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def other_value(content: Any, rng: random.Random) -> None:
    """Another value, kind or number of entries anywhere in the content of a JSON file."""
    holder: Any = content
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if not (isinstance(holder[key], dict | list) and holder[key]) or rng.random() < 0.3:
            break
        holder = holder[key]
    value = holder[key]
    if rng.random() < 0.2:
        del holder[key]
    elif type(value) in (int, float) and rng.random() < 0.5:
        holder[key] = rng.choice([value + 1, value * 2, -value, value / 3, value // 2, bool(value), str(value), 2**31, 10**9])
    elif isinstance(value, bool) and rng.random() < 0.5:
        holder[key] = not value
    elif isinstance(value, list) and rng.random() < 0.5:
        holder[key] = rng.choice([value + value, value[1:], value[::-1], value[:1], [value]])
    else:
        holder[key] = rng.choice([*WRONG, 2**20, 3, 0.1, "linear", [1, 2]])


def flip(blob: bytes, rng: random.Random) -> bytes:
    found = bytearray(blob)
    for _ in range(rng.choice([1, 1, 2, 30])):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(blob: bytes, rng: random.Random) -> bytes:
    return rng.choice([blob[: rng.randrange(len(blob))], blob + bytes(rng.randrange(1, 99)), blob[rng.randrange(1, 99) :]])


def values(blob: bytes, rng: random.Random) -> bytes:
    content = json.loads(blob)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if content:
            other_value(content, rng)
    return json.dumps(content).encode()


def nested(blob: bytes, rng: random.Random) -> bytes:
    deep = rng.choice([40, 900, 100_000])
    inner = rng.choice(["[" * deep + "]" * deep, "9" * 5000, '{"a":' * deep])
    return rng.choice([inner, json.dumps({**json.loads(blob), "more": "?"}).replace('"?"', inner)]).encode()


def extra(blob: bytes, rng: random.Random) -> bytes:
    """An entry that is not there yet, of a name that means something in some file of this kind."""
    content = json.loads(blob)
    content[rng.choice(NAMES)] = rng.choice([*WRONG, ["diffusers", "UNet2DModel"], ["os", "system"], {"0": "red"}, "../unet"])
    return json.dumps(content).encode()


Mutation = Callable[[bytes, random.Random], bytes]
TEXTS: list[Mutation] = [values, values, values, values, extra, nested, flip, cut]
BYTES: list[Mutation] = [flip, cut]
