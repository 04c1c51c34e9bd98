"""What the user can set of an erasure of classes, and of one of concepts; light, so that ``--help`` answers at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.errors import Notice
from semu_diffusion.names.words import named
from semu_diffusion.options import option, require

__all__ = ["PRESETS", "ClassErasureConfig", "ConceptErasureConfig"]

# keys and values of cross-attention, of the text tokens in joint attention, and all of the blocks before it that see no image
OF_TEXT = ("*.attn2.to_k", "*.attn2.to_v", "*.add_k_proj", "*.add_v_proj", "context_refiner.*")


@dataclass(frozen=True)
class ClassErasureConfig(ErasureConfig):
    """Settings of the erasure of classes."""

    forget: tuple[str, ...] = option(
        (), "classes to erase, by name or index (also --forget CLASS)", metavar="CLASS", group="erase", positional=True,
        aliases=("--forget",),
    )  # fmt: skip
    preset: Literal["default", "official"] = option("default", "official: the choices of the reference code", group="erase")
    anchor: str | None = option(
        None, "the other class of --target fixed (default: the second nearest)", metavar="CLASS", group="training"
    )

    def __post_init__(self) -> None:
        ErasureConfig.__post_init__(self)
        require(len(self.forget) > 0, "nothing to erase: name a class, as in `erase-class cat`")
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
        "method": "trained",
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
        "warmup": 0.0,
        "adam_beta2": 0.999,
        "gradient_clip": 1.0,
    },
}


@dataclass(frozen=True)
class ConceptErasureConfig(ErasureConfig):
    """Settings of the erasure of concepts; ``--target unconditional`` with ``--overshoot`` eta is ESD's negative guidance."""

    concept: tuple[str, ...] = option(
        (), "what to erase, in words; several are erased at once (also --forget CONCEPT)", metavar="CONCEPT", group="erase",
        positional=True, aliases=("--forget",),
    )  # fmt: skip
    preset: Literal["default"] = option("default", "the only one", group="erase", hidden=True)  # stands in every run.json
    synonyms: tuple[str, ...] = option((), "other words for it, erased too", metavar="A,B,…", comma=True, group="erase")
    anchor: str | None = option(
        None, "what replaces it: words in its place, or '' for no prompt (default: chosen, and said)",
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
    retain: Literal["self", "none"] = option(  # type: ignore[assignment]
        "self", "retain term: the model's own predictions on images it makes of the retain prompts, or none", group="erase"
    )
    # four times that of classes: half of the drift for the same revival (docs/experiments.md, tenth round)
    retain_weight: float = option(
        32.0, "alpha of the retain term (chosen for --retain self)", metavar="ALPHA", group="training"
    )
    layers: tuple[str, ...] = option(
        ("attention", "conv", *(f"!{name}" for name in OF_TEXT), "!*.conv_depth"),
        "layers to edit: all, attention, cross-attention, conv, linear, globs; !x leaves x out (what sees text alone only "
        "remaps words, and a depthwise filter is no LoRA)",
        metavar="A,B,…", comma=True, group="subspace",
    )  # fmt: skip
    guidance_scale: float | None = option(  # type: ignore[assignment]
        None,
        "classifier-free guidance w; 1 is none (default: the model's own, else 7.5)",
        metavar="W",
        group="evaluation",
    )
    target: Literal["fixed", "unconditional", "ascent"] = option(  # type: ignore[assignment]
        "fixed", "what replaces the concept: its anchor, no prompt; or denoise it worse", group="training"
    )

    def __post_init__(self) -> None:
        ErasureConfig.__post_init__(self)
        require(self.retain in ("self", "none"), f"retain {self.retain!r}: self or none")
        require(len(self.concept) > 0, "nothing to erase: say what, in words")
        for given in (*self.concept, *self.synonyms, *self.forget_prompts, *self.retain_prompts, self.anchor or ""):
            require(isinstance(given, str), f"a concept or prompt is text, several are values of their own, not {given!r}")
        words = tuple(map(named, self.concept))
        require(all(words), "the concept is empty: say what to erase, in words")
        for given, found in zip(self.concept, words, strict=True):
            if found != given.strip():
                warnings.warn(f"{given!r} is read as {found!r}", Notice, stacklevel=4)
        object.__setattr__(self, "concept", words)
        object.__setattr__(self, "synonyms", tuple(filter(None, map(named, self.synonyms))))
        require(
            self.anchor is None or self.target == "fixed",
            f"--anchor contradicts --target {self.target}: only --target fixed has an anchor",
        )
        same = {words.strip().lower() for words in (*self.concept, *self.synonyms)}
        require(
            self.anchor is None or self.anchor.strip().lower() not in same,
            f"--anchor {self.anchor!r} is what shall be erased: name something else",
        )
