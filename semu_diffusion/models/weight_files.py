"""What a file or folder of weights really is: people mistake LoRAs, pointers and web pages for models.

`load_network` makes one network of a pipeline, of the weights that its config tells of, all of them and no others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from semu_diffusion.errors import InputError, reason
from semu_diffusion.files import read_json

__all__ = [
    "INDEX",
    "check_not_pickled",
    "check_not_something_else",
    "load_network",
    "names_of",
    "read_config",
    "read_object",
    "said_of_prediction",
    "variant_of",
    "what_instead",
]

INDEX = "model_index.json"

LARGEST = 2**20  # of any size in the config of a network, so that none is made that no machine holds
MOST_LAYERS = 1000

# words in the names of a single file's tensors -> what it is; the first that fits counts
OTHER_FILES = (
    (("lora_", "_lora.", ".lora.", "hada_w", "lokr_w", "oft_blocks"), "a LoRA, not a model: load the model that it belongs to"),
    ((".core", ".left", ".right"), "a patch, not a model: semu merge makes one of it"),
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet, not a model"),
    (("emb_params", "string_to_param"), "a textual inversion, not a model"),
    (
        ("double_blocks.", "joint_blocks."),
        "a diffusion transformer alone, not a model: give the diffusers folder that it belongs to",
    ),
    (("down_blocks.",), "a UNet alone, not a model: give the diffusers folder that it belongs to"),
    (("encoder.down.", "decoder.up."), "an autoencoder alone, not a model"),
)
QUANTISED = (".scale_weight", ".weight_scale", "scaled_fp8", ".quant_state.", ".absmax", ".comfy_quant")  # beside the weights
QUANTISERS = {"torchao": "torchao", "quanto": "optimum.quanto", "bitsandbytes": "bitsandbytes"}  # package of each
WHOLE = "model.diffusion_model.input_blocks."  # so begin the UNet's tensors of a whole model


def check_not_pickled(path: Path, source: str) -> None:
    """InputError, which says how to convert it, for a file that is not called ``.safetensors``."""
    if path.suffix != ".safetensors":
        saved = f"s.save_file(w.get('state_dict', w), '{path.stem}.safetensors')"
        convert = f"import torch, safetensors.torch as s; w = torch.load('{path}', weights_only=True); {saved}"
        raise InputError(
            f"{source} does not end in .safetensors; pickled checkpoints are not read: convert it first, as by python -c "
            f'"{convert}"'
        )


def check_not_something_else(path: Path, source: str) -> None:
    """InputError for a file that a download left instead of weights: a git-lfs pointer, a web page, nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise InputError(f"{source}: {path} cannot be read ({error.strerror})") from error
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{source}: {path.name} is a git-lfs pointer, not the weights: run git lfs pull")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{source}: {path.name} is a web page, not weights: download the file itself")


def what_instead(folder: Path) -> str:
    """What to do with a folder that is no model: it is one of this program's runs, a LoRA, or a level beside a model."""
    inside = sorted(found.parent for found in folder.glob(f"*/{INDEX}"))
    if (folder / "patch.safetensors").is_file():
        return f"; it is a run of this program: semu evaluate {folder} scores its patch, semu merge makes a model with it"
    if any((folder / name).is_file() for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")):
        return "; it holds a LoRA: give the model that it belongs to"
    if (folder.parent / INDEX).is_file():
        return f"; it is a part of a model: give {folder.parent}"
    return f"; there is a model in it: give {inside[0]}" if inside else ""


def said_of_prediction(path: Path) -> tuple[str | None, bool]:
    """What the network of a single file predicts, if the file says so, and whether its schedule ends without signal.

    Said by tensors without numbers, as ComfyUI and A1111 know them (``v_pred``, ``ztsnr``), or by the header's modelspec.
    """
    with safe_open(path, "pt") as content:
        names, header = set(content.keys()), content.metadata() or {}
    said = str(header.get("modelspec.prediction_type", "")).lower()
    if "v_pred" in names or said in ("v", "v_prediction", "v-prediction"):
        return "v_prediction", "ztsnr" in names
    return ("epsilon" if said in ("epsilon", "eps") else None), "ztsnr" in names


def names_of(path: Path) -> set[str]:
    """The names of a safetensors file's tensors. Raises InputError for another file, and for one that is no whole model."""
    check_not_something_else(path, str(path))
    try:
        with safe_open(path, "pt") as content:
            names = set(content.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be loaded: it is no whole safetensors file ({error})") from error
    quantised = next((name for name in sorted(names) if _has([name], QUANTISED)), None)
    if quantised is not None:
        raise InputError(f"{path} has quantised weights ({quantised}): take the model in half or full precision")
    if not any(name.startswith(WHOLE) for name in names):
        for words, what in OTHER_FILES:
            if _has(names, words):
                raise InputError(f"{path} is {what}")
        raise InputError(f"{path} is no Stable Diffusion model: it has no {WHOLE}*")
    return names


def _has(names: Iterable[str], words: tuple[str, ...]) -> bool:
    return any(word in name for name in names for word in words)


def variant_of(folder: Path, source: str) -> str | None:
    """The variant (``fp16``) of the weights in a component's folder, None for plain ones, which are preferred.

    Raises InputError, naming the component, if it has none, pickled ones alone, or something else under their name.
    """
    weights = sorted(path for path in folder.glob("*.safetensors") if path.is_file() or path.is_symlink())
    if not weights:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        has = f"{pickled[0]} alone: pickled .bin weights are not read, convert them to safetensors" if pickled else "none"
        raise InputError(f"{source}: no safetensors weights of the {folder.name} in {folder} ({has})")
    for path in weights:
        check_not_something_else(path, source)
    variants = [_variant(path.name) for path in weights]
    return None if None in variants else variants[0]


def _variant(name: str) -> str | None:
    """``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors`` are of the variant fp16."""
    parts = name.split(".")
    return None if len(parts) < 3 else parts[1].split("-")[0]


def read_object(path: Path, largest: float = math.inf) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for what is none; some schedulers save an infinite bound."""
    content = read_json(path, largest=largest)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """The config of a network. Raises InputError for what is no JSON object, or tells of a network that no machine holds."""
    content = read_object(path)
    _check_sizes(content, path)
    for key, value in content.items():
        counts = value if isinstance(value, list) else [value]
        if "layers" in key and any(isinstance(count, int) and not 0 <= count <= MOST_LAYERS for count in counts):
            raise InputError(f"{path}: {key} is {value!r}, which is no number of layers")
    return content


def _check_sizes(content: Any, path: Path) -> None:
    """InputError for a number beyond `LARGEST` anywhere but in the base of a rotary embedding, which is no size."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inside:
        if isinstance(value, dict | list):
            _check_sizes(value, path)
        elif isinstance(value, int | float) and not abs(value) <= LARGEST and "theta" not in str(key):
            raise InputError(f"{path} is not the config of a network (it holds the number {str(value)[:30]})")


def _quantiser(quantised: Any, folder: Path, source: str) -> str:
    """The method of a ``quantization_config``. InputError for one that is not read, or whose package is not there."""
    method = str(quantised.get("quant_method")) if isinstance(quantised, dict) else repr(quantised)
    if method not in QUANTISERS:
        known = ", ".join(QUANTISERS)
        raise InputError(f"{source}: the weights in {folder} are quantised by {method}; those of {known} and floats are read")
    package = QUANTISERS[method]
    if find_spec(package.partition(".")[0]) is None:
        raise InputError(
            f"{source}: the weights in {folder} are quantised: pip install {package.replace('.', '-')} to read them"
        )
    return method


def load_network(folder: Path, kind: Any, source: str, dtype: torch.dtype) -> Any:
    """The network of diffusers' or transformers' class ``kind`` in a component's ``folder``, of its safetensors.

    Raises InputError for a config that does not fit its weights: the libraries fill what is missing with random numbers, and
    pass over what is left, with a warning at most.
    """
    variant = variant_of(folder, source)
    config = read_config(folder / "config.json")
    options: dict[str, Any] = {"variant": variant, "dtype": dtype, "output_loading_info": True}
    if config.get("quantization_config") and _quantiser(config["quantization_config"], folder, source) == "quanto":
        options["device_map"] = {"": "cpu"}  # else its tensors say that they are on the meta device
    try:
        network, found = kind.from_pretrained(folder, use_safetensors=True, **options)
    except Exception as error:  # broken headers, missing tensors and wrong shapes come as OSError, ValueError, RuntimeError, …
        raise InputError(f"{source}: the weights in {folder} cannot be loaded ({reason(error)})") from error
    left = {name for name in found["unexpected_keys"] if not name.endswith("position_ids")}
    if kind.__module__.startswith("transformers."):  # of a whole CLIP, the part that looks at pictures is left
        own = {name for name, _ in network.named_children()}
        left = {name for name in left if name.split(".")[0] in own}
    for words, names in (("no weights for", found["missing_keys"]), ("weights that the config has no place for,", left)):
        if names:
            raise InputError(f"{source}: config and weights in {folder} do not belong together: {words} {min(names)}")
    return network
