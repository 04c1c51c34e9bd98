"""KID: counted by hand, unbiased from few images where FID is not, and for pairs of one seed too."""

from __future__ import annotations

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.fid import frechet_distance
from semu_diffusion.eval.metrics.kid import kernel_distance


def draw(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_the_sum_over_all_pairs_that_one_writes_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 2 + 1) ** 3

    within = sum(k(x[i], x[j]) for i in range(3) for j in range(3) if i != j) / 6 + k(y[0], y[1])
    cross = sum(k(a, b) for a in x for b in y) / 6
    assert kernel_distance(x, y) == pytest.approx(within - 2 * cross, rel=1e-12)
    assert kernel_distance(y, x) == pytest.approx(kernel_distance(x, y), rel=1e-12)


def test_its_mean_is_zero_for_equal_distributions_however_few_the_images() -> None:
    estimates = torch.tensor([kernel_distance(draw(12, 2 * seed), draw(12, 2 * seed + 1)) for seed in range(300)])
    assert abs(float(estimates.mean())) < 3 * float(estimates.std()) / 300**0.5
    assert (estimates < 0).any()  # unbiased means: on either side
    biased = [frechet_distance(draw(12, 2 * seed), draw(12, 2 * seed + 1), warn_below=0) for seed in range(20)]
    assert min(biased) > 0.5  # of the same distribution


def test_it_grows_with_the_shift() -> None:
    near, far = (kernel_distance(draw(200, 0), draw(200, 1, shift)) for shift in (0.3, 1.0))
    assert 0 < near < far


def test_pairs_of_one_seed_are_no_reason_to_call_two_sets_alike() -> None:
    x = draw(12, 0)
    assert kernel_distance(x, x.clone(), paired=True) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(x, x.clone()) < -0.1  # each row beside itself in the cross mean
    # after an edit that moves every sample a little, the mean over draws is that of independent samples
    paired = [kernel_distance(draw(12, seed), draw(12, seed, 0.5), paired=True) for seed in range(300)]
    apart = [kernel_distance(draw(12, 2 * seed), draw(12, 2 * seed + 1, 0.5)) for seed in range(300)]
    means = [torch.tensor(values).mean() for values in (paired, apart)]
    error = sum(float(torch.tensor(values).var()) / 300 for values in (paired, apart)) ** 0.5
    assert abs(float(means[0] - means[1])) < 3 * error


def test_features_that_give_no_distance_are_refused() -> None:
    for a, b, said in (
        (torch.zeros(5, 3), torch.zeros(5, 4), "KID needs feature matrices of one width"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "two images"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "finite"),
    ):
        with pytest.raises(InputError, match=said):
            kernel_distance(a, b)
