"""DINOv2 drift, as PEFT's method_comparison defines it: 1 - cos(f(before), f(after)) of two pictures of one seed.

f is the class token of the last layer (Oquab et al. 2023, arXiv 2304.07193), of the picture in 8 bits as the model's own image
processor prepares it; PEFT takes ``facebook/dinov2-base`` and the mean over prompts that have nothing to do with the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from semu_diffusion.errors import InputError, reason
from semu_diffusion.eval.images import in_chunks, to_uint8, with_channels
from semu_diffusion.eval.judges.networks import state_digest
from semu_diffusion.eval.results import Network
from semu_diffusion.models.hub import folder_or_snapshot

__all__ = ["Dino", "load_dino"]

CHUNK = 16
FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


@dataclass(frozen=True)
class Dino:
    """The metric: of two batches (N, C, H, W) in [0, 1] the drift of each pair (N,), 0 for equal pictures and at most 2."""

    model: Any
    processor: Any
    network: Network

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        if before.shape != after.shape:
            raise InputError(f"DINOv2 needs pairs of images, not {tuple(before.shape)} and {tuple(after.shape)}")
        old, new = (in_chunks(self.features, to_uint8(images), CHUNK).double() for images in (before, after))
        return 1 - F.cosine_similarity(old, new)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Class tokens (N, D) of uint8 images (N, C, H, W)."""
        prepared = self.processor(images=list(with_channels(images.cpu(), 3)), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            tokens: torch.Tensor = self.model(prepared.to(self.model.device)).last_hidden_state
        return tokens[:, 0]


def load_dino(source: str, device: str | torch.device = "cpu") -> Dino:
    """Of a folder or Hub id in transformers' layout (config, image processor, safetensors). Raises InputError for any other."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    folder, _ = folder_or_snapshot(source, "--dino takes a folder or a Hub id of a DINOv2, as facebook/dinov2-base", FILES)
    try:
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if not kind.startswith("dinov2"):
            raise ValueError(f"its model_type is {kind}")
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
        if loading["missing_keys"]:
            raise ValueError(f"there are no weights for {min(loading['missing_keys'])}")
    except Exception as error:  # of foreign files in a library: OSError, ValueError, KeyError, safetensors' own
        raise InputError(f"--dino {source}: no DINOv2 can be loaded from there ({reason(error, 160)})") from error
    model = model.to(device).eval().requires_grad_(False)
    network = Network(source.rstrip("/").rpartition("/")[2], state_digest(model.state_dict()), model.config.hidden_size)
    return Dino(model, processor, network)
