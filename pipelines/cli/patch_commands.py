"""``semu info | merge | grid | evaluate``: what one does with a patch once it is there."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option, require
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags
from semu_diffusion.pipelines.cli.progress import Bars
from semu_diffusion.pipelines.runs.class_settings import EvaluationConfig, ModelConfig

if TYPE_CHECKING:
    from semu_diffusion.models.ddpm import ClassConditional
    from semu_diffusion.patch import ErasurePatch

__all__ = ["main", "parse"]


@dataclass(frozen=True)
class InfoConfig:
    layers: bool = option(False, "list every layer with its rank and the size of its update")


@dataclass(frozen=True)
class MergeConfig(ModelConfig):
    output: str = option("", "folder for the merged model, in diffusers layout", metavar="DIR")
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")


@dataclass(frozen=True)
class GridConfig(ModelConfig):
    output: str = option("before_after.png", "picture to write", metavar="FILE")
    images: int = option(8, "images of each class, left and right", metavar="N")
    sampling_steps: int = option(50, "DDIM steps", metavar="N")
    guidance_scale: float = option(3.0, "classifier-free guidance w", metavar="W")
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")
    seed: int = option(0, "other seeds, other pictures", metavar="SEED")


@dataclass(frozen=True)
class RescoreConfig(EvaluationConfig):
    forget_images: str | None = option(
        None, "images that --revival learns the class from (default: the model makes them)", metavar="DIR_OR_DATASET"
    )
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.revival or self.forget_images is None, "--forget-images is what --revival learns from: give both")


CONFIGS = {"info": InfoConfig, "merge": MergeConfig, "grid": GridConfig, "evaluate": RescoreConfig}
DESCRIPTIONS = {
    "info": "What a patch holds.",
    "merge": "Write a model with the patch in its weights for good.",
    "grid": "Draw classes before and after the patch, from the same seeds.",
    "evaluate": "Score a patch: the same numbers as erase-class, in a run folder of their own.",
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


def _patched(path: Path, config: ModelConfig, strength: float) -> tuple[ErasurePatch, ClassConditional, list[int]]:
    from semu_diffusion.patch import ErasurePatch
    from semu_diffusion.pipelines.runs.scoring import load_model

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
    from semu_diffusion.pipelines.runs.proof import draw
    from semu_diffusion.pipelines.runs.scoring import Scorer

    scoring = EvaluationConfig(
        images_per_class=config.images,
        sampling_steps=config.sampling_steps,
        guidance_scale=config.guidance_scale,
        classifier="none",
        seed=config.seed,
    )
    patch, model, forget = _patched(path, config, config.strength)
    scorer, bars = Scorer(model, scoring, forget), Bars(sys.stderr)
    try:
        before = scorer.sample(bars.show, "sampling before")
        patch.apply(model.denoiser)
        after = scorer.sample(bars.show, "sampling after")
    finally:
        bars.close()
    draw(Path(config.output), before, after, [model.names[i] for i in forget], scoring, images=config.images)
    print(config.output)
    return 0


def _evaluate(path: Path, config: RescoreConfig) -> int:
    from semu_diffusion.domains.classes import forget_set_of
    from semu_diffusion.erase.samples import training_images
    from semu_diffusion.pipelines.runs.class_settings import EraseClassConfig
    from semu_diffusion.pipelines.runs.folder import RunFolder, environment, write_json
    from semu_diffusion.pipelines.runs.inputs import forget_images
    from semu_diffusion.pipelines.runs.proof import prove, table
    from semu_diffusion.pipelines.runs.scoring import Scorer

    patch, model, forget = _patched(path, config, config.strength)
    names = [model.names[index] for index in forget]
    inputs = (
        path, model.source, config.classifier, config.forget_images, config.fid_reference, config.class_mapping,
        config.inception_weights,
    )  # fmt: skip
    folder = RunFolder(config.output, "-".join(["evaluate", *names])[:80], config.overwrite, inputs)
    scorer = Scorer(model, config, forget)
    settings = EraseClassConfig(
        forget=tuple(names), forget_images=config.forget_images, seed=config.seed, guidance_scale=config.guidance_scale
    )
    revived = config.revival and model.conditional
    forget_set = forget_set_of(model, forget, forget_images(config.forget_images, model)) if revived else None
    folder.create()
    record = {
        "status": "running",
        "patch": str(path),
        "config": dataclasses.asdict(config),
        "base_model": {"source": model.source, "revision": model.revision},
        **environment(model.device),
    }
    bars = Bars(sys.stderr)
    try:
        with folder.recorded(record):
            images = training_images(model, settings, forget, forget_set, bars.show) if revived else None
            metrics, reason = prove(model, patch, path.stat().st_size, scorer, folder, bars, images)
            status = "complete" if reason is None else f"collapsed: {reason}"
            write_json(folder / "run.json", {**record, "status": status})
    finally:
        bars.close()
    if reason is not None:
        print(f"semu evaluate: the patch destroys the model: {reason}. Look at {folder / 'before_after.png'}.", file=sys.stderr)
    if config.json:
        print((folder / "metrics.json").read_text(encoding="utf-8"), end="")
    else:
        print(table(metrics, names, folder))
    return 0 if reason is None else 1
