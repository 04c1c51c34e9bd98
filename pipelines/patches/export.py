"""Patches leave the house: as models that have them in their weights, as LoRA files; and how two of them interfere."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError, Notice
from semu_diffusion.files import atomic_folder, read_json, save_tensors, strip_local_paths, write_json
from semu_diffusion.models.class_names import ClassNames, class_names
from semu_diffusion.models.families import family_of
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.interference import interference
from semu_diffusion.patches.quantised import readable
from semu_diffusion.pipelines.patches.patch_settings import BaseModel
from semu_diffusion.pipelines.patches.patches import LoadedBase, base_model, load_patch
from semu_diffusion.pipelines.patches.single_file import original_tensors

__all__ = ["apply", "export", "interferences", "new_place"]

HARMLESS, STRONG = 0.1, 0.5  # shares of one patch's update within the other's subspaces


def apply(paths: Sequence[str], strength: float, config: BaseModel, output: str | None) -> Iterator[str]:
    """Put the patches on one model and write it to ``output``, if that is given. Yields lines on how they interfere."""
    target = new_place("--output", output)
    patches = [load_patch(path, strength) for path in paths]
    base = base_model(paths, patches, config)
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


def export(
    path: str,
    strength: float,
    config: BaseModel,
    merged: Path | None = None,
    lora: Path | None = None,
    single_file: Path | None = None,
) -> Iterator[str]:
    """Write one patch as the full pipeline ``merged`` or ``single_file``, or as LoRA files. Yields a line for each."""
    places = [place.resolve() for place in (merged, lora, single_file) if place is not None]
    if any(one.is_relative_to(other) for one, other in permutations(places, 2)):
        raise InputError("of --merged, --lora and --single-file one is or lies in the other: choose places of their own")
    patch = load_patch(path, strength)
    base = base_model([path], [patch], config)
    family = family_of(base.pipeline)
    if single_file is not None and family.lora != "kohya":
        raise InputError("--single-file is a layout of Stable Diffusion 1, 2 and XL; --merged writes any model as a folder")
    if merged is None and single_file is None:
        patch.check(readable(base.network))
    else:
        patch.merge(base.network)
    tensors = {} if single_file is None else original_tensors(base.pipeline, family.name)
    if lora is not None:
        with atomic_folder(lora) as beside:
            family.save_lora(patch, beside)
        yield f"{lora}: LoRA files for {family.clients}"
    if single_file is not None:
        predicts = "v" if "v_pred" in tensors else "epsilon"
        save_tensors(tensors, single_file, {"format": "pt", "modelspec.prediction_type": predicts})
        yield f"{single_file}: the model with the patch in its weights, in the original layout"
    if merged is not None:
        _save(base, merged)
        yield f"{merged}: the full pipeline with the patch in its weights, in diffusers layout"


def new_place(flag: str, given: str | None) -> Path | None:
    """The folder or file that a flag names. Raises InputError if it is there already."""
    if given is None:
        return None
    path = Path(given)
    if path.exists():
        raise InputError(f"{flag} {path} exists already: choose another name")
    if any(parent.is_file() for parent in path.parents):
        raise InputError(f"{flag} {path} lies in what is a file: choose another place")
    return path


def _save(base: LoadedBase, target: Path) -> None:
    with atomic_folder(target) as beside:
        base.pipeline.save_pretrained(beside)
        if base.folder is not None:
            _keep_index_and_scheduler(base.pipeline, base.folder, beside)
        strip_local_paths(beside)
        if base.vocabulary is not None:
            base.vocabulary.save(beside)


def _keep_index_and_scheduler(pipeline: Any, original: Path, saved: Path) -> None:
    """The pipeline class and the scheduler that came in, so that plain diffusers loads the merged model as the original.

    Names of classes that the original's index does not have are added to it.
    """
    if not (original / "model_index.json").is_file():
        return
    index = read_json(original / "model_index.json", largest=None)
    embeddings = pipeline.unet.config.num_class_embeds
    named, known = ClassNames(tuple(pipeline.labels), pipeline.config.null_class), None
    with warnings.catch_warnings(), suppress(InputError):  # names that do not fit: others were given for them
        warnings.simplefilter("ignore", Notice)
        known = class_names(str(original), embeddings, (), index, None)
    if embeddings is not None and known != named:
        index |= {"id2label": dict(pipeline.config.id2label), "null_class": pipeline.config.null_class}
    write_json(saved / "model_index.json", index)
    at_root = not (original / "scheduler").is_dir()  # as google/ddpm-cifar10-32
    schedule = (original if at_root else original / "scheduler") / "scheduler_config.json"
    shutil.copyfile(schedule, saved / "scheduler" / "scheduler_config.json")
