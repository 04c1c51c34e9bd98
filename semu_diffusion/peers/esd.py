r"""ESD: the prediction for the concept is trained to what negative guidance would make of it, away from the concept.

    min E || eps'(x_t, c, t) - sg[eps(x_t, t) - eta (eps(x_t, c, t) - eps(x_t, t))] ||^2

(Gandikota et al. 2023, "Erasing Concepts from Diffusion Models", arXiv 2303.07345, eq. 7), eta the setting ``overshoot`` (the
paper: 1). ESD-x trains the cross-attention, for words whose meaning in other prompts is to stay; ESD-u all other weights, so
that the concept leaves the pictures whatever was asked for. There: Adam at 1e-5, 1,000 iterations of one sample on a path that
the model in training draws at w = 3; here the paths are the original's, as for every method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.peers.edit import WholeWeights
from semu_diffusion.peers.fine_tuning import fine_tuned

__all__ = ["cross_attention", "esd_u", "esd_x", "require_null"]


def esd_x(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """ESD of the cross-attention. Raises InputError for a network that has none."""
    require_null(task)
    trainable = WholeWeights(task.model.denoiser, cross_attention(task.model), "cross-attention")
    return fine_tuned(task, config, progress, trainable=trainable)


def esd_u(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """ESD of everything but the cross-attention: of all weights, where there is none. Raises InputError without a null row."""
    require_null(task)
    crosses = cross_attention(task.model)
    trainable = WholeWeights(task.model.denoiser, lambda name: not crosses(name))
    return fine_tuned(task, config, progress, trainable=trainable)


def cross_attention(model: Any) -> Callable[[str], bool]:
    """Says of a parameter's name if it belongs to a block that looks at the text, ``attn2`` as diffusers names it.

    Of a family whose text and image attend to each other, where ``attn2`` is another thing, no parameter does.
    """
    there = getattr(model, "cross_attention", False)
    return lambda name: there and "attn2" in name.split(".")


def require_null(task: Task[Any]) -> None:
    """InputError for a model without a null row, whose prediction the target is made of."""
    if task.model.null is None:
        raise InputError("this method guides away from the prediction without a condition, and the model has no null class")
