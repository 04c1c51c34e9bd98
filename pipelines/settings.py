"""What the user can set for `erase-class`: one frozen dataclass is the command line, the config and run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.console import option

__all__ = ["EMBEDDED", "PRESETS", "EraseClassConfig", "EvaluationConfig", "ModelConfig"]

EMBEDDED = "embedded"


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
class EvaluationConfig(ModelConfig):
    """How a model is sampled and scored, before and after."""

    images_per_class: int = option(500, "images sampled of every class, before and after", metavar="N", group="proof")
    sampling_steps: int = option(50, "DDIM steps", metavar="N", group="proof")
    guidance_scale: float = option(3.0, "classifier-free guidance w; 1 is none", metavar="W", group="proof")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "fp32", "arithmetic of the samples that are scored; auto: bf16 where the hardware has it", group="proof"
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
    seed: int = option(0, "seed of everything random", metavar="SEED", group="run")
    output: str | None = option(None, "run folder (default: a new one under runs/)", metavar="DIR", group="run", replayed=False)
    overwrite: bool = option(False, "replace an existing run folder", group="run", replayed=False)
    json: bool = option(False, "print metrics.json on standard output, and nothing else there", group="run", replayed=False)

    def __post_init__(self) -> None:
        for name in ("images_per_class", "sampling_steps", "eval_batch_size"):
            _at_least(self, name, 1)
        _require(
            1 <= self.guidance_scale < float("inf"), f"--guidance-scale {self.guidance_scale}: must be at least 1 (1 is none)"
        )
        _require(
            not (self.revival and self.classifier == "none"), "--revival needs a judge, so it contradicts --classifier none"
        )
        _require(0 <= self.seed < 2**31, f"--seed {self.seed}: must lie in [0, 2^31)")


@dataclass(frozen=True)
class EraseClassConfig(EvaluationConfig):
    """Settings of one erasure and of its proof."""

    forget: tuple[str, ...] = option((), "class to erase, by name or index; repeat for several", metavar="CLASS", group="erase")
    forget_images: str | None = option(
        None, "images of the class (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    preset: Literal["default", "official"] = option("default", "official: the choices of the reference code", group="erase")
    protect: Literal["null-space", "none"] = option(
        "null-space", "keep the update out of what kept classes feel", group="erase"
    )
    retain: str = option(
        "self",
        "retain term: self (its own predictions on images it makes), none, or a data set",
        metavar="self|none|DATASET",
        group="erase",
    )

    layers: tuple[str, ...] = option(
        ("attention", "conv"),
        "layers to edit: all, attention, conv, linear, globs; !x leaves x out",
        metavar="A,B,…",
        comma=True,
        group="subspace",
    )
    gradient: Literal["objective", "denoising"] = option(
        "objective",
        "loss whose gradient is decomposed: the training's own, or guided denoising as in the paper",
        group="subspace",
    )
    explained_variance: float = option(
        0.95, "gamma: share of the gradient's energy the subspace keeps", metavar="GAMMA", group="subspace"
    )
    rank_rule: Literal["at_least", "official"] = option(
        "at_least", "least rank reaching gamma, or greatest not above it", group="subspace"
    )
    min_rank: int = option(1, "least rank of a layer", metavar="R", group="subspace")
    max_rank: int | None = option(8, "greatest rank of a layer", metavar="R", group="subspace")
    matricisation: Literal["full", "per_channel"] = option("full", "how a convolution becomes a matrix", group="subspace")
    projection: Literal["exact", "official", "none"] = option(
        "exact", "removal of the gradient's part along the weight", group="subspace"
    )
    protected_energy: float = option(
        0.98, "share of the kept inputs' energy that is protected", metavar="SHARE", group="subspace"
    )

    target: Literal["auto", "fixed", "random", "unconditional", "ascent"] = option(
        "auto",
        "what the class is answered with: one other class, one drawn per image, no class; or denoise it worse. "
        "auto: fixed, and ascent for an unconditional model",
        group="training",
    )
    anchor: str | None = option(
        None, "the other class of --target fixed (default: the second nearest)", metavar="CLASS", group="training"
    )
    overshoot: float = option(
        2.0, "how far the target goes beyond the anchor, away from the erased class", metavar="ETA", group="training"
    )
    weighting: Literal["image", "noise"] = option(
        "image", "weigh the error as seen in the image (middle timesteps count most) or in the noise", group="training"
    )
    moving_target: bool = option(
        False, "take the target from the model in training, as the reference code does", group="training"
    )
    label_drop: float = option(
        0.0, "probability of dropping the label on both sides, as the reference code does", metavar="P", group="training"
    )
    unlabelled: float = option(
        0.0,
        "share of a batch shown without label, so that these predictions leave the class too",
        metavar="SHARE",
        group="training",
    )
    adversarial: float = option(
        0.0, "share of a batch conditioned on class vectors learned against the erasure", metavar="SHARE", group="training"
    )
    retain_weight: float = option(4.0, "alpha of the retain term", metavar="ALPHA", group="training")
    forget_samples: int = option(64, "images the model makes of each erased class", metavar="N", group="training")
    anchor_samples: int = option(
        32, "images the model makes of the anchor, to be shown with the erased label", metavar="N", group="training"
    )
    kept_samples: int = option(90, "images the model makes of kept classes", metavar="N", group="training")
    steps: int = option(160, "training steps", metavar="N", group="training")
    batch_size: int = option(16, "images in a training step", metavar="N", group="training")
    lr: float = option(3e-2, "Adam's learning rate for R", metavar="LR", group="training")
    lr_decay: bool = option(True, "lower the learning rate to zero along a cosine", group="training")
    gradient_clip: float | None = option(
        None, "bound on the norm of each batch's forget gradient", metavar="NORM", group="training"
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the erasure; auto: bf16 where the hardware has it", group="training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(len(self.forget) > 0, "nothing to erase: name a class with --forget")
        _require(0 < self.explained_variance <= 1, f"--explained-variance {self.explained_variance}: must lie in (0, 1]")
        _require(0 < self.protected_energy <= 1, f"--protected-energy {self.protected_energy}: must lie in (0, 1]")
        for name in ("label_drop", "unlabelled", "adversarial"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"--{name.replace('_', '-')} {value}: must lie in [0, 1]")
        _require(self.unlabelled + self.adversarial <= 1, "--unlabelled and --adversarial add up to more than 1")
        for name in ("forget_samples", "kept_samples", "steps", "batch_size"):
            _at_least(self, name, 1)
        _at_least(self, "min_rank", 0)
        _require(0 < self.lr < 1e30, f"--lr {self.lr}: must be a positive number that float32 can hold")
        _require(
            self.gradient_clip is None or self.gradient_clip > 0, f"--gradient-clip {self.gradient_clip}: must be positive"
        )
        _require(self.retain_weight >= 0, f"--retain-weight {self.retain_weight}: must not be negative")
        _require(
            self.max_rank is None or self.max_rank >= max(self.min_rank, 1),
            f"--max-rank {self.max_rank}: must be at least 1 and not below --min-rank {self.min_rank}",
        )
        _require(
            self.anchor is None or self.target in ("auto", "fixed"),
            f"--anchor contradicts --target {self.target}: only --target fixed has an anchor",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _at_least(config: Any, name: str, least: int) -> None:
    value = getattr(config, name)
    _require(value >= least, f"--{name.replace('_', '-')} {value}: must be at least {least}")


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # github.com/gmum/semu: un-squared projection, per input channel, greatest rank not above gamma, moving target, random
    # relabelling, label drop 0.1, Adam 1e-3, 1,000 steps of 64. It edits every layer and protects nothing.
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
