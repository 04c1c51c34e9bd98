"""Weights as matrices, inputs as rows: the matrices times the rows are what the layer computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from semu_diffusion.matrices import from_matrices, input_rows, to_matrices

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 3), "stride": (2, 1), "padding": (2, 0)},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (3, 5, 1, 2)])
def test_weight_to_matrices_and_back_is_the_identity(shape: tuple[int, ...], matricisation) -> None:  # type: ignore[no-untyped-def]
    weight = torch.randn(shape)
    matrices = to_matrices(weight, matricisation)
    assert torch.equal(from_matrices(matrices, shape, matricisation), weight)
    if matricisation == "per_channel" and len(shape) == 4:
        assert matrices.shape == (shape[1], shape[0], shape[2] * shape[3])
        assert torch.equal(matrices[1], weight[:, 1].flatten(1))
    else:
        assert matrices.shape == (1, shape[0], weight.numel() // shape[0])


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_matrices_times_input_rows_are_the_convolution(settings, matricisation, generator) -> None:  # type: ignore[no-untyped-def]
    conv = nn.Conv2d(3, 5, bias=False, **settings)
    x = torch.randn(2, 3, 9, 8, generator=generator)
    rows = input_rows(conv, x, matricisation)
    output = (to_matrices(conv.weight, matricisation) @ rows.transpose(1, 2)).sum(0)  # (out, N * positions)
    torch.testing.assert_close(output, conv(x).transpose(0, 1).flatten(1), atol=1e-5, rtol=1e-4)
    assert torch.equal(input_rows(conv, x[0], matricisation), input_rows(conv, x[:1], matricisation))


def test_input_rows_are_patches_unfolded_by_hand(generator: torch.Generator) -> None:
    conv = nn.Conv2d(2, 1, 2, stride=2, padding=1)
    x = torch.randn(1, 2, 4, 4, generator=generator)
    padded = torch.zeros(2, 6, 6)
    padded[:, 1:5, 1:5] = x[0]
    by_hand = [padded[:, i : i + 2, j : j + 2].reshape(-1) for i, j in itertools.product((0, 2, 4), repeat=2)]
    assert torch.equal(input_rows(conv, x)[0], torch.stack(by_hand))


def test_rows_of_a_linear_layer_are_all_its_tokens(generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 4, generator=generator)
    assert torch.equal(input_rows(nn.Linear(4, 3), x), x.reshape(1, 10, 4))


def test_groups_count_as_further_rows(generator: torch.Generator) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    x = torch.randn(2, 4, 5, 5, generator=generator)
    rows = input_rows(conv, x)[0].reshape(-1, 2, 18)  # (positions, groups, n)
    matrices = to_matrices(conv.weight)[0].reshape(2, 3, 18)  # (groups, out per group, n)
    output = torch.einsum("pgn,gon->gop", rows, matrices).reshape(6, -1)
    torch.testing.assert_close(output, conv(x).transpose(0, 1).flatten(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.Conv2d(4, 2, 3, padding=1)], ids=["linear", "conv"])
def test_limited_rows_are_distinct_rows_of_all_images_and_repeatable(layer) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(6, 4, 8, 4 if isinstance(layer, nn.Linear) else 8, generator=torch.Generator().manual_seed(1))
    every = input_rows(layer, x)[0]
    some = input_rows(layer, x, max_rows=50, generator=torch.Generator().manual_seed(2))[0]
    again = input_rows(layer, x, max_rows=50, generator=torch.Generator().manual_seed(2))[0]
    found = [(every == row).all(1).nonzero().flatten().tolist() for row in some]
    assert torch.equal(some, again)
    assert [len(places) for places in found] == [1] * 50
    assert len({places[0] for places in found}) == 50
    assert len({places[0] * 6 // len(every) for places in found}) == 6
    assert len(input_rows(layer, x, max_rows=10**6)[0]) == len(every)


def test_limited_rows_never_copy_all_patches() -> None:
    """4096 positions of a 64-channel 3x3 convolution are 9.4 MB; 16 of them are 37 kB."""
    conv, x = nn.Conv2d(64, 1, 3, padding=1), torch.randn(1, 64, 64, 64)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Watch():
        rows = input_rows(conv, x, max_rows=16)
    assert rows.shape == (1, 16, 576)
    assert largest < 1.2 * x.numel() * 4
