"""What the user can set of the commands that begin with a patch; light, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.options import option, require

__all__ = ["BaseModel", "PatchFile", "PublishedEdit"]


@dataclass(frozen=True)
class PatchFile:
    """One patch."""

    patch: str = option(
        "", "patch.safetensors, or the run folder that holds it", metavar="PATCH", positional=True, required=True
    )
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")


@dataclass(frozen=True)
class PublishedEdit(PatchFile):
    """One patch, or what others publish in its place; such a file does not say what was erased."""

    patch: str = option("", "patch.safetensors, or the run folder that holds it", metavar="PATCH", positional=True)
    lora: str | None = option(
        None, "in place of a patch: a LoRA of diffusers, PEFT, kohya or ComfyUI (LECO, SPM, sliders), a file or a folder",
        metavar="FILE", group="edits of others",
    )  # fmt: skip
    edited: str | None = option(
        None, "in place of a patch: the whole edited model, a folder, file or Hub id of the same architecture as --model; or "
        "its UNet alone, a folder or safetensors file, which may hold the edited layers only (ESD-x)",
        metavar="MODEL", group="edits of others",
    )  # fmt: skip
    forget: tuple[str, ...] = option(
        (), "what such an edit erased, a class or words; repeat (also --concept)", metavar="NAME", group="edits of others",
        aliases=("--concept",),
    )  # fmt: skip
    synonyms: tuple[str, ...] = option((), "other words for it", metavar="A,B,…", comma=True, group="edits of others")
    forget_prompts: tuple[str, ...] = option(
        (), "prompt with it, or a text file of them; repeat (default: as in erase-concept)", metavar="PROMPT_OR_FILE",
        group="edits of others",
    )  # fmt: skip
    prompt_files: tuple[str, ...] = option(
        (), "the text files that prompts came from, which --overwrite leaves alone", hidden=True, replayed=False
    )

    def __post_init__(self) -> None:
        given = [name for name, value in (("PATCH", self.patch), ("--lora", self.lora), ("--edited", self.edited)) if value]
        require(len(given) > 0, "name a patch, or another's edit with --lora FILE or --edited MODEL")
        require(len(given) == 1, f"{' and '.join(given)} are edits each: give one of them")
        words = self.forget or self.synonyms or self.forget_prompts
        require(
            not self.patch or not words,
            "a patch says itself what it erased: --forget, --synonyms and --forget-prompts are for --lora and --edited",
        )
        require(bool(self.patch or self.forget), f"{given[0]} does not say what was erased: give it with --forget, in words")


@dataclass(frozen=True)
class BaseModel:
    """The model that a patch goes on; what is None or empty, the patch or the model says."""

    model: str | None = option(None, "base model (default: the one the patch was made for)", metavar="MODEL", group="model")
    class_names: tuple[str, ...] = option(
        (), "names of the model's classes, in order (default: the patch's)", metavar="A,B,…", comma="names", group="model"
    )
    null_class: int | None = option(
        None, "index of 'no class' (default: the last, if there is one more than names)", metavar="INDEX", group="model"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the base model is a single file that does not say so (SD 2.x)", group="model"
    )
