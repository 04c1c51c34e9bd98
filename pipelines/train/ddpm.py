"""``semu train ddpm``: train a small class-conditional DDPM with a null class, in diffusers' layout.

At every checkpoint the averaged weights are written to ``<output>/model``, which can be used while the training goes on.
"""

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
from semu_diffusion.pipelines.data.images import ImageSet, load_images
from semu_diffusion.pipelines.train.ddpm_card import export_ddpm
from semu_diffusion.pipelines.train.optimisation import averaged, cosine_rate, min_snr_weights, plain_attention
from semu_diffusion.pipelines.train.training import (
    TrainingRun,
    batch_indices,
    dropout_of,
    mirrored,
    new_accelerator,
    step_generator,
    whole_numbers,
)

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

__all__ = ["DDPMTraining", "main", "parse", "train"]

EXAMPLES = (
    "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm --steps 100000 --classifier train-runs/judge/model",
    "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm --steps 100000   # again: goes on where it stopped",
    "semu train ddpm --data my-images/ --output train-runs/mine --init-from train-runs/ddpm/model --max-minutes 60",
)


@dataclass(frozen=True)
class DDPMTraining:
    """Settings of ``semu train ddpm``. AdamW; the rate warms up and falls as a cosine over the steps or the minutes."""

    data: str = option("", "Hub id, folder of parquet files, or one folder per class", budget=True, metavar="DATASET")
    output: str = option("", "folder for the checkpoint, the log and model/", budget=True, metavar="DIR")
    init_from: str | None = option(None, "start from the weights of this model (its architecture counts)", metavar="DIR")
    # architecture
    channels: tuple[int, ...] = option((32, 64, 128), "channels of each resolution, from the finest", comma=True)
    layers_per_block: int = option(1, "residual blocks for each resolution")
    attention_levels: tuple[int, ...] = option((2,), "resolutions with self-attention, 0 is the finest", comma=True)
    head_dim: int = option(32, "channels of one attention head")
    norm_groups: int = option(16, "groups of the group normalisation")
    dropout: float = option(0.0, "dropout in the residual blocks")
    # diffusion
    schedule: Literal["linear", "squaredcos_cap_v2"] = option("linear", "noise schedule of a new model")
    timesteps: int = option(1000, "diffusion timesteps T of a new model")
    prediction: Literal["epsilon", "v_prediction"] = option("epsilon", "what a new network predicts")
    label_drop: float = option(0.1, "share of labels replaced by the null class, for classifier-free guidance")
    min_snr: float = option(5.0, "gamma of the min-SNR loss weights; 0 for none")
    # optimisation
    steps: int = option(100_000, "optimiser steps in all", budget=True)
    max_minutes: float = option(0.0, "minutes of training in all; 0 for no limit", budget=True)
    batch_size: int = option(64, "images a step")
    lr: float = option(3e-4, "peak learning rate")
    final_lr: float = option(1e-5, "learning rate at the end")
    warmup: float = option(0.03, "share of the training in which the rate rises")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    clip: float = option(1.0, "largest gradient norm")
    ema: float = option(0.9995, "largest decay of the averaged weights (reached slowly: (1 + step) / (10 + step))")
    flip: bool = option(True, "mirror at random")
    precision: Literal["auto", "bf16", "no"] = option("auto", "bf16 where the hardware has it, or no (float32)")
    compile: bool = option(False, "torch.compile the network", budget=True)
    seed: int = option(0, "seed of the weights, the order and the noise")
    # running
    save_every: float = option(5.0, "minutes between checkpoints", budget=True)
    resume: bool = option(True, "go on from the checkpoint in --output", budget=True)
    export_only: bool = option(False, "only write model/ (and its card) from the checkpoint, no training", budget=True)
    classifier: str | None = option(
        None, "judge for the model card: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )
    judged_samples: int = option(50, "samples of each class for the judge (guidance 3, 50 steps)", budget=True)

    def __post_init__(self) -> None:
        if not self.data or not self.output:
            raise InputError("--data and --output are needed")
        if self.batch_size < 1 or self.steps < 1 or self.lr <= 0 or self.final_lr < 0 or self.max_minutes < 0:
            raise InputError("--batch-size, --steps and --lr must be positive, --final-lr and --max-minutes not negative")
        if not 0 <= self.label_drop < 1 or not 0 <= self.ema < 1 or not 0 <= self.warmup < 1:
            raise InputError("--label-drop, --ema and --warmup must be at least 0 and less than 1")
        if self.norm_groups < 1 or not self.channels or any(c < 1 or c % self.norm_groups for c in self.channels):
            raise InputError(f"--channels must be multiples of --norm-groups {self.norm_groups}; got {self.channels}")
        if self.classifier and self.judged_samples < 1:
            raise InputError("--judged-samples must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: must be at least 0 and less than 1")
        if any(not 0 <= level < len(self.channels) for level in self.attention_levels):
            raise InputError(f"--attention-levels must lie in 0 to {len(self.channels) - 1}; got {self.attention_levels}")
        # the innermost block attends whatever --attention-levels say
        narrowest = min(self.channels[level] for level in (*self.attention_levels, len(self.channels) - 1))
        if not 1 <= self.head_dim <= narrowest:
            raise InputError(f"--head-dim {self.head_dim}: must lie in 1 to {narrowest}, the channels where it attends")


def train(config: DDPMTraining) -> Path:
    """Train (or go on), write the averaged weights as ``<output>/model`` with its card, and return that folder."""
    import torch
    from diffusers.training_utils import EMAModel

    from semu_diffusion.eval.judges.judge import load_judge

    data = load_images(config.data, "train")
    run = TrainingRun(config, data.fingerprint)
    state = run.restored()
    if config.export_only and state is None:
        raise InputError(f"--export-only: {run.folder} holds no checkpoint")
    if config.classifier:
        load_judge(config.classifier, data.class_names)  # a name that is wrong is said now, not after the training
    accelerator = new_accelerator(config.precision)
    model, scheduler = _new_model(config, data)
    on_cpu = accelerator.device.type == "cpu"
    # measured: channels_last is slower than the plain layout on CPUs, but for compiled networks, and faster on GPUs
    layout = torch.contiguous_format if on_cpu and not config.compile else torch.channels_last
    model = model.to(accelerator.device, memory_format=layout)
    if on_cpu:
        plain_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    ema = EMAModel(model.parameters(), decay=config.ema, foreach=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
    if config.compile:
        prepared = torch.compile(prepared)
    model.train()

    def update() -> float:
        chosen = batch_indices(len(data), config.batch_size, config.seed, run.step)
        generator = step_generator(config.seed, run.step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(run.progress(), config)
        with dropout_of(config.seed, run.step, accelerator.device):
            loss = _loss(prepared, scheduler, data, chosen, generator, config, accelerator.device)
            accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        return loss.item()

    def export(judge: str | None = None) -> None:
        export_ddpm(run, averaged(model, ema), scheduler, data, config, judge)

    def keep() -> None:
        run.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()})
        export()

    if not config.export_only:
        run.loop(update, keep)
    if config.export_only or config.classifier:
        export(judge=config.classifier)
    return run.folder / "model"


def _loss(
    model: Any,
    scheduler: DDPMScheduler,
    data: ImageSet,
    chosen: torch.Tensor,
    generator: torch.Generator,
    config: DDPMTraining,
    device: torch.device,
) -> torch.Tensor:
    """Mean over the batch of w(t) |prediction - target|^2, averaged over the pixels; every draw is the generator's."""
    import torch

    count = len(chosen)
    images = data.images[chosen].float().div(127.5).sub(1)
    if config.flip:
        images = mirrored(images, generator)
    dropped = torch.rand(count, generator=generator) < config.label_drop
    labels = data.labels[chosen].masked_fill(dropped, len(data.class_names)).to(device)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (count,), generator=generator).to(device)
    noise = torch.randn(images.shape, generator=generator).to(device)
    images = images.to(device)
    x_t = scheduler.add_noise(images, noise, t)
    kind = scheduler.config.prediction_type
    target = scheduler.get_velocity(images, noise, t) if kind == "v_prediction" else noise
    error = (model(x_t, t, class_labels=labels).sample.float() - target).square().mean(dim=(1, 2, 3))
    return (min_snr_weights(scheduler, t, config.min_snr) * error).mean()


def _new_model(config: DDPMTraining, data: ImageSet) -> tuple[UNet2DModel, DDPMScheduler]:
    """A UNet and its noise schedule, new or from ``--init-from``, with one class more than the data: the null class."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    if config.init_from:
        return _started_from(config.init_from, data)
    channels, height, width = data.image_shape
    halvings = 2 ** (len(config.channels) - 1)
    if height % halvings or width % halvings:
        raise InputError(f"{len(config.channels)} resolutions need images whose sides are multiples of {halvings}")
    attention = [level in config.attention_levels for level in range(len(config.channels))]
    with torch.random.fork_rng(devices=[]):  # layers take their initial weights from the global generator
        torch.manual_seed(config.seed)
        unet = UNet2DModel(
            sample_size=height if height == width else (height, width),  # type: ignore[arg-type]
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=config.head_dim,
            norm_num_groups=config.norm_groups,
            dropout=config.dropout,
            num_class_embeds=len(data.class_names) + 1,
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule=config.schedule,
        prediction_type=config.prediction,
        variance_type="fixed_small",
    )
    return unet, scheduler


def _started_from(source: str, data: ImageSet) -> tuple[UNet2DModel, DDPMScheduler]:
    from diffusers import DDPMScheduler

    from semu_diffusion.models.checkpoints import load_class_conditional

    loaded = load_class_conditional(source, class_names=data.class_names)
    if loaded.image_shape != data.image_shape:
        raise InputError(f"--init-from {source} makes images of {loaded.image_shape}, the data are {data.image_shape}")
    if not loaded.conditional or loaded.null != len(data.class_names):
        raise InputError(f"--init-from {source} is no model of {len(data.class_names)} classes with a null class")
    return loaded.denoiser, DDPMScheduler.from_config(loaded.pipeline.scheduler.config)


def parse(argv: Sequence[str] | None = None) -> DDPMTraining:
    """The settings that a command line means, without running it."""
    parser = Parser(prog="semu train ddpm", description=(__doc__ or "").replace("`", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, DDPMTraining)
    return build_config(DDPMTraining, whole_numbers(vars(parser.parse_args(argv)), "channels", "attention_levels"))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``semu train ddpm``; returns the exit code."""

    def job() -> int:
        print(train(parse(argv)))
        return 0

    return run_guarded("semu train ddpm", job)


if __name__ == "__main__":
    sys.exit(main())
