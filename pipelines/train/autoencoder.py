"""``semu train autoencoder``: the latent space of a small text-to-image model, for photos and all picture styles alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.files import forget_places, write_text
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.data.images import load_images, spread
from semu_diffusion.pipelines.train.autoencoder_card import CHUNK, autoencoder_card, reconstruction, signed
from semu_diffusion.pipelines.train.optimisation import averaged, cosine_rate
from semu_diffusion.pipelines.train.perceptual import load_critic, perceptual_distance
from semu_diffusion.pipelines.train.picture_styles import drawn_styles, in_styles
from semu_diffusion.pipelines.train.training import (
    TrainingRun,
    batch_indices,
    mirrored,
    new_accelerator,
    replace_folder,
    step_generator,
    whole_numbers,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["AutoencoderTraining", "main", "parse", "train"]

EXAMPLES = (
    "semu train autoencoder --data uoft-cs/cifar10 --output train-runs/autoencoder",
    "semu train autoencoder --data my-images/ --output train-runs/mine --max-minutes 30 --latent-channels 4",
    "semu train autoencoder --data uoft-cs/cifar10 --perceptual train-runs/classifier/model --output train-runs/sharp",
)


@dataclass(frozen=True)
class AutoencoderTraining:
    """Settings of ``semu train autoencoder``: squared error, a faint KL term, and the distance in a classifier's features."""

    data: str = option("", "Hub id, folder of parquet files, or one folder per class", budget=True, metavar="DATASET")
    output: str = option("", "folder for the checkpoint, the log and model/", budget=True, metavar="DIR")
    init_from: str | None = option(None, "start from this autoencoder (its architecture counts)", metavar="DIR")
    channels: tuple[int, ...] = option((32, 64, 128), "channels of each resolution, from the finest", comma=True)
    latent_channels: int = option(8, "channels of the latent")
    layers_per_block: int = option(1, "residual blocks for each resolution")
    norm_groups: int = option(16, "groups of the group normalisation")
    kl_weight: float = option(1e-6, "weight of the KL term, which keeps the latents near a standard normal")
    perceptual: str | None = option(
        None, "classifier in whose features the pictures shall agree too: what matters for what is seen", metavar="DIR"
    )
    perceptual_weight: float = option(0.05, "weight of the distance in those features")
    steps: int = option(20_000, "optimiser steps in all", budget=True)
    max_minutes: float = option(0.0, "minutes of training in all; 0 for no limit", budget=True)
    batch_size: int = option(64, "images a step")
    lr: float = option(1e-3, "peak learning rate")
    final_lr: float = option(1e-5, "learning rate at the end")
    warmup: float = option(0.03, "share of the training in which the rate rises")
    clip: float = option(1.0, "largest gradient norm")
    ema: float = option(0.999, "largest decay of the averaged weights")
    flip: bool = option(True, "mirror at random")
    precision: Literal["auto", "bf16", "no"] = option("auto", "bf16 where the hardware has it, or no (float32)")
    compile: bool = option(False, "torch.compile the network", budget=True)
    seed: int = option(0, "seed of the weights, the order and the noise")
    save_every: float = option(5.0, "minutes between checkpoints", budget=True)
    resume: bool = option(True, "go on from the checkpoint in --output", budget=True)
    classifier: str | None = option(
        None, "judge for the card, of decoded photos: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )

    def __post_init__(self) -> None:
        if not self.data or not self.output:
            raise InputError("--data and --output are needed")
        if self.batch_size < 1 or self.steps < 1 or self.lr <= 0 or self.final_lr < 0 or self.latent_channels < 1:
            raise InputError("--batch-size, --steps, --lr and --latent-channels must be positive, --final-lr not negative")
        if self.norm_groups < 1 or not self.channels or any(c < 1 or c % self.norm_groups for c in self.channels):
            raise InputError(f"--channels must be multiples of --norm-groups {self.norm_groups}; got {self.channels}")


def train(config: AutoencoderTraining) -> Path:
    """Train (or go on), write the averaged weights as ``<output>/model`` with their card, and return that folder."""
    import torch
    from diffusers.training_utils import EMAModel

    from semu_diffusion.eval.judges.judge import load_judge

    data = load_images(config.data, "train")
    run = TrainingRun(config, data.fingerprint)
    state = run.restored()
    if config.classifier:
        load_judge(config.classifier, data.class_names)  # a name that is wrong is said now, not after the training
    accelerator = new_accelerator(config.precision)
    model = _new_model(config, data).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    ema = EMAModel(model.parameters(), decay=config.ema, foreach=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    critic = None if config.perceptual is None else load_critic(config.perceptual, data, accelerator.device)
    encode, decode = (torch.compile(f) if config.compile else f for f in (model.encode, model.decode))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
    model.train()

    def update() -> float:
        chosen = batch_indices(len(data), config.batch_size, config.seed, run.step)
        generator = step_generator(config.seed, run.step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(run.progress(), config)
        images = data.images[chosen]
        if config.flip:
            images = mirrored(images, generator)
        x = in_styles(images, drawn_styles(len(images), generator)).float().div(127.5).sub(1)
        x = x.to(accelerator.device)
        with accelerator.autocast():
            posterior = encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(accelerator.device)
            decoded = decode(posterior.mean + posterior.std * noise).sample
            seen = 0.0 if critic is None else perceptual_distance(critic, (decoded + 1) / 2, (x + 1) / 2)
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = (decoded.float() - x).square().mean() + config.kl_weight * kl + config.perceptual_weight * seen
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        return loss.item()

    def keep() -> None:
        run.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()})
        _export(run, averaged(model, ema), data, config)

    run.loop(update, keep)
    return run.folder / "model"


def _new_model(config: AutoencoderTraining, data: ImageSet) -> AutoencoderKL:
    import torch
    from diffusers import AutoencoderKL

    from semu_diffusion.pipelines.train.text_to_image_parts import load_autoencoder

    if config.init_from is not None:
        return load_autoencoder(config.init_from, data, torch.device("cpu")).requires_grad_(True)
    channels, height, width = data.image_shape
    halvings = 2 ** (len(config.channels) - 1)
    if channels != 3 or height != width or height % halvings:
        raise InputError(f"{len(config.channels)} resolutions need square RGB images whose sides are multiples of {halvings}")
    with torch.random.fork_rng(devices=[]):  # layers take their initial weights from the global generator
        torch.manual_seed(config.seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(config.channels),
            up_block_types=("UpDecoderBlock2D",) * len(config.channels),
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=height,
        )


def _export(run: TrainingRun, model: AutoencoderKL, data: ImageSet, config: AutoencoderTraining) -> None:
    """Write ``<output>/model`` with the latents' own scale in it: latents times ``scaling_factor`` have variance 1."""
    import torch

    judge = model.float().eval()
    with torch.no_grad():
        some = data.images[spread(len(data), 1000)]
        latents = torch.cat([judge.encode(signed(part)).latent_dist.mean for part in some.split(CHUNK)])
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    found = reconstruction(judge, config.data, config.classifier)
    run.log(**found)
    beside = run.folder / "model.part"
    model.half().save_pretrained(beside)
    forget_places(beside)
    write_text(beside / "README.md", autoencoder_card(run, model, data, config, found))
    replace_folder(beside, run.folder / "model")


def parse(argv: Sequence[str] | None = None) -> AutoencoderTraining:
    """The settings that a command line means, without running it."""
    parser = Parser(prog="semu train autoencoder", description=(__doc__ or "").replace("`", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, AutoencoderTraining)
    return build_config(AutoencoderTraining, whole_numbers(vars(parser.parse_args(argv)), "channels"))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``semu train autoencoder``; returns the exit code."""

    def job() -> int:
        print(train(parse(argv)))
        return 0

    return run_guarded("semu train autoencoder", job)


if __name__ == "__main__":
    sys.exit(main())
