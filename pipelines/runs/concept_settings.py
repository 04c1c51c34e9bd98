"""What the user can set for an erasure from a text-to-image model: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.options import at_least, option

__all__ = ["EraseConceptRun"]


@dataclass(frozen=True)
class EraseConceptRun(ConceptErasureConfig):
    """The settings of ``erase-concept``: of the erasure, of the model and of the evaluation."""

    forget_images: str | None = option(
        None, "images of the concept (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    model: str = option(EMBEDDED, "diffusers folder, Hub id, or a single safetensors file", metavar="MODEL", group="model")
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE", group="model")
    weights: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "precision of the model's weights in memory; the trained R is always fp32", group="model"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the model is a single file that does not say so (SD 2.x)", group="model"
    )
    gradient_checkpointing: bool = option(False, "less memory, more time: layers are computed again", group="model")
    classifier: str = option(
        "auto",
        "judge of what is seen: clip or clip:MODEL:TAG (the concept against the alternatives), a folder, torchvision:NAME, "
        "none; auto: those of the model's vocabulary, none if it has none",
        metavar="JUDGE",
        group="evaluation",
    )
    alternatives: tuple[str, ...] = option(
        (), "what the judge must tell the concept from, and what must stay recognisable", metavar="A,B,…", comma=True,
        group="evaluation",
    )  # fmt: skip
    paraphrases: tuple[str, ...] = option(
        (),
        "prompt for the concept in words it is not erased with, or a text file of them; repeat (default: made)",
        metavar="PROMPT_OR_FILE",
        group="evaluation",
    )
    clip_score: str | None = option(
        None, "also measure CLIP scores: clip, or clip:MODEL:TAG (an open_clip model)", metavar="CLIP", group="evaluation"
    )
    images_per_prompt: int = option(8, "images of every prompt, before and after", metavar="N", group="evaluation")
    judged_prompts: int = option(12, "retain prompts that are compared if no judge has its own", metavar="N", group="evaluation")
    revival: bool = option(True, "measure what a learned pseudo-word brings back (needs a judge; not for XL)", group="evaluation")
    sampling_steps: int = option(25, "DDIM steps", metavar="N", group="evaluation")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "auto", "arithmetic of the samples; auto: bf16 where the hardware has it", group="evaluation"
    )
    save_images: bool = option(False, "keep every sampled picture as PNG", group="evaluation")
    prompt_files: tuple[str, ...] = option(
        (), "the text files that prompts came from, which --overwrite leaves alone", hidden=True, replayed=False
    )
    output: str | None = option(None, "run folder (default: a new one under runs/)", metavar="DIR", group="run", replayed=False)
    overwrite: bool = option(False, "replace an existing run folder", group="run", replayed=False)
    json: bool = option(False, "print metrics.json on standard output, and nothing else there", group="run", replayed=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images_per_prompt", "judged_prompts", "sampling_steps"):
            at_least(self, name, 1)
