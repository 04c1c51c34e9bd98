"""The training of a small class-conditional DDPM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.progress import bar
from semu_diffusion.pipelines.train.card import Card, Result, judged_shares
from semu_diffusion.pipelines.train.recipe import Recipe, TrainingConfig
from semu_diffusion.pipelines.train.step import denoising_loss, mirrored, plain_attention, signed

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["DDPM", "DDPMTraining"]

GUIDANCE, SAMPLING_STEPS, BATCH = 3.0, 50, 64


@dataclass(frozen=True)
class DDPMTraining(TrainingConfig):
    """Settings of ``semu train ddpm``. AdamW; the rate warms up and falls as a cosine over the steps or the minutes."""

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
    flip: bool = option(True, "mirror at random")
    steps: int = option(100_000, "optimiser steps in all", budget=True)
    lr: float = option(3e-4, "peak learning rate")
    ema: float = option(0.9995, "largest decay of the averaged weights (reached slowly: (1 + step) / (10 + step))")
    # the finished model
    classifier: str | None = option(
        None, "judge for the model card: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )
    judged_samples: int = option(50, "samples of each class for the judge (guidance 3, 50 steps)", budget=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_drop < 1, "--label-drop must be at least 0 and less than 1")
        multiples = self.norm_groups >= 1 and self.channels and all(c >= 1 and not c % self.norm_groups for c in self.channels)
        require(bool(multiples), f"--channels must be multiples of --norm-groups {self.norm_groups}; got {self.channels}")
        require(not self.classifier or self.judged_samples >= 1, "--judged-samples must be at least 1")
        require(0 <= self.dropout < 1, f"--dropout {self.dropout}: must be at least 0 and less than 1")
        last = len(self.channels) - 1
        inside = all(0 <= level <= last for level in self.attention_levels)
        require(inside, f"--attention-levels must lie in 0 to {last}; got {self.attention_levels}")
        # the innermost block attends whatever --attention-levels say
        narrowest = min(self.channels[level] for level in (*self.attention_levels, last))
        fits = 1 <= self.head_dim <= narrowest
        require(fits, f"--head-dim {self.head_dim}: must lie in 1 to {narrowest}, the channels where it attends")


class DDPM(Recipe):
    """Train a small class-conditional DDPM with a null class, in diffusers' layout."""

    name = "ddpm"
    help = "Train a small class-conditional DDPM with a null class, in diffusers' layout."

    config_class = DDPMTraining
    examples = (
        "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm --steps 100000 --classifier train-runs/judge/model",
        "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm --steps 100000   # again: goes on where it stopped",
        "semu train ddpm --data my-images/ --output train-runs/mine --init-from train-runs/ddpm/model --max-minutes 60",
    )
    pipeline_tag = "unconditional-image-generation"
    config: DDPMTraining

    def judges(self) -> list[tuple[str | None, Sequence[str]]]:
        return [(self.config.classifier, self.data.class_names)]

    def build(self) -> UNet2DModel:
        """A UNet and its noise schedule, new or from ``--init-from``, with one class more than the data: the null class."""
        self.images, self.labels = self.on_device(self.data.images), self.on_device(self.data.labels)
        config = self.config
        unet, self.scheduler = _started_from(config.init_from, self.data) if config.init_from else _new(config, self.data)
        if self.device.type == "cpu":
            plain_attention(unet)
        return unet

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        images = signed(self.take(self.images, chosen))
        if self.config.flip:
            images = mirrored(images, generator)
        dropped = torch.rand(len(images), generator=generator, device=self.device) < self.config.label_drop
        labels = self.take(self.labels, chosen).masked_fill(dropped, len(self.data.class_names))

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                return self.model(x_t, t, class_labels=labels).sample  # type: ignore[no-any-return]

        return denoising_loss(predict, self.scheduler, images, self.config.min_snr, generator)

    def write(self, folder: Path, model: Any) -> None:
        from semu_diffusion.models.pipeline import ClassConditionalPipeline

        names = dict(enumerate(self.data.class_names))
        ClassConditionalPipeline(model, self.scheduler, names, len(names)).save_pretrained(folder)

    def measure(self, folder: Path, final: bool) -> dict[str, Any]:
        """Share of samples of each class (guidance 3, 50 DDIM steps, seeds 0, 1, …) that the judge calls that class."""
        import torch

        from semu_diffusion.models.checkpoints import load_class_conditional

        if not final or not self.config.classifier:
            return {}
        model = load_class_conditional(folder, device=self.device)

        def sample(labels: list[int]) -> torch.Tensor:
            samples = model.sample(labels, range(len(labels)), SAMPLING_STEPS, GUIDANCE, BATCH)
            return torch.cat(list(bar("judging", samples, -(-len(labels) // BATCH))))

        count = self.config.judged_samples
        share, each, judge = judged_shares(self.config.classifier, model.names, count, self.device, sample)
        return {"sample_accuracy": share, "samples_per_class": count, "judge": judge, "per_class": each}

    def card(self, model: Any, measured: Mapping[str, Any]) -> Card:
        width, height = self.data.image_shape[:0:-1]
        names, shape = self.data.class_names, model.config
        results = []
        if measured:
            sentence = (
                f"Share of {measured['samples_per_class']} samples of each class (guidance {GUIDANCE:g}, {SAMPLING_STEPS} DDIM "
                f"steps, seeds 0, 1, …) that the judge ({measured['judge']}) calls that class: "
                f"**{measured['sample_accuracy']:.3f}** over all."
            )
            each = {name: f"{share:.2f}" for name, share in measured["per_class"].items()}
            results.append(Result(sentence, "class", "share", each))
        return Card(
            title=f"Class-conditional DDPM, {len(names)} classes, {width}x{height}",
            about="A `UNet2DModel` with class embeddings and a null class (the last index) for classifier-free guidance; made "
            "for trying out erasure methods, not for pictures. Load it with `semu_diffusion.models.checkpoints."
            "load_class_conditional`, or its parts with diffusers.",
            facts={
                "Classes": ", ".join(names),
                "Network": f"{sum(p.numel() for p in model.parameters()):,} parameters, channels "
                f"{', '.join(map(str, shape.block_out_channels))}, blocks {', '.join(shape.down_block_types)}",
            },
            settings={name: getattr(self.config, name) for name in ("label_drop", "min_snr", "flip")},
            results=results,
        )


def _new(config: DDPMTraining, data: ImageSet) -> tuple[UNet2DModel, DDPMScheduler]:
    from diffusers import DDPMScheduler, UNet2DModel

    channels, height, width = data.image_shape
    levels = len(config.channels)
    fits = not height % 2 ** (levels - 1) and not width % 2 ** (levels - 1)
    require(fits, f"{levels} resolutions need images whose sides are multiples of {2 ** (levels - 1)}")
    attention = [level in config.attention_levels for level in range(levels)]
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
    same = loaded.image_shape == data.image_shape
    require(same, f"--init-from {source} makes images of {loaded.image_shape}, the data are {data.image_shape}")
    guided = loaded.conditional and loaded.null == len(data.class_names)
    require(guided, f"--init-from {source} is not a model of {len(data.class_names)} classes with a null class")
    return loaded.denoiser, DDPMScheduler.from_config(loaded.pipeline.scheduler.config)


COMMAND = DDPM.command()
