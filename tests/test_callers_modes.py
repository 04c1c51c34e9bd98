"""What a caller has set in torch (inference mode, automatic casts, defaults) decides nothing in an erasure or a patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import random_patch, weight_bytes
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_unet

import semu_diffusion
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import DIFFUSERS_LORA, save_lora

QUICK: dict[str, Any] = {
    "steps": 1, "batch_size": 2, "forget_samples": 2, "kept_samples": 2, "anchor_samples": 2, "precision": "fp32",
    "adversarial": 0.0, "layers": ("mid_block.*",),
}  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def plain() -> ErasurePatch:
    return semu_diffusion.erase_class(tiny_model().pipeline, "red", **QUICK)


@pytest.mark.parametrize("mode", MODES)
def test_an_erasure_is_the_same_in_whatever_mode_it_is_called(mode: str, plain: ErasurePatch) -> None:
    pipeline = tiny_model().pipeline
    dtype = torch.get_default_dtype()
    with MODES[mode]():
        patch = semu_diffusion.erase_class(pipeline, "red", **QUICK)
        if "by default" in mode and "device" not in mode:
            assert torch.get_default_dtype() != dtype  # the caller's is given back
    assert torch.get_default_dtype() == dtype
    assert patch.same_as(plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_patch_is_the_same_update_in_whatever_mode_it_is_applied_and_comes_off(mode: str, tmp_path: Path) -> None:
    unet, patch = tiny_unet(), random_patch(tiny_unet())
    before = weight_bytes(unet)
    patch.apply(unet)
    patched = weight_bytes(unet)
    patch.remove(unet)
    save_lora(patch, tmp_path / "plain", "sd1")
    with MODES[mode]():
        patch.apply(unet)
        save_lora(patch, tmp_path / "mode", "sd1")
    assert weight_bytes(unet) == patched
    with MODES[mode]():
        patch.remove(unet)
    assert weight_bytes(unet) == before
    plain, found = (load_file(tmp_path / one / DIFFUSERS_LORA) for one in ("plain", "mode"))
    assert all(torch.equal(value, found[name]) for name, value in plain.items())
    assert not any(parameter.is_inference() for parameter in unet.parameters())


def test_forget_images_count_by_their_numbers_however_they_were_made() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        inferred = images.clone()
    plain, *others = (
        semu_diffusion.erase_class(tiny_model().pipeline, "red", forget_images=given, **QUICK)
        for given in (images, inferred, images.clone().requires_grad_(), images.to(memory_format=torch.channels_last))
    )
    for patch in others:
        assert all(torch.allclose(patch.delta(name), plain.delta(name), atol=1e-5) for name in plain.layers)


@pytest.mark.parametrize(
    "wrong", [lambda x: (x * 127 + 128).to(torch.uint8), lambda x: (x + 1) * 127, lambda x: x * float("nan")]
)
def test_forget_images_of_another_range_are_refused(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(InputError, match=r"forget_images must be floats in \[-1, 1\], and are"):
        semu_diffusion.erase_class(tiny_model().pipeline, "red", forget_images=wrong(images), **QUICK)


def test_forget_images_that_look_like_those_of_to_tensor_are_spoken_of() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(Notice, match=r"ToTensor gives \[0, 1\]"):
        semu_diffusion.erase_class(tiny_model().pipeline, "red", forget_images=images, **QUICK)
