r"""The layers that carry the update while R is trained: W' = W + U R V^T, with U, V frozen and rounded as they are saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semu_diffusion.matrices import from_matrices
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.layer_patch import LayerPatch, overlap
from semu_diffusion.patches.quantised import FrozenWeight
from semu_diffusion.patches.weights import modules_sharing
from semu_diffusion.patches.wrappers import eagerly
from semu_diffusion.subspace import Subspace

__all__ = ["PatchedLayers", "rounded"]

LEVELS = 127  # the frozen factors are rounded to int8 before training, so that a saved patch is the trained one


class PatchedLayers:
    """Layers of a model that add U R V^T to their weight while `attached`, unless `original` switches that off.

    Every module that shares a layer's weight adds it too, since a patch changes that weight.

    Each layer computes its update the cheaper way, by cost in multiply-adds for T output positions and an m x n weight:
    ``materialised``  m n r for the product and T m n for the dense weight gradient;
    ``factored``      T r (m + n) for the two thin layers, forward and twice backward, which also run at a quarter of the
                      speed of a wide layer (measured on CPU and GPU alike).
    """

    def __init__(
        self,
        model: nn.Module,
        subspaces: Mapping[str, Subspace],
        fixed: Mapping[str, Subspace] = MappingProxyType({}),
        cores: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """In ``subspaces`` R is trained, from zero; those of ``fixed``, of other layers, carry the R of ``cores`` (C, r, r)."""
        self.model = model
        modules = dict(model.named_modules())
        self.subspaces = {name: space for name, space in {**fixed, **subspaces}.items() if space.ranks.any()}
        self.layers: dict[str, Any] = {name: modules[name] for name in self.subspaces}
        self._sharing = modules_sharing(model, self.layers)
        self.left: dict[str, torch.Tensor] = {}
        self.right: dict[str, torch.Tensor] = {}
        self.core: dict[str, torch.Tensor] = {}
        self._scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, space in self.subspaces.items():
            device = self.layers[name].weight.device
            self.left[name], left_scale = rounded(space.left.to(device).float())
            self.right[name], right_scale = rounded(space.right.to(device).float())
            self._scales[name] = (left_scale, right_scale)
            width = space.left.shape[-1]
            given = cores.get(name)
            core = torch.zeros(len(space.left), width, width) if given is None else given.float()
            self.core[name] = core.to(device)
        self._trained = [name for name in self.subspaces if name not in fixed]
        self.enabled = True
        self._attached = False

    def parameters(self) -> list[torch.Tensor]:
        """The R of every layer that is trained."""
        return [self.core[name] for name in self._trained]

    def scaled_core(self, name: str) -> torch.Tensor:
        """R (C, r, r) as it stands between the int8 factors: with their scales multiplied in."""
        left_scale, right_scale = self._scales[name]
        return left_scale[:, :, None] * self.core[name] * right_scale[:, None, :]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the layers' forward includes the update; afterwards the model is untouched.

        A forward that a layer carries of its own (hooks of accelerate) is put back, and answers while `original` is on.
        """
        if self._attached:
            yield
            return
        sharing = [(name, module) for name, modules in self._sharing.items() for module in modules]
        own = [module.__dict__.get("forward") for _, module in sharing]
        self._attached = True
        try:
            for name, module in sharing:
                module.forward = self._forward(name, module, module.forward)
            with eagerly():
                yield
        finally:
            self._attached = False
            for (_, module), forward in zip(sharing, own, strict=True):
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the update is off: the model answers as the original, without a second copy."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _forward(self, name: str, layer: Any, plain: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        left, right = self.left[name].float(), self.right[name].float()
        space = self.subspaces[name]

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not self.enabled:
                return plain(x)
            if _factored_is_cheaper(layer, space, x):
                return _with_update(layer, x, plain(x), right[0], left[0] @ self.scaled_core(name)[0])
            with torch.autocast(x.device.type, enabled=False):
                delta = from_matrices(left @ self.scaled_core(name) @ right.transpose(1, 2), space.shape, space.matricisation)
                dtype = layer.weight.dtype  # summed wide and rounded once, as `ErasurePatch.apply` does
                weight = (layer.weight.to(torch.promote_types(dtype, torch.float32)) + delta).to(dtype)
            if isinstance(layer, nn.Linear):
                return F.linear(x, weight, layer.bias)
            return layer._conv_forward(x, weight, layer.bias)

        return forward

    def patch(self, metadata: Mapping[str, Any] | None = None) -> ErasurePatch:
        """The patch as trained so far, on the CPU."""
        layers = {
            name: LayerPatch(
                left=self.left[name].cpu(),
                core=self.scaled_core(name).detach().cpu(),
                right=self.right[name].cpu(),
                ranks=space.ranks,
                shape=space.shape,
                matricisation=space.matricisation,
            )
            for name, space in self.subspaces.items()
        }
        base = overlap(layers, lambda name: self.layers[name].weight)
        fingerprint = Fingerprint.of(self.model, layers)
        grouped = sorted(name for name in layers if getattr(self.layers[name], "groups", 1) > 1)
        about = {**(metadata or {}), **({"grouped": grouped} if grouped else {})}  # which no LoRA can be
        return ErasurePatch(layers, fingerprint, about, overlap=base.value if base else None)


def rounded(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 columns (C, m, r) and their scales (C, r). Training sees the rounded subspace, so saving it loses nothing."""
    scale = factor.abs().amax(dim=1) / LEVELS
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (factor / safe[:, None, :]).round().to(torch.int8), scale


def _factored_is_cheaper(layer: Any, space: Subspace, x: torch.Tensor) -> bool:
    if isinstance(layer.weight, FrozenWeight):  # a weight with the update in it would be kept for the backward pass
        return True
    if len(space.left) != 1 or getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    (m, r), n = space.left.shape[1:], space.right.shape[1]
    if isinstance(layer, nn.Conv2d):
        positions = x.numel() / layer.in_channels / (layer.stride[0] * layer.stride[1])
    else:
        positions = x.numel() / x.shape[-1]
    return 4 * 3 * positions * r * (m + n) < 3 * m * n * r + positions * m * n


def _with_update(layer: Any, x: torch.Tensor, plain: torch.Tensor, right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """``plain`` + (U R) (V^T x) without ever making the weight: right (n, r), left (m, r); added where it is multiplied.

    Channels that lie last stay there: the next layer would have to move them back.
    """
    m, r = left.shape
    left, right = left.to(plain.dtype), right.to(x.dtype)
    pointwise = isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
    if isinstance(layer, nn.Linear):
        thin = x.reshape(-1, x.shape[-1]) @ right
    elif pointwise and not _last(x):
        thin = right.T @ x.flatten(-2)
    else:
        kernel = right.T.reshape(r, layer.in_channels, *layer.kernel_size)
        thin = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
    thin = thin.to(plain.dtype)
    with torch.autocast(x.device.type, enabled=False):  # which would round ``plain`` where a layer answers in float32
        if isinstance(layer, nn.Linear):
            return torch.addmm(plain.reshape(-1, m), thin, left.T).view(plain.shape)
        if _last(plain) and thin.ndim == 4:
            sums = torch.addmm(_positions(plain), _positions(thin), left.T)
            return sums.view(len(plain), *plain.shape[2:], m).permute(0, 3, 1, 2)
        flat = plain.reshape(-1, m, plain.shape[-2:].numel())
        return torch.baddbmm(flat, left.expand(len(flat), m, r), thin.reshape(len(flat), r, -1)).view(plain.shape)


def _last(images: torch.Tensor) -> bool:
    """True for (N, C, H, W) whose channels lie last in memory."""
    return images.ndim == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def _positions(images: torch.Tensor) -> torch.Tensor:
    """(N H W, C) of (N, C, H, W): without a copy where the channels lie last."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
