"""What the user can set for `erase-class`: one frozen dataclass is the command line, the config and run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.domains.config import PRESETS, ClassErasureConfig
from semu_diffusion.erase.config import EMBEDDED, GuidedConfig
from semu_diffusion.options import at_least, option, require

__all__ = ["EMBEDDED", "PRESETS", "EraseClassConfig", "EvaluationConfig", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and what its classes are."""

    model: str = option(EMBEDDED, "diffusers folder or Hub id with a UNet2DModel", metavar="DIR_OR_HUB_ID", group="model")
    class_names: tuple[str, ...] = option(
        (), "names of the model's classes, in order", metavar="A,B,…", comma=True, group="model"
    )
    null_class: int | None = option(
        None, "index of 'no class' (default: the last, if there is one more than names)", metavar="INDEX", group="model"
    )
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE", group="model")


@dataclass(frozen=True)
class EvaluationConfig(ModelConfig, GuidedConfig):
    """How a model is sampled and scored, before and after."""

    images_per_class: int = option(500, "images sampled of every class, before and after", metavar="N", group="evaluation")
    sampling_steps: int = option(50, "DDIM steps", metavar="N", group="evaluation")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "fp32", "arithmetic of the samples that are scored, and of revival; auto: bf16 where the hardware has it", group="evaluation"
    )
    eval_batch_size: int = option(
        64, "images taken from the sampler at a time; they do not depend on it", metavar="N", group="evaluation"
    )
    classifier: str = option(
        EMBEDDED,
        "judge: embedded, a folder, torchvision:NAME, timm:NAME, or none",
        metavar="NAME_OR_FOLDER",
        group="evaluation",
    )
    class_mapping: str | None = option(
        None, "JSON file: class of the model to classes of the judge", metavar="FILE", group="evaluation"
    )
    revival: bool = option(False, "measure what one learned class vector brings back", group="evaluation")
    fid_reference: str | None = option(
        None,
        "data set whose kept classes FID compares with (default: the original's own samples)",
        metavar="DATASET",
        group="evaluation",
    )
    inception_weights: str | None = option(
        None,
        "Inception weights for FID, or download (default: where torch.hub keeps them, if they are there)",
        metavar="FILE|download",
        group="evaluation",
    )
    save_images: bool = option(False, "keep every sampled picture as PNG", group="evaluation")
    output: str | None = option(None, "run folder (default: a new one under runs/)", metavar="DIR", group="run", replayed=False)
    overwrite: bool = option(False, "replace an existing run folder", group="run", replayed=False)
    json: bool = option(False, "print metrics.json on standard output, and nothing else there", group="run", replayed=False)

    def __post_init__(self) -> None:
        GuidedConfig.__post_init__(self)
        for name in ("images_per_class", "sampling_steps", "eval_batch_size"):
            at_least(self, name, 1)
        require(
            not (self.revival and self.classifier == "none"), "--revival needs a judge, so it contradicts --classifier none"
        )


@dataclass(frozen=True)
class EraseClassConfig(EvaluationConfig, ClassErasureConfig):
    """Settings of ``erase-class``: of the erasure and of its evaluation."""

    forget_images: str | None = option(
        None, "images of the class (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        ClassErasureConfig.__post_init__(self)
