"""The training of the latent space of a small text-to-image model, for photos and all picture styles alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.data.images import spread
from semu_diffusion.pipelines.train.card import Card, Result
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES, drawn_styles, in_style, in_styles
from semu_diffusion.pipelines.train.recipe import Recipe, TrainingConfig
from semu_diffusion.pipelines.train.step import mirrored, signed

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from semu_diffusion.eval.judges.image_classifier import ImageClassifier
    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["Autoencoder", "AutoencoderTraining", "perceptual_distance"]

CHUNK, SCALE_IMAGES, TEST_IMAGES = 250, 1000, 500


@dataclass(frozen=True)
class AutoencoderTraining(TrainingConfig):
    """Settings of ``semu train autoencoder``: squared error, a faint KL term, and the distance in a classifier's features."""

    init_from: str | None = option(None, "start from this autoencoder (its architecture counts)", metavar="DIR")
    channels: tuple[int, ...] = option((32, 64, 128), "channels of each resolution, from the finest", comma=True)
    latent_channels: int = option(8, "channels of the latent")
    layers_per_block: int = option(1, "residual blocks for each resolution")
    norm_groups: int = option(16, "groups of the group normalisation")
    kl_weight: float = option(1e-6, "weight of the KL term, which keeps the latents near a standard normal")
    perceptual: str | None = option(
        None, "classifier in whose features the pictures are to agree too: what matters for what is seen", metavar="DIR"
    )
    perceptual_weight: float = option(0.05, "weight of the distance in those features")
    flip: bool = option(True, "mirror at random")
    classifier: str | None = option(
        None, "judge for the card, of decoded photos: a classifier's folder, or embedded", budget=True, metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.latent_channels >= 1, "--latent-channels must be positive")
        multiples = self.norm_groups >= 1 and self.channels and all(c >= 1 and not c % self.norm_groups for c in self.channels)
        require(bool(multiples), f"--channels must be multiples of --norm-groups {self.norm_groups}; got {self.channels}")


class Autoencoder(Recipe):
    """Train the latent space of a small text-to-image model, for photos and all picture styles alike."""

    name = "autoencoder"
    help = "Train the latent space of a small text-to-image model, for photos and all picture styles alike."

    config_class = AutoencoderTraining
    examples = (
        "semu train autoencoder --data uoft-cs/cifar10 --output train-runs/autoencoder",
        "semu train autoencoder --data my-images/ --output train-runs/mine --max-minutes 30 --latent-channels 4",
        "semu train autoencoder --data uoft-cs/cifar10 --perceptual train-runs/classifier/model --output train-runs/sharp",
    )
    config: AutoencoderTraining

    def judges(self) -> list[tuple[str | None, Sequence[str]]]:
        return [(self.config.classifier, self.data.class_names)]

    def build(self) -> AutoencoderKL:
        import torch

        from semu_diffusion.pipelines.train.text_to_image_parts import load_autoencoder

        config = self.config
        self.images = self.on_device(self.data.images)
        started = config.init_from and load_autoencoder(config.init_from, self.data, torch.device("cpu")).requires_grad_(True)
        model = started or _new(config, self.data)
        self.critic = None if config.perceptual is None else _load_critic(config.perceptual, self.data, self.device)
        return model

    def parts(self) -> tuple[torch.nn.Module, ...]:
        return self.model.encoder, self.model.decoder

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean |decoded - x|^2 + kl_weight KL(posterior, standard normal) + perceptual_weight d(decoded, x), x in a style."""
        import torch

        config, images = self.config, self.take(self.images, chosen)
        if config.flip:
            images = mirrored(images, generator)
        x = signed(in_styles(images, drawn_styles(len(images), generator)))
        with self.autocast():
            posterior = self.model.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=self.device)
            decoded = self.model.decode(posterior.mean + posterior.std * noise).sample
            seen = 0.0 if self.critic is None else perceptual_distance(self.critic, (decoded + 1) / 2, (x + 1) / 2)
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        squared = (decoded.float() - x).square().mean()
        return squared + config.kl_weight * kl + config.perceptual_weight * seen  # type: ignore[no-any-return]

    def write(self, folder: Path, model: Any) -> None:
        """Save the latents' own scale with the weights: latents times ``scaling_factor`` have variance 1."""
        import torch

        images = self.data.images[spread(len(self.data), SCALE_IMAGES)]
        model.to(self.device).float().eval()
        with torch.no_grad():
            parts = images.to(self.device).split(CHUNK)
            latents = torch.cat([model.encode(signed(part)).latent_dist.mean for part in parts])
        model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        model.cpu().half().save_pretrained(folder)

    def measure(self, folder: Path, final: bool) -> dict[str, Any]:
        """Mean PSNR in dB (of 8-bit pictures) over test images in each style, {} if there is no test split.

        At the end also the share of the test photos that the judge calls right, as they are and as decoded.
        """
        import torch
        from diffusers import AutoencoderKL

        if self.test is None:
            return {}
        model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).to(self.device)
        chosen = spread(len(self.test), TEST_IMAGES)
        images, labels = self.test.images[chosen], self.test.labels[chosen]
        psnr, photos = {}, images
        for style in STYLES:
            styled = in_style(images, style)
            decoded = _decoded(model, styled)
            errors = (decoded - styled.float()).square().flatten(1).mean(1)
            psnr[style] = round(float((10 * (255**2 / errors.clamp(min=1e-3)).log10()).mean()), 2)
            photos = decoded.to(torch.uint8) if style == PHOTO else photos
        found: dict[str, Any] = {"test_psnr": psnr, "test_images": len(images)}
        if final and self.config.classifier is not None:
            from semu_diffusion.eval.judges.judge import load_judge

            judge = load_judge(self.config.classifier, self.test.class_names, self.device)
            right = {"as they are": judge.predict(images) == labels, "decoded": judge.predict(photos) == labels}
            found |= {"recognised": {when: float(part.float().mean()) for when, part in right.items()}, "judge": judge.name}
        return found

    def card(self, model: Any, measured: Mapping[str, Any]) -> Card:
        _, height, width = self.data.image_shape
        config, factor = self.config, 2 ** (len(model.config.block_out_channels) - 1)
        kept = ("kl_weight", "flip") if config.perceptual is None else ("kl_weight", "flip", "perceptual_weight")
        results = []
        if measured:
            sentence = f"Mean PSNR over {measured['test_images']} test images in each style:"
            results.append(Result(sentence, "style", "dB", {name: f"{v:.1f}" for name, v in measured["test_psnr"].items()}))
        if "recognised" in measured:
            sentence = f"Share of {measured['test_images']} test photos that the judge ({measured['judge']}) calls right:"
            shares = {when: f"{share:.3f}" for when, share in measured["recognised"].items()}
            results.append(Result(sentence, "photos", "share", shares))
        return Card(
            title=f"Autoencoder, {width}x{height} to {model.config.latent_channels} x {height // factor} x {width // factor}",
            about=f"The latent space of a small text-to-image model, for photos and the styles {', '.join(list(STYLES)[1:])}.",
            facts={"Network": f"`AutoencoderKL`, {sum(p.numel() for p in model.parameters()):,} parameters"},
            settings={name: getattr(config, name) for name in kept},
            results=results,
        )


def _new(config: AutoencoderTraining, data: ImageSet) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    channels, height, width = data.image_shape
    levels = len(config.channels)
    fits = channels == 3 and height == width and not height % 2 ** (levels - 1)
    require(fits, f"{levels} resolutions need square RGB images whose sides are multiples of {2 ** (levels - 1)}")
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=height,
    )


def _load_critic(folder: str, data: ImageSet, device: torch.device) -> ImageClassifier:
    """The frozen classifier of a folder; InputError if it sees other images than those of ``data``."""
    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

    critic = ImageClassifier.load(folder, device).requires_grad_(False)
    seen = (critic.config.in_channels, *critic.config.image_size)
    require(seen == data.image_shape, f"--perceptual {folder} sees images of {seen}, the data are {data.image_shape}")
    return critic


def perceptual_distance(critic: ImageClassifier, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Mean distance of images (N, C, H, W) in [0, 1] in a classifier's features; gradients flow into ``x``, not into ``y``.

    With f_l the unit-length feature vectors of stage l at each position (H_l W_l of them), averaged over the L stages:

        d(x, y) = 1/L sum_l 1/(H_l W_l) sum_hw || f_l(x)_hw - f_l(y)_hw ||^2

    LPIPS (Zhang et al. 2018, eq. 1) with all channel weights one. Squared error alone keeps brightness and blurs the texture
    that tells a cat from a dog. The critic is a network of its own, not the one that judges the pictures afterwards.
    """
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        wanted = [F.normalize(one.float(), dim=1) for one in critic.stage_maps(y)]
    found = [F.normalize(one.float(), dim=1) for one in critic.stage_maps(x)]
    distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).mean()


def _decoded(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encoded and decoded again, in whole grey levels: uint8 (N, 3, H, W) -> float32 on the CPU."""
    import torch

    with torch.no_grad():
        parts = (signed(part).to(model.device) for part in images.split(CHUNK))
        decoded = torch.cat([model.decode(model.encode(part).latent_dist.mean).sample.cpu() for part in parts])
    return decoded.add(1).mul(127.5).round().clamp(0, 255)


COMMAND = Autoencoder.command()
