"""Checkpoints of the DDPMs of Selective Amnesia and SalUn (Heng and Soh 2023, Fan et al. 2024) as a UNet2DModel, exactly.

Their network has a time and a class embedding of width e side by side, [temb, cemb], and sees them together in every residual
block. Here one embedding of width 2 e holds both: the time's has zeros in its second half, a class's row in its first,

    time_embedding(t) = [temb(t), 0],    class_embedding[k] = [0, W_2 silu(W_1 emb_k + b_1) + b_2],

so that their sum is the same vector. The row after the classes is their null class.
"""

from __future__ import annotations

import re

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch.nn import functional as F

from semu_diffusion.errors import InputError, reason
from semu_diffusion.models.imports.checkpoint import Imported, State

__all__ = ["imported", "schedule", "unet_of"]

NEEDED = (
    "conv_in.weight",
    "down.0.block.0.conv1.weight",
    "classes_emb.weight",
    "null_classes_emb",
    "temb.dense.0.weight",
    "cemb.dense.1.bias",
)
ATTENTION_AT = 16  # resolution at which all of these models attend; the network's own resolution stands nowhere in the file

# their name -> ours, in order; numbers stand as they are, but the levels up are counted from the other end
NAMES = (
    (r"^down\.(\d+)\.block\.(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"^down\.(\d+)\.attn\.(\d+)", r"down_blocks.\1.attentions.\2"),
    (r"^down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"^up\.(\d+)\.block\.(\d+)", r"up_blocks.\1.resnets.\2"),
    (r"^up\.(\d+)\.attn\.(\d+)", r"up_blocks.\1.attentions.\2"),
    (r"^up\.(\d+)\.upsample", r"up_blocks.\1.upsamplers.0"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^norm_out", "conv_norm_out"),
    (r"\.temb_cemb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def imported(state: State, size: int | None = None) -> Imported:
    """The network, its noise schedule and its null class; as `unet_of`."""
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise InputError(f"the checkpoint is of no DDPM that is known: it has no {missing[0]}")
    try:
        unet = unet_of(state, size)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"the checkpoint is of another network ({reason(error)})") from error
    return Imported(unet, schedule(), int(unet.config.num_class_embeds) - 1)


def schedule() -> DDPMScheduler:
    """The noise schedule that all of them are trained with."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=True)


def unet_of(state: State, sample_size: int | None = None) -> UNet2DModel:
    """The network of a checkpoint, in float32; it computes what theirs computes, to rounding.

    ``sample_size`` is its resolution; without it the one at whose level of attention there are `ATTENTION_AT` pixels a side.
    Raises InputError, KeyError, IndexError, TypeError or RuntimeError for tensors that do not make such a network.
    """
    levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"down\.(\d+)\.", name)))
    attends = [f"down.{level}.attn.0.q.weight" in state for level in range(levels)]
    widths = [len(state[f"down.{level}.block.0.conv1.weight"]) for level in range(levels)]
    blocks = sum(1 for name in state if re.fullmatch(r"down\.0\.block\.\d+\.conv1\.weight", name))
    if sample_size is None:
        if sum(attends) != 1:
            raise InputError("the checkpoint does not show its resolution: give --size")
        sample_size = ATTENTION_AT * 2 ** attends.index(True)
    classes, width = len(state["classes_emb.weight"]), len(state["temb.dense.0.weight"])
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=state["conv_in.weight"].shape[1],
        out_channels=len(state["conv_out.weight"]),
        block_out_channels=tuple(widths),
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        attention_head_dim=None,  # one head
        norm_num_groups=32,
        norm_eps=1e-6,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        time_embedding_dim=2 * width,
        num_class_embeds=classes + 1,
    )
    own = unet.state_dict()
    renamed = {_renamed(name, levels): tensor.float() for name, tensor in state.items() if _is_of_blocks(name)}
    renamed = {name: tensor.reshape(own[name].shape) if name in own else tensor for name, tensor in renamed.items()}
    unet.load_state_dict({**renamed, **_embeddings(state, width)})
    return unet.eval()


def _is_of_blocks(name: str) -> bool:
    return name.startswith(("conv_", "down.", "mid.", "up.", "norm_out."))


def _renamed(name: str, levels: int) -> str:
    name = re.sub(r"^up\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _embeddings(state: State, width: int) -> dict[str, torch.Tensor]:
    """The time embedding beside zeros, and the class embeddings after zeros, as rows."""

    def padded(tensor: torch.Tensor, *sides: int) -> torch.Tensor:
        return F.pad(tensor.float(), sides)

    first, second = (padded(state[f"temb.dense.{layer}.weight"], 0, layer * width, 0, width) for layer in (0, 1))
    rows = torch.cat([state["classes_emb.weight"], state["null_classes_emb"][None]]).float()
    for layer in (0, 1):
        rows = F.linear(rows, state[f"cemb.dense.{layer}.weight"].float(), state[f"cemb.dense.{layer}.bias"].float())
        rows = F.silu(rows) if layer == 0 else rows
    return {
        "time_embedding.linear_1.weight": first,
        "time_embedding.linear_1.bias": padded(state["temb.dense.0.bias"], 0, width),
        "time_embedding.linear_2.weight": second,
        "time_embedding.linear_2.bias": padded(state["temb.dense.1.bias"], 0, width),
        "class_embedding.weight": padded(rows, width, 0),
    }
