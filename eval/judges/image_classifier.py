"""A small residual image classifier: the judge of class-conditional samples, and the feature extractor beside Inception.

It is the shape of the fast CIFAR networks (ResNet-9): every stage is convolution, pooling, convolution, the second one
residual. Pooling before the normalisation and the activation halves the time of a stage on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from semu_diffusion.errors import InputError, reason
from semu_diffusion.files import read_json, save_tensors, write_text

__all__ = ["ClassifierConfig", "ImageClassifier"]

KIND = "ImageClassifier"


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of an ImageClassifier; ``mean`` and ``std`` (one per channel, of images in [0, 1]) are part of the model.

    ``class_names`` may be empty; otherwise it has ``num_classes`` entries. ``image_size`` is (height, width) as trained.
    ``mirrored``: in eval mode, features are the mean over an image and its mirror image.
    """

    num_classes: int
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    widths: tuple[int, ...] = (32, 64, 256, 256)
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1 or len(self.widths) < 2 or min(self.widths) < 1:
            raise InputError(f"a classifier needs classes, a stem width and at least one stage width; got {self}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise InputError(f"{self.num_classes} classes, but {len(self.class_names)} class names")
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise InputError(f"mean and std need one value for each of the {self.in_channels} image channels")
        smallest = 2 ** (len(self.widths) - 1)
        if min(self.image_size) < smallest:
            raise InputError(f"images of {self.image_size} are too small for {len(self.widths) - 1} poolings by 2")


def _activated(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.GELU())


class _Stage(nn.Module):
    """(N, inputs, H, W) -> (N, width, H // 2, W // 2)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.widened = _activated(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.refined = _activated(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.widened(nn.functional.max_pool2d(self.widen(x), 2))
        return x + self.refined(self.refine(x))


class ImageClassifier(nn.Module):
    """Logits and features of images in [0, 1], (N, C, H, W); the normalisation happens inside."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        stem, *widths = config.widths
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(config.in_channels, stem, 3, padding=1, bias=False), _activated(stem))
        self.stages = nn.Sequential(*(_Stage(inputs, width) for inputs, width in zip(config.widths, widths, strict=False)))
        self.head = nn.Linear(widths[-1], config.num_classes)

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The stem's and each stage's output, (N, ``widths[l]``, H / 2^l, W / 2^l), of the images as they are."""
        maps = [self.stem(((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate features (N, ``widths[-1]``): the last stage, averaged over the image (and its mirror image)."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.stages(self.stem(x)).mean(dim=(2, 3))
        if self.config.mirrored and not self.training:
            features = (features + self.stages(self.stem(x.flip(-1))).mean(dim=(2, 3))) / 2
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes)."""
        return self.head(self.features(images))

    def save(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors (half precision), each beside and then renamed."""
        folder = Path(folder)
        weights = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_tensors(weights, folder / "model.safetensors", {"format": "pt", "kind": KIND})
        write_text(folder / "config.json", json.dumps({"kind": KIND, **asdict(self.config)}, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> ImageClassifier:
        """The classifier saved in ``folder``, in float32 and eval mode. Raises InputError if it holds none."""
        folder = Path(folder).expanduser()
        config = _read_config(folder)
        weights_file = folder / "model.safetensors"
        if not weights_file.is_file():
            raise InputError(f"{folder} holds no classifier: model.safetensors is missing")
        model = cls(config)
        try:
            weights = {name: value.float() for name, value in load_file(weights_file).items()}
            outcome = model.load_state_dict(weights, strict=False)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{weights_file} cannot be loaded ({reason(error)})") from error
        missing = [name for name in outcome.missing_keys if not name.endswith("num_batches_tracked")]
        if missing or outcome.unexpected_keys:
            odd = (missing + outcome.unexpected_keys)[0]
            raise InputError(f"{weights_file} does not fit {folder / 'config.json'}: look at {odd}")
        return model.to(device).to(memory_format=torch.channels_last).eval()


def _read_config(folder: Path) -> ClassifierConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no classifier: config.json is missing")
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("kind", None) != KIND:
        known = "embedded, torchvision:NAME, timm:NAME, clip, or a folder that semu train classifier has written"
        raise InputError(f"{folder} holds another kind of classifier, whose config.json is not read here; give {known}")
    try:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        return ClassifierConfig(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not the config of a classifier ({type(error).__name__}: {error})") from error
