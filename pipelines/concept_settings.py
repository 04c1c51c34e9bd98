"""What the user can set for an erasure from a text-to-image model: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.pipelines.console import option
from semu_diffusion.pipelines.erasure_settings import ErasureConfig, require

__all__ = ["EraseConceptConfig"]


@dataclass(frozen=True)
class EraseConceptConfig(ErasureConfig):
    """Settings of the erasure of concepts; ``--target unconditional`` with ``--overshoot`` eta is ESD's negative guidance."""

    concept: tuple[str, ...] = option((), "what to erase, in words; several are erased at once", metavar="WORDS", group="erase")
    synonyms: tuple[str, ...] = option((), "other words for it, erased too", metavar="A,B,…", comma=True, group="erase")
    anchor: str | None = option(
        None, "what it is answered with: words in its place, or '' for no prompt (default: chosen, and said)",
        metavar="WORDS", group="erase",
    )  # fmt: skip
    forget_prompts: tuple[str, ...] = option(
        (), "prompts with the concept in them; repeat (default: made from templates)", metavar="PROMPT", group="erase"
    )
    retain_prompts: tuple[str, ...] = option(
        (), "prompts whose pictures shall stay as they are; repeat (default: a general list)", metavar="PROMPT", group="erase"
    )
    forget_images: str | None = option(
        None, "images of the concept (default: the model makes them)", metavar="DIR_OR_DATASET", group="erase"
    )
    retain: Literal["self", "none"] = option(  # type: ignore[assignment]
        "self", "retain term: the model's own predictions on images it makes of the retain prompts, or none", group="erase"
    )
    layers: tuple[str, ...] = option(
        ("attention", "conv", "!*.attn2.to_k", "!*.attn2.to_v"),
        "layers to edit: all, attention, conv, linear, globs; !x leaves x out (keys and values of the text only remap words)",
        metavar="A,B,…", comma=True, group="subspace",
    )  # fmt: skip
    target: Literal["fixed", "unconditional", "ascent"] = option(  # type: ignore[assignment]
        "fixed", "what the concept is answered with: its anchor, no prompt; or denoise it worse", group="training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
