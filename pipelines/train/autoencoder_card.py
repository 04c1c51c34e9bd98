"""What an autoencoder keeps of test pictures, in each style and for a judge, and the model card that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.data.images import load_images, spread
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES, in_styles

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from semu_diffusion.pipelines.data.images import ImageSet
    from semu_diffusion.pipelines.train.training import TrainingRun

__all__ = ["autoencoder_card", "reconstruction", "signed"]

CHUNK, TEST_IMAGES = 250, 500
SETTINGS = ("batch_size", "lr", "final_lr", "warmup", "clip", "ema", "kl_weight", "flip", "seed")


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def reconstruction(model: AutoencoderKL, source: str, classifier: str | None = None) -> dict[str, Any]:
    """Mean PSNR in dB (of 8-bit pictures) over test images in each style, {} if there is no test split.

    With a ``classifier``, also the share of the test photos that it calls right, as they are and as decoded.
    """
    import torch

    try:
        test = load_images(source, "test")
    except InputError:
        return {}
    chosen = spread(len(test), TEST_IMAGES)
    images, labels = test.images[chosen], test.labels[chosen]
    psnr, photos = {}, images
    for style in STYLES:
        styled = in_styles(images, [style] * len(images))
        with torch.no_grad():
            decoded = torch.cat(
                [model.decode(model.encode(signed(part)).latent_dist.mean).sample for part in styled.split(CHUNK)]
            )
        decoded = decoded.add(1).mul(127.5).round().clamp(0, 255)
        errors = (decoded - styled.float()).square().flatten(1).mean(1)
        psnr[style] = round(float((10 * (255**2 / errors.clamp(min=1e-3)).log10()).mean()), 2)
        photos = decoded.to(torch.uint8) if style == PHOTO else photos
    found: dict[str, Any] = {"test_psnr": psnr, "test_images": len(images)}
    if classifier is not None:
        from semu_diffusion.eval.judges.judge import load_judge

        judge = load_judge(classifier, test.class_names, torch.device("cpu"))
        right = [float((judge.predict(one.float() / 255) == labels).float().mean()) for one in (images, photos)]
        found |= {"recognised": dict(zip(("as they are", "decoded"), right, strict=True)), "judge": judge.name}
    return found


def autoencoder_card(run: TrainingRun, model: AutoencoderKL, data: ImageSet, config: Any, found: dict[str, Any]) -> str:
    """README.md: latent, data, settings, time, and the measured numbers (none without a test split)."""
    channels, height, width = data.image_shape
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    settings = {name: getattr(config, name) for name in SETTINGS}
    if config.perceptual is not None:
        settings["perceptual_weight"] = config.perceptual_weight
    lines = [
        "---",
        "library_name: diffusers",
        "---",
        f"# Autoencoder, {width}x{height} to {model.config.latent_channels} x {height // factor} x {width // factor}",
        "",
        f"* Network: `AutoencoderKL`, {sum(p.numel() for p in model.parameters()):,} parameters",
        f"* Data: {len(data):,} images, {channels} x {height} x {width}, as photos and in the styles "
        f"{', '.join(list(STYLES)[1:])}; fingerprint `{data.fingerprint}`",
        f"* Training: {run.step:,} steps, {run.step * config.batch_size:,} images seen, {run.elapsed() / 60:.0f} minutes"
        + (", on top of an earlier training" if config.init_from else ""),
        f"* Settings: `{settings}`",
    ]
    if found:
        each = ", ".join(f"{style} {value:.1f}" for style, value in found["test_psnr"].items())
        lines.append(f"* Mean PSNR over {found['test_images']} test images (dB): {each}")
    if "recognised" in found:
        shares = ", ".join(f"{when} {share:.3f}" for when, share in found["recognised"].items())
        lines.append(f"* Share of {found['test_images']} test photos that the judge ({found['judge']}) calls right: {shares}")
    return "\n".join([*lines, ""])
