"""Side effects: nothing changed is zero, the unit is [-1, 1], and tiny images have an SSIM too."""

from __future__ import annotations

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics import paired as paired_module
from semu_diffusion.eval.metrics.paired import paired_mse, paired_ssim, side_effects

BOTH = {"mse": paired_mse, "ssim": paired_ssim}

SIZES = [(3, 3), (4, 5), (8, 8), (10, 10), (11, 11), (28, 28), (32, 32)]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_identical_images_have_no_side_effect(size: tuple[int, int]) -> None:
    images = {"cat": rand(3, 3, *size), "dog": rand(2, 3, *size, seed=1)}
    found = side_effects(images, {name: value.clone() for name, value in images.items()}, BOTH)
    assert found.paired_mse == 0
    assert found.paired_ssim == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_falls_with_noise_and_stays_defined_at_every_size(size: tuple[int, int]) -> None:
    images = rand(4, 1, *size)
    little, much = (paired_ssim(images, (images + a * (rand(4, 1, *size, seed=1) - 0.5))) for a in (0.2, 1.0))
    assert (little < 1).all()
    assert (much < little).all()


def test_paired_mse_is_measured_between_minus_one_and_one() -> None:
    black, white = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert paired_mse(black, white).tolist() == [4.0, 4.0]
    grey = torch.full((2, 3, 8, 8), 0.5)
    assert paired_mse(black, grey).tolist() == [1.0, 1.0]


def test_every_class_counts_alike_however_many_images_it_has() -> None:
    before = {"cat": torch.zeros(1, 1, 8, 8), "dog": torch.zeros(3, 1, 8, 8)}
    after = {"cat": torch.full((1, 1, 8, 8), 0.5), "dog": torch.zeros(3, 1, 8, 8)}
    found = side_effects(before, after, BOTH)
    assert {name: numbers["mse"] for name, numbers in found.per_condition.items()} == {"cat": 1.0, "dog": 0.0}
    assert found.paired_mse == 0.5
    assert found.paired_ssim == pytest.approx(sum(numbers["ssim"] for numbers in found.per_condition.values()) / 2)
    assert found.paired_lpips is None  # was not asked for


def test_ssim_of_a_constant_shift_is_the_luminance_term() -> None:
    a, b, c1 = 0.2, 0.7, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    value = paired_ssim(torch.full((1, 1, 32, 32), a), torch.full((1, 1, 32, 32), b))
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_a_pairs_value_does_not_depend_on_the_other_pairs() -> None:
    before, after = rand(300, 1, 8, 8), rand(300, 1, 8, 8, seed=1)
    together = paired_ssim(before, after)
    torch.testing.assert_close(together[299:], paired_ssim(before[299:], after[299:]), rtol=0, atol=1e-12)


def test_memory_does_not_grow_with_the_number_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[torch.dtype, int]] = []
    measured = paired_module.structural_similarity_index_measure

    def noted(y: torch.Tensor, x: torch.Tensor, **settings: object) -> object:
        shapes.append((x.dtype, x[:, 0].numel()))
        return measured(y, x, **settings)

    monkeypatch.setattr(paired_module, "structural_similarity_index_measure", noted)
    images = rand(3, 1, 1024, 1024)
    assert paired_ssim(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert shapes == [(torch.float32, 1024 * 1024)] * 3  # float64 would be unfolded into 121 copies
    shapes.clear()
    paired_ssim(rand(100, 1, 32, 32), rand(100, 1, 32, 32, seed=1))
    assert max(size for _, size in shapes) <= 2**15
    assert {dtype for dtype, _ in shapes} == {torch.float64}


def test_the_ssim_of_large_images_is_as_good_as_that_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.nn.functional.interpolate(rand(2, 3, 12, 12), size=(96, 96), mode="bicubic").clamp(0, 1)
    after = (before + 0.05 * rand(2, 3, 96, 96, seed=1)).clamp(0, 1)
    exact = paired_ssim(before, after)
    monkeypatch.setattr(paired_module, "_EXACT", 100)
    torch.testing.assert_close(paired_ssim(before, after), exact, rtol=0, atol=5e-6)


def test_images_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(InputError, match="same shape"):
        side_effects({"cat": rand(2, 1, 8, 8)}, {"cat": rand(3, 1, 8, 8)}, BOTH)
    with pytest.raises(InputError, match="same conditions"):
        side_effects({"cat": rand(2, 1, 8, 8)}, {"dog": rand(2, 1, 8, 8)}, BOTH)
    with pytest.raises(InputError, match="at least one"):
        side_effects({}, {}, BOTH)
    with pytest.raises(InputError, match="3×3"):
        paired_ssim(rand(1, 1, 2, 2), rand(1, 1, 2, 2))
