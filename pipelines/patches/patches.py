"""A patch as a user names it, what it holds, and the model it was made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion import assets
from semu_diffusion.assets import EMBEDDED
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.files import public_name, read_json
from semu_diffusion.models.checkpoints import FILES, INDEX, load_text_pipeline
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import network_of
from semu_diffusion.models.hub import folder_or_snapshot, is_hub_id
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora_file import FOLDER_FILES
from semu_diffusion.pipelines.patches.patch_settings import BaseModel
from semu_diffusion.pipelines.runs.config import ClassModelConfig
from semu_diffusion.pipelines.runs.folder import status_of
from semu_diffusion.pipelines.runs.models import load_model
from semu_diffusion.pipelines.runs.quiet import quiet_libraries

__all__ = ["LoadedBase", "base_model", "base_of", "describe", "is_of_concepts", "load_patch", "patch_file"]


def patch_file(given: str) -> Path:
    """The patch itself, where a run folder stands for the patch it holds. Raises InputError for a folder of something else."""
    path = Path(given)
    if (path / INDEX).is_file():
        raise InputError(f"{given} is a model, no patch: semu evaluate --edited {given} scores one that somebody edited")
    if any((path / name).is_file() for name in FOLDER_FILES):
        raise InputError(f"{given} is a LoRA, no patch: semu evaluate --lora {given} scores it")
    return path / "patch.safetensors" if path.is_dir() else path


def load_patch(given: str, strength: float = 1.0) -> ErasurePatch:
    """The patch, ``strength`` times as strong as it was saved. Raises InputError for a file that is no patch."""
    patch = ErasurePatch.load(patch_file(given))
    return patch.scale(patch.strength * strength)


def is_of_concepts(patch: ErasurePatch) -> bool:
    return "concept" in patch.metadata


def describe(given: str, layers: bool = False) -> Iterator[str]:
    """Lines on how far a run came and what its patch holds: how it was made, its size, its base model; with ``layers`` one
    for every layer."""
    path, status = patch_file(given), status_of(Path(given))
    if status is not None:
        yield f"{given}: {status}"
        if not path.exists():
            yield f"  no {path.name}"
            return
    patch = ErasurePatch.load(path)
    forms = sorted({layer.matricisation for layer in patch.layers.values()})
    ranks = [int(rank) for layer in patch.layers.values() for rank in layer.ranks]
    yield f"{path}: {path.stat().st_size / 1000:.0f} kB, strength {patch.strength:g}"
    for key, value in patch.metadata.items():
        said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield f"  {' '.join(key.split()).replace('_', ' ')}: {' '.join(said.split())}"
    yield f"  trained parameters: {patch.trained_parameters:,}"
    yield f"  layers: {len(patch.layers)}, matricisation {', '.join(forms)}, ranks {min(ranks)} to {max(ranks)}"
    yield f"  base model structure: {patch.fingerprint.structure}"
    width = max(map(len, patch.layers))
    for name, layer in patch.layers.items() if layers else ():
        shape, size = "x".join(map(str, layer.shape)), float(patch.delta(name).norm())
        yield f"  {name:<{width}}  {shape:>12}  rank {int(layer.ranks.max()):>3}  |dW| {size:.4f}"


def base_of(path: Path, patch: ErasurePatch) -> str:
    """The model that a patch was made for: where its run folder says it lies, else as the patch calls it.

    A patch knows a local model by its name alone. Raises InputError if that name is no file, folder or Hub id.
    """
    named = str(patch.metadata.get("base_model") or EMBEDDED)
    try:
        saved = str(read_json(path.with_name("run.json"), largest=None)["config"]["model"])
    except (InputError, LookupError, TypeError):
        saved = named
    found = saved if public_name(saved) == named else named
    if found != EMBEDDED and not is_hub_id(found) and not Path(found).expanduser().exists():
        raise InputError(f"{path} was made for a model called {named}, which is not there: say where it lies with --model")
    return found


def _class_model(patch: ErasurePatch, source: str, config: BaseModel) -> ClassConditional:
    """The model of classes, with the patch's own names of them if no others are given."""
    names, null = config.class_names, config.null_class
    if not names:
        names = tuple(patch.metadata.get("class_names", ()))
        null = patch.metadata.get("null_class") if null is None else null
    return load_model(ClassModelConfig(source, "cpu", names, null))


@dataclass(frozen=True)
class LoadedBase:
    """A pipeline, its network that patches go on, and its vocabulary if it has one.

    ``folder`` is where the files of a DDPM on pixels lie: in memory it is a pipeline of ours, whatever it was there.
    """

    pipeline: Any
    network: Any
    vocabulary: Vocabulary | None
    folder: Path | None = None


def base_model(paths: Sequence[str], patches: Sequence[ErasurePatch], config: BaseModel) -> LoadedBase:
    """The model that the patches of these paths were made for, on the CPU; InputError if they were not made for one."""
    quiet_libraries()
    of_concepts = [is_of_concepts(patch) for patch in patches]
    if any(of_concepts) != all(of_concepts):
        raise InputError("these are patches of erase-class and of erase-concept: they go on different models")
    named = config.model or base_of(patch_file(paths[0]), patches[0])
    source = assets.placed(named, "concept" if of_concepts[0] else "class")
    if of_concepts[0]:
        pipeline = load_text_pipeline(source, checked=True, prediction=config.prediction)
        return LoadedBase(pipeline, network_of(pipeline), read_vocabulary(source))
    model = _class_model(patches[0], named, config)
    ours = isinstance(model.pipeline, ClassConditionalPipeline)
    folder = folder_or_snapshot(source, "", FILES)[0] if ours else None
    return LoadedBase(model.pipeline, model.denoiser, None, folder)
