"""What kept inputs feel of an update: nothing, within the protected share of their energy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semu_diffusion.matrices import from_matrices, input_rows
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.subspace import layer_subspace

LAYERS = {
    "linear": lambda: nn.Linear(12, 7),
    "conv": lambda: nn.Conv2d(3, 5, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "reflecting": lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    "pointwise": lambda: nn.Conv2d(12, 5, 1, stride=2),
}


def low_rank_inputs(layer: nn.Module, count: int, generator: torch.Generator, noise: float = 0.0) -> torch.Tensor:
    """Inputs whose rows lie in few directions: constant pictures of two channel patterns, or three token directions."""
    if isinstance(layer, nn.Linear):
        basis = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(9))).Q
        return torch.randn(count, 4, 3, generator=generator) @ basis.T + noise * torch.randn(count, 4, 12, generator=generator)
    channels = layer.in_channels  # type: ignore[union-attr]
    patterns = torch.randn(2, channels, generator=torch.Generator().manual_seed(9))
    x = (torch.randn(count, 2, generator=generator) @ patterns)[:, :, None, None].expand(-1, -1, 8, 8)
    return x + noise * torch.randn(count, channels, 8, 8, generator=generator)


# With zeros around, the borders of a constant picture fill all 9 directions of a channel; a 1x1 kernel has but one.
FILLED = {("conv", "per_channel"), ("pointwise", "per_channel")}


@pytest.mark.parametrize(
    ("kind", "matricisation"), [(k, m) for k in LAYERS for m in ("full", "per_channel") if (k, m) not in FILLED]
)
def test_protected_inputs_do_not_feel_an_update_and_others_do(kind: str, matricisation, generator) -> None:  # type: ignore[no-untyped-def]
    layer = LAYERS[kind]()
    seen = low_rank_inputs(layer, 8, generator)
    moments = collect_moments({"layer": layer}, [seen], layer, matricisation)["layer"]
    gradient = torch.randn(layer.weight.shape, generator=generator)
    space = layer_subspace(
        gradient,
        layer.weight.detach(),
        explained_variance=1.0,
        projection="none",
        matricisation=matricisation,
        protected=moments.protected_basis(0.999999),
    )
    assert 0.05 < space.gradient_energy_kept < 0.95
    core = torch.randn(len(space.left), space.left.shape[-1], space.left.shape[-1], generator=generator)
    update = from_matrices(space.left @ core @ space.right.transpose(1, 2), space.shape, matricisation)

    def output(x: torch.Tensor) -> torch.Tensor:
        edited = LAYERS[kind]()
        edited.weight, edited.bias = nn.Parameter(update), None
        return edited(x).detach()

    held = low_rank_inputs(layer, 4, generator)  # of the same span, never seen
    foreign = torch.randn(held.shape, generator=generator)
    relative = output(held).norm() / held.norm()
    assert relative < 2e-3 * output(foreign).norm() / foreign.norm()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_the_protected_share_is_reached_with_the_fewest_directions(share: float, generator: torch.Generator) -> None:
    rows = torch.randn(1, 500, 20, generator=generator) * torch.logspace(0, -2, 20) + 0.3
    moments = InputMoments()
    moments.add(rows)
    basis = moments.protected_basis(share)[0]
    energies = torch.linalg.svdvals(rows[0].double()).square()
    held = float((rows[0] @ basis).square().sum() / rows.square().sum())
    assert held >= share - 1e-5
    fewest = int((torch.cumsum(energies, 0) / energies.sum() < share - 1e-6).sum()) + 1
    assert basis.shape == (20, fewest)
    torch.testing.assert_close(basis.T @ basis, torch.eye(fewest), atol=1e-5, rtol=0)


def test_nothing_is_protected_of_a_share_of_zero_or_of_dead_inputs() -> None:
    moments = InputMoments()
    moments.add(torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(0)))
    assert moments.protected_basis(0.0).shape == (1, 5, 0)
    for settings in ({}, {"max_side": 4, "sketch": 3}):
        dead = InputMoments(**settings)  # type: ignore[arg-type]
        dead.add(torch.zeros(1, 30, 5))
        dead.hold(torch.zeros(1, 3, 5))
        assert dead.protected_basis(0.99).abs().sum() == 0
        assert dead.response_on_kept(torch.ones(1, 2, 5)) == 0


def test_per_channel_bases_have_their_own_widths_padded_with_zeros(generator: torch.Generator) -> None:
    rows = torch.zeros(2, 100, 4)
    rows[0, :, 0] = torch.randn(100, generator=generator)
    rows[1] = torch.randn(100, 4, generator=generator)
    moments = InputMoments()
    moments.add(rows)
    basis = moments.protected_basis(0.999)
    assert (basis.norm(dim=1) > 0.5).sum(1).tolist() == [1, 4]
    assert basis[0, :, 1:].abs().max() == 0


@pytest.mark.parametrize("side", [144, 1152])
def test_a_finite_moment_with_dead_inputs_and_tiny_ones_has_a_basis(side: int) -> None:
    failed = 0  # of float32
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(1, 200, side, generator=generator) * torch.logspace(0, -20, side)
        rows = rows * (torch.rand(side, generator=generator) > 0.5)
        moments = InputMoments()
        moments.add(rows)
        moments.hold(rows[:, :50])
        basis = moments.protected_basis(0.99)[0]
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
        assert moments.energy_covered == pytest.approx(0.99, abs=0.02)
        try:
            failed += not torch.isfinite(torch.linalg.eigh(rows.transpose(1, 2) @ rows / 200)[1]).all()
        except torch.linalg.LinAlgError:
            failed += 1
    assert failed


def test_inputs_are_observed_wherever_a_weight_is_used(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[0].bias.data.zero_()
    x = torch.randn(8, 4, generator=generator)
    alone, both = (collect_moments({"0": net[0]}, [x], net, model=model)["0"] for model in (None, net))
    assert (alone.count, both.count) == (6, 12)


def test_moments_are_those_of_patches_unfolded_by_hand(generator: torch.Generator) -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1)
    batches = [torch.randn(2, 2, 6, 6, generator=generator) for _ in range(2)]
    patches = torch.cat([nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 18) for x in batches])
    expected = patches.T @ patches / len(patches)
    moments = InputMoments()
    for x in batches:
        moments.add(input_rows(conv, x))
    values, vectors = moments.eigen()
    torch.testing.assert_close((vectors[0] * values[0]) @ vectors[0].T, expected, atol=1e-4, rtol=1e-4)
    assert (values[0].diff() <= 0).all()


def test_a_sketch_of_low_rank_inputs_is_as_good_as_the_exact_moments(generator: torch.Generator) -> None:
    mix = torch.randn(8, 400, generator=generator)
    exact, sketched = InputMoments(), InputMoments(max_side=100, sketch=40)
    for _ in range(4):
        rows = (torch.randn(300, 8, generator=generator) @ mix + 2)[None]
        for moments in (exact, sketched):
            moments.add(rows)
    for moments in (exact, sketched):
        moments.hold(rows)
    torch.testing.assert_close(sketched.eigen()[0][:, :9], exact.eigen()[0][:, :9], rtol=1e-3, atol=1e-2)
    a, b = exact.protected_basis(0.9999)[0], sketched.protected_basis(0.9999)[0]
    assert a.shape == b.shape
    assert torch.linalg.matrix_norm(a - b @ (b.T @ a), 2) < 5e-3
    update = torch.randn(1, 6, 400, generator=generator)
    assert sketched.response_on_kept(update) == pytest.approx(exact.response_on_kept(update), rel=1e-5)


def test_a_sketch_never_holds_a_matrix_of_the_wide_side_squared(generator: torch.Generator) -> None:
    moments = InputMoments(max_side=100, sketch=16)
    rows = torch.randn(1, 50, 3000, generator=generator)
    moments.add(rows)
    moments.hold(rows)
    held = [value for name, value in vars(moments).items() if isinstance(value, torch.Tensor) and name != "held"]
    assert max(tensor.numel() for tensor in held) == 3000 * 16
    assert moments.protected_basis(0.99).shape[1:] <= (3000, 16)
    assert 0.2 < moments.energy_covered < 0.9  # 16 directions of inputs that fill 50: less than asked for, and said
    narrow = InputMoments(max_side=100, sketch=512)  # a sketch wider than the layer
    narrow.add(rows[..., :200])
    narrow.hold(rows[..., :200])
    assert narrow.protected_basis(0.9).shape[1] == 200
    assert narrow.energy_covered >= 0.9


def test_what_a_sketch_cannot_see_still_counts_as_felt(generator: torch.Generator) -> None:
    """An update that avoids all directions of the sketch is not free: half of the energy is elsewhere."""
    exact, sketched = InputMoments(), InputMoments(max_side=100, sketch=20)
    for _ in range(5):
        rows = torch.randn(1, 400, 300, generator=generator)
        for moments in (exact, sketched):
            moments.add(rows)
            moments.hold(rows)
    basis = sketched.protected_basis(0.999)[0]
    update = torch.randn(1, 5, 300, generator=generator)
    update = update - update @ basis @ basis.T
    assert sketched.response_on_kept(update) == pytest.approx(float(update.square().sum()), rel=0.2)


def test_only_the_layers_that_ran_have_moments_and_no_hook_or_gradient_is_left(generator: torch.Generator) -> None:
    net = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    graphs = []

    def forward(x: torch.Tensor) -> None:
        graphs.append(net["used"](x).requires_grad)

    moments = collect_moments(dict(net.items()), [torch.randn(4, 3, generator=generator)], forward)  # type: ignore[arg-type]
    assert set(moments) == {"used"}
    assert graphs == [False]

    def fail(x: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        collect_moments(dict(net.items()), [torch.ones(1)], fail)  # type: ignore[arg-type]
    assert not any(layer._forward_pre_hooks for layer in net.values())


def test_rows_per_batch_bound_the_cost_and_are_drawn_by_the_generator(generator: torch.Generator) -> None:
    layer, x = nn.Linear(4, 4), torch.randn(100, 4, generator=generator)
    runs = [
        collect_moments({"a": layer}, [x, x], layer, rows_per_batch=10, generator=torch.Generator().manual_seed(seed))["a"]
        for seed in (0, 0, 1)
    ]
    assert runs[0].count == 16
    assert runs[0].held.shape == (1, 4, 1, 4)  # type: ignore[union-attr]
    assert torch.equal(runs[0].eigen()[0], runs[1].eigen()[0])
    assert not torch.equal(runs[0].eigen()[0], runs[2].eigen()[0])


def test_moments_without_any_input_are_refused() -> None:
    with pytest.raises(ValueError, match="no input"):
        InputMoments().protected_basis(0.9)
    with pytest.raises(ValueError, match="no input was held out"):
        InputMoments().response_on_kept(torch.ones(1, 1, 1))


def test_a_channel_of_which_nothing_is_left_is_not_trained(generator: torch.Generator) -> None:
    """All input directions of the first channel are protected: what rounding leaves there is no direction."""
    gradient, weight = torch.randn(6, 2, 3, 3, generator=generator), torch.randn(6, 2, 3, 3, generator=generator)
    protected = torch.stack([torch.eye(9), torch.eye(9)])
    protected[1, :, 1:] = 0
    found = layer_subspace(gradient, weight, matricisation="per_channel", protected=protected, explained_variance=1.0)
    assert float((found.left[0].abs().sum(0) * found.right[0].abs().sum(0)).sum()) == 0
    assert float(found.left[1].abs().sum()) > 0
