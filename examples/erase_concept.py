"""Erase a word from a Stable Diffusion pipeline, and load the LoRA as anybody would: the README's second picture."""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import make_image_grid

import semu_diffusion as semu
from semu_diffusion import assets


def main(model: str = str(assets.folder("tiny-sd")), word: str = "cat", anchor: str = "dog", **settings: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    patch = semu.erase_concept(pipe, word, anchor=anchor, **settings)
    semu.save_lora(patch, "lora")
    prompts = [f"a photo of a {noun}" for noun in (word, anchor, "ship", "horse")]

    def samples() -> list[Any]:
        noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return pipe(prompts, generator=noise, num_inference_steps=20, guidance_scale=5.0).images

    before = samples()
    pipe.load_lora_weights("lora", adapter_name=f"no-{word}")
    after = samples()
    make_image_grid([*before, *after], rows=2, cols=len(prompts), resize=96).save(f"no-{word}-concept.png")
    print(f"lora/, no-{word}-concept.png: above as it was, below without {word}")


if __name__ == "__main__":
    main(*sys.argv[1:])
