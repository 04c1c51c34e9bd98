"""Erase a class in Python and draw the same seeds before and after: the picture at the top of the README."""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers.utils import make_image_grid

import semu_diffusion as semu
from semu_diffusion import assets


def main(model: str = str(assets.folder("ddpm-cifar10")), name: str = "cat", steps: int = 20, **settings: Any) -> None:
    pipe = semu.ClassConditionalPipeline.from_pretrained(model)
    patch = semu.erase_class(pipe, name, **settings)
    patch.save(f"no-{name}.safetensors")

    def samples() -> list[Any]:
        labels = pipe.get_label_ids(list(pipe.labels))
        noise = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
        return pipe(labels, generator=noise, num_inference_steps=steps).images

    before = samples()
    patch.apply(pipe.unet)
    after = samples()
    patch.remove(pipe.unet)
    assert samples() == before, "removed to the last bit"
    make_image_grid([*before, *after], rows=2, cols=len(before), resize=96).save(f"no-{name}.png")
    print(f"no-{name}.safetensors, no-{name}.png: above as it was, below without {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
