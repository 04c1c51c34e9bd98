r"""RECE: the closed form again and again, each time on the inputs that still say what the erased name said.

    c'  = argmin_x sum_i || W_i x - W_i^old c ||^2 + l || x ||^2 = (l I + sum_i W_i^T W_i)^{-1} (sum_i W_i^T W_i^old) c
    W_i <- argmin_W || W c' - W_i^old a ||^2 + p || W k - W_i^old k ||^2 + r || W - W_i ||^2

over the layers i that see nothing but the condition, with inputs c of the erased, a of its anchor and k of kept rows (Gong et
al. 2024, "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", arXiv 2407.12383, eqs. 3 and 8, with l =
0.1 and one to five rounds). The first round takes c itself, and is UCE; every later one fits all inputs found so far, c among
them, or the name would come back. Rounds after the first are the setting ``steps``, p is ``preserve``.

UCE's equation (Gandikota et al. 2024, arXiv 2308.14761, eq. 7) and layers (keys and values of cross-attention) are its
authors'; the inputs are not. Here they are all tokens of the prompts that name the erased thing, each answered by the anchor's
at the same place, and all tokens of kept prompts. Their first code takes the bare name from its last token to the end of the
padding, answered by the anchor's from its own last token, and r = 0.5; their present one the name's last token alone, of kept
names too, r = 0.5 and p = 1. Neither keeps anything else unless it is named (the first: the empty prompt, or artists).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.peers.closed_forms import NameInputs, Weights, closed_form

__all__ = ["PRESERVE", "RIDGE", "adversarial_inputs", "rece", "rounds", "uce"]

NORM = 0.1  # l
PRESERVE, RIDGE = 0.1, 0.1  # p and r, as RECE's code has them


def uce(task: Task[Any], config: ErasureConfig, progress: Progress | None = None, preserve: float = PRESERVE) -> EditResult:
    """The first round alone: UCE over all tokens, with p = ``preserve``. Raises InputError as `closed_form`."""
    return closed_form(task, config, partial(rounds, count=0, preserve=preserve), progress)


def rece(task: Task[Any], config: ErasureConfig, progress: Progress | None = None, preserve: float = PRESERVE) -> EditResult:
    """UCE and ``config.steps`` rounds against what still answers. Raises InputError as `closed_form`."""
    return closed_form(task, config, partial(rounds, count=config.steps, preserve=preserve), progress)


def rounds(old: Weights, inputs: NameInputs, count: int, preserve: float = PRESERVE) -> Weights:
    """The weights after UCE and ``count`` rounds."""
    kept = torch.cat([inputs.kept, inputs.null])
    now = {name: refitted(weight, weight, inputs.erased, inputs.anchors, kept, preserve) for name, weight in old.items()}
    found, anchors = inputs.erased, inputs.anchors
    for _ in range(count):
        found = torch.cat([found, adversarial_inputs(old, now, inputs.erased)])
        anchors = torch.cat([anchors, inputs.anchors])
        now = {name: refitted(weight, old[name], found, anchors, kept, preserve) for name, weight in now.items()}
    return now


def adversarial_inputs(old: Weights, now: Weights, erased: torch.Tensor, norm: float = NORM) -> torch.Tensor:
    """c' (N, n) of each erased input: what the layers as they are answer most nearly as the old ones answered it."""
    both = sum(weight.T @ weight for weight in now.values())
    across = sum(weight.T @ old[name] for name, weight in now.items())
    side = torch.eye(erased.shape[1], dtype=erased.dtype, device=erased.device)
    return torch.linalg.solve(norm * side + both, across @ erased.T).T  # type: ignore[operator]


def refitted(
    now: torch.Tensor, old: torch.Tensor, inputs: torch.Tensor, anchors: torch.Tensor, kept: torch.Tensor, preserve: float
) -> torch.Tensor:
    """W (m, n) that answers ``inputs`` as the old one answers ``anchors``, and ``kept`` as ever, near to the one of now."""
    left = inputs.T @ inputs + preserve * kept.T @ kept + RIDGE * torch.eye(inputs.shape[1]).to(inputs)
    wrong = inputs.T @ (anchors @ old.T - inputs @ now.T) + preserve * kept.T @ (kept @ (old - now).T)
    return now + torch.linalg.solve(left, wrong).T
