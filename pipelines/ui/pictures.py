"""The same seeds before and after patches of any strength, from a model that stays in memory; no page here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch

from semu_diffusion.domains.concepts import STABLE_DIFFUSION_GUIDANCE
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.checkpoints import load_class_conditional, load_text_pipeline
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.models.precision import autocast
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.options import require
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.patches.patches import load_patch
from semu_diffusion.pipelines.runs.config import DEFAULTS
from semu_diffusion.pipelines.runs.models import checked_device
from semu_diffusion.pipelines.ui.shelf import Choice

__all__ = ["MAX_STRENGTH", "Asked", "Studio"]

MAX_STRENGTH = 1.5
MAX_SEEDS = 64
MAX_STEPS = 1000
KEPT = 16  # drawings of the original that are remembered


@dataclass(frozen=True)
class Asked:
    """What is drawn: a condition (a class or a prompt; "" is none), one picture for each seed, DDIM steps, guidance w."""

    condition: str
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        require(0 < len(self.seeds) <= MAX_SEEDS, f"{len(self.seeds)} seeds: take 1 to {MAX_SEEDS}")
        require(all(0 <= seed < 2**63 for seed in self.seeds), "a seed must lie in [0, 2^63)")
        require(0 < self.steps <= MAX_STEPS, f"{self.steps} steps: take 1 to {MAX_STEPS}")
        require(1 <= self.guidance_scale <= 100, f"guidance {self.guidance_scale}: must lie in [1, 100]; 1 is none")


@dataclass
class Studio:
    """Draws with one model at a time, which it keeps; drawings from several threads wait for each other."""

    device: str | None = None
    _model: tuple[Choice, DiffusionModel] | None = None
    _originals: dict[Asked, torch.Tensor] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def draw(self, choice: Choice, patches: Sequence[Path], strength: float, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, C, H, W) in [0, 1] of the seeds: by the model as it is, and with the patches at ``strength`` times what
        they were saved with, after which every weight is as before.

        Strength 0 and no patches are the model as it is, to the bit. Raises InputError for a patch that is not this model's,
        a condition that it does not know, or numbers out of range.
        """
        require(0 <= strength <= MAX_STRENGTH, f"strength {strength}: must lie in [0, {MAX_STRENGTH:g}]")
        with self._lock:
            model = self._loaded(choice)
            loaded = [load_patch(str(path), strength) for path in patches]
            for patch in loaded:  # also at strength 0: a patch of another model says so
                patch.check(model.denoiser)
            return self._original(model, asked), self._edited(model, loaded if strength else [], asked)

    def model(self, choice: Choice) -> DiffusionModel:
        """The model, loaded if it is not the one in memory."""
        with self._lock:
            return self._loaded(choice)

    def fitting(self, choice: Choice, patches: Sequence[Path]) -> list[Path]:
        """Those of the patches that were made for this model."""
        with self._lock:
            network = self._loaded(choice).denoiser
            return [path for path in patches if _fits(path, network)]

    def conditions(self, choice: Choice) -> tuple[str, ...]:
        """What can be asked of the model by name: its classes, or the plain prompts of its vocabulary, if it has one."""
        model = self.model(choice)
        if isinstance(model, ClassConditional):
            return (*model.names, "") if model.conditional and model.null is not None else tuple(model.names)
        words = read_vocabulary(choice.location)
        return () if words is None else tuple(words.prompt(words.plain_style, words.word(name)) for name in words.objects)

    def erasable(self, choice: Choice) -> tuple[str, ...]:
        """The classes of a model, or the objects and styles of its vocabulary."""
        model = self.model(choice)
        if isinstance(model, ClassConditional):
            return model.names
        words = read_vocabulary(choice.location)
        return () if words is None else (*words.objects, *(style for style in words.styles if style != words.plain_style))

    def guidance_scale(self, choice: Choice) -> float:
        """The guidance that the model is usually sampled with."""
        model = self.model(choice)
        if not model.guided_by_null and isinstance(model, ClassConditional):
            return 1.0
        words = read_vocabulary(choice.location) if isinstance(model, TextConditional) else None
        usual = {"guidance_scale": STABLE_DIFFUSION_GUIDANCE, **DEFAULTS[choice.kind], **model.usual}["guidance_scale"]
        return float(usual if words is None else words.guidance_scale)

    def sampling_steps(self, choice: Choice) -> int:
        """The steps that the model is usually sampled with."""
        return int({**DEFAULTS[choice.kind], **self.model(choice).usual}["sampling_steps"])

    def _loaded(self, choice: Choice) -> DiffusionModel:
        if self._model is None or self._model[0] != choice:
            self._model = None  # the former one goes before the next one comes
            self._originals.clear()
            self._model = choice, _load(choice, self.device)
        return self._model[1]

    def _original(self, model: DiffusionModel, asked: Asked) -> torch.Tensor:
        if asked not in self._originals:
            if len(self._originals) >= KEPT:
                self._originals.pop(next(iter(self._originals)))
            self._originals[asked] = _sampled(model, asked)
        return self._originals[asked]

    def _edited(self, model: DiffusionModel, patches: Sequence[ErasurePatch], asked: Asked) -> torch.Tensor:
        if not patches:
            return self._original(model, asked)
        with ExitStack() as applied:
            for patch in patches:
                applied.enter_context(patch.applied(model))
            return _sampled(model, asked)


def _fits(path: Path, network: torch.nn.Module) -> bool:
    try:
        ErasurePatch.load(path).check(network)
    except InputError:
        return False
    return True


def _load(choice: Choice, device: str | None) -> DiffusionModel:
    where = checked_device(device)
    if choice.kind == "class":
        return load_class_conditional(choice.location, device=where)
    return adapt_text_pipeline(load_text_pipeline(choice.location, where), [], choice.name)


def _sampled(model: DiffusionModel, asked: Asked) -> torch.Tensor:
    model.check_steps(asked.steps)
    if isinstance(model, TextConditional):
        model = model.with_prompts([asked.condition])
    try:
        rows = [model.row(asked.condition)] * len(asked.seeds) if model.conditional else None
    except KeyError:
        raise InputError(f"the model has no class {asked.condition!r}: it has {', '.join(model.names)}") from None
    kind = "concept" if isinstance(model, TextConditional) else "class"
    precision = {**DEFAULTS[kind], **model.usual}["sampling_precision"]
    with torch.no_grad(), autocast(precision, model.device)():
        made = list(model.sample(rows, asked.seeds, asked.steps, asked.guidance_scale))
    return torch.cat(made)
