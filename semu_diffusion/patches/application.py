"""What patches do to a model in place: the weights they wrote, and the originals that are kept aside.

The weights of a patched model are its own to change, by training, `load_state_dict` or another tool. To put the originals back
then would throw that away without a word: whatever is written is remembered by its digest and compared before the next change.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patches.layer_patch import LayerPatch
from semu_diffusion.patches.modes import own_defaults
from semu_diffusion.patches.quantised import FrozenWeight
from semu_diffusion.patches.weights import weight_of
from semu_diffusion.patches.wrappers import modules_of

__all__ = ["Application", "applied_to", "forget_application", "set_patches"]

_STATE = "_semu_patches"  # attribute of a patched model


class _Patch(Protocol):
    @property
    def layers(self) -> Mapping[str, LayerPatch]: ...

    @property
    def strength(self) -> float: ...

    def delta(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Application:
    """The ``patches`` on a model, in order; of each layer they touch, the original weight and what was ``written`` over it."""

    originals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    written: Mapping[str, tuple[torch.dtype, bytes]] = field(default_factory=dict)
    patches: tuple[Any, ...] = ()


def applied_to(model: nn.Module) -> Application:
    """The patches that ``model`` carries."""
    found: Application | None = model.__dict__.get(_STATE)
    return found or Application()


def forget_application(model: nn.Module) -> None:
    """Leave the weights as they are, for good."""
    model.__dict__.pop(_STATE, None)


def set_patches(model: nn.Module, patches: Sequence[_Patch]) -> None:
    """Bring the weights to originals + the updates of ``patches``, in order, and remember; on failure all is as before.

    Raises InputError if a weight is no longer what was written, would no longer be finite, or is that of two layers.
    """
    before = applied_to(model)
    modules = modules_of(model)
    weights = {name: weight_of(modules, name) for patch in (*before.patches, *patches) for name in patch.layers}
    owners: dict[int, str] = {}
    for name, weight in weights.items():
        if owners.setdefault(id(weight), name) != name:
            raise InputError(
                f"{owners[id(weight)]} and {name} share one weight, which can take the update of one of them alone"
            )
    _check_unchanged(weights, before)
    inference = [name for name, weight in weights.items() if weight.is_inference()]
    if inference and not torch.is_inference_mode_enabled():
        raise InputError(f"the weight of {inference[0]} was made in torch.inference_mode, and can be changed in it alone")
    originals = dict(before.originals)
    for name in weights.keys() - originals.keys():
        originals[name] = _kept(weights[name])
    touched = {name: weight for name, weight in weights.items() if any(name in patch.layers for patch in patches)}
    try:
        for name, weight in weights.items():
            _write(name, weight, originals[name], patches)
        own = {name: weight for name, weight in touched.items() if not isinstance(weight, FrozenWeight)}
        written = {name: (own[name].dtype, digest) for name, digest in _digests(own).items()}
    except BaseException:
        for name, weight in weights.items():
            _write(name, weight, originals[name], before.patches)
        raise
    if patches:
        model.__dict__[_STATE] = Application({name: originals[name] for name in touched}, written, tuple(patches))
    else:
        forget_application(model)


def _kept(weight: torch.Tensor) -> torch.Tensor:
    """A copy that no update reaches."""
    return weight.without_update() if isinstance(weight, FrozenWeight) else weight.detach().to("cpu", copy=True)


def _check_unchanged(weights: Mapping[str, torch.Tensor], before: Application) -> None:
    digests = _digests({name: weights[name] for name in before.written})
    for name, (dtype, digest) in before.written.items():
        weight = weights[name]
        if weight.dtype == dtype and digests[name] == digest:
            continue
        if not _is_cast(weight, _updated(before.originals[name], name, before.patches).to(dtype)):
            raise InputError(
                f"the weights of {name} have changed since a patch was applied (a training step, load_state_dict, another "
                "tool?), and would be lost: load the model again"
            )


def _is_cast(weight: torch.Tensor, written: torch.Tensor) -> bool:
    """True if ``weight`` is what was written, in another dtype, perhaps by way of a half one."""
    kinds = (weight.dtype, torch.bfloat16, torch.float16)
    return weight.shape == written.shape and any(
        torch.equal(written.to(kind).to(weight.dtype), weight.detach().cpu()) for kind in kinds
    )


def _digests(weights: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """SHA-256 of each weight's numbers, wherever they are and in whatever memory format."""

    def digest(weight: torch.Tensor) -> bytes:
        return hashlib.sha256(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).digest()

    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        return dict(zip(weights, pool.map(digest, weights.values()), strict=True))


def _updated(original: torch.Tensor, name: str, patches: Sequence[_Patch]) -> torch.Tensor:
    """The original + the updates of layer ``name``, in float32 or wider, added one by one so that all devices round alike."""
    updates = [patch.delta(name).to(original.device) for patch in patches if name in patch.layers]
    return original + functools.reduce(torch.add, updates) if updates else original


@torch.no_grad()
def _write(name: str, weight: torch.Tensor, original: torch.Tensor, patches: Sequence[_Patch]) -> None:
    """weight <- original + the updates, rounded once to the weight's dtype; a quantised one is read with them from now on."""
    updated = _updated(original.to(weight.device), name, patches)
    if any(name in patch.layers for patch in patches):
        low, high = (float(bound) for bound in torch.aminmax(updated))
        limit = torch.finfo(weight.dtype).max
        if not (-limit <= low and high <= limit):
            raise InputError(f"the patch would make weights of {name} infinite: take a smaller strength")
    if isinstance(weight, FrozenWeight):
        mine = [(patch.layers[name].to(weight.device), patch.strength) for patch in patches if name in patch.layers]
        weight.update = functools.partial(_summed, mine) if mine else None
    else:
        weight.copy_(updated)


@own_defaults()
def _summed(layers: Sequence[tuple[LayerPatch, float]]) -> torch.Tensor:
    return functools.reduce(torch.add, [layer.delta() * strength for layer, strength in layers])
