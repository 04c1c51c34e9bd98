"""``semu apply | export``: several patches on one model, and a patch as files that other tools load."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.errors import InputError
from semu_diffusion.files import forget_places
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.runs.folder import written_beside

if TYPE_CHECKING:
    from semu_diffusion.domains.vocabulary import Vocabulary
    from semu_diffusion.patch import ErasurePatch

__all__ = ["main", "parse"]

HARMLESS, STRONG = 0.1, 0.5  # shares of one patch's update within the other's subspaces


@dataclass(frozen=True)
class ApplyConfig:
    model: str | None = option(None, "base model (default: the one the patches were made for)", metavar="MODEL")
    output: str | None = option(None, "folder for the model with all patches in its weights", metavar="DIR")
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the base model is a single file that does not say so (SD 2.x)"
    )
    strength: float = option(1.0, "factor on every update, beside the strength that its patch was saved with", metavar="S")


@dataclass(frozen=True)
class ExportConfig:
    model: str | None = option(None, "base model (default: the one the patch was made for)", metavar="MODEL")
    merged: str | None = option(None, "folder for the full pipeline with the patch in its weights", metavar="DIR")
    lora: str | None = option(None, "folder for the LoRA files: diffusers, and the twin for ComfyUI and A1111", metavar="DIR")
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the base model is a single file that does not say so (SD 2.x)"
    )
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")


CONFIGS: dict[str, type] = {"apply": ApplyConfig, "export": ExportConfig}
DESCRIPTIONS = {
    "apply": "Put several patches on one model: how much they interfere, and with --output the model that has them all.",
    "export": "Write a patch as a merged pipeline or as LoRA files.",
}
EXAMPLES = {
    "apply": ("semu apply runs/cat runs/ship --output without-both",),
    "export": ("semu export runs/cat --merged without-cat --lora lora", "semu export runs/cat --strength 0.7 --lora gentle"),
}


def parse(argv: Sequence[str]) -> Namespace:
    """``argv`` begins with the command. Gives its patch paths and its config."""
    command = argv[0]
    parser = Parser(prog=f"semu {command}", description=DESCRIPTIONS[command], epilog=epilog(EXAMPLES[command]))
    several = "+" if command == "apply" else 1
    parser.add_argument("patch", metavar="PATCH", nargs=several, help="patch.safetensors, or the run folder that holds it")
    add_config_flags(parser, CONFIGS[command])
    flags = vars(parser.parse_intermixed_args(argv[1:]))
    paths = [Path(given) / "patch.safetensors" if Path(given).is_dir() else Path(given) for given in flags.pop("patch")]
    return Namespace(command=command, patches=paths, config=build_config(CONFIGS[command], flags))


def main(argv: Sequence[str]) -> int:
    def job() -> int:
        found = parse(argv)
        jobs: dict[str, Callable[..., int]] = {"apply": _apply, "export": _export}
        return jobs[found.command](found.patches, found.config)

    return run_guarded(f"semu {argv[0]}", job)


def _apply(paths: Sequence[Path], config: ApplyConfig) -> int:
    from semu_diffusion.interference import interference
    from semu_diffusion.patch import ErasurePatch

    target = _new_folder("--output", config.output)
    patches = [patch.scale(patch.strength * config.strength) for patch in map(ErasurePatch.load, paths)]
    pipeline, network, vocabulary = _base_model(patches, config)
    for patch in patches:
        patch.apply(network)  # each was made for the model without the others, and is checked against it
    for (path_a, a), (path_b, b) in combinations(zip(paths, patches, strict=True), 2):
        both = interference(a, b), interference(b, a)
        share = max(found.share for found in both)
        said = "hardly any" if share < HARMLESS else "some" if share < STRONG else "strong: erase both in one run instead"
        print(
            f"{path_a} and {path_b}: {both[0].shared_layers} layers in common, cosine of the updates {both[0].cosine:+.3f}, "
            f"{both[0].share:.1%} and {both[1].share:.1%} of them within the other's subspaces. Interference: {said}."
        )
    if target is None:
        print("nothing was written; --output writes the model with " + ("both" if len(patches) == 2 else "all of them"))
        return 0
    _save(pipeline, vocabulary, target)
    return 0


def _export(paths: Sequence[Path], config: ExportConfig) -> int:
    from semu_diffusion.lora import save_lora
    from semu_diffusion.models.stable_diffusion import family_of
    from semu_diffusion.patch import ErasurePatch

    if config.merged is None and config.lora is None:
        raise InputError("say what to write: --merged DIR, --lora DIR, or both")
    target = _new_folder("--merged", config.merged)
    folder = _new_folder("--lora", config.lora)
    patch = ErasurePatch.load(paths[0])
    patch = patch.scale(patch.strength * config.strength)
    if "concept" not in patch.metadata:
        raise InputError(
            f"{paths[0]} is a patch of erase-class: semu merge writes its model, lora/ of its run is a PEFT folder"
        )
    pipeline, network, vocabulary = _base_model([patch], config)
    patch.fingerprint.check(network)
    if folder is not None:
        with written_beside(folder) as beside:
            save_lora(patch, beside, family=family_of(pipeline))
        print(f"{folder}: LoRA files for diffusers, ComfyUI and A1111")
    if target is not None:
        patch.merge(network)
        _save(pipeline, vocabulary, target)
    return 0


def _base_model(patches: Sequence[ErasurePatch], config: ApplyConfig | ExportConfig) -> tuple[object, Any, Vocabulary | None]:
    """Pipeline, network and vocabulary of the model the patches were made for; InputError if they were not made for one."""
    from semu_diffusion import assets
    from semu_diffusion.domains.vocabulary import read_vocabulary
    from semu_diffusion.models.checkpoints import load_text_pipeline
    from semu_diffusion.pipelines.runs.class_settings import ModelConfig
    from semu_diffusion.pipelines.runs.quiet import quiet_libraries
    from semu_diffusion.pipelines.runs.scoring import load_model

    quiet_libraries()
    words = ["concept" in patch.metadata for patch in patches]
    if any(words) != all(words):
        raise InputError("these are patches of erase-class and of erase-concept: they go on different models")
    source = config.model or str(patches[0].metadata.get("base_model") or "") or EMBEDDED
    if not words[0]:
        named = tuple(patches[0].metadata.get("class_names", ()))
        model = load_model(ModelConfig(model=source, class_names=named))
        return model.pipeline, model.denoiser, None
    source = str(assets.folder("tiny-sd")) if source == EMBEDDED else source
    pipeline = load_text_pipeline(source, checked=True, prediction=config.prediction)
    return pipeline, pipeline.unet, read_vocabulary(source)


def _new_folder(flag: str, given: str | None) -> Path | None:
    if given is None:
        return None
    path = Path(given)
    if path.exists():
        raise InputError(f"{flag} {path} exists already: choose another folder")
    return path


def _save(pipeline: Any, vocabulary: Vocabulary | None, target: Path) -> None:
    with written_beside(target) as beside:
        pipeline.save_pretrained(beside)
        forget_places(beside)
        if vocabulary is not None:
            vocabulary.save(beside)
    print(f"{target}: the full pipeline, in diffusers layout")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
