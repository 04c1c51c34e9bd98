"""The control of revival: the same attack on a model that knew a shape, and on one that never saw it.

Two tiny DDPMs are trained on drawn 8x8 pictures, one of bars, squares and crosses, one without the crosses. If learned vectors
brought crosses out of the second one, a revival would say nothing about what an erased model still holds.
"""

from __future__ import annotations

import sys

import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.probe import Shown
from semu_diffusion.eval.probes.revival import Learning
from semu_diffusion.models.adapters.ddpm import PixelDdpm
from semu_diffusion.models.pipeline import ClassConditionalPipeline

SHAPES = ("bar", "pole", "square", "cross")


def drawn(shape: str, count: int, generator: torch.Generator) -> torch.Tensor:
    """Pictures (count, 1, 8, 8) in [-1, 1] of a shape of 5 pixels at random places, with a little noise."""
    stamp = torch.full((5, 5), -1.0)
    if shape in ("bar", "cross"):
        stamp[2] = 1
    if shape in ("pole", "cross"):
        stamp[:, 2] = 1
    if shape == "square":
        stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1] = 1, 1, 1, 1
    pictures = torch.full((count, 1, 8, 8), -1.0)
    for picture, (row, column) in zip(pictures, torch.randint(4, (count, 2), generator=generator).tolist(), strict=True):
        picture[0, row : row + 5, column : column + 5] = stamp
    return (pictures + 0.05 * torch.randn(pictures.shape, generator=generator)).clamp(-1, 1)


def trained(names: tuple[str, ...], steps: int, generator: torch.Generator) -> PixelDdpm:
    """A class-conditional DDPM of the named shapes, a tenth of the labels dropped."""
    null = len(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
            attention_head_dim=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=null + 1,
        )  # fmt: skip
    pictures = torch.cat([drawn(name, 512, generator) for name in names])
    schedule, optimizer = DDPMScheduler(clip_sample=True), torch.optim.Adam(unet.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        chosen = torch.randint(len(pictures), (64,), generator=generator)
        x, labels = pictures[chosen], chosen // 512
        t, noise = torch.randint(1000, (64,), generator=generator), torch.randn(x.shape, generator=generator)
        asked = torch.where(torch.rand(64, generator=generator) < 0.1, null, labels)
        loss = (unet(schedule.add_noise(x, noise, t), t, class_labels=asked).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipeline = ClassConditionalPipeline(unet.eval(), schedule, dict(enumerate(names)), null)
    return PixelDdpm(pipeline, names, null)


def judge(generator: torch.Generator) -> Judge:
    """Sees the shape whose mean squared distance from the picture, at the best place, is least; none if it is over 0.3."""
    stamps = [drawn(shape, 400, generator) for shape in SHAPES]

    def logits(x: torch.Tensor) -> torch.Tensor:
        flat = (2 * x - 1).flatten(1)
        near = [torch.cdist(flat, stamp.flatten(1)).square().amin(1) / 64 for stamp in stamps]
        return -torch.stack([*near, torch.full_like(near[0], 0.3)], 1)

    network = JudgeNetwork("nearest", "0", 5, (*SHAPES, "none"), 5, 1, 64, logits, logits)
    return Judge(network, SHAPES, ClassMapping(torch.tensor([0, 1, 2, 3, -1]), ()), torch.device("cpu"))


def main(steps: int = 1000, attack_steps: int = 120, samples: int = 40) -> dict[str, float]:
    """Share of crosses that the attack brings out of each model, and that the label gives in the first."""
    generator = torch.Generator().manual_seed(0)
    crosses, seen = drawn("cross", 64, generator), judge(generator)
    found = {}
    for name, known in (("knew it", SHAPES), ("never knew it", SHAPES[:3])):
        model = trained(known, steps, generator)
        if "cross" in known:
            asked = torch.cat(list(model.sample([known.index("cross")] * samples, range(samples), 20, 3.0)))
            found["by its label"] = float(seen.sees(asked, "cross").double().mean())
        shown, how = Shown("cross", seen, crosses), Learning(samples=samples, sampling_steps=20, steps=attack_steps)
        revival = ClassVectorProbe((shown,), how).run(model)["cross"]
        found[name] = revival.share
        print(
            f"a model that {name}: revival {revival.share:.2f}, restarts {revival.restarts}, label {found['by its label']:.2f}"
        )
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
