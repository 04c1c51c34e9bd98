"""A gradient that was only ever sketched has nearly the subspace that the gradient itself has, in the memory that was given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.erase.collect import find_subspaces, kept_moments
from semu_diffusion.erase.face import erase_class
from semu_diffusion.erase.pool import Pool, paths
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.objectives import squared_errors
from semu_diffusion.options import byte_size
from semu_diffusion.pipelines.runs.config import ClassModelConfig, TextModelConfig
from semu_diffusion.pipelines.runs.models import load_model, load_text_model
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.sketch import GradientSketch, moment_sizes, sketch_width, sketched_layers
from semu_diffusion.subspace import layer_subspace, project_away

RANK = 8


def sketched(weight: torch.Tensor, gradients: list[torch.Tensor], **settings: Any) -> GradientSketch:
    found = GradientSketch(weight, sketch_width(RANK), torch.Generator().manual_seed(1), **settings)
    for gradient in gradients:
        found.add(gradient, 2.0)
    found.div_(2.0 * len(gradients))
    return found


def low_rank(m: int, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)


def sine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the largest angle between the spans of two orthonormal (n, r)."""
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2))


@pytest.mark.parametrize("shape", [(96, 200), (200, 96), (64, 32, 3, 3), (300, 6)])
@pytest.mark.parametrize("projection", ["exact", "official", "none"])
@pytest.mark.parametrize("protects", [False, True])
def test_a_gradient_of_low_rank_is_found_to_rounding(shape, projection, protects, generator: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    """What is to be projected away is a thousand times what is left; the reference code's projection only adds to it."""
    m, n = shape[0], torch.Size(shape[1:]).numel()
    weight = low_rank(m, n, 2, generator)
    basis = torch.linalg.qr(torch.randn(n, 3, generator=generator)).Q if protects else None
    parts = [low_rank(m, n, 2, generator) for _ in range(3)]
    if basis is not None:
        much = 1.0 if projection == "official" else 1e3
        parts = [part + much * torch.randn(m, 3, generator=generator) @ basis.T for part in parts]
    parts, weight = [part.reshape(shape) for part in parts], weight.reshape(shape)
    protected = None if basis is None else basis[None]
    wanted = layer_subspace(
        sum(parts) / 3, weight, explained_variance=0.9999, max_rank=RANK, projection=projection, protected=protected
    )
    found = sketched(weight, parts, projection=projection, protected=protected).subspace(0.9999, max_rank=RANK)
    assert found.shape == wanted.shape
    assert torch.equal(found.ranks, wanted.ranks)
    assert sine(found.left[0], wanted.left[0]) < 2e-3
    assert sine(found.right[0], wanted.right[0]) < 2e-3
    for factor in (found.left[0], found.right[0]):
        torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1]), atol=1e-5, rtol=0)
    if basis is not None:
        assert (basis.T @ found.right[0]).abs().max() < 1e-6


def test_a_gradient_is_worked_on_in_parts_and_the_sketch_is_the_same(monkeypatch, generator: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    weight, gradient = torch.randn(2, 70, 90, generator=generator)
    whole = sketched(weight, [gradient])
    monkeypatch.setattr("semu_diffusion.sketch.CHUNK", 1000)
    parts = sketched(weight, [gradient])
    for name in ("range", "corange", "inner"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-4)


def test_a_zero_gradient_has_rank_zero_and_energies_are_those_of_the_gradient(generator: torch.Generator) -> None:
    weight = torch.randn(80, 120, generator=generator)
    nothing = sketched(weight, [torch.zeros(80, 120)])
    assert not nothing.any()
    assert nothing.subspace(0.95, max_rank=RANK).ranks.tolist() == [0]
    noise = torch.randn(80, 120, generator=generator)
    assert sketched(weight, [noise]).energy == pytest.approx(float(noise.square().sum()), rel=0.1)
    basis = torch.eye(120)[None, :, :60]
    half = sketched(weight, [noise], protected=basis, projection="none").subspace(0.95, max_rank=RANK)
    assert half.gradient_energy_kept == pytest.approx(0.5, abs=0.1)


def embedded(kind: str) -> tuple[Any, Any]:
    if kind == "class":
        return load_model(ClassModelConfig(device="cpu")), ClassErasureConfig(forget=("cat",))
    pipeline, _ = load_text_model(TextModelConfig(device="cpu"))
    prompts = [f"a photo of a {word}" for word in ("cat", "dog", "bird", "ship")]
    return adapt_text_pipeline(pipeline, prompts), ConceptErasureConfig(concept=("cat",))


def relabelling(model: Any, pool: Pool, step: int) -> torch.Tensor:
    """The error against what the model says of the next condition."""
    batch = pool.take(range(4 * step, 4 * step + 4)).batch
    with torch.no_grad():
        target = model.predict(batch.x_t, batch.t, (batch.condition + 1) % 4)
    return squared_errors(model.predict(batch.x_t, batch.t, batch.condition), target)


@pytest.mark.parametrize("kind", ["class", "concept"])
def test_on_real_gradients_the_sketch_captures_what_the_dense_gradients_subspace_does(kind: str) -> None:
    """Of the embedded models, outside the protected directions; the share of the energy by rank-8 subspaces of either kind."""
    model, settings = embedded(kind)
    settings = dataclasses.replace(settings, explained_variance=1.0)  # the same rank for both
    pool, _ = paths(model, range(4), range(4), 4, 3.0, "fp32")
    wide = [(name, one) for name, one in select_layers(model.denoiser, settings.layers).items() if len(one.weight) >= 64]
    layers = dict(wide[:: len(wide) // 12])  # from everywhere in the network
    moments = kept_moments(model, settings, layers, pool, torch.Generator().manual_seed(0), None)
    for one in moments.values():
        one.settle(settings.protected_energy)
    generator = torch.Generator().manual_seed(1)
    sketches = {
        name: GradientSketch(layer.weight, sketch_width(RANK), generator, moments[name].protected_basis(0.9))
        for name, layer in layers.items()
    }

    def collected(into: dict[str, GradientSketch]) -> dict[str, torch.Tensor]:
        return collect_gradients(model.denoiser, layers, range(2), lambda step: relabelling(model, pool, step), sketches=into)

    assert collected(sketches) == {}
    dense = collected({})
    ours, theirs = (find_subspaces(settings, layers, one, moments, generator, None) for one in (sketches, dense))
    captured: list[tuple[float, float]] = []
    for name, layer in layers.items():
        basis = moments[name].protected_basis(0.9)[0]
        gradient = to_matrices(project_away(dense[name], layer.weight.detach(), "exact"))[0]
        gradient -= gradient @ basis @ basis.T
        found = [float((one.left[0].T @ gradient @ one.right[0]).square().sum()) for one in (ours[name], theirs[name])]
        captured.append((found[0], found[1]))
    assert len(captured) >= 12
    assert sum(a for a, _ in captured) > 0.97 * sum(b for _, b in captured)
    assert min(a / b for a, b in captured) > 0.85


def test_a_sketched_layers_gradient_is_freed_inside_backward_and_no_sum_is_made(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200), nn.Linear(200, 2))
    layers = select_layers(net)
    sketches = {name: GradientSketch(layers[name].weight, 8, generator) for name in ("0", "1")}
    alive: list[int] = []
    net[0].weight.register_hook(lambda _: alive.append(sum(one.weight.grad is not None for one in layers.values())))
    x = torch.randn(3, 200, generator=generator)
    dense = collect_gradients(net, layers, range(2), lambda _: net(x).square().mean(), sketches=sketches)
    assert alive == [0, 0]
    assert set(dense) == {"2"}
    whole = collect_gradients(net, layers, range(2), lambda _: net(x).square().mean())
    for name, sketch in sketches.items():
        torch.testing.assert_close(sketch.range, whole[name] @ sketch.omega, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_refused_in_a_sketch_too(generator: torch.Generator) -> None:
    layer = nn.Linear(4, 4)
    sketches = {"": GradientSketch(layer.weight, 2, generator)}
    with pytest.raises(FloatingPointError, match="not finite"):
        collect_gradients(layer, {"": layer}, [0], lambda _: layer(torch.ones(1, 4)).sum() * float("nan"), sketches=sketches)


def held_bytes(layers: dict[str, Any], chosen: set[str], generator: torch.Generator) -> int:
    total = 0
    for name, layer in layers.items():
        if name in chosen:
            sketch = GradientSketch(layer.weight, 40, generator)
            total += sum(one.nbytes for one in (sketch.omega, sketch.psi, sketch.range, sketch.corange))
        else:
            total += 4 * layer.weight.numel()
    return total


def test_the_budget_holds_and_the_layers_that_save_most_are_sketched_first(generator: torch.Generator) -> None:
    layers = {"small": nn.Linear(30, 30), "wide": nn.Linear(2000, 1000), "middle": nn.Linear(500, 500)}
    for budget, chosen in ((10**9, set()), (4 * 10**6, {"wide"}), (2_200_000, {"wide", "middle"})):
        assert sketched_layers(layers, 40, budget) == chosen
        assert held_bytes(layers, chosen, generator) <= budget
    with pytest.raises(InputError, match=r"take 1.94 MB at least, and 1 MB were given") as caught:
        sketched_layers(layers, 40, 1_000_000)
    assert "\n" not in str(caught.value)


def test_moments_fit_into_the_budget_too(generator: torch.Generator) -> None:
    layer = nn.Linear(1500, 10)
    rows = torch.randn(400, 1500, generator=generator)
    sizes = []
    for budget in (None, 5 * 10**6):
        found = collect_moments({"": layer}, [rows], layer, generator=generator, **moment_sizes({"": layer}, budget))[""]
        assert found._moment is not None
        assert found.held is not None
        sizes.append(found._moment.nbytes + found.held.nbytes)
    assert sizes[1] <= 5 * 10**6 < sizes[0]


def test_settled_moments_keep_their_directions_and_give_the_moment_back(generator: torch.Generator) -> None:
    moments = InputMoments()
    moments.add(torch.randn(1, 50, 20, generator=generator))
    basis = moments.protected_basis(0.9)
    assert torch.equal(moments.settle(0.9), basis)
    assert torch.equal(moments.protected_basis(0.9), basis)
    assert moments._moment is None


def test_an_erasure_within_a_budget_is_an_erasure_and_too_small_a_one_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(block_out_channels=(32, 64))
    settings: dict[str, Any] = {
        "anchor": "green", "forget_samples": 4, "kept_samples": 4, "steps": 1, "batch_size": 4, "max_rank": 1,
    }  # fmt: skip
    layers = select_layers(model.denoiser, ("attention", "conv"))
    one_too_few = sum(layer.weight.numel() for layer in layers.values()) * 4 - 1
    patch = erase_class(model.pipeline, "red", memory=f"{one_too_few}B", **settings)
    dense = erase_class(model.pipeline, "red", **settings)
    assert patch.layers.keys() == dense.layers.keys()
    changed = [name for name in patch.layers if not torch.equal(patch.layers[name].left, dense.layers[name].left)]
    assert 0 < len(changed) < len(patch.layers)
    monkeypatch.setattr("semu_diffusion.erase.run.gather", None)
    with pytest.raises(InputError, match="MB at least"):
        erase_class(model.pipeline, "red", memory="1 kB", **settings)


@pytest.mark.parametrize(
    ("memory", "other"),
    [("a lot", {}), ("4", {}), ("1GB", {"gradient_clip": 1.0}), ("1GB", {"matricisation": "per_channel"}),
     ("1GB", {"gradient": "random"}), ("1GB", {"max_rank": None})],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused_in_one_line(memory: str, other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--memory") as caught:
        ClassErasureConfig(forget=("cat",), memory=memory, **other)
    assert "\n" not in str(caught.value)


def test_sizes_are_read_in_decimal_and_binary_units() -> None:
    read = [byte_size(text, "--memory") for text in ("4GB", "1.5 GiB", "500mb", "70 kB", "12B")]
    assert read == [4 * 10**9, 3 * 2**29, 5 * 10**8, 70_000, 12]
