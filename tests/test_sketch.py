"""A gradient that was only ever sketched has nearly the subspace that the gradient itself has, in the memory that was given."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from semu_diffusion.domains import classes
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.erase.collect import OBJECTIVE_BATCHES, find_subspaces, kept_moments
from semu_diffusion.erase.face import erase_class
from semu_diffusion.erase.pool import Pool, paths
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.objectives import squared_errors
from semu_diffusion.options import byte_size
from semu_diffusion.pipelines.cli.main import main
from semu_diffusion.pipelines.runs.config import ClassModelConfig, TextModelConfig
from semu_diffusion.pipelines.runs.models import load_model, load_text_model
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.sketch import GradientSketch, collecting_rounds, moment_sizes, sketch_width
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


def held_bytes(layers: dict[str, Any], sketched: dict[str, bool], generator: torch.Generator) -> int:
    total = 0
    for name, wanted in sketched.items():
        if wanted:
            sketch = GradientSketch(layers[name].weight, 40, generator)
            total += sum(one.nbytes for one in (sketch.omega, sketch.psi, sketch.range, sketch.corange))
        else:
            total += 4 * layers[name].weight.numel()
    return total


@pytest.mark.parametrize(
    ("budget", "chosen", "rounds"),
    [(10**9, set(), 1), (4 * 10**6, {"wide"}, 1), (2_200_000, {"wide", "middle"}, 1), (1_600_000, {"wide"}, 2)],
)
def test_the_budget_holds_in_every_round_and_the_layers_that_save_most_are_sketched_first(
    budget: int, chosen: set[str], rounds: int, generator: torch.Generator
) -> None:
    layers = {"small": nn.Linear(30, 30), "wide": nn.Linear(2000, 1000), "middle": nn.Linear(500, 500)}
    found = collecting_rounds(layers, 40, budget)
    assert len(found) == rounds
    assert [name for one in found for name in one] == list(layers)
    assert {name for one in found for name, sketched in one.items() if sketched} == chosen
    assert all(held_bytes(layers, one, generator) <= budget for one in found)


def test_only_a_budget_that_cannot_hold_a_single_layer_is_refused() -> None:
    layers = {"small": nn.Linear(30, 30), "wide": nn.Linear(2000, 1000)}
    for moments, least in ((False, 1_452_000), (True, 1_452_000)):
        assert len(collecting_rounds(layers, 40, least, moments)) == 2
        with pytest.raises(InputError, match=r"what is collected of wide alone takes 1.45 MB at least, and 1.45 MB") as caught:
            collecting_rounds(layers, 40, least - 1, moments)
        assert "\n" not in str(caught.value)
    flat = {"flat": nn.Linear(2000, 10)}
    assert len(collecting_rounds(flat, 40, 80_000)) == 1
    with pytest.raises(InputError, match="what is collected of flat alone"):  # 128 numbers of each input
        collecting_rounds(flat, 40, 80_000, moments=True)


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


SHORT: dict[str, Any] = {"anchor": "green", "forget_samples": 4, "kept_samples": 4, "steps": 2, "batch_size": 4}


def dense_bytes(model: Any) -> int:
    return 4 * sum(layer.weight.numel() for layer in select_layers(model.denoiser, ("attention", "conv")).values())


def test_an_erasure_within_a_budget_is_an_erasure() -> None:
    model, settings = tiny_model(block_out_channels=(32, 64)), {**SHORT, "max_rank": 1}
    patch = erase_class(model.pipeline, "red", memory=f"{dense_bytes(model) - 1}B", **settings)
    dense = erase_class(model.pipeline, "red", **settings)
    assert patch.layers.keys() == dense.layers.keys()
    changed = [name for name in patch.layers if not torch.equal(patch.layers[name].left, dense.layers[name].left)]
    assert 0 < len(changed) < len(patch.layers)


@pytest.mark.parametrize("changes", [{}, {"gradient": "denoising"}])
def test_an_erasure_in_several_rounds_is_that_of_one(changes: dict[str, Any]) -> None:
    """Every round sees the same batches and the same learned vectors; no layer of so small a network is worth a sketch."""
    model, settings = tiny_model(), ClassErasureConfig(forget=("red",), protect="none", **SHORT, **changes)
    plan = classes.plan(model, settings)

    def erased(memory: str | None) -> Any:
        given = dataclasses.replace(settings, memory=memory)
        return run_to_end(run_erasure(classes.task(model, plan, given), given))

    whole = erased(None)
    with pytest.warns(Notice, match=r"gradients are collected in 4 rounds, .* \(0 of \d+ sketched\)") as caught:
        parts = erased(f"{dense_bytes(model) // 3}B")
    assert "\n" not in str(caught[0].message)
    assert parts.edit.layers.keys() == whole.edit.layers.keys()
    for name in whole.edit.layers:
        a, b = parts.edit.delta(name), whole.edit.delta(name)
        assert float((a - b).norm()) <= 1e-3 * float(b.norm()), name
    each = 3 * (4 * 2 if changes else OBJECTIVE_BATCHES * 4)  # guided: with and without the label
    assert parts.passes["collect"] - whole.passes["collect"] == 3 * each
    assert parts.passes["train"] == whole.passes["train"]
    assert parts.protection.by_layer.keys() == whole.protection.by_layer.keys()
    assert parts.protection.gradient_energy_kept == pytest.approx(whole.protection.gradient_energy_kept, rel=1e-4)


def test_sketches_of_several_rounds_have_the_subspaces_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = tiny_model(block_out_channels=(32, 64)), {**SHORT, "max_rank": 1, "protect": "none", "steps": 1}
    found = []
    for rounds in (1, 3):

        def planned(_: Any, layers: dict[str, Any], count: int = rounds) -> list[dict[str, bool]]:
            names = list(layers)
            size = -(-len(names) // count)
            return [dict.fromkeys(names[first : first + size], True) for first in range(0, len(names), size)]

        monkeypatch.setattr("semu_diffusion.erase.run.gradient_rounds", planned)
        found.append(erase_class(model.pipeline, "red", **settings))
    one, three = found
    assert len(one.layers) > 10
    for name, layer in one.layers.items():
        for a, b in ((layer.left, three.layers[name].left), (layer.right, three.layers[name].right)):
            a, b = (torch.nn.functional.normalize(side[0].float(), dim=0) for side in (a, b))
            assert float((a * b).sum(0).abs().min()) > 0.999, name


def test_protected_layers_are_protected_in_every_round() -> None:
    """Their moments are collected with them, and given back; what is told of the protection is told of all."""
    model, settings = tiny_model(), ClassErasureConfig(forget=("red",), **SHORT)
    given = dataclasses.replace(settings, memory="160kB")
    with pytest.warns(Notice, match="rounds"):
        result = run_to_end(run_erasure(classes.task(model, classes.plan(model, given), given), given))
    layers = select_layers(model.denoiser, given.layers)
    assert result.protection.by_layer.keys() == layers.keys()
    assert all(one["energy_covered"] is not None for one in result.protection.by_layer.values())
    assert 0 < result.protection.response_on_kept < 1


def test_too_small_a_budget_is_one_line_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("semu_diffusion.erase.run.gather", None)
    assert main(["erase-class", "cat", "--memory", "1kB", "--device", "cpu", "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"--memory: what is collected of \S+ alone takes .* MB at least, and 0.001 MB were given", said[-1])
    assert not (tmp_path / "run").exists()


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
