"""``semu benchmark-subspace``."""

from __future__ import annotations

from semu_diffusion.pipelines.benchmark.subspace import SubspaceBenchmark, run
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]

COMMAND = Command(
    "semu benchmark-subspace",
    "Time the truncated SVD of this package against torch.linalg.svd: ratios and errors.\n\n"
    "Shapes: every distinct Linear and Conv2d matrix of the Stable Diffusion 1.5 UNet with its count (the network's\n"
    "architecture, no weights), on synthetic gradients (rank 40 plus noise); or, with --spectra real, the forget gradients\n"
    "of the embedded class-conditional model.",
    SubspaceBenchmark,
    run,
    examples=("semu benchmark-subspace --largest 4000", "semu benchmark-subspace --spectra real"),
)
