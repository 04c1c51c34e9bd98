r"""The patch: the small frozen artefact that takes a concept out, and can be taken back to the last bit.

Per layer W' = W + s U R V^T with U (C, m, r), R (C, r, r), V (C, n, r) in the layer's matricisation, s the strength.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.files import save_tensors
from semu_diffusion.fingerprint import Fingerprint
from semu_diffusion.matrices import Matricisation, from_matrices

__all__ = ["ErasurePatch", "LayerPatch"]

_STATE = "_semu_patches"  # attribute of a patched model: original weights and the patches on it, in order
FORMAT = "semu-patch-1"


@dataclass(frozen=True)
class LayerPatch:
    """Factors of one layer's update: ``left`` (C, m, r), ``core`` (C, r, r), ``right`` (C, n, r), ``ranks`` (C,)."""

    left: torch.Tensor
    core: torch.Tensor
    right: torch.Tensor
    ranks: torch.Tensor
    shape: tuple[int, ...]
    matricisation: Matricisation = "full"

    def delta(self) -> torch.Tensor:
        """The weight update U R V^T in the layer's shape, float32."""
        product = self.left.float() @ self.core.float() @ self.right.float().transpose(1, 2)
        return from_matrices(product, self.shape, self.matricisation)

    def same_as(self, other: LayerPatch) -> bool:
        """Whether all factors are equal."""
        pairs = ((self.left, other.left), (self.core, other.core), (self.right, other.right))
        return all(torch.equal(mine.cpu().float(), theirs.cpu().float()) for mine, theirs in pairs)


@dataclass(frozen=True)
class _State:
    originals: dict[str, torch.Tensor]
    patches: tuple[ErasurePatch, ...]


@dataclass(frozen=True, eq=False)
class ErasurePatch:
    """A trained erasure. Frozen: `scale` and `load` make new ones; `apply` and `remove` change a model in place.

    ``fingerprint`` recognises the model it was made for; ``metadata`` (JSON values) says how it was made.
    """

    layers: Mapping[str, LayerPatch]
    fingerprint: Fingerprint
    metadata: Mapping[str, Any] = field(default_factory=dict)
    strength: float = 1.0

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained: the sum of r^2 over all matrices."""
        return sum(int(layer.ranks.square().sum()) for layer in self.layers.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, as they are saved."""
        return sum(t.numel() * t.element_size() for p in self.layers.values() for t in (p.left, p.core, p.right, p.ranks))

    def same_as(self, other: ErasurePatch) -> bool:
        """Whether both make the same update of the same model, wherever they came from (a file, a copy)."""
        return self is other or (
            self.strength == other.strength
            and self.layers.keys() == other.layers.keys()
            and all(layer.same_as(other.layers[name]) for name, layer in self.layers.items())
        )

    def scale(self, strength: float) -> ErasurePatch:
        """The same patch at another ``strength``, the factor on the update as trained: 0 changes nothing, 1 is as trained."""
        return dataclasses.replace(self, strength=float(strength))

    def delta(self, name: str) -> torch.Tensor:
        """The weight update of layer ``name``, strength included, float32, in the layer's shape."""
        return self.layers[name].delta() * self.strength

    # ------------------------------------------------------------------ on a model

    def apply(self, model: nn.Module) -> None:
        """Add the update to ``model``'s weights in place. Patches stack; the originals are kept aside for `remove`.

        Raises InputError if the model is not the one it was made for, or already carries this patch; then nothing changed.
        """
        state = _state(model)
        if any(patch.same_as(self) for patch in state.patches):
            raise InputError("this patch is already applied to the model")
        try:
            self.fingerprint.check(model, state.originals)
        except InputError:
            if not state.patches:
                raise
            self.fingerprint.check(model)  # made for the model as patched so far
        _set_patches(model, (*state.patches, self))

    def remove(self, model: nn.Module) -> None:
        """Take the update off again: with no other patch left, every weight has the very bytes it had before `apply`.

        Raises InputError if this patch is not on the model.
        """
        state = _state(model)
        if not any(patch.same_as(self) for patch in state.patches):
            raise InputError("this patch is not applied to the model, so it cannot be removed from it")
        _set_patches(model, tuple(patch for patch in state.patches if not patch.same_as(self)))

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, ``model``, anything with a ``denoiser``, carries the update; afterwards every byte is as before."""
        self.apply(model.denoiser)
        try:
            yield model
        finally:
            self.remove(model.denoiser)

    def merge(self, model: nn.Module) -> None:
        """Write the update into the weights for good: `remove` is not possible afterwards, and no copy is kept.

        Raises InputError if the model carries patches that could still be removed, or is not the right one.
        """
        if _state(model).patches:
            raise InputError("the model carries applied patches; remove them before merging")
        self.apply(model)
        delattr(model, _STATE)

    # ------------------------------------------------------------------ on disk

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the factors, and everything else as JSON in its header. Written beside and renamed."""
        path = Path(path)
        tensors: dict[str, torch.Tensor] = {"fingerprint": self.fingerprint.probes}
        shapes = {}
        for name, layer in self.layers.items():
            shapes[name] = [list(layer.shape), layer.matricisation]
            parts = {"left": layer.left, "core": layer.core, "right": layer.right}
            if len(layer.ranks) > 1 or int(layer.ranks[0]) != layer.core.shape[-1]:
                parts["ranks"] = layer.ranks
            for part, tensor in parts.items():
                tensors[f"{name}.{part}"] = tensor.detach().cpu().contiguous()
        header = {
            "format": FORMAT,
            "strength": self.strength,
            "structure": self.fingerprint.structure,
            "layers": shapes,
            "metadata": dict(self.metadata),
        }
        # one entry, because safetensors writes several in any order, and layers in the order of the fingerprint's rows
        return save_tensors(tensors, path, {"semu": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> ErasurePatch:
        """Read a patch; raises InputError for a file that is missing, broken, or no patch."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such patch file")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
                written = (file.metadata() or {}).get("semu")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error})") from error
        if written is None:
            raise InputError(f"{path} is a safetensors file, but not a patch of this program")
        try:
            header = json.loads(written)
            if "semu_patch" in header:
                raise InputError(f"{path} is a LoRA of a patch; the patch itself is patch.safetensors of the same run")
            if header["format"] != FORMAT:
                raise InputError(f"{path} has patch format {header['format']}; this version reads {FORMAT}")
            layers = {
                name: _read_layer(name, tensors, shape, matricisation)
                for name, (shape, matricisation) in header["layers"].items()
            }
            fingerprint = Fingerprint(header["structure"], tuple(layers), tensors["fingerprint"])
            return cls(layers, fingerprint, header["metadata"], float(header["strength"]))
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is a damaged patch ({error!r})") from error


def _read_layer(name: str, tensors: Mapping[str, torch.Tensor], shape: list[int], matricisation: Matricisation) -> LayerPatch:
    left, core, right = (tensors[f"{name}.{part}"] for part in ("left", "core", "right"))
    ranks = tensors.get(f"{name}.ranks", torch.full((len(core),), core.shape[-1]))
    return LayerPatch(left, core, right, ranks, tuple(shape), matricisation)


def _state(model: nn.Module) -> _State:
    return model.__dict__.get(_STATE) or _State({}, ())


def _set_patches(model: nn.Module, patches: tuple[ErasurePatch, ...]) -> None:
    """Bring the weights to originals + the updates of ``patches``, in order, and remember; on failure all is as before."""
    before = _state(model)
    modules = dict(model.named_modules())
    weights: dict[str, Any] = {n: modules[n].weight for patch in (*before.patches, *patches) for n in patch.layers}
    originals = dict(before.originals)
    for name in weights.keys() - originals.keys():
        originals[name] = weights[name].detach().to("cpu", copy=True)
    try:
        for name, weight in weights.items():
            _write(weight, originals[name], [patch.delta(name) for patch in patches if name in patch.layers])
    except BaseException:
        for name, weight in weights.items():
            _write(weight, originals[name], [patch.delta(name) for patch in before.patches if name in patch.layers])
        raise
    touched = {name for patch in patches for name in patch.layers}
    if patches:
        model.__dict__[_STATE] = _State({n: original for n, original in originals.items() if n in touched}, patches)
    else:
        model.__dict__.pop(_STATE, None)


@torch.no_grad()
def _write(weight: torch.Tensor, original: torch.Tensor, updates: list[torch.Tensor]) -> None:
    """weight <- original + the updates, summed in float32 (or wider) and rounded once to the weight's dtype."""
    if updates:
        update = torch.stack([update.to(weight.device) for update in updates]).sum(0)
        original = original.to(weight.device) + update  # the update is float32, so the sum is, or wider
    weight.copy_(original)
