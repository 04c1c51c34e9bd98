r"""UCE: the anchor's outputs for the erased condition, in closed form (Gandikota et al. 2024, arXiv 2308.14761, eq. 7).

For every linear layer W that sees nothing but the condition, with rows c of erased, a of anchor and k of kept inputs,

    min_W'  sum ||W' c - W a||^2 + p sum ||W' k - W k||^2 + l ||W' - W||^2
    W' = W (sum a c^T + p sum k k^T + l I) (sum c c^T + p sum k k^T + l I)^{-1}

On a text-to-image UNet these layers are the keys and values of cross-attention, and every token of a prompt is an input (the
authors' code takes one). On a class-conditional UNet they are the resnets' `time_emb_proj`, whose input is the activated sum of
time and class embedding: one at every 1/32 of the timesteps. A second's work; it changes what the name means and no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from semu_diffusion.erase.anchors import chosen_anchors
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.samples import training_images
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.peers.weight_edit import WeightEdit

__all__ = ["closed_form", "uce"]

PRESERVE, RIDGE = 0.1, 0.1  # p and l
TIMES = 32
LAYERS = {"class": ("*.time_emb_proj",), "concept": ("*.attn2.to_k", "*.attn2.to_v")}


def uce(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The closed-form edit of a task. Raises InputError for a task without anchors, or a model without such layers."""
    start = time.perf_counter()
    model = task.model
    anchors = task.anchors
    if anchors is None:  # looked for on the model's own images, as by our default
        images = training_images(model, config, task.forget, task.forget_set, progress, task.forget_samples)
        anchors = chosen_anchors(task, images, phase_generator(config.seed, "anchors"))
    if not anchors:
        raise InputError(f"a closed form needs an anchor for what it erases, and --target {task.target} has none")
    chosen = time.perf_counter()
    null = [] if model.null is None else [model.null]
    inputs = [_inputs(model, rows) for rows in (list(anchors), list(anchors.values()), [*task.kept, *null])]
    layers = select_layers(model.denoiser, LAYERS["concept" if hasattr(model, "table") else "class"])
    values = {f"{name}.weight": closed_form(layer.weight.detach(), *inputs) for name, layer in layers.items()}
    seconds = {"collect": chosen - start, "train": time.perf_counter() - chosen}
    return EditResult(WeightEdit(values, sum(value.numel() for value in values.values())), anchors, None, seconds)


def closed_form(weight: torch.Tensor, erased: torch.Tensor, anchors: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """W' (m, n) of the equation above in ``weight``'s dtype, for inputs (N, n), (N, n) and (M, n); computed in float64."""
    c, a, k, w = (tensor.double() for tensor in (erased, anchors, kept, weight))
    stay = PRESERVE * k.T @ k + RIDGE * torch.eye(c.shape[1], dtype=torch.float64, device=c.device)
    # W' A = B with A symmetric positive definite: solve A W'^T = B^T
    return torch.linalg.solve(c.T @ c + stay, (c.T @ a + stay) @ w.T).T.to(weight.dtype).contiguous()


@torch.no_grad()
def _inputs(model: Any, rows: Sequence[int]) -> torch.Tensor:
    """What the edited layers get for these rows of the model, (N, n)."""
    labels = torch.tensor(list(rows), device=model.device)
    if hasattr(model, "table"):
        return model.table.embeddings[labels].flatten(0, 1)
    unet = model.denoiser
    t = torch.linspace(0, model.num_timesteps - 1, TIMES, device=model.device).round()
    times = unet.time_embedding(unet.time_proj(t).to(model.dtype))
    return F.silu(times[None] + model.condition_vectors(labels)[:, None]).flatten(0, 1)
