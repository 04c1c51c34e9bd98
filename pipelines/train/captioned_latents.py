"""Latents of a data set in every style, made once, and captions for them, drawn step by step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.pipelines.data.images import ImageSet
from semu_diffusion.pipelines.train.captions import captions
from semu_diffusion.pipelines.train.picture_styles import STYLES, drawn_styles, in_style

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

__all__ = ["CaptionedLatents", "encoded"]

Precision = Callable[[], AbstractContextManager[Any]]
CACHE = "latents.safetensors"
CHUNK = 250


def encoded(
    data: ImageSet, autoencoder: AutoencoderKL, folder: Path, precision: Precision = nullcontext
) -> dict[str, torch.Tensor]:
    """Latents (N, C, h, w) in half precision of every style, of variance about 1; kept in ``folder`` for a resumption."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from semu_diffusion.files import save_tensors

    identity = f"{data.fingerprint} {_fingerprint(autoencoder)}"
    cache = folder / CACHE
    if cache.is_file():
        with safe_open(cache, "pt") as content:
            same = (content.metadata() or {}).get("identity") == identity
        if same:
            return load_file(cache)
    found = {style: _encode(data.images, style, autoencoder, precision) for style in STYLES}
    save_tensors(found, cache, {"identity": identity})
    return found


def _encode(images: torch.Tensor, style: str, autoencoder: AutoencoderKL, precision: Precision) -> torch.Tensor:
    import torch
    from tqdm import tqdm

    parts = []
    chunks = tqdm(images.split(CHUNK), f"encoding {style}", disable=not sys.stderr.isatty(), leave=False)
    with torch.no_grad():
        for chunk in chunks:
            x = in_style(chunk, style).float().div(127.5).sub(1).to(autoencoder.device)
            with precision():
                mean = autoencoder.encode(x).latent_dist.mean
            parts.append((mean.float() * autoencoder.config.scaling_factor).half().cpu())
    return torch.cat(parts).contiguous()


def _fingerprint(autoencoder: AutoencoderKL) -> str:
    """A number that other weights do not have."""
    return f"{sum(float(p.double().abs().sum()) for p in autoencoder.parameters()):.9e}"


class CaptionedLatents:
    """Draws latents and the tokens (n, max_tokens) of a caption for each; the empty prompt is token row 0."""

    def __init__(self, latents: dict[str, torch.Tensor], data: ImageSet, tokenizer: CLIPTokenizer) -> None:
        self.latents, self.labels = latents, data.labels
        texts, self.rows = [""], {}
        for style in STYLES:
            for label, name in enumerate(data.class_names):
                found = captions(name, style)
                self.rows[style, label] = (len(texts), len(found))
                texts += found
        made: Any = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        self.tokens: torch.Tensor = made.input_ids

    def draw(self, chosen: torch.Tensor, drop: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (n, C, h, w) float32 of the images ``chosen`` (n,), half of them photos, and tokens of their captions."""
        import torch

        count = len(chosen)
        styles = drawn_styles(count, generator)
        choice = torch.rand(count, generator=generator).tolist()
        dropped = (torch.rand(count, generator=generator) < drop).tolist()
        rows = []
        for image, style, share, empty in zip(chosen.tolist(), styles, choice, dropped, strict=True):
            first, several = self.rows[style, int(self.labels[image])]
            rows.append(0 if empty else first + int(share * several))
        found = torch.stack([self.latents[style][image] for image, style in zip(chosen.tolist(), styles, strict=True)])
        return found.float(), self.tokens[rows]
