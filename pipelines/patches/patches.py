"""A patch as a user names it, what it holds, and the model it was made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semu_diffusion import assets
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.errors import InputError
from semu_diffusion.models.checkpoints import load_text_pipeline
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import network_of
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.patches.patch_settings import BaseModel
from semu_diffusion.pipelines.runs.config import ClassModelConfig
from semu_diffusion.pipelines.runs.models import load_model
from semu_diffusion.pipelines.runs.quiet import quiet_libraries

__all__ = ["LoadedBase", "base_model", "class_model", "describe", "is_of_concepts", "load_patch", "patch_file"]


def patch_file(given: str) -> Path:
    """The patch itself, where a run folder stands for the patch it holds."""
    path = Path(given)
    return path / "patch.safetensors" if path.is_dir() else path


def load_patch(given: str, strength: float = 1.0) -> ErasurePatch:
    """The patch, ``strength`` times as strong as it was saved. Raises InputError for a file that is no patch."""
    patch = ErasurePatch.load(patch_file(given))
    return patch.scale(patch.strength * strength)


def is_of_concepts(patch: ErasurePatch) -> bool:
    return "concept" in patch.metadata


def describe(given: str, layers: bool = False) -> Iterator[str]:
    """Lines on what a patch holds: how it was made, its size, its base model; with ``layers`` one for every layer."""
    path = patch_file(given)
    patch = ErasurePatch.load(path)
    forms = sorted({layer.matricisation for layer in patch.layers.values()})
    ranks = [int(rank) for layer in patch.layers.values() for rank in layer.ranks]
    yield f"{path}: {path.stat().st_size / 1000:.0f} kB, strength {patch.strength:g}"
    for key, value in patch.metadata.items():
        yield f"  {key.replace('_', ' ')}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
    yield f"  trained parameters: {patch.trained_parameters:,}"
    yield f"  layers: {len(patch.layers)}, matricisation {', '.join(forms)}, ranks {min(ranks)} to {max(ranks)}"
    yield f"  base model structure: {patch.fingerprint.structure}"
    width = max(map(len, patch.layers))
    for name, layer in patch.layers.items() if layers else ():
        shape, size = "x".join(map(str, layer.shape)), float(patch.delta(name).norm())
        yield f"  {name:<{width}}  {shape:>12}  rank {int(layer.ranks.max()):>3}  |dW| {size:.4f}"


def class_model(patch: ErasurePatch, config: ClassModelConfig) -> ClassConditional:
    """The model of classes that ``config`` names, where ``embedded`` is the one that the patch was made for."""
    if config.model == EMBEDDED:
        config = replace(config, model=str(patch.metadata.get("base_model") or EMBEDDED))
    if not config.class_names:
        null = patch.metadata.get("null_class") if config.null_class is None else config.null_class
        config = replace(config, class_names=tuple(patch.metadata.get("class_names", ())), null_class=null)
    return load_model(config)


@dataclass(frozen=True)
class LoadedBase:
    """A pipeline, its network that patches go on, where it came from, and its vocabulary if it has one."""

    pipeline: Any
    network: Any
    source: str
    vocabulary: Vocabulary | None


def base_model(patches: Sequence[ErasurePatch], config: BaseModel) -> LoadedBase:
    """The model that the patches were made for, on the CPU. Raises InputError if they were not made for one."""
    quiet_libraries()
    of_concepts = [is_of_concepts(patch) for patch in patches]
    if any(of_concepts) != all(of_concepts):
        raise InputError("these are patches of erase-class and of erase-concept: they go on different models")
    if not of_concepts[0]:
        wanted = ClassModelConfig(config.model or EMBEDDED, "cpu", config.class_names, config.null_class)
        model = class_model(patches[0], wanted)
        return LoadedBase(model.pipeline, model.denoiser, str(model.source), None)
    named = config.model or str(patches[0].metadata.get("base_model") or EMBEDDED)
    source = str(assets.folder("tiny-sd")) if named == EMBEDDED else named
    pipeline = load_text_pipeline(source, checked=True, prediction=config.prediction)
    return LoadedBase(pipeline, network_of(pipeline), named, read_vocabulary(source))
