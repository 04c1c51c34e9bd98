"""Promises of LPIPS: nothing is downloaded, same images are at no distance, small ones are enlarged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.lpips import load_lpips


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision keeps AlexNet's weights; empty."""
    from torchvision.models import AlexNet_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    return file


def test_without_weights_in_the_cache_nothing_is_measured(weights: Path) -> None:
    assert load_lpips() is None


def test_same_images_have_no_distance_and_worse_ones_a_larger(weights: Path) -> None:
    from torchvision.models import alexnet

    torch.save(alexnet(weights=None).state_dict(), weights)
    state = torch.get_rng_state()
    distances = load_lpips()
    assert torch.equal(torch.get_rng_state(), state)
    assert distances is not None
    for side, channels in ((32, 3), (80, 3), (32, 1)):
        images = torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(1))
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
        near, far = ((images + size * noise).clamp(0, 1) for size in (0.05, 0.5))
        assert distances(images, images).tolist() == pytest.approx([0, 0, 0], abs=1e-7)
        assert 0 < distances(images, near).mean() < distances(images, far).mean()
        assert torch.equal(distances(images, near)[2:], distances(images[2:], near[2:]))  # whatever the batch
    with pytest.raises(InputError, match="pairs of images"):
        distances(images, images[:2])
