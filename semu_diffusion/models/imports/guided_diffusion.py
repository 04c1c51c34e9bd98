"""OpenAI's class-conditional ImageNet models of 64 and 256 pixels (Dhariwal and Nichol 2021) as a UNet2DModel, exactly.

Every layer has its like there: residual blocks scale and shift by the time, also those that go down or up a resolution, and
attention has heads of 64 channels. Query, key and value are one layer, in the order of the published code: all queries first
(64 pixels), or head by head (256). Of the six channels that come out the first three are the noise; the learned variance is
left out. They were trained without a null class, so there is nothing to guide against.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.errors import InputError, reason
from semu_diffusion.models.imports.checkpoint import Imported, State
from semu_diffusion.patches.original_names import original_unet_name

__all__ = ["FIRST", "PUBLISHED", "Published", "imported", "unet_of"]

FIRST = "input_blocks.0.0.weight"  # by which such a checkpoint is known
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}


@dataclass(frozen=True)
class Published:
    """A published network: what does not show in its tensors beside the widths by which it is known."""

    size: int
    widths: tuple[int, ...]
    layers: int
    schedule: str
    by_head: bool
    head: int = 64


PUBLISHED = (
    Published(64, (192, 384, 576, 768), 3, "squaredcos_cap_v2", by_head=False),
    Published(256, (256, 256, 512, 512, 1024, 1024), 2, "linear", by_head=True),
)


def imported(state: State, size: int | None = None) -> Imported:
    """The published network that these tensors are of. Raises InputError for any other, also that of 128 pixels, whose heads
    are of several widths."""
    kind = next((one for one in PUBLISHED if _is_of(state, one)), None)
    if kind is None:
        raise InputError(
            "the checkpoint is no class-conditional model of guided-diffusion at 64 or 256 pixels, and others are not imported "
            "(that of 128 has four heads at every width, which a UNet2DModel has not)"
        )
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=kind.schedule, clip_sample=True)
    return Imported(unet_of(state, kind, size), scheduler, None)


def unet_of(state: State, kind: Published, size: int | None = None) -> UNet2DModel:
    """The network, in float32; it computes what theirs computes of the noise, to rounding.

    Raises InputError for tensors that do not make such a network.
    """
    attends = [f"input_blocks.{(kind.layers + 1) * level + 1}.1.qkv.weight" in state for level in range(len(kind.widths))]
    unet = UNet2DModel(
        sample_size=size or kind.size,
        in_channels=state[FIRST].shape[1],
        out_channels=state[FIRST].shape[1],
        block_out_channels=kind.widths,
        layers_per_block=kind.layers,
        down_block_types=tuple("AttnDownBlock2D" if one else "ResnetDownsampleBlock2D" for one in attends),
        up_block_types=tuple("AttnUpBlock2D" if one else "ResnetUpsampleBlock2D" for one in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=kind.head,
        attn_norm_num_groups=32,
        num_class_embeds=len(state["label_emb.weight"]),
    )
    try:
        unet.load_state_dict(dict(_tensors(state, kind, unet.state_dict(), attends[::-1])))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"the checkpoint is of another network ({reason(error)})") from error
    return unet.eval()


def _is_of(state: State, kind: Published) -> bool:
    each = kind.layers + 1
    blocks = {int(found[1]) for name in state if (found := re.match(r"input_blocks\.(\d+)\.", name))}
    widths = (state.get(f"input_blocks.{each * level + 1}.0.out_layers.3.weight") for level in range(len(kind.widths)))
    return (
        "label_emb.weight" in state
        and len(blocks) == each * len(kind.widths)
        and tuple(0 if one is None else len(one) for one in widths) == kind.widths
    )


def _tensors(state: State, kind: Published, own: Any, attends: list[bool]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, like in own.items():
        module, _, which = name.rpartition(".")
        value = state[f"{_original(module, kind.layers, attends)}.{which}"].float()
        part = re.search(r"\.to_([qkv])$", module)
        if part is not None:
            value = _of_three(value, "qkv".index(part[1]), kind)
        yield name, value[: len(like)].reshape(like.shape)  # of the last layer's channels the noise


def _of_three(value: torch.Tensor, index: int, kind: Published) -> torch.Tensor:
    """Query, key or value (C, ...) of the layer (3 C, ...) that makes all three."""
    if not kind.by_head:
        return value.chunk(3)[index]
    return value.unflatten(0, (-1, 3, kind.head))[:, index].flatten(0, 1)


def _original(module: str, layers: int, attends: list[bool]) -> str:
    """The module's name there; ``attends`` are the levels upward."""
    if module == "class_embedding":
        return "label_emb"
    changed = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.(\w+)", module)
    if changed is not None and changed[1] == "down":  # one more residual block
        return original_unet_name(f"down_blocks.{changed[2]}.resnets.{layers}.{changed[3]}", layers)
    if changed is not None:
        place = 2 if attends[int(changed[2])] else 1
        block = original_unet_name(f"up_blocks.{changed[2]}.upsamplers.0.conv", layers, place).removesuffix("conv")
        return block + original_unet_name(f"mid_block.resnets.0.{changed[3]}", layers).removeprefix("middle_block.0.")
    attention = re.fullmatch(r"(.*\.attentions\.\d+)\.(.*)", module)
    name = module if attention is None else f"{attention[1]}.{ATTENTION[attention[2]]}"
    return original_unet_name(name, layers)
