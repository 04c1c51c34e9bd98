"""What the user can set for an erasure from a text-to-image model: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.pipelines.console import option
from semu_diffusion.pipelines.erasure_settings import EMBEDDED, ErasureConfig, at_least, require

__all__ = ["EraseConceptConfig", "EraseConceptRun"]


@dataclass(frozen=True)
class EraseConceptConfig(ErasureConfig):
    """Settings of the erasure of concepts; ``--target unconditional`` with ``--overshoot`` eta is ESD's negative guidance."""

    concept: tuple[str, ...] = option(
        (), "what to erase, in words; several are erased at once", metavar="CONCEPT", group="erase", positional=True
    )
    synonyms: tuple[str, ...] = option((), "other words for it, erased too", metavar="A,B,…", comma=True, group="erase")
    anchor: str | None = option(
        None, "what it is answered with: words in its place, or '' for no prompt (default: chosen, and said)",
        metavar="WORDS", group="erase",
    )  # fmt: skip
    forget_prompts: tuple[str, ...] = option(
        (),
        "prompt with the concept in it, or a text file of them; repeat (default: made from templates)",
        metavar="PROMPT_OR_FILE",
        group="erase",
    )
    retain_prompts: tuple[str, ...] = option(
        (),
        "a prompt whose pictures shall stay as they are, or a text file of them, one a line; repeat (default: the model's "
        "vocabulary, or a general list)",
        metavar="PROMPT_OR_FILE",
        group="erase",
    )
    forget_images: str | None = option(
        None, "images of the concept (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    retain: Literal["self", "none"] = option(  # type: ignore[assignment]
        "self", "retain term: the model's own predictions on images it makes of the retain prompts, or none", group="erase"
    )
    layers: tuple[str, ...] = option(
        ("attention", "conv", "!*.attn2.to_k", "!*.attn2.to_v"),
        "layers to edit: all, attention, cross-attention, conv, linear, globs; !x leaves x out (keys and values of text only "
        "remap words)",
        metavar="A,B,…", comma=True, group="subspace",
    )  # fmt: skip
    guidance_scale: float | None = option(  # type: ignore[assignment]
        None,
        "classifier-free guidance w; 1 is none (default: the model's own, else 7.5)",
        metavar="W",
        group="proof",
    )
    target: Literal["fixed", "unconditional", "ascent"] = option(  # type: ignore[assignment]
        "fixed", "what the concept is answered with: its anchor, no prompt; or denoise it worse", group="training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.retain in ("self", "none"), f"retain {self.retain!r}: self or none")
        require(len(self.concept) > 0, "nothing to erase: say what, in words")
        require(all(words.strip() for words in self.concept), "the concept is empty: say what to erase, in words")
        require(
            self.anchor is None or self.target == "fixed",
            f"--anchor contradicts --target {self.target}: only --target fixed has an anchor",
        )
        same = {words.strip().lower() for words in (*self.concept, *self.synonyms)}
        require(
            self.anchor is None or self.anchor.strip().lower() not in same,
            f"--anchor {self.anchor!r} is what shall be erased: name something else",
        )


@dataclass(frozen=True)
class EraseConceptRun(EraseConceptConfig):
    """The settings of ``erase-concept``: of the erasure, of the model and of the proof."""

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
        group="proof",
    )
    alternatives: tuple[str, ...] = option(
        (), "what the judge must tell the concept from, and what must stay recognisable", metavar="A,B,…", comma=True,
        group="proof",
    )  # fmt: skip
    paraphrases: tuple[str, ...] = option(
        (),
        "prompt for the concept in words it is not erased with, or a text file of them; repeat (default: made)",
        metavar="PROMPT_OR_FILE",
        group="proof",
    )
    clip_score: str | None = option(
        None, "also measure CLIP scores: clip, or clip:MODEL:TAG (an open_clip model)", metavar="CLIP", group="proof"
    )
    images_per_prompt: int = option(8, "images of every prompt, before and after", metavar="N", group="proof")
    judged_prompts: int = option(12, "retain prompts that are compared if no judge has its own", metavar="N", group="proof")
    revival: bool = option(True, "measure what a learned pseudo-word brings back (needs a judge; not for XL)", group="proof")
    sampling_steps: int = option(25, "DDIM steps", metavar="N", group="proof")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "auto", "arithmetic of the samples; auto: bf16 where the hardware has it", group="proof"
    )
    save_images: bool = option(False, "keep every sampled picture as PNG", group="proof")
    output: str | None = option(None, "run folder (default: a new one under runs/)", metavar="DIR", group="run", replayed=False)
    overwrite: bool = option(False, "replace an existing run folder", group="run", replayed=False)
    json: bool = option(False, "print metrics.json on standard output, and nothing else there", group="run", replayed=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images_per_prompt", "judged_prompts", "sampling_steps"):
            at_least(self, name, 1)
