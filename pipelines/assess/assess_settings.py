"""What the user can set for ``semu assess``; light, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.erase.config import GuidedConfig
from semu_diffusion.options import at_least, option

__all__ = ["AssessConfig"]


@dataclass(frozen=True)
class AssessConfig(GuidedConfig):
    """Which model, by how many samples, and against which data set; what is None the model's vocabulary says."""

    guidance_scale: float | None = option(  # type: ignore[assignment]
        None, "classifier-free guidance w; 1 is none (default: the model's own, else 3)", metavar="W", group="evaluation"
    )

    model: str = option(
        "ddpm-cifar10", "embedded model by name (ddpm-cifar10, tiny-sd), diffusers folder or Hub id", metavar="MODEL",
        positional=True,
    )  # fmt: skip
    data: str | None = option(None, "data set for FID (test) and the nearest images (train)", metavar="DATASET")
    samples_per_class: int = option(100, "samples of every object and style", metavar="N")
    sampling_steps: int = option(50, "DDIM steps", metavar="N")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "auto", "arithmetic of the samples; auto: bf16 where the hardware has it"
    )
    classifier: str | None = option(
        None, "judge of the objects: embedded, a folder, torchvision:NAME, timm:NAME (default: the model's own, else embedded)",
        metavar="JUDGE",
    )  # fmt: skip
    style_classifier: str | None = option(
        None, "judge of the styles, for a model with a vocabulary (default: the model's own)", metavar="JUDGE"
    )
    inception_weights: str | None = option(None, "Inception weights for FID (default: the judge's features)", metavar="FILE")
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE")
    output: str | None = option(None, "folder for the numbers and pictures (default: a new one under runs/)", metavar="DIR")
    overwrite: bool = option(False, "replace an existing folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "samples_per_class", 2)
        at_least(self, "sampling_steps", 1)
