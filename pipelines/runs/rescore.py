"""A patch that is there already, drawn and scored again: other counts, other steps, another judge."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from semu_diffusion.domains.classes import forget_set_of
from semu_diffusion.erase.samples import training_images
from semu_diffusion.errors import InputError
from semu_diffusion.files import write_json
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.runs.class_settings import EraseClassConfig, EvaluationConfig, ModelConfig
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.inputs import forget_images
from semu_diffusion.pipelines.runs.patches import class_model, is_of_concepts, load_patch, patch_file
from semu_diffusion.pipelines.runs.proof import draw, prove, table
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.scoring import Scorer

__all__ = ["grid", "rescore"]


def grid(given: str, strength: float, config: EvaluationConfig, output: str) -> None:
    """Draw every class before and after the patch, ``images_per_class`` of each from the same seeds."""
    patch, model, forget = _patched(given, strength, config)
    scorer = Scorer(model, config, forget)
    with Progress() as progress:
        before = scorer.sample(progress.show, "sampling before")
        patch.apply(model.denoiser)
        after = scorer.sample(progress.show, "sampling after")
    forgotten = [model.names[index] for index in forget]
    draw(Path(output), before, after, forgotten, config, images=config.images_per_class)


def rescore(given: str, strength: float, config: EvaluationConfig, pictures: str | None) -> int:
    """Score a patch into a run folder of its own; 0, or 1 if it destroys the model.

    ``pictures`` are those that the revival learns from, which the model makes itself if there are none.
    """
    path = patch_file(given)
    patch, model, forget = _patched(given, strength, config)
    names = [model.names[index] for index in forget]
    inputs = (
        path, model.source, config.classifier, pictures, config.fid_reference, config.class_mapping, config.inception_weights,
    )  # fmt: skip
    folder = RunFolder(config.output, "-".join(["evaluate", *names])[:80], config.overwrite, inputs)
    scorer = Scorer(model, config, forget)
    settings = EraseClassConfig(
        forget=tuple(names), forget_images=pictures, seed=config.seed, guidance_scale=config.guidance_scale
    )
    revived = config.revival and model.conditional
    forget_set = forget_set_of(model, forget, forget_images(pictures, model)) if revived else None
    folder.create()
    record = {
        "patch": str(path),
        "config": dataclasses.asdict(config),
        "base_model": {"source": model.source, "revision": model.revision},
        **environment(model.device, config.sampling_precision),
    }
    with folder.recorded(record), Progress() as progress:
        images = training_images(model, settings, forget, forget_set, progress.show) if revived else None
        metrics, reason = prove(model, patch, path.stat().st_size, scorer, folder, progress, images)
        status = "complete" if reason is None else f"collapsed: {reason}"
        write_json(folder / "run.json", {**record, "status": status})
    if reason is not None:
        print(f"semu evaluate: the patch destroys the model: {reason}. Look at {folder / 'before_after.png'}.", file=sys.stderr)
    print(folder.shown("metrics.json") if config.json else table(metrics, names, folder))
    return 0 if reason is None else 1


def _patched(given: str, strength: float, config: ModelConfig) -> tuple[ErasurePatch, ClassConditional, list[int]]:
    patch = load_patch(given, strength)
    if is_of_concepts(patch):
        raise InputError(f"{given} is a patch of erase-concept: semu export writes its model or LoRA, --config replays its run")
    model = class_model(patch, config)
    patch.fingerprint.check(model.denoiser)
    return patch, model, [model.class_index(str(name)) for name in patch.metadata.get("forget", [])]
