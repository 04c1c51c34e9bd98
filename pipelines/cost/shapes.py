"""Networks in the shapes of published models, with random weights, behind the adapters that real ones have.

The settings are those of the ``config.json`` that stands beside the published weights; a test holds the numbers of parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from semu_diffusion.models.adapters.dit import DiT
from semu_diffusion.models.adapters.flux import Flux
from semu_diffusion.models.adapters.sd3 import StableDiffusion3
from semu_diffusion.models.adapters.stable_diffusion import StableDiffusion
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.prompt_table import PromptTable

__all__ = ["SHAPES", "Shape", "build", "empty_network", "fill"]

ROWS = 4  # conditions that the model is spoken to of, before the null row
FACTOR = 8  # pixels a latent, of every autoencoder here


@dataclass(frozen=True)
class Shape:
    """A network as published. ``text``: (tokens, width) of its prompts, ``pooled``: width of their pooled condition."""

    adapter: type[Any]
    config: Mapping[str, Any]
    size: int
    text: tuple[int, int] = (0, 0)
    pooled: int = 0
    depth: tuple[str, ...] = ("num_layers",)  # the settings that say how many blocks there are
    flow: Mapping[str, Any] = field(default_factory=dict)


UNET: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SD15 = {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {**UNET, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD35_MEDIUM: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
FLUX_DEV: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
DIT_XL2: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28, "patch_size": 2,
    "attention_bias": True, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}  # fmt: skip
UNET_DEPTH = ("layers_per_block", "transformer_layers_per_block")
FLUX_FLOW = {"shift": 3.0, "use_dynamic_shifting": True}
SHAPES: dict[str, Shape] = {
    "sd15": Shape(StableDiffusion, SD15, 512, (77, 768), depth=UNET_DEPTH),
    "sd21": Shape(StableDiffusion, SD21, 768, (77, 1024), depth=UNET_DEPTH),
    "sdxl": Shape(StableDiffusion, SDXL, 1024, (77, 2048), 1280, UNET_DEPTH),
    "sd35-medium": Shape(StableDiffusion3, SD35_MEDIUM, 1024, (333, 4096), 2048, flow={"shift": 3.0}),
    "flux-dev": Shape(Flux, FLUX_DEV, 1024, (512, 4096), 768, ("num_layers", "num_single_layers"), FLUX_FLOW),
    "dit-xl2": Shape(DiT, DIT_XL2, 256),
}


def empty_network(shape: Shape, size: int | None = None, blocks: int | None = None) -> Any:
    """The network of a shape on the meta device, for pictures of ``size`` pixels, with at most ``blocks`` blocks of a kind."""
    config = dict(shape.config)
    if "sample_size" in inspect.signature(shape.adapter.network.__init__).parameters:
        config["sample_size"] = (size or shape.size) // FACTOR
    for name in shape.depth if blocks is not None else ():
        given = config.get(name, 1)
        config[name] = tuple(min(one, blocks) for one in given) if isinstance(given, tuple) else min(given, blocks)
        if name == "num_layers" and "dual_attention_layers" in config:
            config["dual_attention_layers"] = tuple(one for one in config["dual_attention_layers"] if one < config[name])
    with torch.device("meta"):
        return shape.adapter.network(**config).eval()


def build(shape: Shape, network: Any, size: int | None, generator: torch.Generator | None) -> DiffusionModel:
    """The network behind its family's adapter, with conditions that are random numbers (None: nothing but shapes)."""
    side, device, dtype = size or shape.size, next(network.parameters()).device, next(network.parameters()).dtype

    def numbers(*sides: int) -> torch.Tensor:
        made = torch.empty(sides) if generator is None else torch.randn(*sides, generator=generator)
        return made.to(device, dtype)

    pipeline = _pipeline(shape, network, side)
    if shape.adapter is DiT:
        names = tuple(f"class {row}" for row in range(int(shape.config["num_embeds_ada_norm"])))
        return DiT(pipeline, names, len(names), "random weights")
    pooled = numbers(ROWS + 1, shape.pooled) if shape.pooled else None
    table = PromptTable(
        embeddings=numbers(ROWS + 1, *shape.text),
        pooled=pooled,
        prompts=(*(f"prompt {row}" for row in range(ROWS)), ""),
        time_ids=torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=device)
        if pooled is not None
        else None,
    )
    made: DiffusionModel = shape.adapter(pipeline, table, "random weights")
    return made


def _pipeline(shape: Shape, network: Any, side: int) -> Any:
    """What an adapter asks of a pipeline when nothing is encoded or decoded."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(**shape.flow) if shape.flow else DDIMScheduler()
    vae = SimpleNamespace(config=SimpleNamespace(sample_size=side, latent_channels=16))
    packing = {name: getattr(FluxPipeline, name) for name in ("_pack_latents", "_unpack_latents", "_prepare_latent_image_ids")}
    given = {"scheduler": scheduler, "vae": vae, "vae_scale_factor": FACTOR, **packing, shape.adapter.part: network}
    return SimpleNamespace(**given)


@torch.no_grad()
def fill(network: Any, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """The network with weights on the device: W ~ N(0, 1/fan_in), scales 1, all else 0; a DiT's embedders are copies of one."""
    network = torch.nn.Module.to(network, dtype).to_empty(device=device)  # diffusers' own warns of parts that are kept wider
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(float(name.endswith("weight")))
    for buffer in network.buffers():
        buffer.zero_()
    if isinstance(network, DiT.network):
        first, *others = (block.norm1.emb for block in network.transformer_blocks)
        for other in others:
            other.load_state_dict(first.state_dict())
    return network
