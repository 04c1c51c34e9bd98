"""The patch on disk: one safetensors file whose header says everything else, and a reader that takes nothing on trust.

Patches are passed on between people. The reader checks all there is to check before anything reaches a model: the kinds,
shapes and ranges of every value, that the factors belong together, and a checksum over all of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from semu_diffusion.errors import InputError
from semu_diffusion.files import MAX_DEPTH, depth, save_tensors
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.layer_patch import LayerPatch

__all__ = ["FORMAT", "MAX_STRENGTH", "PatchContent", "read_patch", "write_patch"]

FORMAT = "semu-patch-1"
MAX_STRENGTH = 1e6  # sizes beyond any use, below which no product of the checked numbers overflows
MAX_GROWTH = 1e6  # of ||dW|| over ||W||
MAX_HEADER = 2**24  # characters
_FACTORS = ("left", "core", "right")
_DTYPES = {"left": (torch.int8, torch.float32), "core": (torch.float32,), "right": (torch.int8, torch.float32)}


class PatchContent(NamedTuple):
    """What a patch consists of, as `ErasurePatch` takes it."""

    layers: Mapping[str, LayerPatch]
    fingerprint: Fingerprint
    metadata: Mapping[str, Any]
    strength: float
    overlap: float | None


def write_patch(path: Path, patch: PatchContent) -> Path:
    """Write one safetensors file: the factors, and everything else as JSON in its header. Appears complete or not at all."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the file, as {path / 'patch.safetensors'}")
    tensors: dict[str, torch.Tensor] = {"fingerprint": patch.fingerprint.probes}
    for name, layer in patch.layers.items():
        _check_layer(name, layer)
        parts = {"left": layer.left, "core": layer.core, "right": layer.right}
        if len(layer.ranks) > 1 or int(layer.ranks[0]) != layer.core.shape[-1]:
            parts["ranks"] = layer.ranks
        for part, tensor in parts.items():
            tensors[f"{name}.{part}"] = tensor.detach().cpu().contiguous()
    header = {
        "format": FORMAT,
        "strength": patch.strength,
        "overlap": patch.overlap,
        "structure": patch.fingerprint.structure,
        **({"rounding": patch.fingerprint.rounding} if patch.fingerprint.rounding else {}),
        "layers": {name: [list(layer.shape), layer.matricisation] for name, layer in patch.layers.items()},
        "metadata": dict(patch.metadata),
    }
    header["sha256"] = _checksum(json.dumps(header), tensors)
    # one entry, because safetensors writes several in any order, and layers in the order of the fingerprint's rows
    return save_tensors(tensors, path, {"semu": json.dumps(header)})


def read_patch(path: Path) -> PatchContent:
    """Read a patch; raises InputError for a file that is missing, broken, no patch, or not what was written."""
    if not path.is_file():
        raise InputError(f"{path}: no such patch file")
    written, tensors = _open(path)
    if written is None:
        hint = f": semu evaluate --lora {path} scores a LoRA" if any("lora_" in name for name in tensors) else ""
        raise InputError(f"{path} is a safetensors file, but not a patch of this program{hint}")
    try:
        _require(len(written) <= MAX_HEADER, f"a header of {len(written)} characters")
        header = json.loads(written)
        _require(isinstance(header, dict) and depth(header) <= MAX_DEPTH, "no header of a patch")
        if "semu_patch" in header:
            raise InputError(f"{path} is a LoRA of a patch; the patch itself is patch.safetensors of the same run")
        if header["format"] != FORMAT:
            raise InputError(f"{path} has patch format {str(header['format'])[:40]!r}; this version reads {FORMAT}")
        checksum = header.pop("sha256", None)
        content = _content(header, tensors)
        # files from before there was a checksum have none
        _require(checksum in (None, _checksum(json.dumps(header), tensors)), "its checksum does not match")
        return content
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
        raise InputError(f"{path} is a damaged patch ({reason[:200]})") from error


def _open(path: Path) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The header's entry and copies of all tensors: what was checked must not change with the file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
            return (file.metadata() or {}).get("semu"), tensors
    except Exception as error:  # of a foreign parser on a foreign file: whatever it is, the file is at fault
        raise InputError(f"{path} is not a readable safetensors file ({str(error)[:200]})") from error


def _content(header: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> PatchContent:
    """Everything that is read, checked; ValueError, KeyError or TypeError where something is wrong."""
    strength, structure, metadata = header["strength"], header["structure"], header["metadata"]
    _require(_is_number(strength) and abs(strength) <= MAX_STRENGTH, f"strength {strength!r}")
    _require(header.get("overlap") is None or _is_number(header["overlap"]), "overlap")
    _require(isinstance(structure, str) and isinstance(metadata, dict), "structure or metadata")
    _require(structure.isalnum() and len(structure) <= 64, "structure")
    for key in ("concept", "anchor", "prompts", "forget", "class_names", "closed_form", "grouped"):
        words = metadata.get(key) or []
        _require(isinstance(words, list) and all(isinstance(word, str) for word in words), f"{key} {words!r}")
    blocks = [metadata.get("layers_per_block", 0), *(metadata.get("plain_up_blocks") or [])]
    _require(all(type(one) is int for one in blocks), f"blocks {blocks!r}")
    rounding = header.get("rounding", 0.0)
    _require(_is_number(rounding) and 0 <= rounding <= 1, f"rounding {rounding!r}")
    layers, rows = header["layers"], tensors["fingerprint"]
    _require(isinstance(layers, dict) and len(layers) > 0, "layers")
    _require(rows.dtype == torch.float32 and rows.shape == (len(layers), 5), "fingerprint")
    _require(bool(torch.isfinite(rows).all()) and bool((rows[:, 0] >= 0).all()), "fingerprint")
    found = {}
    known = {"fingerprint"}
    for (name, (shape, matricisation)), row in zip(layers.items(), rows, strict=True):
        _require(name.isprintable() and len(name) <= 500, "a layer's name")
        parts = {part: tensors[f"{name}.{part}"] for part in _FACTORS}
        ranks = tensors.get(f"{name}.ranks", torch.full((len(parts["core"]),), parts["core"].shape[-1]))
        found[name] = layer = LayerPatch(**parts, ranks=ranks, shape=tuple(shape), matricisation=matricisation)
        _check_layer(name, layer)
        _require(layer.norm_squared() <= (MAX_GROWTH * max(float(row[0]), 1.0)) ** 2, f"an update of {name} beyond measure")
        known |= {f"{name}.{part}" for part in (*_FACTORS, "ranks")}
    _require(tensors.keys() <= known, "tensors that belong to no layer")
    overlap = header.get("overlap")
    return PatchContent(
        found,
        Fingerprint(structure, tuple(found), rows, float(rounding)),
        metadata,
        float(strength),
        None if overlap is None else float(overlap),
    )


def _check_layer(name: str, layer: LayerPatch) -> None:
    """The factors belong together and to the shape, and are finite."""
    shape, form = layer.shape, layer.matricisation
    _require(form in ("full", "per_channel"), f"matricisation of {name}")
    _require(len(shape) in (2, 4) and all(type(side) is int and side > 0 for side in shape), f"shape of {name}")
    split = form == "per_channel" and len(shape) == 4
    count, width = (shape[1], math.prod(shape[2:])) if split else (1, math.prod(shape[1:]))
    rank = layer.core.shape[-1] if layer.core.ndim == 3 else -1
    expected = {"left": (count, shape[0], rank), "core": (count, rank, rank), "right": (count, width, rank)}
    for part, sides in expected.items():
        tensor = getattr(layer, part)
        _require(tuple(tensor.shape) == sides, f"shape of {name}.{part}")
        _require(tensor.dtype in _DTYPES[part], f"{name}.{part} is {tensor.dtype}")
        _require(bool(torch.isfinite(tensor).all()), f"{name}.{part} is not finite")
    ranks = layer.ranks
    _require(ranks.dtype == torch.int64 and tuple(ranks.shape) == (count,), f"ranks of {name}")
    _require(int(ranks.min()) >= 0 and int(ranks.max()) == rank, f"ranks of {name}")


def _checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the header and, in the order of their names, of all tensors with their dtypes and shapes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require(condition: bool, wrong: str) -> None:
    if not condition:
        raise ValueError(wrong)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # type: ignore[arg-type, operator]
