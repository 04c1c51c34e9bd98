"""What the layers of SD3's and Flux.1's transformers are called in the original code, by which ComfyUI knows their LoRA.

There the projections of a token to query, key and value are one layer, and in a single block of Flux the first layer of its MLP
with them: each of ours is a part of such a layer's outputs, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from semu_diffusion.errors import InputError

__all__ = ["Part", "Place", "original_place", "parts_of_originals"]

QKV = (1, 1, 1)
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "flux": (
        (r"transformer_blocks\.(\d+)\.attn\.to_([qkv])", r"double_blocks.\1.img_attn.qkv"),
        (r"transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj", r"double_blocks.\1.txt_attn.qkv"),
        (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
        (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
        (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
        (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
        (r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.lin"),
        (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
        (r"single_transformer_blocks\.(\d+)\.(?:attn\.to_([qkv])|proj_mlp)", r"single_blocks.\1.linear1"),
        (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
        (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"context_embedder", "txt_in"),
        (r"x_embedder", "img_in"),
        (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"proj_out", "final_layer.linear"),
    ),
    "sd3": (
        (r"transformer_blocks\.(\d+)\.attn\.to_([qkv])", r"joint_blocks.\1.x_block.attn.qkv"),
        (r"transformer_blocks\.(\d+)\.attn2\.to_([qkv])", r"joint_blocks.\1.x_block.attn2.qkv"),
        (r"transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj", r"joint_blocks.\1.context_block.attn.qkv"),
        (r"transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj"),
        (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"joint_blocks.\1.x_block.mlp.fc1"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"joint_blocks.\1.x_block.mlp.fc2"),
        (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"joint_blocks.\1.context_block.mlp.fc1"),
        (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"joint_blocks.\1.context_block.mlp.fc2"),
        (r"transformer_blocks\.(\d+)\.norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1"),
        (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
        (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
        (r"pos_embed\.proj", "x_embedder.proj"),
        (r"context_embedder", "context_embedder"),
        (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"proj_out", "final_layer.linear"),
    ),
}
CONTINUOUS = ("norm_out.linear", "norm1_context.linear")  # its shift comes first there, its scale here


@dataclass(frozen=True)
class Place:
    """The part ``index`` of the outputs of the layer ``name``, which are of these relative ``sizes``; ``swapped``: its two
    halves are the other way round there."""

    name: str
    index: int = 0
    sizes: tuple[int, ...] = (1,)
    swapped: bool = False


@dataclass(frozen=True)
class Part:
    """Our layer ``name`` in an original one: the ``rows`` of outputs that are its own, in halves the other way round if
    ``swapped``."""

    name: str
    rows: slice
    swapped: bool


def parts_of_originals(shapes: Mapping[str, tuple[int, ...]], family: str) -> dict[str, list[Part]]:
    """The layers of the original network of ``family``, of all of ours by their weights' ``shapes``: what each is made of."""
    places: dict[str, list[tuple[int, str, bool]]] = {}
    for name, shape in shapes.items():
        with suppress(InputError):
            place = original_place(name, family, shape)
            places.setdefault(place.name, []).append((place.index, name, place.swapped))
    found: dict[str, list[Part]] = {}
    for original, members in places.items():
        start, found[original] = 0, []
        for _, name, swapped in sorted(members):
            found[original].append(Part(name, slice(start, start + shapes[name][0]), swapped))
            start += shapes[name][0]
    return found


def original_place(name: str, family: str, shape: tuple[int, ...]) -> Place:
    """Where a layer of ``family`` (``sd3`` or ``flux``) with a weight of this shape stands in the original network.

    Raises InputError for one that it does not have.
    """
    for ours, theirs in NAMES[family]:
        found = re.fullmatch(ours, name)
        if found is None:
            continue
        original = found.expand(theirs)
        if original.endswith(".linear1"):
            part = found[2]
            return Place(original, 3 if part is None else "qkv".index(part), (1, 1, 1, 4))  # the MLP is four times as wide
        if original.endswith(".qkv"):
            return Place(original, "qkv".index(found[2]), QKV)
        return Place(original, swapped=name.endswith(CONTINUOUS) and shape[0] == 2 * shape[1])
    raise InputError(f"the original network has no {name}: leave it out (--layers '!{name}')")
