"""The losses are the formulas, and their targets carry no gradient."""

from __future__ import annotations

import pytest
import torch
from toy_batches import relabel

from semu_diffusion.objectives import NoisyBatch, denoising, other_class


@pytest.fixture
def batch(generator: torch.Generator) -> NoisyBatch:
    x, noise = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    return NoisyBatch(x, torch.tensor([1, 5, 7, 9]), torch.zeros(4), noise, anchor=torch.ones(4))


class Scale:
    """eps(x, t, c) = (s + c + t) x with a trained s."""

    def __init__(self, scale: float) -> None:
        self.scale = torch.tensor(scale, requires_grad=True)
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        self.calls.append((t, c))
        return (self.scale + c + t)[:, None, None, None] * x


def test_relabel_is_the_distance_to_the_originals_answer_for_the_anchor(batch: NoisyBatch) -> None:
    patched, original = Scale(0.5), Scale(0.25)
    loss = relabel(patched, original, batch)
    torch.testing.assert_close(loss, ((0.5 + 0 - 0.25 - 1) * batch.x_t).square().mean())
    assert torch.equal(patched.calls[0][1], batch.condition)
    assert torch.equal(original.calls[0][1], batch.anchor)
    loss.backward()
    assert patched.scale.grad is not None
    assert original.scale.grad is None


def test_relabel_with_the_model_as_its_own_target_has_no_gradient_through_the_target(batch: NoisyBatch) -> None:
    model = Scale(0.5)
    relabel(model, model, batch).backward()
    torch.testing.assert_close(model.scale.grad, (2 * -1 * batch.x_t.square()).mean())


def test_weights_weigh_the_images(batch: NoisyBatch) -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0])
    weighed = NoisyBatch(batch.x_t, batch.t, batch.condition, batch.target, batch.anchor, weight)
    per_image = (0.75**2 * batch.x_t.square()).mean((1, 2, 3))
    torch.testing.assert_close(relabel(Scale(0.5), Scale(0.25), weighed), (per_image * weight).mean())


def test_denoising_is_the_training_loss(batch: NoisyBatch) -> None:
    expected = ((0.5 + batch.t)[:, None, None, None] * batch.x_t - batch.target).square().mean()
    torch.testing.assert_close(denoising(Scale(0.5), batch), expected)


def test_losses_do_not_depend_on_the_number_of_pixels() -> None:
    for size in (2, 16):
        x, ones = torch.ones(2, 1, size, size), torch.ones(2)
        batch = NoisyBatch(x, t=ones, condition=0 * ones, target=0 * x, anchor=ones)
        assert denoising(Scale(1.0), batch).item() == 4
        assert relabel(Scale(1.0), Scale(1.0), batch).item() == 1


def test_losses_of_half_precision_predictions_are_float32(batch: NoisyBatch) -> None:
    def half(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (300 * x).half()  # its square would overflow

    assert relabel(half, lambda x, t, c: -half(x, t, c), batch).dtype == torch.float32
    assert torch.isfinite(relabel(half, lambda x, t, c: -half(x, t, c), batch))
    assert torch.isfinite(denoising(half, batch))


def test_other_class_never_gives_an_erased_class_and_draws_evenly_for_each_sample(generator: torch.Generator) -> None:
    kept = torch.tensor([0, 1, 4])
    labels = torch.full((3000,), 2)
    drawn = other_class(labels, kept, generator)
    assert drawn.dtype == labels.dtype
    assert set(drawn.tolist()) == {0, 1, 4}
    assert torch.bincount(drawn)[kept].min() > 900
    assert 1700 < int((drawn[1:] != drawn[:-1]).sum()) < 2300  # independent per sample: two thirds of the neighbours differ
    assert torch.equal(drawn, other_class(labels, kept, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, other_class(labels, kept, generator))
