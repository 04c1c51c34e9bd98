"""What is freed goes back to the system at once where memory was bounded."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
from semu_diffusion.pipelines.cli.heap import give_back_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "given":
    give_back_freed_memory()
torch.ones(6 * 2**18)  # 6 MiB that are freed at once: glibc keeps what is smaller from now on
before = resident()
many = [torch.ones(2**18) for _ in range(128)]  # 128 MiB in pieces of 1
last = many[-1]  # at the end of the heap, so that it cannot shrink
del many
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_tensors_are_given_back_where_memory_is_bounded() -> None:
    held = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("given", "kept")
    }
    assert held["given"] < 16 * 2**20 < 64 * 2**20 < held["kept"]
