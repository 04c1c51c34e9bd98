"""What the user can set for `erase-class`: one frozen dataclass is the command line, the config and run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from semu_diffusion.pipelines.console import option
from semu_diffusion.pipelines.erasure_settings import EMBEDDED, ErasureConfig, GuidedConfig, at_least, require

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

    images_per_class: int = option(500, "images sampled of every class, before and after", metavar="N", group="proof")
    sampling_steps: int = option(50, "DDIM steps", metavar="N", group="proof")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "fp32", "arithmetic of the samples that are scored, and of revival; auto: bf16 where the hardware has it", group="proof"
    )
    eval_batch_size: int = option(
        64, "images taken from the sampler at a time; they do not depend on it", metavar="N", group="proof"
    )
    classifier: str = option(
        EMBEDDED,
        "judge: embedded, a folder, torchvision:NAME, timm:NAME, or none",
        metavar="NAME_OR_FOLDER",
        group="proof",
    )
    class_mapping: str | None = option(
        None, "JSON file: class of the model to classes of the judge", metavar="FILE", group="proof"
    )
    revival: bool = option(False, "measure what one learned class vector brings back", group="proof")
    fid_reference: str | None = option(
        None,
        "data set whose kept classes FID compares with (default: the original's own samples)",
        metavar="DATASET",
        group="proof",
    )
    inception_weights: str | None = option(
        None,
        "Inception weights for FID, or download (default: where torch.hub keeps them, if they are there)",
        metavar="FILE|download",
        group="proof",
    )
    save_images: bool = option(False, "keep every sampled picture as PNG", group="proof")
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
class EraseClassConfig(EvaluationConfig, ErasureConfig):
    """Settings of one erasure and of its proof."""

    forget: tuple[str, ...] = option((), "class to erase, by name or index; repeat for several", metavar="CLASS", group="erase")
    forget_images: str | None = option(
        None, "images of the class (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    preset: Literal["default", "official"] = option("default", "official: the choices of the reference code", group="erase")
    anchor: str | None = option(
        None, "the other class of --target fixed (default: the second nearest)", metavar="CLASS", group="training"
    )
    # wider than for concepts: at rank 8 the class is answered with its anchor's background and nothing on it
    explained_variance: float = option(
        0.99, "gamma: share of the gradient's energy the subspace keeps", metavar="GAMMA", group="subspace"
    )
    max_rank: int | None = option(32, "greatest rank of a layer", metavar="R", group="subspace")

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        ErasureConfig.__post_init__(self)
        require(len(self.forget) > 0, "nothing to erase: name a class with --forget")
        require(
            self.anchor is None or self.target in ("auto", "fixed"),
            f"--anchor contradicts --target {self.target}: only --target fixed has an anchor",
        )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # github.com/gmum/semu: un-squared projection, per input channel, greatest rank not above gamma, moving target, random
    # relabelling (drawn for each image here, once for a batch there), label drop 0.1, Adam 1e-3, 1,000 steps of 64. It
    # edits every layer and protects nothing.
    "official": {
        "layers": ("all",),
        "explained_variance": 0.95,
        "rank_rule": "official",
        "min_rank": 0,
        "max_rank": None,
        "matricisation": "per_channel",
        "gradient": "denoising",
        "anchor_samples": 0,
        "overshoot": 0.0,
        "projection": "official",
        "protect": "none",
        "retain": "none",
        "target": "random",
        "weighting": "noise",
        "moving_target": True,
        "label_drop": 0.1,
        "unlabelled": 0.0,
        "adversarial": 0.0,
        "steps": 1000,
        "batch_size": 64,
        "lr": 1e-3,
        "lr_decay": False,
        "gradient_clip": 1.0,
    },
}
