"""Latents of a data set in every style, made once, and captions for them, drawn step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.pipelines.cli.progress import bar
from semu_diffusion.pipelines.data.images import ImageSet
from semu_diffusion.pipelines.train.captions import captions
from semu_diffusion.pipelines.train.picture_styles import STYLES, drawn_styles, in_style
from semu_diffusion.pipelines.train.step import signed

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

__all__ = ["CaptionedLatents", "encoded"]

Precision = Callable[[], AbstractContextManager[Any]]
CACHE = "latents.safetensors"
CHUNK = 250


def encoded(data: ImageSet, autoencoder: AutoencoderKL, folder: Path, precision: Precision = nullcontext) -> torch.Tensor:
    """Latents (S, N, C, h, w) in half precision, of variance about 1, of the images in every style; kept in ``folder``."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    from semu_diffusion.files import save_tensors

    identity = f"{data.fingerprint} {_fingerprint(autoencoder)}"
    cache, same = folder / CACHE, False
    if cache.is_file():
        with safe_open(cache, "pt") as content:
            same = (content.metadata() or {}).get("identity") == identity
    if not same:
        found = {style: _encode(data.images, style, autoencoder, precision) for style in STYLES}
        save_tensors(found, cache, {"identity": identity})
    latents = load_file(cache)
    return torch.stack([latents[style] for style in STYLES])


def _encode(images: torch.Tensor, style: str, autoencoder: AutoencoderKL, precision: Precision) -> torch.Tensor:
    import torch

    parts = []
    with torch.no_grad():
        for chunk in bar(f"encoding {style}", images.split(CHUNK)):
            x = signed(in_style(chunk.to(autoencoder.device), style))
            with precision():
                mean = autoencoder.encode(x).latent_dist.mean
            parts.append((mean.float() * autoencoder.config.scaling_factor).half().cpu())
    return torch.cat(parts).contiguous()


def _fingerprint(autoencoder: AutoencoderKL) -> str:
    """A number that other weights do not have."""
    return f"{sum(float(p.double().abs().sum()) for p in autoencoder.parameters()):.9e}"


class CaptionedLatents:
    """Draws latents and the tokens (n, max_tokens) of a caption for each, where the latents are.

    ``latents`` are (S, N, C, h, w), styles in the order of `STYLES`. The empty prompt is token row 0.
    """

    def __init__(self, latents: torch.Tensor, data: ImageSet, tokenizer: CLIPTokenizer) -> None:
        import torch

        device, texts = latents.device, [""]
        first = torch.zeros(len(STYLES), len(data.class_names), dtype=torch.long)
        several = torch.zeros_like(first)
        for style, style_name in enumerate(STYLES):
            for label, name in enumerate(data.class_names):
                found = captions(name, style_name)
                first[style, label], several[style, label] = len(texts), len(found)
                texts += found
        made: Any = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        self.latents, self.labels, self.tokens = latents, data.labels.to(device), made.input_ids.to(device)
        self.first, self.several = first.to(device), several.to(device)

    def draw(self, chosen: torch.Tensor, drop: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (n, C, h, w) float32 of the images ``chosen`` (n,), half of them photos, and tokens of their captions.

        A share ``drop`` of the captions is the empty prompt. The results are on the generator's device.
        """
        import torch

        count, device = len(chosen), generator.device
        styles = drawn_styles(count, generator)
        choice = torch.rand(count, generator=generator, device=device)
        dropped = torch.rand(count, generator=generator, device=device) < drop
        styles, choice, dropped, chosen = (each.to(self.latents.device) for each in (styles, choice, dropped, chosen))
        labels = self.labels[chosen]
        rows = self.first[styles, labels] + (choice * self.several[styles, labels]).long()
        tokens = self.tokens[rows.masked_fill(dropped, 0)]
        return self.latents[styles, chosen].to(device).float(), tokens.to(device)
