"""What the original model gives, kept on disk: its samples, its probe images, and what probes bring back from it.

Every row of a benchmark needs them, and so does every process that measures some of the rows. An entry is found by all that
decides its content: the weights, the sampler, the seed, and a name that says what was asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from semu_diffusion import __version__
from semu_diffusion.domains.questions import conditions
from semu_diffusion.eval.judges.networks import state_digest
from semu_diffusion.eval.results import Revival
from semu_diffusion.eval.scorer import NO_CONDITION, Scorer
from semu_diffusion.files import atomic_file, read_json, write_json
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import sampler_name

__all__ = ["Cache", "digest_of"]

Probed = dict[str, dict[str, Revival]]


def digest_of(model: Any) -> str:
    """16 digits of the weights of every network of the model's pipeline."""
    parts = {name: part for name, part in sorted(model.pipeline.components.items()) if isinstance(part, nn.Module)}
    return hashlib.sha256("".join(state_digest(part.state_dict()) for part in parts.values()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cache:
    """Files in ``folder``; ``key`` says of which model, by which sampler and from which seed they are."""

    folder: Path
    key: str

    @classmethod
    def of(cls, folder: Path, weights: str, scorer: Scorer, model: DiffusionModel) -> Cache:
        """The cache of a scorer's sampling of a model with these ``weights``."""
        how = dataclasses.replace(scorer.sampling, images=0, unconditional=0, batch_size=0, precision="fp32")
        sampler = sampler_name(model, scorer.sampling.precision)  # auto is another arithmetic on another machine
        return cls(folder, f"{weights} {how} {sampler} {model.device.type} torch {torch.__version__} semu {__version__}")

    def recall(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``make()`` gives, made once for each name; a file that cannot be read is made again."""
        found = self._read(name)
        return self._keep(name, make()) if found is None else found

    def samples(self, scorer: Scorer) -> dict[str, torch.Tensor]:
        """The original's samples of the scorer's conditions, as far as they are there."""
        found = {condition: self._read(name) for condition, name in _names(scorer).items()}
        return {condition: images for condition, images in found.items() if images is not None}

    def keep_samples(self, scorer: Scorer, samples: Mapping[str, torch.Tensor]) -> None:
        """Write the original's samples, where more are known than before."""
        old = self.samples(scorer)
        for condition, name in _names(scorer).items():
            if len(samples.get(condition, ())) > len(old.get(condition, ())):
                self._keep(name, samples[condition])

    def probed(self, name: str) -> Probed | None:
        """What the probes brought back from the original, if it is there."""
        path = self._path(name, "json")
        if not path.is_file():
            return None
        content = read_json(path, f"{path} (delete it)", None)
        return {
            probe: {erased: Revival(**{**one, "restarts": tuple(one["restarts"])}) for erased, one in each.items()}
            for probe, each in content.items()
        }

    def keep_probed(self, name: str, probed: Probed) -> None:
        content = {probe: {erased: dataclasses.asdict(one) for erased, one in each.items()} for probe, each in probed.items()}
        write_json(self._path(name, "json"), content)

    def _path(self, name: str, suffix: str = "safetensors") -> Path:
        return self.folder / f"{hashlib.sha256(f'{self.key}/{name}'.encode()).hexdigest()[:32]}.{suffix}"

    def _read(self, name: str) -> torch.Tensor | None:
        path = self._path(name)
        try:
            return load_file(path)["tensor"] if path.is_file() else None
        except (SafetensorError, KeyError, OSError):
            return None

    def _keep(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        with atomic_file(self._path(name)) as beside:
            save_file({"tensor": tensor.detach().cpu().contiguous()}, beside)
        return tensor


def _names(scorer: Scorer) -> dict[str, str]:
    """What each condition's samples are called. Image i has one seed whatever their number: of more the first are taken."""
    return {condition: f"samples of {condition!r}" for condition in (*conditions(scorer.questions), NO_CONDITION)}
