"""Whether the LoRA that was written is the patch: load it as a user would, compare, unload, compare again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from semu_diffusion.lora import DIFFUSERS_LORA
from semu_diffusion.models.stable_diffusion import TextConditional
from semu_diffusion.patch import ErasurePatch

__all__ = ["check_lora"]

ADAPTER = "semu_check"


def check_lora(model: TextConditional, patch: ErasurePatch, folder: Path) -> dict[str, Any] | None:
    """Largest difference of the LoRA's predictions from the patch's, relative to the largest prediction; the share of the
    patch's effect that the LoRA has (projected onto it, 1 if all was loaded); whether unloading it leaves every weight as it
    was. None without PEFT, which diffusers needs for it.

    Compared on one noised batch: the first and the empty prompt at an early and a late timestep.
    """
    if find_spec("peft") is None:
        return None
    before = {name: value.to("cpu", copy=True) for name, value in model.denoiser.state_dict().items()}
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    t = torch.tensor([model.num_timesteps // 5, 4 * model.num_timesteps // 5] * 2, device=model.device)
    rows = torch.tensor([0, 0, model.null, model.null], device=model.device)
    with torch.no_grad(), _full_float32():
        original = model.predict(x, t, rows).float()
        patch.apply(model.denoiser)
        try:
            wanted = model.predict(x, t, rows).float()
        finally:
            patch.remove(model.denoiser)
        with _only_errors():  # diffusers warns that the text encoder got nothing, which is as it should be
            model.pipeline.load_lora_weights(folder, weight_name=DIFFUSERS_LORA, adapter_name=ADAPTER)
        try:
            found = model.predict(x, t, rows).float()
        finally:
            model.pipeline.unload_lora_weights()
    after = model.denoiser.state_dict()
    restored = before.keys() == after.keys() and all(torch.equal(value, after[name].cpu()) for name, value in before.items())
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    effect, shown = wanted - original, found - original
    visible = bool(effect.abs().max() > 1e-5 * wanted.abs().max())  # of a patch that does nothing, nothing can be missing
    share = float((effect * shown).sum() / effect.square().sum()) if visible else 1.0
    rounding = 1e-5 if model.dtype == torch.float32 else 5e-2  # of the weights' own precision
    return {
        "relative_difference": difference,
        "share_of_effect": share,
        # a file of which nothing was loaded may be within the rounding of half precision
        "same": difference <= rounding and 0.5 < share < 1.5,
        "unloaded_equal": restored,
    }


@contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, whose convolutions round to 10 bits, so that W + BA and W x + B (A x) differ by more than rounding."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


@contextmanager
def _only_errors() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
