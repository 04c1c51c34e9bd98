"""The parts of a small Stable Diffusion pipeline: autoencoder, tokenizer, text encoder, UNet, scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.train.captions import every_caption

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTokenizer

    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["load_autoencoder", "new_denoiser", "new_scheduler", "new_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


def load_autoencoder(source: str, data: ImageSet, device: torch.device) -> AutoencoderKL:
    """The autoencoder of a folder, or of the pipeline in it, frozen, in float32; InputError if there is none that fits."""
    from diffusers import AutoencoderKL

    folder = Path(source).expanduser()
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        found = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{source} holds no autoencoder: train one with semu train autoencoder") from error
    if data.image_shape[0] != 3 or data.image_shape[1] != data.image_shape[2]:
        raise InputError("square RGB images are needed for a text-to-image model")
    side, own = data.image_shape[1], found.config.sample_size
    if own != side:
        raise InputError(f"the autoencoder of {source} is for images of {own} pixels a side, these are of {side}")
    return found.to(device).float().eval().requires_grad_(False)  # type: ignore[no-any-return]


def new_tokenizer(class_names: Sequence[str], max_tokens: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges learned on the captions: their words are one token, any other text is several."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    texts = every_caption(class_names) + every_caption(class_names, held_out=True)
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    clip: Any = CLIPTokenizer
    learner.pre_tokenizer = clip()._tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(sorted(set(texts)), trainer)
    with TemporaryDirectory() as folder:
        learner.model.save(folder)
        merges = [
            tuple(line.split(" "))
            for line in (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#version")
        ]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    return clip(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def new_denoiser(config: Any, autoencoder: AutoencoderKL, class_names: Sequence[str]) -> tuple[CLIPTokenizer, Any]:
    """The tokenizer, and a ModuleDict of ``text_encoder`` and ``unet``: new, or those of ``--init-from``."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch import nn
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = autoencoder.config.sample_size // 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if config.init_from:
        folder = Path(config.init_from).expanduser()
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            places = folder / "text_encoder", folder / "unet"
            text_encoder = CLIPTextModel.from_pretrained(places[0], local_files_only=True, use_safetensors=True).float()
            unet = UNet2DConditionModel.from_pretrained(places[1], local_files_only=True, use_safetensors=True).float()
        except (OSError, ValueError) as error:
            raise InputError(f"--init-from {folder} is no Stable Diffusion pipeline ({error})") from error
        if (unet.config.in_channels, unet.config.sample_size) != (autoencoder.config.latent_channels, size):
            raise InputError(
                f"--init-from {folder} works on latents of {unet.config.in_channels} channels, side "
                f"{unet.config.sample_size}; the autoencoder makes {autoencoder.config.latent_channels}, side {size}"
            )
        return tokenizer, nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    tokenizer = new_tokenizer(class_names, config.max_tokens)
    levels, plain = len(config.channels), config.plain_levels
    with torch.random.fork_rng(devices=[]):  # layers take their initial weights from the global generator
        torch.manual_seed(config.seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=max(config.text_width // 32, 1),
                max_position_embeddings=config.max_tokens,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=autoencoder.config.latent_channels,
            out_channels=autoencoder.config.latent_channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * (levels - plain),
            up_block_types=("CrossAttnUpBlock2D",) * (levels - plain) + ("UpBlock2D",) * plain,
            cross_attention_dim=config.text_width,
            # diffusers' name says head_dim and means the number of heads here
            attention_head_dim=tuple(max(width // config.head_dim, 1) for width in config.channels),
            norm_num_groups=config.norm_groups,
        )
    return tokenizer, nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})


def new_scheduler(config: Any) -> DDPMScheduler:
    """The noise schedule of ``--init-from``, or a linear one down to pure noise; the latents are not clipped."""
    from diffusers import DDPMScheduler

    if config.init_from:
        folder = Path(config.init_from).expanduser() / "scheduler"
        try:
            return DDPMScheduler.from_config(DDPMScheduler.load_config(folder, local_files_only=True), clip_sample=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--init-from {config.init_from} has no noise schedule in scheduler/ ({error})") from error
    return DDPMScheduler(
        num_train_timesteps=config.timesteps, beta_schedule="linear", prediction_type=config.prediction, clip_sample=False
    )
