"""Projection, rank rules, and the truncated SVD against torch.linalg.svd."""

from __future__ import annotations

import pytest
import torch

from semu_diffusion import subspace as module
from semu_diffusion.matrices import from_matrices, to_matrices
from semu_diffusion.subspace import Subspace, choose_rank, dominant_subspace, layer_subspace, project_away

SHAPES = [(40, 300), (300, 40), (256, 700), (700, 256), (260, 260), (8, 9)]


def decaying(m: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Singular values 1, 0.8, 0.64, ... over noise of 1e-4."""
    k = min(m, n, 40)
    u = torch.linalg.qr(torch.randn(m, k, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, k, generator=generator)).Q
    return (u * 0.8 ** torch.arange(k)) @ v.T + 1e-4 / max(m, n) ** 0.5 * torch.randn(m, n, generator=generator)


def flat(m: int, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(m, n, generator=generator)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest principal angle between the columns of ``a`` and ``b``, both orthonormal."""
    a, b = a.double(), b.double()
    return float(torch.linalg.matrix_norm(b - a @ (a.T @ b), 2))


# ---------------------------------------------------------------------------------------------------- projection


def test_exact_projection_leaves_nothing_along_the_weight_and_official_does(generator: torch.Generator) -> None:
    weight, gradient = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    gradient += 0.1 * weight
    exact, official = (project_away(gradient, weight, kind) for kind in ("exact", "official"))  # type: ignore[arg-type]

    def cosine(x: torch.Tensor) -> float:
        return float((x * weight).sum() / x.norm() / weight.norm())

    assert abs(cosine(exact)) < 1e-6
    assert cosine(official) < -0.5
    torch.testing.assert_close(official, gradient - (gradient * weight).sum() / weight.norm() * weight)
    unit = weight / weight.norm()
    torch.testing.assert_close(project_away(gradient, unit, "official"), project_away(gradient, unit, "exact"))
    assert torch.equal(project_away(gradient, weight, "none"), gradient)
    assert torch.equal(project_away(gradient, torch.zeros_like(weight), "exact"), gradient)


def test_a_gradient_along_the_weight_has_nothing_to_train(generator: torch.Generator) -> None:
    weight = torch.randn(8, 5, generator=generator)
    space = layer_subspace(3 * weight, weight)
    assert space.trained_parameters == 0
    assert space.gradient_energy_kept < 1e-10


# ---------------------------------------------------------------------------------------------------- rank rules


@pytest.mark.parametrize(
    ("gamma", "at_least", "official"), [(0.5, 1, 1), (0.6, 2, 1), (0.75, 2, 2), (0.8, 3, 2), (1.0, 4, 4), (0.3, 1, 0)]
)
def test_rank_rules_are_those_counted_by_hand(gamma: float, at_least: int, official: int) -> None:
    energies = torch.tensor([4.0, 2.0, 1.0, 1.0])  # shares 0.5, 0.75, 0.875, 1
    assert choose_rank(energies, 8.0, gamma, "at_least", min_rank=0) == at_least
    assert choose_rank(energies, 8.0, gamma, "official", min_rank=0) == official


def test_min_and_max_rank_bound_the_rank_but_not_beyond_the_non_zero_energies() -> None:
    energies = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0])
    assert choose_rank(energies, 8.0, 0.3, "official", min_rank=1) == 1
    assert choose_rank(energies, 8.0, 0.3, min_rank=3) == 3
    assert choose_rank(energies, 8.0, 1.0, max_rank=2) == 2
    assert choose_rank(energies, 8.0, 0.3, min_rank=9) == 4
    assert choose_rank(energies, 8.0, 1.0, max_rank=9) == 4


def test_the_least_rank_holds_on_a_wide_layer_too(generator: torch.Generator) -> None:
    sides = (torch.linalg.qr(torch.randn(420, 420, generator=generator)).Q for _ in range(2))
    u, v = sides
    matrix = u @ torch.diag(0.8 ** torch.arange(420.0) + 1e-3) @ v
    left, energies, right = dominant_subspace(matrix, 0.9, min_rank=64)
    assert (left.shape[1], len(energies), right.shape[1]) == (64, 64, 64)


def test_a_zero_gradient_has_rank_zero_whatever_the_rules() -> None:
    assert choose_rank(torch.zeros(3), 0.0, 0.95, min_rank=2) == 0
    assert choose_rank(torch.zeros(0), 0.0, 0.95, min_rank=2) == 0
    for shape in [(5, 7), (5, 3, 3, 3)]:
        for matricisation in ("full", "per_channel"):
            space = layer_subspace(torch.zeros(shape), torch.randn(shape), matricisation=matricisation, min_rank=2)  # type: ignore[arg-type]
            assert (space.trained_parameters, space.explained, space.gradient_energy_kept) == (0, 0.0, 0.0)
            assert space.left.shape[-1] == space.right.shape[-1] == 0


@pytest.mark.parametrize("rule", ["at_least", "official"])
@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_full_variance_takes_every_direction_despite_rounding(rule, matricisation) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        gradient, weight = (torch.randn(12, 3, 3, 3, generator=generator) for _ in range(2))
        space = layer_subspace(
            gradient, weight, explained_variance=1.0, projection="none", rule=rule, matricisation=matricisation
        )
        assert set(space.ranks.tolist()) == {12 if matricisation == "full" else 9}
        assert space.explained == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.01, float("nan")])
def test_variance_outside_0_to_1_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        layer_subspace(torch.ones(2, 2), torch.ones(2, 2), explained_variance=gamma)


# ---------------------------------------------------------------------------------------------------- truncated SVD


@pytest.mark.parametrize("gamma", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_directions_are_those_of_a_full_svd(shape: tuple[int, int], gamma: float, generator) -> None:  # type: ignore[no-untyped-def]
    matrix = decaying(*shape, generator)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    share = torch.cumsum(s.square(), 0) / s.square().sum()
    expected = int((share >= gamma).nonzero()[0]) + 1
    left, energies, right = dominant_subspace(matrix, gamma)
    assert left.shape == (shape[0], expected)
    assert right.shape == (shape[1], expected)
    assert angle(left, u[:, :expected]) < 1e-3
    assert angle(right, vh[:expected].T) < 1e-3
    torch.testing.assert_close(energies.double(), s[:expected].square(), rtol=1e-4, atol=1e-6)
    product = torch.linalg.multi_dot([u[:, :expected], torch.diag(s[:expected]), vh[:expected]])
    torch.testing.assert_close(left.double() @ (left.T @ matrix).double(), product, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_flat_spectrum_the_captured_energy_still_reaches_gamma(shape: tuple[int, int], gamma: float, generator) -> None:  # type: ignore[no-untyped-def]
    matrix = flat(*shape, generator)
    s = torch.linalg.svdvals(matrix.double())
    share = torch.cumsum(s.square(), 0) / s.square().sum()
    expected = int((share >= gamma - 1e-9).nonzero()[0]) + 1
    left, _, right = dominant_subspace(matrix, gamma)
    total = matrix.double().square().sum()
    assert abs(left.shape[1] - expected) <= 1
    for captured in (left.double().T @ matrix.double(), matrix.double() @ right.double()):
        assert float(captured.square().sum() / total) >= gamma - 1e-5
    for basis in (left, right):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-4, rtol=0)


def test_a_low_rank_matrix_has_its_rank_and_no_noise_directions(generator: torch.Generator) -> None:
    matrix = torch.randn(300, 5, generator=generator) @ torch.randn(5, 250, generator=generator)
    for gamma in (0.999999, 1.0):
        left, _, right = dominant_subspace(matrix, gamma)
        assert left.shape[1] == right.shape[1] == 5
        torch.testing.assert_close(left @ left.T @ matrix, matrix, atol=1e-4, rtol=1e-4)


def test_max_rank_gives_the_leading_directions(generator: torch.Generator) -> None:
    matrix = decaying(400, 500, generator)
    u, _, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    left, _, _ = dominant_subspace(matrix, 0.999, max_rank=6)
    assert left.shape[1] == 6
    assert angle(left, u[:, :6]) < 1e-3


def test_no_full_svd_is_ever_made(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("an SVD")

    for name in ("svd", "svdvals", "eig"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    monkeypatch.setattr(torch, "svd", forbidden)
    eigh, sides = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (sides.append(a.shape[-1]), eigh(a))[1])
    for make in (decaying, flat):
        for shape in SHAPES:
            dominant_subspace(make(*shape, generator), 0.95)
            assert sides[-1] <= min(shape)
    layer_subspace(torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3), matricisation="per_channel")
    assert sides[-1] <= 9


def test_the_randomised_way_is_really_taken(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """Else the two tests above would compare the Gram matrix alone."""
    found = []
    randomised = module._randomised
    monkeypatch.setattr(module, "_randomised", lambda *a, **k: (found.append(randomised(*a, **k)), found[-1])[1])
    dominant_subspace(decaying(256, 700, generator), 0.95)
    dominant_subspace(flat(256, 700, generator), 0.95)
    assert [result is not None for result in found] == [True, False]


# ---------------------------------------------------------------------------------------------------- of a layer


def rebuilt(space: Subspace, matrices: torch.Tensor) -> torch.Tensor:
    return space.left @ (space.left.transpose(1, 2) @ matrices @ space.right) @ space.right.transpose(1, 2)


@pytest.mark.parametrize("rule", ["at_least", "official"])
def test_per_channel_has_one_subspace_and_rank_for_each_input_channel(rule, generator) -> None:  # type: ignore[no-untyped-def]
    gradient = torch.randn(6, 4, 3, 3, generator=generator)
    gradient[:, 1] = torch.outer(torch.randn(6), torch.randn(9)).reshape(6, 3, 3)
    gradient[:, 2] = 0
    space = layer_subspace(gradient, torch.zeros(6, 4, 3, 3), explained_variance=0.9, matricisation="per_channel", rule=rule)
    expected = []
    for channel in to_matrices(gradient, "per_channel"):
        s2 = torch.linalg.svdvals(channel.double()).square()
        share = torch.cumsum(s2, 0) / s2.sum().clamp_min(1e-30)
        wanted = int((share < 0.9).sum()) + 1 if rule == "at_least" else max(int((share <= 0.9).sum()), 1)
        expected.append(wanted if s2.sum() > 1e-12 else 0)
    assert space.ranks.tolist() == expected
    assert expected[1:3] == [1, 0]
    assert space.trained_parameters == sum(rank**2 for rank in expected)
    assert space.left.shape == (4, 6, max(expected))
    assert space.right.shape == (4, 9, max(expected))
    for rank, left, right in zip(space.ranks.tolist(), space.left, space.right, strict=True):
        assert not left[:, rank:].any()
        assert not right[:, rank:].any()
        torch.testing.assert_close(left[:, :rank].T @ left[:, :rank], torch.eye(rank), atol=1e-5, rtol=0)


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_full_variance_rebuilds_the_gradient(matricisation, generator) -> None:  # type: ignore[no-untyped-def]
    for shape in [(6, 4, 3, 3), (12, 4, 3, 3), (7, 5), (5, 7), (6, 4, 1, 1)]:
        gradient = torch.randn(shape, generator=generator)
        space = layer_subspace(gradient, torch.zeros(shape), explained_variance=1.0, matricisation=matricisation)
        matrices = to_matrices(gradient, matricisation)
        torch.testing.assert_close(rebuilt(space, matrices), matrices, atol=1e-4, rtol=1e-4)


def test_explained_and_remaining_are_the_energies_they_say(generator: torch.Generator) -> None:
    weight, gradient = torch.randn(20, 30, generator=generator), torch.randn(20, 30, generator=generator)
    gradient += weight
    protected = torch.linalg.qr(torch.randn(30, 4, generator=generator)).Q[None]
    space = layer_subspace(gradient, weight, explained_variance=0.8, protected=protected)
    projected = project_away(gradient, weight, "exact")
    projected = projected - projected @ protected[0] @ protected[0].T
    assert space.gradient_energy_kept == pytest.approx(float(projected.square().sum() / gradient.square().sum()), rel=1e-4)
    kept = rebuilt(space, projected[None]).square().sum() / projected.square().sum()
    assert space.explained == pytest.approx(float(kept), rel=1e-4)
    assert 0.8 <= space.explained < 0.9


def test_the_same_gradient_gives_the_same_subspace(generator: torch.Generator) -> None:
    gradient, weight = decaying(256, 300, generator), torch.randn(256, 300, generator=generator)
    first, second = (layer_subspace(gradient, weight, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.left, second.left)
    assert torch.equal(first.right, second.right)


@pytest.mark.parametrize("gamma", [0.95, 1.0])
@pytest.mark.parametrize("share", [0.98, 1 - 1e-7, 1 - 1e-10], ids=str)  # of the gradient's energy that is protected
@pytest.mark.parametrize("shape", [(64, 300), (300, 288), (320, 700), (12, 8, 3, 3)], ids=str)
def test_nothing_of_v_lies_in_the_protected_span(shape: tuple[int, ...], share: float, gamma: float, generator) -> None:  # type: ignore[no-untyped-def]
    matricisation = "per_channel" if len(shape) == 4 else "full"
    weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    matrices = to_matrices(gradient, matricisation)
    n = matrices.shape[-1]
    basis = torch.linalg.qr(torch.randn(len(matrices), n, n // 2, generator=generator, dtype=torch.float64)).Q.float()
    inside = matrices @ basis @ basis.transpose(1, 2)
    outside = matrices - inside
    inside = inside * outside.norm() / inside.norm() * (share / (1 - share)) ** 0.5
    space = layer_subspace(
        from_matrices(inside + outside, shape, matricisation),
        weight,
        explained_variance=gamma,
        projection="none",
        matricisation=matricisation,
        protected=basis,
    )
    assert space.trained_parameters > 0
    assert float((basis.transpose(1, 2) @ space.right).abs().max()) < 1e-5
    for rank, right in zip(space.ranks.tolist(), space.right, strict=True):
        torch.testing.assert_close(right[:, :rank].T @ right[:, :rank], torch.eye(rank), atol=1e-5, rtol=0)
    assert space.gradient_energy_kept == pytest.approx(1 - share, rel=0.1, abs=1e-12)
