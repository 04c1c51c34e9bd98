"""LECO (github.com/p1atdev/LECO) with diffusers and PEFT alone: an edit as others publish it, for `semu evaluate --lora`.

A LoRA on the UNet's attention is trained to eps(x_t, "") - eta (eps(x_t, c) - eps(x_t, "")), the model's own prediction without
a prompt, moved away from c, on pictures that the model in training has half denoised. Keys are kohya's, as LECO writes them.

    python examples/train_leco.py cat leco-cat.safetensors
    semu evaluate --lora leco-cat.safetensors --model tiny-sd --forget cat
"""

from __future__ import annotations

import sys

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import mse_loss

from semu_diffusion import assets


def main(
    concept: str = "cat", output: str = "leco.safetensors", model: str = str(assets.folder("tiny-sd")), steps: int = 300,
    eta: float = 1.0, rank: int = 4, lr: float = 1e-3, batch: int = 4, denoising_steps: int = 20, seed: int = 0,
) -> None:  # fmt: skip
    torch.manual_seed(seed)  # PEFT draws the factors from the global state
    draws = torch.Generator().manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    unet, scheduler = pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=lr)
    with torch.no_grad():
        named, nothing = pipe.encode_prompt([concept] * batch, "cpu", 1, True, [""] * batch)
    both, shape = torch.cat([nothing, named]), (batch, unet.config.in_channels, *[unet.config.sample_size] * 2)
    scheduler.set_timesteps(denoising_steps)

    def predicted(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Without the prompt, and with it."""
        without, with_it = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        return without, with_it

    for step in range(1, steps + 1):
        last = int(torch.randint(1, denoising_steps, (), generator=draws))
        x = torch.randn(shape, generator=draws) * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps[:last]:
                without, with_it = predicted(x, t)
                x = scheduler.step(without + 3.0 * (with_it - without), t, x).prev_sample
            t = scheduler.timesteps[last]
            unet.disable_adapters()
            without, with_it = predicted(x, t)
            unet.enable_adapters()
        loss = mse_loss(unet(x, t, named).sample, without - eta * (with_it - without))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps:
            print(f"{step}/{steps} loss {loss.item():.4f}", flush=True)
    factors = get_peft_model_state_dict(unet, adapter_name="default")
    save_file(convert_state_dict_to_kohya({f"unet.{key}": value.contiguous() for key, value in factors.items()}), output)
    print(f"{output}: a LECO that takes {concept!r} out of {model}")


if __name__ == "__main__":
    main(*sys.argv[1:])
