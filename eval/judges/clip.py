r"""CLIP by open_clip: how well a picture fits a prompt, and which of several words it fits best.

With unit vectors e_I of an image and e_T of a text (Radford et al. 2021, arXiv 2103.00020):

    score      100 max(cos(e_I, e_T), 0)      mean over the pairs; the scale of torchmetrics and of most papers
    clipscore  2.5 max(cos(e_I, e_T), 0)      CLIPScore as Hessel et al. 2021 define it (arXiv 2104.08718)

Images are rounded to 8 bits, resized (bicubic, antialiased) so that the shorter side fits, and cut to a square in the middle,
as open_clip's own transform does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from semu_diffusion.errors import InputError, reason
from semu_diffusion.eval.images import in_chunks, to_float, to_uint8, with_channels
from semu_diffusion.eval.judges.networks import JudgeNetwork, state_digest
from semu_diffusion.eval.results import ClipScore
from semu_diffusion.files import tensors_only

__all__ = ["Clip", "clip_network", "clip_score", "load_clip", "sentence_of"]

MODEL, TAG = "ViT-B-32", "laion2b_s34b_b79k"
CHUNK = 32
_VOWELS = tuple("aeiou")


@dataclass(frozen=True)
class Clip:
    """A CLIP in eval mode and float32. ``name`` is model and tag, ``sha256`` of its weights."""

    network: Any
    tokenizer: Any
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    sha256: str
    device: torch.device

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D) on the CPU of images (N, C, H, W), uint8 or floats in [0, 1]."""

        def step(chunk: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return self.encode(with_channels(to_float(chunk.to(self.device)), 3))

        return in_chunks(step, to_uint8(images), CHUNK)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D) of RGB images (N, 3, H, W) in [0, 1] on the model's device."""
        return F.normalize(self.network.encode_image(self._fitted(images)), dim=-1)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (N, D) on the CPU; texts longer than CLIP takes are cut, as it was trained."""
        with torch.no_grad():
            parts = [self.network.encode_text(self.tokenizer([text]).to(self.device)).cpu() for text in texts]
        return F.normalize(torch.cat(parts), dim=-1)

    def _fitted(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        scale = max(self.size[0] / height, self.size[1] / width)
        resized = (max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1]))
        if resized != (height, width):
            images = F.interpolate(images, resized, mode="bicubic", antialias=True, align_corners=False)
            images = images.clamp(0, 1).mul(255).round().div(255)  # the usual transform resizes pictures of 8 bits
        top, left = (resized[0] - self.size[0]) // 2, (resized[1] - self.size[1]) // 2
        images = images[..., top : top + self.size[0], left : left + self.size[1]]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


def load_clip(name: str = "clip", device: str | torch.device = "cpu") -> Clip:
    """``clip``, ``clip:MODEL:TAG`` of open_clip, or ``clip:MODEL:FILE`` with weights in a safetensors file.

    Raises InputError for unknown models and tags, files that are no safetensors, and weights that cannot be had.
    """
    import open_clip

    kind, _, rest = name.partition(":")
    model, _, weights = rest.partition(":")
    model, weights = model or MODEL, weights or (TAG if not model or model == MODEL else "")
    if kind != "clip":
        raise InputError(f"{name}: CLIP models are named clip, or clip:MODEL:TAG")
    known = open_clip.list_models()
    if model not in known:
        near = get_close_matches(model, known, 3)
        raise InputError(f"{name}: open_clip has no model {model!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights not in tags:
        path = Path(weights).expanduser()
        if not weights or not path.is_file():
            raise InputError(
                f"{name}: no weights {weights!r} for {model}; there are {', '.join(tags[:6]) or 'none'}, or a file"
            )
        if path.suffix != ".safetensors":
            raise InputError(f"{path}: weights are read from safetensors only")
        weights = str(path)
    try:
        with tensors_only(), torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            trained = open_clip.get_pretrained_cfg(model, weights) or {}  # OpenAI's weights want its own activation
            quick = bool(trained.get("quick_gelu"))
            network = open_clip.create_model(model, pretrained=weights, device=torch.device(device), force_quick_gelu=quick)
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # the Hub client, safetensors and open_clip raise a dozen classes for the same thing
        raise InputError(f"{name}: the weights cannot be had ({reason(error)})") from error
    network.eval().requires_grad_(False)
    size = network.visual.image_size
    return Clip(
        network=network,
        tokenizer=tokenizer,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(network.visual.image_mean or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(network.visual.image_std or open_clip.OPENAI_DATASET_STD),
        name=f"{model} {Path(weights).stem if weights.endswith('.safetensors') else weights}",
        sha256=state_digest(network.state_dict()),
        device=torch.device(device),
    )


def clip_network(name: str, class_names: Sequence[str], device: torch.device) -> JudgeNetwork:
    """CLIP as a classifier: an image is of the class whose sentence is nearest to it, and there is a class for every name.

    ``name``: ``MODEL:TAG`` as for `load_clip`, or "". InputError for fewer than two names, between which nothing is decided.
    """
    if len(class_names) < 2:
        raise InputError("a zero-shot judge needs alternatives to the concept: name some with --alternatives")
    clip = load_clip(f"clip:{name}", device)
    texts = clip.text_features([sentence_of(name) for name in class_names])
    scale = float(clip.network.logit_scale.exp())  # as trained: the softmax of the bare cosines would be flat
    return JudgeNetwork(
        name=f"CLIP {clip.name}",
        sha256=clip.sha256,
        classes=len(class_names),
        categories=tuple(class_names),
        dim=texts.shape[1],
        channels=3,
        chunk=CHUNK,
        logits=lambda images: scale * clip.encode(images) @ texts.to(images.device).T,
        features=clip.encode,
    )


def sentence_of(name: str) -> str:
    """``a photo of a cat``, ``a photo of an owl``, ``a photo of the Eiffel Tower``."""
    if name.lower().startswith(("a ", "an ", "the ")):
        return f"a photo of {name}"
    return f"a photo of {'an' if name[:1].lower() in _VOWELS else 'a'} {name}"


def clip_score(clip: Clip, images: torch.Tensor, prompts: Sequence[str]) -> ClipScore:
    """Scores of image i with prompt i; InputError if there are not as many prompts as images."""
    if len(images) != len(prompts) or len(prompts) == 0:
        raise InputError(f"{len(prompts)} prompts for {len(images)} images")
    spoken = list(dict.fromkeys(prompts))
    rows = torch.tensor([spoken.index(prompt) for prompt in prompts])
    cosine = (clip.image_features(images) * clip.text_features(spoken)[rows]).sum(1)
    positive = float(cosine.clamp(min=0).mean())
    return ClipScore(100 * positive, 2.5 * positive, float(cosine.mean()), len(prompts), clip.name)
