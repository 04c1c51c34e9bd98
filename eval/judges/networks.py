"""The classifiers a judge can be: our own, torchvision's and timm's, each with the same face.

Each loader takes a name, the class names that are asked for (only CLIP needs them) and a device.

Weights come from disk, from the libraries' caches, or are downloaded by the libraries, and are never
unpickled beyond plain tensors.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semu_diffusion.assets import folder as embedded
from semu_diffusion.errors import InputError, reason
from semu_diffusion.eval.judges.class_mapping import near
from semu_diffusion.eval.judges.image_classifier import ImageClassifier
from semu_diffusion.files import tensors_only

__all__ = ["JudgeNetwork", "file_digest", "folder_network", "state_digest", "timm_network", "torchvision_network"]

# names of the classifiers that come with the package, and their folders
EMBEDDED = {"embedded": "cifar10-classifier", "cifar10": "cifar10-classifier", "styles": "style-classifier"}

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class JudgeNetwork:
    """A classifier of K classes in eval mode.

    ``logits`` (n, C, H, W) -> (n, K) and ``features`` -> (n, dim) take floats in [0, 1] with ``channels``
    channels, of any size, and do their own resizing and normalising. ``categories``: names of the K classes,
    empty if it has none. ``chunk``: images at a time. ``sha256`` is of the weights.
    """

    name: str
    sha256: str
    classes: int
    categories: tuple[str, ...]
    dim: int
    channels: int
    chunk: int
    logits: Network
    features: Network


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_network(name: str, class_names: Sequence[str], device: torch.device) -> JudgeNetwork:
    """Our own classifier: one that comes with the package, by name, or a folder; InputError if there is none."""
    folder = embedded(EMBEDDED[name]) if name in EMBEDDED else Path(name).expanduser()
    if not folder.is_dir():
        kinds = "embedded, torchvision:NAME, timm:NAME, clip, nudenet, a folder, or none"
        raise InputError(f"--classifier {name}: no such folder; give {kinds}")
    model = ImageClassifier.load(folder, device).requires_grad_(False)
    size = tuple(model.config.image_size)

    def resized(images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    return JudgeNetwork(
        name=folder.resolve().name,
        sha256=file_digest(folder / "model.safetensors"),
        classes=model.config.num_classes,
        categories=tuple(model.config.class_names),
        dim=model.head.in_features,
        channels=model.config.in_channels,
        chunk=64,
        logits=lambda images: model(resized(images)),
        features=lambda images: model.features(resized(images)),
    )


def torchvision_network(name: str, class_names: Sequence[str], device: torch.device) -> JudgeNetwork:
    """torchvision's classifier of this name with its default weights; InputError if it is unknown or not available."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"torchvision has no classifier {name!r}{near(name, known)}")
    weights = models.get_model_weights(name).DEFAULT
    try:
        with tensors_only():
            model: Any = models.get_model(name, weights=weights, progress=sys.stderr.isatty())
        model = model.to(device).eval().requires_grad_(False)
    except Exception as error:  # no network, wrong hash, broken file: each library has its own exceptions
        raise _no_weights(f"torchvision:{name}", error) from error
    categories = tuple(weights.meta["categories"])
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(categories)]
    if not heads:
        raise InputError(f"torchvision:{name} does not end in a linear layer, so it has no features")
    transform = weights.transforms()
    return JudgeNetwork(
        name=f"torchvision:{name} ({weights.name})",
        sha256=state_digest(model.state_dict()),
        classes=len(categories),
        categories=categories,
        dim=heads[-1].in_features,
        channels=3,
        chunk=16,
        logits=lambda images: model(transform(images)),
        features=lambda images: _input_of(heads[-1], model, transform(images)),
    )


def _input_of(layer: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What ``layer`` is given when the model sees ``x``."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[-1].flatten(1)


def timm_network(name: str, class_names: Sequence[str], device: torch.device) -> JudgeNetwork:
    """timm's pretrained classifier of this name; InputError if it is unknown or not available."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise InputError(f"timm has no model {name!r}{near(name, timm.list_models())}")
    try:
        with tensors_only():
            model: Any = timm.create_model(name, pretrained=True).to(device).eval().requires_grad_(False)
    except Exception as error:  # no network, no such repository, no pretrained weights, broken file
        raise _no_weights(f"timm:{name}", error) from error
    data = resolve_model_data_config(model)
    transform: Any = create_transform(**data, is_training=False)  # works on whole batches of tensors too
    return JudgeNetwork(
        name=f"timm:{name}",
        sha256=state_digest(model.state_dict()),
        classes=int(model.num_classes),
        categories=_timm_categories(model),
        dim=int(getattr(model, "head_hidden_size", None) or model.num_features),
        channels=int(data["input_size"][0]),
        chunk=16,
        logits=lambda images: model(transform(images)),
        features=lambda x: model.forward_head(model.forward_features(transform(x)), pre_logits=True),
    )


def _timm_categories(model: Any) -> tuple[str, ...]:
    """Class names of the model's own config, else ImageNet's if it has as many classes, else none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = model.pretrained_cfg.get("label_names")
    described = model.pretrained_cfg.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    if names:
        return tuple(str(described.get(name, name)) for name in names)
    subset = infer_imagenet_subset(model)
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _no_weights(name: str, error: Exception) -> InputError:
    return InputError(f"--classifier {name}: its weights could not be loaded ({reason(error)})")
