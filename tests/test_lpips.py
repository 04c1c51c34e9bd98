"""Promises of LPIPS: nothing is downloaded, same images are at no distance, others are, small ones are enlarged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.lpips import load_lpips, paired_lpips


def test_without_weights_in_the_cache_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert load_lpips() is None


@pytest.mark.parametrize("side", [32, 80])
def test_same_images_have_no_distance_and_worse_ones_a_larger(side: int) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _LPIPS(net="alex", pnet_rand=True).eval()
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    near, far = ((images + size * noise).clamp(0, 1) for size in (0.05, 0.5))
    assert paired_lpips(images, images, network) == pytest.approx(0, abs=1e-7)
    assert 0 < paired_lpips(images, near, network) < paired_lpips(images, far, network)
    with pytest.raises(InputError, match="pairs of RGB images"):
        paired_lpips(images, images[:2], network)
