r"""LoRA files that others wrote, as patches: W' = W + s (alpha / r) up down, with up (m, r) and down (r, in·kh·kw).

Read are the names of diffusers, PEFT, kohya (so LECO, SPM, Concept Sliders too) and of the original UNet, SD3 and Flux.1; a
layer is known by its name with every dot an underscore, which is what all of them agree on. The loaders of diffusers and PEFT
pass over what they do not know without a word, and then score a model in which half of the edit is missing: here every key is
accounted for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from semu_diffusion.errors import InputError, reason
from semu_diffusion.files import read_json
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.layer_patch import LayerPatch
from semu_diffusion.patches.original_names import original_unet_name, uniform
from semu_diffusion.patches.transformer_names import Part, parts_of_originals
from semu_diffusion.patches.weights import weight_of
from semu_diffusion.patches.wrappers import modules_of, unwrapped

__all__ = ["FOLDER_FILES", "LoraFile", "lora_patches", "read_lora"]

FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # of diffusers' folder, of PEFT's
PICKLED = (".pt", ".pth", ".bin", ".ckpt")  # Concept Sliders are published so
FACTOR = re.compile(
    r"(?P<stem>.+?)(?:\.lora_(?P<named>down|up|A|B)(?:\.(?!bias)\w+)?|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up))\.weight"
)
ALPHA = re.compile(r"(?P<stem>.+?)(?:\.lora)?\.alpha")
DOWN = ("down", "A")
# parts of a pipeline by how the keys begin, the first that fits; a key without any is of the network itself
PREFIXES = (
    (re.compile(r"lora_te3_|text_encoder_3\."), "text_encoder_3"),
    (re.compile(r"lora_te2_|text_encoder_2\."), "text_encoder_2"),
    (re.compile(r"lora_te1?_|text_encoder\."), "text_encoder"),
    (re.compile(
        r"(base_model\.model\.)?((model\.)?diffusion_model\.|(lora_(unet|transformer)|lycoris)_|(unet|transformer)\.)?"), ""),
)  # fmt: skip
OTHER_FORMATS = (
    (("dora_scale", "lora_magnitude_vector"), "a DoRA"),
    (("hada_w",), "a LoHa"),
    (("lokr_w",), "a LoKr"),
    (("oft_", "boft_"), "an OFT"),
    (("lora_mid",), "a LoRA with a core for each convolution (CP)"),
    (("lora_embedding_",), "a LoRA of an embedding"),
    ((".diff$", ".diff_b$"), "a difference of whole weights"),
    (("ia3_", ".on_input$"), "an (IA)3"),
    ((".lora_B.bias$", ".lora_up.bias$", "modules_to_save"), "a LoRA with weights or biases of its own"),
)
JOINED = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}  # whose originals have several layers in one
SUPPORTED = "LoRA in the format of diffusers, PEFT or kohya (LECO, SPM, sliders) is"


@dataclass(frozen=True)
class LoraFile:
    """``factors`` of each stem (a layer as the file names it): up, down and, if the file gives one, alpha. ``config``: PEFT's
    settings by part (r, lora_alpha, rank_pattern, alpha_pattern, use_rslora)."""

    path: Path
    factors: Mapping[str, Mapping[str, torch.Tensor]]
    config: Mapping[str, Any]


def read_lora(given: str | Path) -> LoraFile:
    """The LoRA in a file, or in the folder of diffusers or PEFT that holds one.

    Raises InputError, one line, for a file that is none or is of a format that is not supported, and for keys, pairs or
    numbers in it that make no LoRA.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        inside = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not inside and (path / "patch.safetensors").is_file():
            hint = f", or --lora {path / 'lora'} for its LoRA" if (path / "lora").is_dir() else ""
            raise InputError(f"--lora {given} is a run folder of this program: semu evaluate {given} scores its patch{hint}")
        if not inside:
            others = sorted(one.name for one in path.glob("*.safetensors"))
            named = f"name the file, as {path / others[0]}" if others else "name the file"
            raise InputError(f"--lora {given}: the folder has no {' or '.join(FOLDER_FILES)}; {named}")
        path = inside[0]
    tensors, header = _tensors(path)
    if "semu" in header and not any("lora_" in key for key in tensors):
        raise InputError(f"--lora {given} is a patch of this program: semu evaluate {given}")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        factor, alpha = FACTOR.fullmatch(key), ALPHA.fullmatch(key)
        if factor is None and alpha is None:
            raise InputError(f"--lora {path}: {_other(key)}")
        if not (tensor.is_floating_point() or alpha is not None) or not torch.isfinite(tensor.float()).all():
            raise InputError(f"--lora {path}: {key} holds other than finite numbers")
        role = "alpha" if factor is None else "down" if (factor["named"] or factor["old"]) in DOWN else "up"
        stem = str((factor or alpha)["stem"])  # type: ignore[index]
        if role in found.setdefault(stem, {}):
            raise InputError(f"--lora {path}: two tensors are the {role} of {stem}")
        found[stem][role] = tensor
    for stem, pair in found.items():
        missing = [role for role in ("down", "up") if role not in pair]
        if missing:
            raise InputError(f"--lora {path}: {stem} has no {missing[0]}, so it makes no update")
    if not found:
        raise InputError(f"--lora {path} holds no tensor")
    return LoraFile(path, found, _config(path, header))


def lora_patches(lora: LoraFile, networks: Mapping[str, nn.Module], network: str) -> dict[str, ErasurePatch]:
    """The LoRA as one patch for each of the ``networks`` that it edits; ``network`` is the one that keys without a part mean.

    Raises InputError for keys that match no layer, and shapes that do not fit.
    """
    known = {part: (modules_of(module), _by_alias(module)) for part, module in networks.items()}
    layers: dict[str, dict[str, LayerPatch]] = {}
    lost: list[str] = []
    for stem, pair in lora.factors.items():
        part, inside = _place(stem, known, network)
        if not inside:
            lost.append(stem)
        for one in inside:
            if one.name in layers.setdefault(part, {}):
                raise InputError(f"--lora {lora.path}: two of its layers are {one.name}")
            own = pair if len(inside) == 1 and not one.swapped else {**pair, "up": _rows(lora, stem, pair["up"], one, inside)}
            layers[part][one.name] = _layer(lora, part, one.name, stem, own, weight_of(known[part][0], one.name))
    if lost:
        raise InputError(
            f"--lora {lora.path}: {len(lost)} of its {len(lora.factors)} layers are none of the model's, as {lost[0]}: it was "
            "made for another model, or has the names of another program"
        )
    return {
        part: ErasurePatch(found, Fingerprint.of(networks[part], found), {"lora": lora.path.name})
        for part, found in layers.items()
    }


def _rows(lora: LoraFile, stem: str, up: torch.Tensor, one: Part, inside: Sequence[Part]) -> torch.Tensor:
    """The outputs of one of the layers ``inside`` an original one, of all of that."""
    if len(up) != inside[-1].rows.stop:
        raise InputError(f"--lora {lora.path}: {stem} has {len(up)} outputs, the model's layer {inside[-1].rows.stop}")
    rows = up[one.rows]
    return torch.cat(rows.chunk(2)[::-1]) if one.swapped else rows


def _layer(
    lora: LoraFile, part: str, name: str, stem: str, pair: Mapping[str, torch.Tensor], weight: torch.Tensor
) -> LayerPatch:
    """(alpha / r) up down in the layer's shape; a 1 x 1 convolution's factors and a linear layer's are the same."""
    up, down = pair["up"].float(), pair["down"].float()
    rank, (rows, columns) = down.shape[0] if down.ndim else 0, (len(weight), weight[0].numel())
    fits = rank > 0 and min(up.ndim, down.ndim) > 1 and up.flatten(1).shape == (rows, rank) and down[0].numel() == columns
    if not fits:
        shapes = f"up {tuple(up.shape)} and down {tuple(down.shape)}"
        raise InputError(f"--lora {lora.path}: {stem} has {shapes}, which do not fit the layer's {tuple(weight.shape)}")
    try:
        scale = _scale(lora.config, part, name, rank, pair.get("alpha"))
        if not math.isfinite(scale):
            raise ValueError(f"{scale}")
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError, re.error) as error:
        raise InputError(f"--lora {lora.path}: what it says of alpha at {stem} cannot be read ({error})") from error
    return LayerPatch(
        up.flatten(1)[None], torch.eye(rank)[None] * scale, down.flatten(1).T.contiguous()[None], torch.tensor([rank]),
        tuple(weight.shape),
    )  # fmt: skip


def _scale(config: Mapping[str, Any], part: str, name: str, rank: int, alpha: torch.Tensor | None) -> float:
    """alpha / r, or alpha / sqrt(r) of rsLoRA; 1 where the file says nothing, as diffusers and PEFT save what they trained."""
    if alpha is not None:
        return float(alpha) / rank
    own = {key.removeprefix(f"{part}."): value for key, value in config.items()}
    if "lora_alpha" not in own:
        return 1.0
    patterns = own.get("alpha_pattern") or {}
    meant = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)  # as PEFT finds it
    given = float(own["lora_alpha"] if meant is None else patterns[meant])
    return given / (rank**0.5 if own.get("use_rslora") else rank)


def _place(stem: str, known: Mapping[str, Any], network: str) -> tuple[str, list[Part]]:
    """The part of the pipeline and the layers in it that a stem names: one, several that are one in the original, or none."""
    prefix, part = next((found, part) for pattern, part in PREFIXES if (found := pattern.match(stem)) is not None)
    rest = stem[prefix.end() :].replace(".processor.", ".").replace(".", "_")
    part = part or network
    if part == "text_encoder_3" and part not in known and "text_encoder_2" in known:
        part = "text_encoder_2"  # sd-scripts counts the T5 of Flux as the third, diffusers as the second
    return part, known[part][1].get(rest, []) if part in known else []


def _by_alias(network: nn.Module) -> dict[str, list[Part]]:
    """Every linear and convolutional layer by the names that files have for it, with underscores for dots."""
    layers = modules_of(network).items()
    shapes = {name: tuple(module.weight.shape) for name, module in layers if isinstance(module, nn.Linear | nn.Conv2d)}
    found: dict[str, str] = {}
    family = JOINED.get(type(unwrapped(network)).__name__)
    joined = {} if family is None else parts_of_originals(shapes, family)
    blocks = uniform(getattr(getattr(network, "config", None), "layers_per_block", 2)) or 2
    for name in shapes:
        others = [name.removesuffix(".0")] if name.endswith(".to_out.0") else []
        others += [f"text_model.{name}", name.removeprefix("text_model.")]  # transformers dropped the prefix
        for upsampler in (1, 2):
            with suppress(InputError):  # of a network that the original code does not have
                others.append(original_unet_name(name, blocks, upsampler))
        for other in others:
            found.setdefault(other.replace(".", "_"), name)
    found |= {name.replace(".", "_"): name for name in shapes}
    alone = {alias: [Part(name, slice(0, shapes[name][0]), False)] for alias, name in found.items()}
    return {**{name.replace(".", "_"): inside for name, inside in joined.items()}, **alone}


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The file's tensors and its header. Of a pickled one nothing but tensors is unpickled."""
    if not path.is_file():
        raise InputError(f"--lora {path}: no such file")
    try:
        if path.suffix in PICKLED:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
                raise ValueError("it holds other than tensors by name")
            return {str(key): value for key, value in content.items()}, {}
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # of a foreign parser on a foreign file: whatever it is, the file is at fault
        raise InputError(f"--lora {path} is not readable as a file of tensors ({reason(error, 150)})") from error


def _config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings, of the folder's adapter_config.json or of the header that diffusers writes."""
    beside, found = path.with_name("adapter_config.json"), {}
    if path.name == FOLDER_FILES[1] and beside.is_file():
        found = read_json(beside, f"--lora {beside}")
    elif "lora_adapter_metadata" in header:
        with suppress(ValueError):
            found = json.loads(header["lora_adapter_metadata"])
    if not isinstance(found, dict):
        raise InputError(f"--lora {beside}: is no config of PEFT")
    for key, value in found.items():
        setting = key.rpartition(".")[2]
        if (setting == "use_dora" and value) or (setting == "peft_type" and value != "LORA"):
            what = "DoRA" if setting == "use_dora" else str(value)[:20]
            raise InputError(f"--lora {path} is of the kind {what}, which is not supported; {SUPPORTED}")
    return found


def _other(key: str) -> str:
    """What a file with such a key is."""
    what = next((what for words, what in OTHER_FORMATS if any(word in f"{key}$" for word in words)), None)
    if what is not None:
        return f"it is {what} ({key}), which is not supported; {SUPPORTED}"
    if "lora" not in key and ("." not in key or key.rpartition(".")[2] in ("weight", "core", "left", "right")):
        return f"it is no LoRA, it has {key}; --edited takes a whole model"
    return f"it has {key}, which is no part of a LoRA; {SUPPORTED}"
