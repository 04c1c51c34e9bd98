"""The trivial edit: copy the anchor's class-embedding row over the erased one. Nothing is unlearned.

It scores perfectly on unlearning accuracy and on every kept-class figure, and one learned class vector brings the class
back. It belongs in every comparison as the floor of depth.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from semu_diffusion.peers.weight_edit import WeightEdit

__all__ = ["copy_class_embedding"]


def copy_class_embedding(denoiser: nn.Module, anchors: Mapping[int, int]) -> WeightEdit:
    """``anchors`` maps erased class index to the one whose row (D,) it gets. Raises ValueError without a class embedding."""
    embedding = getattr(denoiser, "class_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise ValueError("the model has no class embedding")
    weight = embedding.weight.detach().clone()
    for erased, anchor in anchors.items():
        weight[erased] = embedding.weight.detach()[anchor]
    return WeightEdit({"class_embedding.weight": weight}, len(anchors) * weight.shape[1])
