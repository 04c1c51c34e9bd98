"""What the user can set of an erasure itself, split by stage: samples, subspace, training of R."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.options import at_least, byte_size, option, require

__all__ = ["ErasureConfig", "GuidedConfig", "SamplesConfig", "SubspaceConfig", "TrainingConfig"]


@dataclass(frozen=True)
class GuidedConfig:
    """How a model is sampled, wherever it is."""

    guidance_scale: float = option(3.0, "classifier-free guidance w; 1 is none", metavar="W", group="evaluation")
    seed: int = option(0, "seed of everything random", metavar="SEED", group="run")

    def __post_init__(self) -> None:
        w = self.guidance_scale
        require(w is None or 1 <= w < float("inf"), f"--guidance-scale {w}: must be at least 1 (1 is none)")
        require(0 <= self.seed < 2**31, f"--seed {self.seed}: must lie in [0, 2^31)")


@dataclass(frozen=True)
class SamplesConfig(GuidedConfig):
    """The images that the model makes for its own erasure."""

    forget_samples: int = option(32, "images the model makes of each erased class", metavar="N", group="training")
    anchor_samples: int = option(
        0, "images the model makes of the anchor, to be shown with the erased label", metavar="N", group="training"
    )
    kept_samples: int = option(60, "images the model makes of what is kept", metavar="N", group="training")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the erasure; auto: bf16 where the hardware has it", group="training"
    )

    def __post_init__(self) -> None:
        GuidedConfig.__post_init__(self)
        for name in ("forget_samples", "kept_samples"):
            at_least(self, name, 1)
        at_least(self, "anchor_samples", 0)


@dataclass(frozen=True)
class SubspaceConfig:
    """Where the update may live: the layers, their forget gradient, what is protected, the rank."""

    protect: Literal["null-space", "none"] = option(
        "null-space", "keep the update out of what kept classes feel", group="erase"
    )
    layers: tuple[str, ...] = option(
        ("attention", "conv"),
        "layers to edit: all, attention, conv, linear, globs; !x leaves x out",
        metavar="A,B,…",
        comma=True,
        group="subspace",
    )
    gradient: Literal["objective", "denoising", "random"] = option(
        "objective",
        "loss whose gradient is decomposed: the training's own, or guided denoising as in the paper; random: no gradient at "
        "all, the control",
        group="subspace",
    )
    explained_variance: float = option(
        0.95, "gamma: share of the gradient's energy the subspace keeps", metavar="GAMMA", group="subspace"
    )
    rank_rule: Literal["at_least", "official"] = option(
        "at_least", "minimum rank that reaches gamma, or the maximum that stays below", group="subspace"
    )
    min_rank: int = option(1, "minimum rank of a layer", metavar="R", group="subspace")
    max_rank: int | None = option(8, "maximum rank of a layer", metavar="R", group="subspace")
    matricisation: Literal["full", "per_channel"] = option("full", "how a convolution becomes a matrix", group="subspace")
    projection: Literal["exact", "official", "none"] = option(
        "exact", "removal of the gradient's part along the weight", group="subspace"
    )
    protected_energy: float = option(
        0.9, "share of the kept inputs' energy that is protected", metavar="SHARE", group="subspace"
    )
    memory: str | None = option(
        None,
        "bound on what collected gradients take, and before them the second moments of kept inputs, such as 2GB: layers are "
        "sketched, those first that save most, and collected in several rounds where that is not enough (default: no bound)",
        metavar="SIZE",
        group="subspace",
    )
    gradient_clip: float | None = option(
        None, "bound on the norm of each batch's forget gradient", metavar="NORM", group="training"
    )

    def __post_init__(self) -> None:
        require(0 < self.explained_variance <= 1, f"--explained-variance {self.explained_variance}: must lie in (0, 1]")
        require(0 < self.protected_energy <= 1, f"--protected-energy {self.protected_energy}: must lie in (0, 1]")
        at_least(self, "min_rank", 0)
        require(self.gradient_clip is None or self.gradient_clip > 0, f"--gradient-clip {self.gradient_clip}: must be positive")
        if self.memory is not None:
            byte_size(self.memory, "--memory")
            require(self.gradient_clip is None, "--memory contradicts --gradient-clip, which needs all gradients at once")
            require(self.matricisation == "full", "--memory needs --matricisation full")
            require(self.gradient != "random", "--memory contradicts --gradient random: no gradient is collected")
            require(self.max_rank is not None, "--memory needs a --max-rank: it says how wide a sketch must be")
        require(
            self.max_rank is None or self.max_rank >= max(self.min_rank, 1),
            f"--max-rank {self.max_rank}: must be at least 1 and not below --min-rank {self.min_rank}",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """The loss by which R is trained, and how it is minimised."""

    method: Literal["semu", "closed-form", "trained"] = option(
        "semu",
        "semu: the name in closed form, then R trained for depth; closed-form: the name alone, in seconds; trained: R alone",
        group="erase",
    )
    target: Literal["auto", "fixed", "random", "unconditional", "ascent"] = option(
        "auto",
        "what replaces the class: one other class, one drawn per image, no class; or denoise it worse. "
        "auto: fixed, and ascent for an unconditional model",
        group="training",
    )
    overshoot: float = option(
        2.0, "how far the target goes beyond the anchor, away from what is erased", metavar="ETA", group="training"
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
        0.25,
        "share of a batch shown without label, so that these predictions leave the class too (if it has a null class)",
        metavar="SHARE",
        group="training",
    )
    unlabelled_shift: float = option(
        3.0, "how far those predictions go from the class towards its anchor", metavar="KAPPA", group="training"
    )
    adversarial: float | None = option(
        None,
        "share of a batch conditioned on vectors learned against the erasure (default: a half where the model takes vectors)",
        metavar="SHARE",
        group="training",
    )
    retain: str = option(
        "self",
        "retain term: self (its own predictions on images it makes), none, or a data set",
        metavar="self|none|DATASET",
        group="erase",
    )
    retain_weight: float = option(8.0, "alpha of the retain term (chosen for --retain self)", metavar="ALPHA", group="training")
    steps: int = option(60, "training steps", metavar="N", group="training")
    batch_size: int = option(12, "erased images in a training step, and as many kept ones", metavar="N", group="training")
    lr: float = option(3e-2, "Adam's learning rate for R", metavar="LR", group="training")
    lr_decay: bool = option(True, "lower the learning rate to zero along a cosine", group="training")
    warmup: float = option(0.15, "share of the steps in which the learning rate rises", metavar="SHARE", group="training")
    adam_beta2: float = option(0.99, "Adam's decay of the squared gradient", metavar="BETA", group="training")

    def __post_init__(self) -> None:
        for name in ("label_drop", "unlabelled", "adversarial"):
            value = getattr(self, name) or 0.0
            require(0 <= value <= 1, f"--{name.replace('_', '-')} {value}: must lie in [0, 1]")
        require(self.unlabelled + (self.adversarial or 0.0) <= 1, "--unlabelled and --adversarial add up to more than 1")
        for name in ("steps", "batch_size"):
            at_least(self, name, 1)
        require(0 < self.lr < 1e30, f"--lr {self.lr}: must be a positive number that float32 can hold")
        require(0 <= self.warmup < 1, f"--warmup {self.warmup}: must lie in [0, 1)")
        require(0 <= self.adam_beta2 < 1, f"--adam-beta2 {self.adam_beta2}: must lie in [0, 1)")
        require(0 <= self.retain_weight < 1e30, f"--retain-weight {self.retain_weight}: must not be negative, nor infinite")
        for name in ("overshoot", "unlabelled_shift"):
            require(abs(getattr(self, name)) < 1e30, f"--{name.replace('_', '-')} {getattr(self, name)}: must be a number")


@dataclass(frozen=True)
class ErasureConfig(TrainingConfig, SubspaceConfig, SamplesConfig):
    """Settings of one erasure, whatever is erased. Every function takes the stage it needs."""

    def __post_init__(self) -> None:
        for stage in (SamplesConfig, SubspaceConfig, TrainingConfig):
            stage.__post_init__(self)
