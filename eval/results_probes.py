"""What a probe found, as metrics.json keeps it; `semu_diffusion.eval.results` has everything else."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Revival"]


@dataclass(frozen=True)
class Revival:
    """``share`` of ``samples`` images in which a probe brings an erased class or concept back, and how.

    Of a probe that learns a vector: ``steps`` of ``batch_size`` images for each restart at ``lr``, from ``training_images``
    that come from ``learned_from``; ``loss_start`` and ``loss_end`` are means over the first and last steps; ``restarts`` are
    the shares by which the best vector was chosen, the one that ``share`` is of. All of these are None or empty for a probe
    that learns nothing. ``control``: the share of kept images that the same probe brings back. ``image_passes`` of the
    denoiser: one image forward is one, its backward two.
    """

    share: float
    samples: int
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    sampling_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    training_images: int | None = None
    learned_from: str | None = None
    loss_start: float | None = None
    loss_end: float | None = None
    restarts: tuple[float, ...] = ()
    control: float | None = None
    image_passes: int | None = None

    @property
    def learned(self) -> bool:
        return self.steps is not None
