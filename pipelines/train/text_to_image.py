"""The training of a small Stable Diffusion pipeline, taught words and picture styles by captions made for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.domains.prompts import article
from semu_diffusion.files import write_text
from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.progress import bar
from semu_diffusion.pipelines.train.captioned_latents import CaptionedLatents, encoded
from semu_diffusion.pipelines.train.captions import PROMPTS, cifar_vocabulary, words_of
from semu_diffusion.pipelines.train.card import Card, Result, judged_shares
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES
from semu_diffusion.pipelines.train.recipe import Recipe, TrainingConfig
from semu_diffusion.pipelines.train.step import denoising_loss, plain_attention
from semu_diffusion.pipelines.train.text_to_image_parts import load_autoencoder, new_denoiser, new_scheduler

if TYPE_CHECKING:
    import torch

__all__ = ["TextToImage", "TextToImageTraining"]

GUIDANCE, SAMPLING_STEPS, BATCH = 5.0, 25, 50


@dataclass(frozen=True)
class TextToImageTraining(TrainingConfig):
    """Settings of ``semu train text-to-image``: text encoder and UNet learn together, the autoencoder is given."""

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
    batch_size: int = option(128, "images a step")
    final_lr: float = option(2e-5, "learning rate at the end")
    # the finished model
    classifier: str | None = option(
        None, "judge of the objects for the card: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )
    style_classifier: str | None = option(None, "judge of the styles for the card: its folder", budget=True, metavar="DIR")
    judged_samples: int = option(20, "samples of each object and style for the judges (guidance 5, 25 steps)", budget=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.autoencoder is not None or self.init_from is not None
        require(given, "give --autoencoder for a new model, or --init-from to go on from one")
        require(self.max_tokens >= 4, "--max-tokens must be at least 4")
        require(0 <= self.caption_drop < 1, "--caption-drop must be at least 0 and less than 1")
        sizes = min(self.norm_groups, self.head_dim, self.text_width, self.text_layers)
        require(sizes >= 1, "--norm-groups, --head-dim, --text-width and --text-layers must be at least 1")
        heads = self.text_width < 32 or not self.text_width % (self.text_width // 32)
        require(heads, f"--text-width {self.text_width}: take a multiple of 32, the width of one of its heads")
        judged = self.classifier or self.style_classifier
        require(not judged or self.judged_samples >= 1, "--judged-samples must be at least 1")
        wrong = [c for c in self.channels if c < 1 or c % self.norm_groups or c % min(c, self.head_dim)]
        multiples = bool(self.channels) and not wrong
        require(multiples, f"--channels must be multiples of --norm-groups and --head-dim; got {self.channels}")
        seen = 0 <= self.plain_levels < len(self.channels)
        require(seen, f"--plain-levels {self.plain_levels}: one of {len(self.channels)} resolutions must see the text")


class TextToImage(Recipe):
    """Train a small Stable Diffusion pipeline, taught words and picture styles by captions made for it."""

    name = "text-to-image"
    help = "Train a small Stable Diffusion pipeline, taught words and picture styles by captions made for it."

    config_class = TextToImageTraining
    examples = (
        "semu train text-to-image --data uoft-cs/cifar10 --autoencoder train-runs/autoencoder/model --output train-runs/sd",
        "semu train text-to-image --data uoft-cs/cifar10 --init-from train-runs/sd/model --output train-runs/more",
    )
    pipeline_tag = "text-to-image"
    config: TextToImageTraining

    def judges(self) -> list[tuple[str | None, Sequence[str]]]:
        return [(self.config.classifier, self.data.class_names), (self.config.style_classifier, tuple(STYLES))]

    def build(self) -> torch.nn.Module:
        """A ModuleDict of ``text_encoder`` and ``unet``; the latents of the data are made here too, once for all."""
        config, data = self.config, self.data
        self.autoencoder = load_autoencoder(config.autoencoder or str(config.init_from), data, self.device)
        self.tokenizer, networks = new_denoiser(config, self.autoencoder, data.class_names)
        self.scheduler = new_scheduler(config)
        if self.device.type == "cpu":
            plain_attention(networks["unet"])
            networks["text_encoder"].set_attn_implementation("eager")
        if not config.export_only:
            latents = self.on_device(encoded(data, self.autoencoder, self.run.folder, self.autocast))
            self.captioned = CaptionedLatents(latents, data, self.tokenizer)
        return networks  # type: ignore[no-any-return]

    def parts(self) -> tuple[torch.nn.Module, ...]:
        return self.model["text_encoder"], self.model["unet"]

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        latents, tokens = self.captioned.draw(chosen, self.config.caption_drop, generator)

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                text = self.model["text_encoder"](tokens)[0]
                return self.model["unet"](x_t, t, text).sample  # type: ignore[no-any-return]

        return denoising_loss(predict, self.scheduler, latents, self.config.min_snr, generator)

    def write(self, folder: Path, model: Any) -> None:
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        schedule = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 1}
        StableDiffusionPipeline(
            vae=copy.deepcopy(self.autoencoder).cpu().half(),
            text_encoder=model["text_encoder"],
            tokenizer=self.tokenizer,
            unet=model["unet"],
            scheduler=DDIMScheduler.from_config(self.scheduler.config, **schedule),
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        ).save_pretrained(folder)
        cifar_vocabulary(self.data.class_names, GUIDANCE).save(folder)
        # transformers loads a model in the dtype its config names, diffusers in float32: let both agree unless asked
        config = folder / "text_encoder" / "config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        write_text(config, json.dumps({**content, "dtype": "float32"}, indent=2) + "\n")

    def measure(self, folder: Path, final: bool) -> dict[str, Any]:
        """Share of photos whose object, and of pictures whose style, the judges call the prompted one; {} without judges."""
        import torch
        from diffusers import StableDiffusionPipeline

        config, objects, styles = self.config, self.data.class_names, tuple(STYLES)
        if not final or not (config.classifier or config.style_classifier):
            return {}
        how = {"local_files_only": True, "dtype": torch.float32}
        pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, **how).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        count = config.judged_samples

        def photos(rows: list[int]) -> torch.Tensor:
            return _sampled(pipeline, [PROMPTS[PHOTO].format(words_of(objects[row])[0]) for row in rows])

        def pictures(rows: list[int]) -> torch.Tensor:  # sample k of a style shows object k
            shown = [objects[place % count % len(objects)] for place in range(len(rows))]
            return _sampled(
                pipeline, [PROMPTS[styles[row]].format(words_of(name)[0]) for row, name in zip(rows, shown, strict=True)]
            )

        found: dict[str, Any] = {"judged_samples": count}
        jobs = (("object", config.classifier, objects, photos), ("style", config.style_classifier, styles, pictures))
        for kind, judge, names, sample in jobs:
            if judge:
                share, each, _ = judged_shares(judge, names, count, self.device, sample)
                found |= {f"{kind}_accuracy": share, f"per_{kind}": each}
        return found

    def card(self, model: Any, measured: Mapping[str, Any]) -> Card:
        width, height = self.data.image_shape[:0:-1]
        parts = {**model, "vae": self.autoencoder}
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        settings = {name: getattr(self.config, name) for name in ("caption_drop", "min_snr")}
        results = []
        for kind in ("object", "style"):
            if f"per_{kind}" in measured:
                sentence = (
                    f"Share of {measured['judged_samples']} samples of each {kind} (guidance {GUIDANCE:g}, {SAMPLING_STEPS} "
                    f"DDIM steps, seeds 0, 1, …) that the judge calls that {kind}: **{measured[f'{kind}_accuracy']:.3f}** "
                    "over all."
                )
                each = {name: f"{share:.2f}" for name, share in measured[f"per_{kind}"].items()}
                results.append(Result(sentence, kind, "share", each))
        return Card(
            title=f"A tiny Stable Diffusion, {width}x{height}",
            about="A `StableDiffusionPipeline` made for trying out erasure methods, not for pictures. It knows "
            f"{len(self.data.class_names)} objects, each by several words, and {len(STYLES) - 1} picture styles beside the "
            "photo.",
            facts={
                "Objects": f"{', '.join(self.data.class_names)}; styles: {', '.join(STYLES)}",
                "Prompts": "; ".join(prompt.format("cat") for prompt in PROMPTS.values()),
                "Parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
            },
            settings={**settings, "prediction": self.scheduler.config.prediction_type},  # of --init-from, if it is given
            results=results,
        )


def _sampled(pipeline: Any, prompts: Sequence[str]) -> torch.Tensor:
    """uint8 images (N, 3, H, W) of the prompts, with their articles set right; image i from seed i."""
    import torch

    found = []
    for start in bar("judging", range(0, len(prompts), BATCH)):
        part = [article(prompt) for prompt in prompts[start : start + BATCH]]
        images = pipeline(
            part,
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(start + index) for index in range(len(part))],
            output_type="pt",
        ).images
        found.append(images.float().mul(255).round().to(torch.uint8).cpu())
    return torch.cat(found)


COMMAND = TextToImage.command()
