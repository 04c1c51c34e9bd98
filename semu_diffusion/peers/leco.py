r"""LECO: a free LoRA on every layer of attention and convolution, trained to the target of ESD.

    W' = W + (alpha / r) B A,    A (r, n) drawn, B (m, r) from zero
    min_{A, B} E || eps'(x_t, c, t) - [eps(x_t, t) - eta (eps(x_t, c, t) - eps(x_t, t))] ||^2

(p1atdev 2023, github.com/p1atdev/LECO, after Gandikota et al. 2023; Hu et al. 2022 for the LoRA). r is the setting
``max_rank``, eta ``overshoot``, the layers ``layers``. There: rank 4, alpha 1, Adam at 1e-4, 500 iterations of one sample. The
edit is a patch, so that it can be saved, scaled and exported as any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.layers import select_layers
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.layer_patch import LayerPatch, overlap
from semu_diffusion.peers.edit import Substitution
from semu_diffusion.peers.esd import require_null
from semu_diffusion.peers.fine_tuning import fine_tuned

__all__ = ["LowRank", "LowRankPatch", "leco"]

ALPHA = 1.0


def leco(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The LoRA of the settings' layers. Raises InputError without a null row, or where no layer matches."""
    require_null(task)
    layers = select_layers(task.model.denoiser, config.layers)
    generator = phase_generator(config.seed, "LoRA")
    lora = LowRank(task.model.denoiser, layers, config.max_rank or 4, generator, task.metadata)
    return fine_tuned(task, config, progress, trainable=lora)


class LowRankPatch(ErasurePatch):
    """A patch whose two thin factors were trained, instead of what stands between them."""

    @property
    def trained_parameters(self) -> int:
        return sum(layer.left.numel() + layer.right.numel() for layer in self.layers.values())


class LowRank:
    """A LoRA of rank ``rank``, or a layer's smaller side. A is drawn by He et al.'s rule and B zero: it starts as nothing."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear | nn.Conv2d],
        rank: int,
        generator: torch.Generator,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.layers, self.metadata = model, layers, dict(metadata or {})
        self.weights = Substitution(model, [f"{name}.weight" for name in layers])
        self.down: dict[str, torch.Tensor] = {}
        self.up: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            m, n = layer.weight.flatten(1).shape
            r, device = min(rank, m, n), layer.weight.device
            bound = math.sqrt(3 / n)
            self.down[name] = (torch.rand(r, n, generator=generator) * 2 - 1).mul(bound).to(device).requires_grad_(True)
            self.up[name] = torch.zeros(m, r, device=device, requires_grad=True)

    def parameters(self) -> list[torch.Tensor]:
        return [*self.down.values(), *self.up.values()]

    def values(self) -> Mapping[str, torch.Tensor]:
        """W + (alpha / r) B A of each layer, float32, with a graph to A and B."""
        return {
            f"{name}.weight": layer.weight.detach().float()
            + (ALPHA / len(self.down[name]) * self.up[name] @ self.down[name]).view(layer.weight.shape)
            for name, layer in self.layers.items()
        }

    def edit(self) -> LowRankPatch:
        layers = {name: self._layer(name) for name in self.layers}
        base = overlap(layers, lambda name: self.layers[name].weight)
        fingerprint = Fingerprint.of(self.model, layers)
        return LowRankPatch(layers, fingerprint, self.metadata, overlap=base.value if base else None)

    def _layer(self, name: str) -> LayerPatch:
        up, down = self.up[name].detach().cpu(), self.down[name].detach().cpu()
        rank = len(down)
        core, ranks = ALPHA / rank * torch.eye(rank), torch.tensor([rank])
        return LayerPatch(up[None], core[None], down.T[None].contiguous(), ranks, tuple(self.layers[name].weight.shape))
