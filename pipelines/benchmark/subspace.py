"""``python -m semu_diffusion.pipelines.benchmark.subspace``: our truncated SVD against ``torch.linalg.svd``, ratios and errors.

Shapes: every distinct Linear and Conv2d matrix of the Stable Diffusion 1.5 UNet with its count (the network's
architecture, no weights), on synthetic gradients (rank 40 plus noise); or, with --spectra real, the forget gradients of the
embedded class-conditional model.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError
from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command

if TYPE_CHECKING:
    import torch

__all__ = ["COMMAND", "SubspaceBenchmark", "run"]


@dataclass(frozen=True)
class SubspaceBenchmark:
    """What is timed."""

    spectra: str = option("sd15", "sd15 (synthetic gradients in the shapes of SD 1.5), or real (the embedded model's)")
    explained_variance: float = option(0.95, "gamma", metavar="GAMMA")
    largest: int = option(12_000, "leave out matrices with a longer side", metavar="N")
    seed: int = option(0, "seed of the gradients", metavar="SEED")


def run(config: SubspaceBenchmark) -> int:
    import torch

    from semu_diffusion.subspace import dominant_subspace

    if config.spectra not in ("sd15", "real"):
        raise InputError(f"--spectra {config.spectra}: use sd15 or real")
    totals, worst, skipped = [0.0, 0.0], 0.0, 0
    print(f"{'shape':>13} {'count':>5} {'rank':>5} {'svd s':>8} {'ours s':>8} {'ratio':>7} {'angle':>9}")
    for matrix, count in _matrices(config):
        if max(matrix.shape) > config.largest:
            skipped += count
            continue
        full, reference = _timed(lambda m=matrix: torch.linalg.svd(m, full_matrices=False))
        ours, (left, energies, right) = _timed(lambda m=matrix: dominant_subspace(m, config.explained_variance))
        rank = energies.numel()
        angle = max(_angle(reference[0][:, :rank], left), _angle(reference[2][:rank].T, right))
        totals = [totals[0] + count * full, totals[1] + count * ours]
        worst = max(worst, angle)
        shape = "x".join(map(str, matrix.shape))
        print(f"{shape:>13} {count:>5} {rank:>5} {full:>8.3f} {ours:>8.3f} {full / ours:>6.1f}x {angle:>9.1e}", flush=True)
    if not totals[1]:
        raise InputError(f"--largest {config.largest} leaves out every matrix: raise it")
    print(f"total: svd {totals[0]:.1f} s, ours {totals[1]:.1f} s, ratio {totals[0] / totals[1]:.1f}x; worst angle {worst:.1e}")
    if skipped:
        print(f"left out: {skipped} matrices with a side over {config.largest}")
    print(f"float32, {torch.get_num_threads()} threads, gamma {config.explained_variance}, one run a shape")
    return 0


def _timed(job):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest principal angle between the spans of two orthonormal (n, r): ||(I - B B^T) A||_2."""
    import torch

    a, b = a.double(), b.double()
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2))


def _matrices(config: SubspaceBenchmark) -> Iterable[tuple[torch.Tensor, int]]:
    import torch

    if config.spectra == "real":
        yield from ((gradient, 1) for gradient in _real_gradients(config))
        return
    generator = torch.Generator().manual_seed(config.seed)
    for (m, n), count in sorted(_sd15_shapes().items(), key=lambda item: item[0][0] * item[0][1]):
        rank = min(40, m, n)
        decay = torch.linspace(0, -2, rank).exp()
        signal = torch.randn(m, rank, generator=generator) * decay @ torch.randn(rank, n, generator=generator)
        noise = torch.randn(m, n, generator=generator)
        yield signal + 0.1 * signal.norm() / noise.norm() * noise, count


def _sd15_shapes() -> Counter[tuple[int, int]]:
    """(out, in*kh*kw) of every Linear and Conv2d of SD 1.5's UNet, from its architecture alone (nothing is allocated)."""
    import torch
    from diffusers import UNet2DConditionModel

    from semu_diffusion.layers import select_layers

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    return Counter((layer.weight.shape[0], layer.weight[0].numel()) for layer in select_layers(unet).values())


def _real_gradients(config: SubspaceBenchmark) -> Iterable[torch.Tensor]:
    import torch

    from semu_diffusion.erase.samples import forget_batches, self_made
    from semu_diffusion.gradients import collect_gradients
    from semu_diffusion.layers import select_layers
    from semu_diffusion.matrices import to_matrices
    from semu_diffusion.objectives import denoising
    from semu_diffusion.pipelines.runs.config import ClassModelConfig
    from semu_diffusion.pipelines.runs.models import load_model

    model = load_model(ClassModelConfig())
    layers = select_layers(model.denoiser)
    images = self_made(model, [3] * 64, range(config.seed, config.seed + 64))
    batches = forget_batches(model, images, torch.Generator().manual_seed(config.seed), None)
    gradients = collect_gradients(model.denoiser, layers, batches, lambda batch: denoising(model.predict, batch))
    return [to_matrices(gradient)[0] for gradient in gradients.values() if min(gradient.shape[0], gradient[0].numel()) > 64]


COMMAND = Command(
    "python -m semu_diffusion.pipelines.benchmark.subspace",
    "Time the truncated SVD of this package against torch.linalg.svd: ratios and errors.",
    SubspaceBenchmark,
    run,
    examples=("python -m semu_diffusion.pipelines.benchmark.subspace --largest 4000",),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
