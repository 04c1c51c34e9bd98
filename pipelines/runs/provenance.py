"""Where a run's numbers come from: versions, commit, machine, threads, precision, memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "peak_memory_bytes"]

PACKAGES = ("semu-diffusion", "torch", "diffusers", "transformers", "torchmetrics", "safetensors")


def environment(device: Any = None, precision: str | None = None, sampling_precision: str | None = None) -> dict[str, Any]:
    """Versions, commit, machine and command line of this run, and what its settings of precision are on ``device``.

    A package that is not installed has no version.
    """
    import torch

    from semu_diffusion.models.precision import autocast

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": _commit(),
        "platform": platform.platform(),
        "device": str(device) if device is not None else None,
        "threads": torch.get_num_threads(),
        **{
            name: setting and ("fp32" if autocast(setting, device) is nullcontext else "bf16")
            for name, setting in (("precision", precision), ("sampling_precision", sampling_precision))
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _commit() -> str | None:
    """Commit of this checkout, with ``-dirty`` if it was edited; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def peak_memory_bytes(device: Any = None) -> int:
    """Largest memory so far: of the CUDA device if that is where the model is, else resident memory of the process."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux
