"""Is the LoRA that was written the patch? Load it as a user would, compare, unload, compare again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from semu_diffusion.eval.results import LoraCheck
from semu_diffusion.files import tensors_only
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import DIFFUSERS_LORA

__all__ = ["check_lora"]

ADAPTER = "semu_check"


def check_lora(model: DiffusionModel, patch: ErasurePatch, folder: Path) -> LoraCheck | None:
    """The LoRA's predictions against the patch's, and every weight before and after; None without PEFT, which loads it.

    ``share_of_effect`` is the LoRA's effect projected onto the patch's: 1 if all was loaded. Compared on one noised batch: the
    first condition and none, at an early and a late timestep.
    """
    if find_spec("peft") is None:
        return None
    before = {name: value.to("cpu", copy=True) for name, value in model.denoiser.state_dict().items()}
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    t = torch.tensor([model.num_timesteps // 5, 4 * model.num_timesteps // 5] * 2, device=model.device)
    rows = torch.tensor([0, 0, model.null or 0, model.null or 0], device=model.device)
    with torch.no_grad(), _full_float32():
        original = model.predict(x, t, rows).float()
        with patch.applied(model):
            wanted = model.predict(x, t, rows).float()
        with _loaded(model, folder):
            found = model.predict(x, t, rows).float()
    after = model.denoiser.state_dict()
    restored = before.keys() == after.keys() and all(torch.equal(value, after[name].cpu()) for name, value in before.items())
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    effect, shown = wanted - original, found - original
    visible = bool(effect.abs().max() > 1e-5 * wanted.abs().max())  # of a patch that does nothing, nothing can be missing
    share = float((effect * shown).sum() / effect.square().sum()) if visible else 1.0
    rounding = 1e-5 if model.dtype == torch.float32 else 5e-2  # of the weights' own precision
    # a file of which nothing was loaded may be within the rounding of half precision
    return LoraCheck(difference, share, difference <= rounding and 0.5 < share < 1.5, restored)


@contextmanager
def _loaded(model: Any, folder: Path) -> Iterator[None]:
    """Inside, the network has the LoRA of ``folder``: by diffusers' loader, or by PEFT where the pipeline has none."""
    if hasattr(model.pipeline, "load_lora_weights"):
        with _only_errors(), tensors_only():  # diffusers warns that the text encoder got nothing, which is as it should be
            model.pipeline.load_lora_weights(folder, weight_name=DIFFUSERS_LORA, adapter_name=ADAPTER)
        unload = model.pipeline.unload_lora_weights
    else:
        from peft import PeftModel

        with tensors_only():
            unload = PeftModel.from_pretrained(model.denoiser, str(folder)).unload
    try:
        yield
    finally:
        unload()


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
