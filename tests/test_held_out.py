"""The protection's figures are measured on kept images that had no part in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semu_diffusion.matrices import input_rows, to_matrices
from semu_diffusion.protection import InputMoments, collect_moments, squared_output

MEASURED = {
    "linear": nn.Linear(12, 7, bias=False),
    "conv": nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False),
}


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_the_response_is_the_mean_squared_output_of_the_layer_itself(kind: str, matricisation, generator) -> None:  # type: ignore[no-untyped-def]
    layer, moments = MEASURED[kind], InputMoments(groups=getattr(MEASURED[kind], "groups", 1))
    x = torch.randn(2, 4, 12) if kind == "linear" else torch.randn(2, layer.in_channels, 6, 6)
    moments.hold(input_rows(layer, x[:1], matricisation))
    moments.hold(input_rows(layer, x[1:], matricisation))
    output = layer(x).detach()
    squares = output.square().sum(-1 if kind == "linear" else 1)  # of each position, over the output channels
    found = moments.response_on_kept(to_matrices(layer.weight.detach(), matricisation))
    assert found == pytest.approx(float(squares.mean()), rel=1e-4)
    matrices = to_matrices(layer.weight.detach(), matricisation)  # M = (M V) V^T for a square orthogonal V
    turned = torch.linalg.qr(torch.randn(len(matrices), *[matrices.shape[-1]] * 2, generator=generator)).Q
    seen = moments.held_through(turned)
    assert squared_output(seen, matrices @ turned) == pytest.approx(found, rel=1e-4)


def test_what_is_held_out_is_a_quarter_of_the_images_and_the_same_ones_for_every_layer(generator: torch.Generator) -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1, bias=False), "linear": nn.Linear(1, 1)})
    net["conv"].weight.data.fill_(1)
    images = [torch.arange(1.0, 17.0), torch.arange(17.0, 27.0), torch.arange(27.0, 29.0)]  # of 16, 10 and 2

    def forward(x: torch.Tensor) -> None:
        pictures = net["conv"](x[:, None, None, None].expand(-1, 1, 3, 3))
        net["linear"](input=pictures.mean((2, 3)))

    moments = collect_moments(dict(net.items()), images, forward, generator=generator)  # type: ignore[arg-type]
    held = {name: one.held.flatten().unique().round() for name, one in moments.items()}  # type: ignore[union-attr]
    assert len(held["conv"]) == 4 + 2 + 1
    assert torch.equal(held["conv"], held["linear"])
    assert [one.count for one in moments.values()] == [21 * 9, 21]
    kept = set(torch.cat(images).tolist()) - set(held["conv"].tolist())
    assert float(moments["linear"].trace) == pytest.approx(sum(value**2 for value in kept))  # type: ignore[arg-type]


def test_a_single_image_is_measured_on_itself() -> None:
    layer = nn.Linear(3, 3)
    moments = collect_moments({"a": layer}, [torch.ones(1, 3)], layer)["a"]
    moments.protected_basis(0.9)
    assert (moments.count, moments.energy_covered) == (1, pytest.approx(1))


def test_the_figures_are_those_of_rows_that_made_no_direction(generator: torch.Generator) -> None:
    """Forty images in as many directions: thirty make a basis, which holds less of the other ten's energy than of their own."""
    layer, x = nn.Linear(40, 5), torch.randn(40, 40, generator=generator)
    moments = collect_moments({"a": layer}, [x], layer)["a"]
    basis = moments.protected_basis(0.98)[0]
    assert moments.energy_covered is not None
    assert moments.energy_covered < 0.9
    held = moments.held.flatten(0, 2)  # type: ignore[union-attr]
    assert moments.energy_covered == pytest.approx(float((held @ basis).square().sum() / held.square().sum()), rel=1e-5)
    update = torch.randn(1, 5, 40, generator=generator)
    update = update - update @ basis @ basis.T
    own = torch.stack([row for row in x if not (held == row).all(1).any()])
    assert len(own) == 30
    on_own, on_held = (float((rows @ update[0].T).square().sum(1).mean()) for rows in (own, held))
    assert moments.response_on_kept(update) == pytest.approx(on_held, rel=1e-4)
    assert on_held > 3 * on_own


def test_a_sample_of_the_held_out_rows_is_bounded_and_of_all_batches(generator: torch.Generator) -> None:
    moments = InputMoments(groups=2, generator=generator)
    for batch in range(4):
        moments.hold(torch.full((3, 2000, 5), float(batch)))
    assert moments.held.shape == (3, 256, 2, 5)  # type: ignore[union-attr]
    counts = torch.bincount(moments.held[0, :, 0, 0].long())  # type: ignore[index]
    assert counts.min() > 40
