"""Erase something from one thing alone, as the glasses from "scientist": here sketches of cats, and no other sketch."""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import make_image_grid

import semu_diffusion as semu
from semu_diffusion import assets

OTHERS = ("dog", "bird", "horse", "ship", "car", "truck")


def main(model: str = str(assets.folder("tiny-sd")), what: str = "pencil sketch", of: str = "cat", **settings: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    kept = [f"{form} of a {other}" for other in OTHERS for form in (f"a {what}", "a photo")]  # with it, others keep it
    kept += [f"a photo of a {of}", f"a sepia photo of a {of}", f"a {of} at night"]  # and it stays what it is without
    phrase = f"{what} of a {of}"
    patch = semu.erase_concept(
        pipe,
        phrase,
        anchor=f"photo of a {of}",
        forget_prompts=(f"a {phrase}", f"the {phrase}"),
        retain_prompts=kept,
        **settings,
    )
    prompts = [f"a {phrase}", f"a {what} of a {OTHERS[0]}", f"a {what} of a {OTHERS[3]}", f"a photo of a {of}"]

    def samples() -> list[Any]:
        noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return pipe(prompts, generator=noise, num_inference_steps=20, guidance_scale=5.0).images

    before = samples()
    patch.apply(pipe.unet)
    make_image_grid([*before, *samples()], rows=2, cols=len(prompts), resize=96).save("erased-from.png")
    print(f"erased-from.png: above as it was, below no {phrase}")


if __name__ == "__main__":
    main(*sys.argv[1:])
