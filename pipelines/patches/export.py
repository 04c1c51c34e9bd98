"""Patches leave the house: as models that have them in their weights, as LoRA files; and how two of them interfere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from semu_diffusion.errors import InputError
from semu_diffusion.files import atomic_folder, strip_local_paths
from semu_diffusion.interference import interference
from semu_diffusion.models.families import family_of
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.patches.patch_settings import BaseModel
from semu_diffusion.pipelines.patches.patches import LoadedBase, base_model, load_patch

__all__ = ["apply", "export", "interferences", "new_folder"]

HARMLESS, STRONG = 0.1, 0.5  # shares of one patch's update within the other's subspaces


def apply(paths: Sequence[str], strength: float, config: BaseModel, output: str | None) -> Iterator[str]:
    """Put the patches on one model and write it to ``output``, if that is given. Yields lines on how they interfere."""
    target = new_folder("--output", output)
    patches = [load_patch(path, strength) for path in paths]
    base = base_model(patches, config)
    for patch in patches:
        patch.apply(base.network)  # each was made for the model without the others, and is checked against it
    yield from interferences(paths, patches)
    if target is None:
        yield "nothing was written; --output writes the model with " + ("both" if len(patches) == 2 else "all of them")
    else:
        _save(base, target)
        yield f"{target}: the full pipeline, in diffusers layout"


def interferences(names: Sequence[str], patches: Sequence[ErasurePatch]) -> Iterator[str]:
    """A line for every pair: how much of each update lies within the other's subspaces."""
    for (name_a, a), (name_b, b) in combinations(zip(names, patches, strict=True), 2):
        both = interference(a, b), interference(b, a)
        share = max(found.share for found in both)
        said = "hardly any" if share < HARMLESS else "some" if share < STRONG else "strong: erase both in one run instead"
        yield (
            f"{name_a} and {name_b}: {both[0].shared_layers} layers in common, cosine of the updates {both[0].cosine:+.3f}, "
            f"{both[0].share:.1%} and {both[1].share:.1%} of them within the other's subspaces. Interference: {said}."
        )


def export(path: str, strength: float, config: BaseModel, merged: Path | None, lora: Path | None) -> Iterator[str]:
    """Write one patch as the full pipeline ``merged``, as the LoRA files of ``lora``, or both. Yields a line for each."""
    patch = load_patch(path, strength)
    base = base_model([patch], config)
    patch.check(base.network)
    family = family_of(base.pipeline)
    if lora is not None:
        with atomic_folder(lora) as beside:
            family.save_lora(patch, beside, base.source)
        yield f"{lora}: LoRA files for {family.clients}"
    if merged is not None:
        patch.merge(base.network)
        _save(base, merged)
        yield f"{merged}: the full pipeline with the patch in its weights, in diffusers layout"


def new_folder(flag: str, given: str | None) -> Path | None:
    """The folder that a flag names. Raises InputError if it is there already."""
    if given is None:
        return None
    path = Path(given)
    if path.exists():
        raise InputError(f"{flag} {path} exists already: choose another folder")
    return path


def _save(base: LoadedBase, target: Path) -> None:
    with atomic_folder(target) as beside:
        base.pipeline.save_pretrained(beside)
        strip_local_paths(beside)
        if base.vocabulary is not None:
            base.vocabulary.save(beside)
