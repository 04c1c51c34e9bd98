"""Patch files of strangers: whatever is done to one, it is read as it was written or refused in one line.

``SEMU_MUTANTS=2000`` makes the test that much longer (`make stress`).
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mutants import cut, flip, other_value
from patches import random_patch, weight_bytes
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch

MUTANTS = int(os.environ.get("SEMU_MUTANTS", "300"))
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "X9": 1}


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))


class File:
    """A safetensors file taken apart: the header's dict, the program's own dict within it, and the tensors' bytes."""

    def __init__(self, blob: bytes) -> None:
        size = struct.unpack("<Q", blob[:8])[0]
        self.header = json.loads(blob[8 : 8 + size])
        self.own = json.loads(self.header["__metadata__"]["semu"])
        self.data = bytearray(blob[8 + size :])

    @property
    def tensors(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    def blob(self, own: str | None = None) -> bytes:
        self.header["__metadata__"]["semu"] = json.dumps(self.own) if own is None else own
        text = json.dumps(self.header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(self.data)


def numbers(file: File, rng: random.Random) -> bytes:
    """NaN, infinities and huge values in a tensor of floats."""
    floats = [name for name in file.tensors if file.header[name]["dtype"] == "F32"]
    start, end = file.header[rng.choice(floats)]["data_offsets"]
    place = rng.randrange(start, end, 4)
    value = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38, -3e38, 1e9, 0.5])
    file.data[place : place + 4] = struct.pack("<f", value)
    return file.blob()


def own_value(file: File, rng: random.Random) -> bytes:
    """Another value, kind or number of entries anywhere in the program's own header."""
    other_value(file.own, rng)
    return file.blob()


def bombs(file: File, rng: random.Random) -> bytes:
    deep = rng.choice([40, 900, 100_000])
    nested = "[" * deep + "]" * deep
    if rng.random() < 0.5:
        return file.blob(nested)
    return file.blob(json.dumps({**file.own, "metadata": "?"}).replace('"?"', rng.choice([nested, "9" * 5000, '{"a":' * deep])))


def table(file: File, rng: random.Random) -> bytes:
    """Dtypes, shapes and offsets of tensors; ones that are missing, extra, or swapped."""
    name, other = rng.sample(file.tensors, 2)
    entry = file.header[name]
    kind = rng.randrange(6)
    if kind == 0:
        entry["dtype"] = rng.choice(list(DTYPES))
    elif kind == 1:
        entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], entry["shape"][1:], [2**40], [-1], [0], "x"])
    elif kind == 2:
        entry["data_offsets"] = [offset + rng.choice([-4, 0, 4]) for offset in entry["data_offsets"]]
    elif kind == 3:
        del file.header[name]
    elif kind == 4:
        file.header[name], file.header[other] = file.header[other], entry
    else:
        extra = rng.choice([f"{name}.more", "0.ranks", "\x1b[2J", "9.left"])
        file.header[extra] = {"dtype": "I64", "shape": [1], "data_offsets": [len(file.data), len(file.data) + 8]}
        file.data += struct.pack("<q", rng.choice([0, 1, 2, -5, 2**62]))
    return file.blob()


MUTATIONS: list[Callable[[File, random.Random], bytes]] = [
    lambda file, rng: flip(file.blob(), rng),
    lambda file, rng: cut(file.blob(), rng),
    numbers,
    own_value,
    bombs,
    table,
]


@pytest.mark.parametrize("checksum", [True, False], ids=["as written", "from before there was a checksum"])
def test_a_mutated_patch_is_refused_in_one_line_or_is_the_same_patch(checksum: bool, tmp_path: Path) -> None:
    """Without a checksum the numbers may be others, but never such that are not finite; nor are its words anything else."""
    path, patch = tmp_path / "mutant.safetensors", random_patch(net(), size=0.3)
    whole = File(patch.save(path).read_bytes())
    if not checksum:
        del whole.own["sha256"], whole.own["overlap"]
    model, original = net(), weight_bytes(net())
    patch.apply(model)
    right, outcomes = weight_bytes(model), {"refused": 0, "same": 0, "other": 0}
    messages: list[str] = []
    for seed in range(MUTANTS):
        rng, file = random.Random(seed), copy.deepcopy(whole)
        path.write_bytes(rng.choice(MUTATIONS)(file, rng))
        model = net()
        try:
            mutant = ErasurePatch.load(path)
            mutant.apply(model)
        except InputError as error:
            messages.append(str(error))
            assert weight_bytes(model) == original, seed
            outcomes["refused"] += 1
            continue
        assert all(torch.isfinite(weight).all() for weight in model.state_dict().values()), seed
        outcomes["same" if weight_bytes(model) == right else "other"] += 1
        mutant.remove(model)
        assert weight_bytes(model) == original, seed
    assert all(message.isprintable() for message in messages)
    assert outcomes["refused"] > 0.7 * MUTANTS if checksum else outcomes["refused"] > 0.3 * MUTANTS
    if checksum:
        assert outcomes["other"] == 0
