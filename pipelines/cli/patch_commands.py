"""``semu info | merge | grid | evaluate``: what one does with a patch once it is there."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags
from semu_diffusion.pipelines.runs.config import ClassModelConfig, EvaluatePatchConfig, PatchedModelConfig

if TYPE_CHECKING:
    from semu_diffusion.models.ddpm import ClassConditional
    from semu_diffusion.patch import ErasurePatch

__all__ = ["main", "parse"]


@dataclass(frozen=True)
class InfoConfig:
    layers: bool = option(False, "list every layer with its rank and the size of its update")


@dataclass(frozen=True)
class MergeConfig(ClassModelConfig):
    output: str = option("", "folder for the merged model, in diffusers layout", metavar="DIR")
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")


@dataclass(frozen=True)
class GridConfig(PatchedModelConfig):
    output: str = option("before_after.png", "picture to write", metavar="FILE")
    images: int | None = option(None, "images of each class or prompt, left and right (default: as many as fit)", metavar="N")
    sampling_steps: int | None = option(None, "DDIM steps (default: 50 for classes, 25 for prompts)", metavar="N")
    guidance_scale: float | None = option(
        None, "classifier-free guidance w (default: 3 for classes; the model's own, else 7.5)", metavar="W"
    )
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")
    seed: int = option(0, "other seeds, other pictures", metavar="SEED")

    def evaluation(self) -> EvaluatePatchConfig:
        """How it is sampled; InputError for a number that cannot be."""
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("output", "images")}
        return EvaluatePatchConfig(images_per_condition=self.images or 8, classifier="none", **shared)


CONFIGS = {"info": InfoConfig, "merge": MergeConfig, "grid": GridConfig, "evaluate": EvaluatePatchConfig}
DESCRIPTIONS = {
    "info": "What a patch holds.",
    "merge": "Write a model with the patch in its weights for good.",
    "grid": "Draw classes or prompts before and after the patch, from the same seeds.",
    "evaluate": "Score a patch: the same numbers as the run that made it, in a run folder of their own.",
}


def parse(argv: Sequence[str]) -> Namespace:
    """``argv`` begins with the command. Gives its patch path and its config."""
    command = argv[0]
    parser = Parser(prog=f"semu {command}", description=DESCRIPTIONS[command])
    parser.add_argument("patch", metavar="PATCH", help="patch.safetensors, or the run folder that holds it")
    add_config_flags(parser, CONFIGS[command])
    flags = vars(parser.parse_args(argv[1:]))
    patch = Path(flags.pop("patch"))
    path = patch / "patch.safetensors" if patch.is_dir() else patch
    return Namespace(command=command, patch=path, config=build_config(CONFIGS[command], flags))


def main(argv: Sequence[str]) -> int:
    def job() -> int:
        found = parse(argv)
        jobs: dict[str, Callable[..., int]] = {"info": _info, "merge": _merge, "grid": _grid, "evaluate": _evaluate}
        return jobs[found.command](found.patch, found.config)

    return run_guarded(f"semu {argv[0]}", job)


def _info(path: Path, config: InfoConfig) -> int:
    from semu_diffusion.patch import ErasurePatch

    patch = ErasurePatch.load(path)
    forms = sorted({layer.matricisation for layer in patch.layers.values()})
    ranks = [int(rank) for layer in patch.layers.values() for rank in layer.ranks]
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, strength {patch.strength:g}")
    for key, value in patch.metadata.items():
        print(f"  {key.replace('_', ' ')}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    print(f"  trained parameters: {patch.trained_parameters:,}")
    print(f"  layers: {len(patch.layers)}, matricisation {', '.join(forms)}, ranks {min(ranks)} to {max(ranks)}")
    print(f"  base model structure: {patch.fingerprint.structure}")
    if config.layers:
        width = max(map(len, patch.layers))
        for name, layer in patch.layers.items():
            shape = "x".join(map(str, layer.shape))
            print(
                f"  {name:<{width}}  {shape:>12}  rank {int(layer.ranks.max()):>3}  |dW| {float(patch.delta(name).norm()):.4f}"
            )
    return 0


def _patched(path: Path, config: ClassModelConfig, strength: float) -> tuple[ErasurePatch, ClassConditional, list[int]]:
    from semu_diffusion.patch import ErasurePatch
    from semu_diffusion.pipelines.runs.models import load_model

    patch = ErasurePatch.load(path)
    patch = patch.scale(patch.strength * strength)
    if "concept" in patch.metadata:
        raise InputError(f"{path} is a patch of erase-concept: semu export writes its model or LoRA, --config replays its run")
    if config.model == "embedded":
        base = str(patch.metadata.get("base_model") or "embedded")
        config = dataclasses.replace(config, model=base)
    if not config.class_names:
        config = dataclasses.replace(config, class_names=tuple(patch.metadata.get("class_names", ())))
    model = load_model(config)
    patch.fingerprint.check(model.denoiser)
    forget = [model.class_index(str(name)) for name in patch.metadata.get("forget", [])]
    return patch, model, forget


def _merge(path: Path, config: MergeConfig) -> int:
    from semu_diffusion.files import forget_places
    from semu_diffusion.pipelines.runs.folder import written_beside

    if not config.output:
        raise InputError("say where the merged model goes with --output")
    target = Path(config.output)
    if target.exists():
        raise InputError(f"--output {target} exists already: choose another folder")
    patch, model, _ = _patched(path, config, config.strength)
    patch.merge(model.denoiser)
    with written_beside(target) as beside:
        model.pipeline.save_pretrained(beside)
        forget_places(beside)
    print(f"{target}: the model with the patch in its weights, float32")
    return 0


def _grid(path: Path, config: GridConfig) -> int:
    from semu_diffusion.pipelines.runs.evaluate import draw_patch

    draw_patch(str(path), config.evaluation(), config.output, config.images)
    print(config.output)
    return 0


def _evaluate(path: Path, config: EvaluatePatchConfig) -> int:
    from semu_diffusion.pipelines.runs.evaluate import evaluate_patch

    return evaluate_patch(str(path), config)
