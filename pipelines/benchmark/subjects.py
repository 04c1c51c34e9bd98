"""What a benchmark can erase from a model: its classes, or the objects and styles of its vocabulary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from semu_diffusion import assets
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.peers.methods import Method
from semu_diffusion.pipelines.benchmark.config import BenchmarkConfig
from semu_diffusion.pipelines.runs.config import (
    ClassModelConfig,
    EraseClassConfig,
    EraseConceptConfig,
    EvaluationConfig,
    PatchedModelConfig,
)
from semu_diffusion.pipelines.runs.domains import Subject, load_classes, load_concepts
from semu_diffusion.pipelines.runs.models import load_model

__all__ = ["Subjects", "subjects_of"]

IMAGES = {"class": 50, "concept": 10}
# which original, and how it is sampled and judged: it is sampled once for all rows
OF_ALL_ROWS = {field.name for kind in (EvaluationConfig, PatchedModelConfig) for field in dataclasses.fields(kind)} - {
    "gradient_checkpointing", "guidance_scale",
}  # fmt: skip


@dataclass(frozen=True)
class Subjects:
    """``names``: all that can be erased. ``kinds``: of each, class, object or style."""

    domain: assets.Kind
    names: tuple[str, ...]
    kinds: dict[str, str]
    source: str
    config: BenchmarkConfig

    def checked(self, erased: str) -> str:
        """A name, or several with + between them; InputError for one that the model does not know."""
        for name in erased.split("+"):
            if name not in self.kinds:
                near = get_close_matches(name, self.names, 1)
                hint = f"did you mean {near[0]}?" if near else f"it names {', '.join(self.names[:20])}"
                raise InputError(f"the model knows no {name!r}: {hint}")
        return erased

    def kind(self, erased: str) -> str:
        return "+".join(sorted({self.kinds[name] for name in erased.split("+")}))

    def settings(self, erased: str, method: Method | None = None, seed: int | None = None) -> Any:
        """The config of one row: the erase command's, with the method's overrides."""
        config, names = self.config, tuple(erased.split("+"))
        shared: dict[str, Any] = {
            "model": self.source, "device": config.device, "classifier": config.classifier,
            "seed": int(config.seeds[0]) if seed is None else seed,
            "images_per_condition": config.images or IMAGES[self.domain], "sampling_steps": config.sampling_steps,
            "sampling_precision": config.sampling_precision, "revival": config.revival and config.classifier != "none",
            "probes": config.probes, "probe_samples": config.probe_samples,
            "unconditional_samples": config.unconditional_samples,
        }  # fmt: skip
        if config.guidance_scale is not None:
            shared["guidance_scale"] = config.guidance_scale
        made: Any = (
            EraseClassConfig(forget=names, **shared) if self.domain == "class" else EraseConceptConfig(concept=names, **shared)
        )
        strange = sorted(OF_ALL_ROWS & {*(method.shared if method else ())})
        if strange:
            said = f"the method {method.name if method else ''!r} sets {strange[0]!r}"
            raise InputError(f"{said}, which all rows share: measure it in a benchmark of its own")
        try:
            return made if method is None else dataclasses.replace(made, **method.shared)
        except TypeError as error:
            raise InputError(f"the method {method.name if method else ''!r} has a setting that is none ({error})") from error

    def load(self, settings: Any) -> Subject:
        return load_classes(settings) if self.domain == "class" else load_concepts(settings)


def subjects_of(config: BenchmarkConfig) -> Subjects:
    """The subjects of the config's model; InputError for a model that names nothing."""
    source = assets.placed(config.model)
    vocabulary = read_vocabulary(source)
    if vocabulary is not None:
        return _of_vocabulary(vocabulary, source, config)
    model = load_model(ClassModelConfig(model=source, device=config.device))
    if not model.conditional or not model.names:
        raise InputError(f"{config.model} names neither classes nor a vocabulary: there is nothing to erase in turn")
    return Subjects("class", model.names, dict.fromkeys(model.names, "class"), source, config)


def _of_vocabulary(vocabulary: Vocabulary, source: str, config: BenchmarkConfig) -> Subjects:
    if not vocabulary.judges and config.classifier == "auto":
        raise InputError(f"the vocabulary of {config.model} names no judge: the benchmark measures by them")
    kinds = dict.fromkeys(vocabulary.objects, "object")
    kinds |= {style: "style" for style in vocabulary.styles if style != vocabulary.plain_style}
    return Subjects("concept", tuple(kinds), kinds, source, config)
