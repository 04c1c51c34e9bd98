r"""The patch: the small frozen artefact that takes a concept out, and can be taken back to the last bit.

Per layer W' = W + s U R V^T with U (C, m, r), R (C, r, r), V (C, n, r) in the layer's matricisation, s the strength.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patches.application import applied_to, forget_application, set_patches
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.layer_patch import LayerPatch, overlap
from semu_diffusion.patches.modes import own_defaults
from semu_diffusion.patches.patch_file import MAX_STRENGTH, PatchContent, read_patch, write_patch
from semu_diffusion.patches.quantised import FrozenWeight
from semu_diffusion.patches.weights import weight_of
from semu_diffusion.patches.wrappers import modules_of, unwrapped

__all__ = ["ErasurePatch", "LayerPatch"]

_CARRIED = 0.25  # of the update: as much of it in a model's weights is no accident


@dataclass(frozen=True, eq=False)
class ErasurePatch:
    """A trained erasure. Frozen: `scale` and `load` make new ones; `apply` and `remove` change a model in place.

    ``fingerprint`` recognises the model it was made for; ``metadata`` (JSON values) says how it was made. ``overlap`` is
    sum <W, dW> / sum ||dW||^2 over the layers of that model at strength 1: a model that has the update merged into it shows a
    greater one, however small the update is. None (older files) leaves that to the fingerprint.

    Raises InputError for a strength that is not finite or beyond 10^6.
    """

    layers: Mapping[str, LayerPatch]
    fingerprint: Fingerprint
    metadata: Mapping[str, Any] = field(default_factory=dict)
    strength: float = 1.0
    overlap: float | None = None

    def __post_init__(self) -> None:
        if not abs(self.strength) <= MAX_STRENGTH:
            raise InputError(f"strength {self.strength}: must be a number of at most {MAX_STRENGTH:.0e} in size")

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained: the sum of r^2 over all matrices, but for those that a closed form gave."""
        given = self.metadata.get("closed_form", ())
        return sum(int(layer.ranks.square().sum()) for name, layer in self.layers.items() if name not in given)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, as they are saved."""
        return sum(t.numel() * t.element_size() for p in self.layers.values() for t in (p.left, p.core, p.right, p.ranks))

    def same_as(self, other: ErasurePatch) -> bool:
        """True if both make the same update of the same model, wherever they came from (a file, a copy)."""
        return self is other or (self.strength == other.strength and self.same_layers(other))

    def same_layers(self, other: ErasurePatch) -> bool:
        """True if both make the same update at the same strength, whatever theirs are."""
        return self.layers.keys() == other.layers.keys() and all(
            layer.same_as(other.layers[name]) for name, layer in self.layers.items()
        )

    def scale(self, strength: float) -> ErasurePatch:
        """The same patch at another ``strength``, the factor on the update as trained: 0 changes nothing, 1 is as trained."""
        return dataclasses.replace(self, strength=float(strength))

    @own_defaults()
    def delta(self, name: str) -> torch.Tensor:
        """The weight update of layer ``name``, strength included, float32, in the layer's shape."""
        return self.layers[name].delta() * self.strength

    # ------------------------------------------------------------------ on a model

    @own_defaults()
    def check(self, model: nn.Module, originals: Mapping[str, torch.Tensor] | None = None) -> None:
        """Raise InputError unless ``model`` is the one this patch was made for, without it in its weights.

        ``originals`` stand in for weights that carry patches.
        """
        self.fingerprint.check(model, originals)
        if self.overlap is None or self.strength == 0:
            return
        modules = modules_of(model)
        given = originals or {}
        rounding = self.fingerprint.rounding
        now = overlap(self.layers, lambda name: given[name] if name in given else weight_of(modules, name), rounding)
        if now is None:
            return
        merged = now.value - self.overlap
        if abs(merged) > now.noise and merged / self.strength > _CARRIED:
            raise InputError(f"the model's weights carry this patch already, at strength {merged:.2g} (merged into them)")

    @own_defaults()
    def apply(self, model: nn.Module) -> None:
        """Add the update to ``model``'s weights in place. Patches stack; the originals are kept aside for `remove`.

        Raises InputError if the model is not the one it was made for, already carries this patch, or was changed under another;
        then nothing changed.
        """
        model = unwrapped(model)
        before = applied_to(model)
        carried = next((patch for patch in before.patches if patch.same_layers(self)), None)
        if carried is not None:
            at = "" if carried.strength == self.strength else f", at strength {carried.strength:g}: remove it first"
            raise InputError(f"this patch is already applied to the model{at}")
        try:
            self.check(model, before.originals)
        except InputError:
            if not before.patches:
                raise
            self.check(model)  # made for the model as patched so far
        set_patches(model, (*before.patches, self))

    @own_defaults()
    def remove(self, model: nn.Module) -> None:
        """Take the update off again: with no other patch left, every weight has the very bytes it had before `apply`.

        The model may have been moved or cast in between; a cast one gets its originals in the new dtype. Raises InputError if
        this patch is not on the model, or a training step, `load_state_dict` or another tool changed the weights under it.
        """
        model = unwrapped(model)
        patches = applied_to(model).patches
        if not any(patch.same_as(self) for patch in patches):
            other = next((f" at strength {self.strength:g}, but at {p.strength:g}" for p in patches if p.same_layers(self)), "")
            raise InputError(f"this patch is not applied to the model{other}, so it cannot be removed from it")
        set_patches(model, tuple(patch for patch in patches if not patch.same_as(self)))

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, ``model``, anything with a ``denoiser``, carries the update; afterwards every byte is as before."""
        self.apply(model.denoiser)
        try:
            yield model
        finally:
            self.remove(model.denoiser)

    @own_defaults()
    def merge(self, model: nn.Module) -> None:
        """Write the update into the weights for good: `remove` is not possible afterwards, and no copy is kept.

        Raises InputError if the model carries patches that could still be removed, or is not the right one.
        """
        model = unwrapped(model)
        if applied_to(model).patches:
            raise InputError("the model carries applied patches; remove them before merging")
        if any(isinstance(weight, FrozenWeight) for weight in model.parameters()):
            raise InputError("nothing can be written into quantised weights: merge into the model in float, or load the LoRA")
        self.apply(model)
        forget_application(model)

    # ------------------------------------------------------------------ on disk

    @own_defaults()
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the factors, and everything else as JSON in its header. Written beside and renamed."""
        return write_patch(Path(path).expanduser(), PatchContent(*(getattr(self, name) for name in PatchContent._fields)))

    @classmethod
    @own_defaults()
    def load(cls, path: str | Path) -> ErasurePatch:
        """Read a patch; raises InputError for a file that is missing, broken, no patch, or not as it was written."""
        return cls(*read_patch(Path(path).expanduser()))
