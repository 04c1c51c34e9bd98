"""What the modules of a Stable Diffusion UNet are called in the original code, by which sd-scripts and single files name them.

diffusers numbers the blocks of each resolution, the original all steps of the way down and up: with L residual blocks on the
way down in each resolution and L + 1 on the way up,

    down_blocks.i.{resnets, attentions}.j   input_blocks.{(L + 1) i + j + 1}.{0, 1}
    down_blocks.i.downsamplers.0            input_blocks.{(L + 1) (i + 1)}.0
    up_blocks.i.{resnets, attentions}.j     output_blocks.{(L + 1) i + j}.{0, 1}
    up_blocks.i.upsamplers.0                output_blocks.{(L + 1) i + L}.{2 behind attention, else 1}
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from semu_diffusion.errors import InputError

__all__ = ["original_unet_key", "original_unet_name", "uniform"]

_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def uniform(layers_per_block: int | Sequence[int]) -> int | None:
    """The one number of layers of all blocks, as a UNet's config has it; None of blocks that differ."""
    each = {layers_per_block} if isinstance(layers_per_block, int) else {*layers_per_block}
    return next(iter(each)) if len(each) == 1 else None


def original_unet_name(name: str, layers_per_block: int, upsampler: int = 2) -> str:
    """The original name of a module of a UNet of ``layers_per_block`` L; ``upsampler`` is where its block has the upsampler.

    Raises InputError for a module that the original UNet does not have.
    """
    try:
        return _SINGLE.get(name) or _in_block(name, layers_per_block, upsampler)
    except (LookupError, ValueError) as error:
        raise InputError(f"the original UNet of Stable Diffusion has no {name}: leave it out (--layers '!{name}')") from error


def original_unet_key(key: str, keys: Collection[str], layers_per_block: int) -> str:
    """The original name of a tensor of a UNet that has these ``keys``. Raises InputError as `original_unet_name`."""
    name, _, kind = key.rpartition(".")
    block = ".".join(key.split(".")[:2])
    attention = any(other.startswith(f"{block}.attentions.") for other in keys)
    return f"{original_unet_name(name, layers_per_block, 2 if attention else 1)}.{kind}"


def _in_block(name: str, layers_per_block: int, upsampler: int) -> str:
    side, *numbers = name.split(".")
    if side == "mid_block":
        kind, step, rest = numbers[0], int(numbers[1]), numbers[2:]
        place = f"middle_block.{2 * step + {'resnets': 0, 'attentions': 1}[kind]}"
    else:
        block, kind, step, rest = int(numbers[0]), numbers[1], int(numbers[2]), numbers[3:]
        first = (layers_per_block + 1) * block
        place = {
            ("down_blocks", "resnets"): f"input_blocks.{first + step + 1}.0",
            ("down_blocks", "attentions"): f"input_blocks.{first + step + 1}.1",
            ("down_blocks", "downsamplers"): f"input_blocks.{first + layers_per_block + 1}.0",
            ("up_blocks", "resnets"): f"output_blocks.{first + step}.0",
            ("up_blocks", "attentions"): f"output_blocks.{first + step}.1",
            ("up_blocks", "upsamplers"): f"output_blocks.{first + layers_per_block}.{upsampler}",
        }[side, kind]
    inside = ".".join(rest)
    if kind == "resnets":
        inside = _IN_RESNET[inside]
    elif kind == "downsamplers":
        inside = {"conv": "op"}[inside]
    return f"{place}.{inside}"
