"""``semu train text-to-image``: a small Stable Diffusion pipeline, taught words and picture styles by captions made for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.data.images import load_images
from semu_diffusion.pipelines.train.captioned_latents import CaptionedLatents, encoded
from semu_diffusion.pipelines.train.optimisation import averaged, cosine_rate, min_snr_weights, plain_attention
from semu_diffusion.pipelines.train.picture_styles import STYLES
from semu_diffusion.pipelines.train.text_to_image_parts import (
    export_pipeline,
    load_autoencoder,
    new_denoiser,
    new_scheduler,
)
from semu_diffusion.pipelines.train.training import TrainingRun, batch_indices, new_accelerator, step_generator, whole_numbers

if TYPE_CHECKING:
    import torch

__all__ = ["TextToImageTraining", "main", "parse", "train"]

EXAMPLES = (
    "semu train text-to-image --data uoft-cs/cifar10 --autoencoder train-runs/autoencoder/model --output train-runs/tiny-sd",
    "semu train text-to-image --data uoft-cs/cifar10 --init-from train-runs/tiny-sd/model --output train-runs/more",
)


@dataclass(frozen=True)
class TextToImageTraining:
    """Settings of ``semu train text-to-image``: text encoder and UNet learn together, the autoencoder is given."""

    data: str = option("", "Hub id, folder of parquet files, or one folder per class", budget=True, metavar="DATASET")
    output: str = option("", "folder for the checkpoint, the log and model/", budget=True, metavar="DIR")
    autoencoder: str | None = option(None, "model/ of semu train autoencoder (default: that of --init-from)", metavar="DIR")
    init_from: str | None = option(None, "go on from the weights of this pipeline (its architecture counts)", metavar="DIR")
    # architecture
    channels: tuple[int, ...] = option((64, 128), "channels of each resolution, from the finest", comma=True)
    plain_levels: int = option(1, "finest resolutions whose blocks do not see the text")
    layers_per_block: int = option(1, "residual blocks for each resolution")
    head_dim: int = option(64, "channels of one attention head")
    norm_groups: int = option(16, "groups of the group normalisation")
    text_width: int = option(128, "width of the text encoder")
    text_layers: int = option(2, "layers of the text encoder")
    max_tokens: int = option(32, "tokens of the longest prompt")
    # diffusion
    timesteps: int = option(1000, "diffusion timesteps T of a new model")
    prediction: Literal["epsilon", "v_prediction"] = option("epsilon", "what a new network predicts")
    caption_drop: float = option(0.1, "share of captions replaced by the empty prompt, for classifier-free guidance")
    min_snr: float = option(5.0, "gamma of the min-SNR loss weights; 0 for none")
    # optimisation
    steps: int = option(50_000, "optimiser steps in all", budget=True)
    max_minutes: float = option(0.0, "minutes of training in all; 0 for no limit", budget=True)
    batch_size: int = option(128, "images a step")
    lr: float = option(1e-3, "peak learning rate")
    final_lr: float = option(2e-5, "learning rate at the end")
    warmup: float = option(0.03, "share of the training in which the rate rises")
    clip: float = option(1.0, "largest gradient norm")
    ema: float = option(0.999, "largest decay of the averaged weights")
    precision: Literal["auto", "bf16", "no"] = option("auto", "bf16 where the hardware has it, or no (float32)")
    seed: int = option(0, "seed of the weights, the order and the noise")
    # running
    save_every: float = option(5.0, "minutes between checkpoints", budget=True)
    resume: bool = option(True, "go on from the checkpoint in --output", budget=True)
    export_only: bool = option(False, "only write model/ (and its card) from the checkpoint, no training", budget=True)
    classifier: str | None = option(
        None, "judge of the objects for the card: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )
    style_classifier: str | None = option(None, "judge of the styles for the card: its folder", budget=True, metavar="DIR")
    judged_samples: int = option(20, "samples of each object and style for the judges (guidance 5, 25 steps)", budget=True)

    def __post_init__(self) -> None:
        if not self.data or not self.output:
            raise InputError("--data and --output are needed")
        if self.autoencoder is None and self.init_from is None:
            raise InputError("give --autoencoder for a new model, or --init-from to go on from one")
        if self.batch_size < 1 or self.steps < 1 or self.lr <= 0 or self.final_lr < 0 or self.max_tokens < 4:
            raise InputError("--batch-size, --steps and --lr must be positive, --max-tokens at least 4")
        if not 0 <= self.caption_drop < 1 or not 0 <= self.ema < 1 or not 0 <= self.warmup < 1:
            raise InputError("--caption-drop, --ema and --warmup must be at least 0 and less than 1")
        if min(self.norm_groups, self.head_dim, self.text_width, self.text_layers) < 1:
            raise InputError("--norm-groups, --head-dim, --text-width and --text-layers must be at least 1")
        if self.text_width >= 32 and self.text_width % (self.text_width // 32):
            raise InputError(f"--text-width {self.text_width}: take a multiple of 32, the width of one of its heads")
        if (self.classifier or self.style_classifier) and self.judged_samples < 1:
            raise InputError("--judged-samples must be at least 1")
        if not self.channels or any(c < 1 or c % self.norm_groups or c % min(c, self.head_dim) for c in self.channels):
            raise InputError(f"--channels must be multiples of --norm-groups and --head-dim; got {self.channels}")
        if not 0 <= self.plain_levels < max(len(self.channels), 1):
            raise InputError(f"--plain-levels {self.plain_levels}: one of {len(self.channels)} resolutions must see the text")


def train(config: TextToImageTraining) -> Path:
    """Train (or go on), write the averaged weights as ``<output>/model`` with its card, and return that folder."""
    import torch
    from diffusers.training_utils import EMAModel

    from semu_diffusion.eval.judges.judge import load_judge

    data = load_images(config.data, "train")
    run = TrainingRun(config, data.fingerprint)
    state = run.restored()
    if config.export_only and state is None:
        raise InputError(f"--export-only: {run.folder} holds no checkpoint")
    for judge, seen in ((config.classifier, data.class_names), (config.style_classifier, tuple(STYLES))):
        if judge:
            load_judge(judge, seen)  # a name that is wrong is said now, not after the training
    accelerator = new_accelerator(config.precision)
    autoencoder = load_autoencoder(config.autoencoder or str(config.init_from), data, accelerator.device)
    tokenizer, networks = new_denoiser(config, autoencoder, data.class_names)
    scheduler = new_scheduler(config)
    layout = torch.channels_last if accelerator.device.type == "cuda" else torch.contiguous_format
    networks = networks.to(accelerator.device).to(memory_format=layout)
    if accelerator.device.type == "cpu":
        plain_attention(networks["unet"])
        networks["text_encoder"].set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(networks.parameters(), lr=config.lr, weight_decay=0.0)
    ema = EMAModel(networks.parameters(), decay=config.ema, foreach=True)
    networks, optimizer = accelerator.prepare(networks, optimizer)
    if state is not None:
        networks.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
    networks.train()
    examples: CaptionedLatents | None = None

    def update() -> float:
        assert examples is not None
        generator = step_generator(config.seed, run.step)
        chosen = batch_indices(len(data), config.batch_size, config.seed, run.step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(run.progress(), config)
        latents, tokens = examples.draw(chosen, config.caption_drop, generator)
        loss = _loss(networks, scheduler, latents, tokens, generator, config, accelerator)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(networks.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(networks.parameters())
        return loss.item()

    def export(judged: bool = False) -> None:
        found = averaged(networks, ema)
        export_pipeline(run, autoencoder, tokenizer, found, scheduler, data, config, judged)

    def keep() -> None:
        run.save({"model": networks.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()})
        export()

    if not config.export_only:
        latents = encoded(data, autoencoder, run.folder, accelerator.autocast)
        examples = CaptionedLatents(latents, data, tokenizer)
        run.loop(update, keep)
    if config.export_only or config.classifier or config.style_classifier:
        export(judged=True)
    return run.folder / "model"


def _loss(
    networks: Any,
    scheduler: Any,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    generator: torch.Generator,
    config: TextToImageTraining,
    accelerator: Any,
) -> torch.Tensor:
    """Mean over the batch of w(t) |prediction - target|^2, averaged over the latent; every draw is the generator's."""
    import torch

    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    latents, noise, t, tokens = (tensor.to(accelerator.device) for tensor in (latents, noise, t, tokens))
    x_t = scheduler.add_noise(latents, noise, t)
    kind = scheduler.config.prediction_type
    target = scheduler.get_velocity(latents, noise, t) if kind == "v_prediction" else noise
    with accelerator.autocast():
        text = networks["text_encoder"](tokens)[0]
        predicted = networks["unet"](x_t, t, text).sample
    error = (predicted.float() - target).square().mean(dim=(1, 2, 3))
    return (min_snr_weights(scheduler, t, config.min_snr) * error).mean()


def parse(argv: Sequence[str] | None = None) -> TextToImageTraining:
    """The settings that a command line means, without running it."""
    parser = Parser(prog="semu train text-to-image", description=(__doc__ or "").replace("`", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, TextToImageTraining)
    return build_config(TextToImageTraining, whole_numbers(vars(parser.parse_args(argv)), "channels"))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``semu train text-to-image``; returns the exit code."""

    def job() -> int:
        print(train(parse(argv)))
        return 0

    return run_guarded("semu train text-to-image", job)


if __name__ == "__main__":
    sys.exit(main())
