"""What the user can set of a run: the model, the evaluation, and with the erasure's own settings the two erase commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from semu_diffusion.assets import EMBEDDED, Kind
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.domains.named_questions import named_questions
from semu_diffusion.erase.config import GuidedConfig
from semu_diffusion.options import at_least, option, require
from semu_diffusion.pipelines.patches.patch_settings import PublishedEdit

__all__ = [
    "ClassModelConfig",
    "EraseClassConfig",
    "EraseConceptConfig",
    "EvaluatePatchConfig",
    "EvaluationConfig",
    "ModelConfig",
    "NamedQuestionsConfig",
    "PatchedModelConfig",
    "TextModelConfig",
    "settled",
]

Config = TypeVar("Config", bound=Any)

# As many samples as let a first run take minutes. A class has one condition and a concept many prompts; revival is cheap
# beside the prompts, and dear beside the classes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "class": {
        "images_per_condition": 16,
        "sampling_steps": 20,
        "sampling_precision": "fp32",
        "revival": False,
        "guidance_scale": 3.0,
    },
    "concept": {"images_per_condition": 6, "sampling_steps": 20, "sampling_precision": "auto", "revival": True},
}
MOST_IMAGES = 500  # to reach an interval


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and where it works."""

    model: str = option(
        EMBEDDED, "diffusers folder, Hub id, or a single safetensors file of Stable Diffusion", metavar="MODEL", group="model"
    )
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE", group="model")


@dataclass(frozen=True)
class ClassModelConfig(ModelConfig):
    """What the classes of a class-conditional model are."""

    class_names: tuple[str, ...] = option(
        (),
        "names of the model's classes, in order; repeat the flag for names with ', ' in them, which are then one name each",
        metavar="A,B,…",
        comma="names",
        group="model",
    )
    null_class: int | None = option(
        None, "index of 'no class', -1: none (default: the one called so, or beyond the names)", metavar="INDEX", group="model"
    )


@dataclass(frozen=True)
class TextModelConfig(ModelConfig):
    """How a text-to-image model is loaded."""

    weights: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "precision of a text-to-image model's weights in memory; the trained R is always fp32", group="model"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the model is a single file that does not say so (SD 2.x)", group="model"
    )
    gradient_checkpointing: bool = option(False, "less memory, more time: layers are computed again", group="model")


@dataclass(frozen=True)
class PatchedModelConfig(ClassModelConfig, TextModelConfig):
    """The model of a patch of either kind."""


@dataclass(frozen=True)
class EvaluationConfig(GuidedConfig):
    """How a model is sampled and scored, before and after. What is None depends on the kind: see `settled`."""

    images_per_condition: int | None = option(
        None, "images of every class or prompt, before and after (default: 16 of a class, 6 of a prompt)", metavar="N",
        aliases=("--images-per-class", "--images-per-prompt"), group="evaluation",
    )  # fmt: skip
    interval_width: float | None = option(
        None, "sample until the 95 % interval of every group judged after the erasure is so narrow, --images-per-condition at "
        "most (else 500)",
        metavar="W", group="evaluation",
    )  # fmt: skip
    sampling_steps: int | None = option(
        None, "sampler's steps (default: the model's usual ones, else 20)", metavar="N", group="evaluation"
    )
    sampling_precision: Literal["fp32", "bf16", "auto"] | None = option(
        None, "arithmetic of the samples that are scored; auto: bf16 where the hardware has it (default: fp32 for classes, "
        "auto for prompts)", group="evaluation",
    )  # fmt: skip
    eval_batch_size: int = option(
        16, "images taken from the sampler at a time; they do not depend on it", metavar="N", group="evaluation"
    )
    classifier: str = option(
        "auto",
        "judge: a folder, torchvision:NAME, timm:NAME, clip or clip:MODEL:TAG, nudenet, embedded, none; auto: those that the "
        "model's vocabulary names, for classes the embedded one",
        metavar="JUDGE",
        group="evaluation",
    )
    class_mapping: str | None = option(
        None, "JSON file: class of the model, or concept, to classes of the judge", metavar="FILE", group="evaluation"
    )
    alternatives: tuple[str, ...] = option(
        (), "what the judge must tell a concept from, and what must stay recognisable", metavar="A,B,…", comma=True,
        group="evaluation",
    )  # fmt: skip
    paraphrases: tuple[str, ...] = option(
        (),
        "prompt for the concept in words it is not erased with, or a text file of them; repeat (default: made)",
        metavar="PROMPT_OR_FILE",
        group="evaluation",
    )
    judged_prompts: int = option(
        12, "retain prompts that are compared if no judge has its own", metavar="N", group="evaluation"
    )
    judged_classes: int = option(
        100, "kept classes that are asked for, spread over all of a model that has more", metavar="N", group="evaluation"
    )
    revival: bool | None = option(
        None, "measure what a learned vector brings back (needs a judge; default: for concepts)", group="evaluation"
    )
    probes: tuple[str, ...] = option(
        ("completion",), "probes without training: completion, recovery, recovery-unlabelled, noise, inversion, int8, fp8, "
        "all, none; they need a judge", metavar="A,B,…", comma=True, group="evaluation",
    )  # fmt: skip
    probe_samples: int = option(24, "images that every probe is counted in", metavar="N", group="evaluation")
    unconditional_samples: int | None = option(
        None, "images without a condition, at w = 1 (default: as many as of a class, ten times those of a prompt)",
        metavar="N", group="evaluation",
    )  # fmt: skip
    clip_score: str | None = option(
        None, "also measure CLIP scores: clip, or clip:MODEL:TAG (an open_clip model)", metavar="CLIP", group="evaluation"
    )
    dino: str | None = option(
        None, "also measure DINOv2 drift: a folder or Hub id of transformers' layout, as facebook/dinov2-base",
        metavar="FOLDER|ID", group="evaluation",
    )  # fmt: skip
    fid_reference: str | None = option(
        None,
        "data set whose kept classes FID and KID compare with (default: the original's own samples)",
        metavar="DATASET",
        group="evaluation",
    )
    inception_weights: str | None = option(
        None,
        "Inception weights for FID and KID, or download (default: where torch.hub keeps them; else the judge's features)",
        metavar="FILE|download",
        group="evaluation",
    )
    save_images: bool = option(False, "keep every sampled picture as PNG", group="evaluation")
    output: str | None = option(None, "run folder (default: a new one under runs/)", metavar="DIR", group="run", replayed=False)
    overwrite: bool = option(False, "replace an existing run folder", group="run", replayed=False)
    json: bool = option(False, "print metrics.json on standard output, and nothing else there", group="run", replayed=False)

    def __post_init__(self) -> None:
        GuidedConfig.__post_init__(self)
        for name in (
            "images_per_condition",
            "sampling_steps",
            "eval_batch_size",
            "judged_prompts",
            "judged_classes",
            "probe_samples",
            "unconditional_samples",
        ):
            if getattr(self, name) is not None:
                at_least(self, name, 1)
        require(self.interval_width is None or 0 < self.interval_width < 1, "--interval-width must lie between 0 and 1")
        require(
            not (self.revival and self.classifier == "none"), "--revival needs a judge, so it contradicts --classifier none"
        )


def settled(config: Config, kind: Kind, usual: Mapping[str, Any]) -> Config:
    """The settings with what the user left open as it is ``usual`` for the model, or else for this kind."""
    most = {} if config.interval_width is None else {"images_per_condition": MOST_IMAGES}
    left = {name: value for name, value in {**DEFAULTS[kind], **usual, **most}.items() if getattr(config, name) is None}
    if config.classifier == "none":
        left.pop("revival", None)
    return dataclasses.replace(config, **left)


@dataclass(frozen=True)
class NamedQuestionsConfig:
    """Questions of the user's own, of models of words; in run.json stands what the file says."""

    questions: Mapping[str, Any] | None = option(
        None, "JSON file of more prompts: binomials, implicit descriptions, languages, look_alikes, as in a vocabulary",
        metavar="FILE", group="evaluation",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.questions is not None:
            named_questions(self.questions)


@dataclass(frozen=True)
class EvaluatePatchConfig(NamedQuestionsConfig, EvaluationConfig, PatchedModelConfig, PublishedEdit):
    """Settings of ``semu evaluate``: of the model and of the evaluation."""

    guidance_scale: float | None = option(  # type: ignore[assignment]
        None, "classifier-free guidance w; 1 is none (default: 3 for classes; the model's own, else 7.5)", metavar="W",
        group="evaluation",
    )  # fmt: skip
    forget_images: str | None = option(
        None,
        "images of it that --revival and the probes recovery and inversion are shown (default: the model makes them)",
        metavar="DIR_OR_DATASET",
        group="evaluation",
    )

    def __post_init__(self) -> None:
        NamedQuestionsConfig.__post_init__(self)
        EvaluationConfig.__post_init__(self)
        PublishedEdit.__post_init__(self)


@dataclass(frozen=True)
class EraseClassConfig(EvaluationConfig, ClassModelConfig, ClassErasureConfig):
    """Settings of ``erase-class``: of the erasure, of the model and of the evaluation."""

    forget_images: str | None = option(
        None, "images of the class (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        ClassErasureConfig.__post_init__(self)


@dataclass(frozen=True)
class EraseConceptConfig(NamedQuestionsConfig, EvaluationConfig, TextModelConfig, ConceptErasureConfig):
    """Settings of ``erase-concept``: of the erasure, of the model and of the evaluation."""

    guidance_scale: float | None = option(  # type: ignore[assignment]
        None, "classifier-free guidance w; 1 is none (default: the model's own, else 7.5)", metavar="W", group="evaluation"
    )
    forget_images: str | None = option(
        None, "images of the concept (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    prompt_files: tuple[str, ...] = option(
        (), "the text files that prompts came from, which --overwrite leaves alone", hidden=True, replayed=False
    )

    def __post_init__(self) -> None:
        NamedQuestionsConfig.__post_init__(self)
        EvaluationConfig.__post_init__(self)
        ConceptErasureConfig.__post_init__(self)
