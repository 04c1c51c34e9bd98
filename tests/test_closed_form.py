"""The name in closed form: the minimum that it says it is, the anchor's predictions for the erased condition, a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import class_task, concept_task
from tiny_models import tiny_model

from semu_diffusion.domains import classes
from semu_diffusion.domains.config import ClassErasureConfig
from semu_diffusion.erase.closed_form import PRESERVE, RIDGE, name_edit, name_layers, update
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.patch import ErasurePatch


def test_the_closed_form_is_the_minimum_of_its_objective(generator: torch.Generator) -> None:
    w = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    c, a, k = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 4, 6))

    def objective(v: torch.Tensor) -> torch.Tensor:
        erased, kept = c @ v.T - a @ w.T, k @ (v - w).T
        return erased.square().sum() + PRESERVE * kept.square().sum() + RIDGE * (v - w).square().sum()

    found = (w + update(w, c, a, k)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(found), found)
    assert float(gradient.abs().max()) < 1e-9
    assert float(objective(found.detach())) < float(objective(w))


def predicted(model: DiffusionModel, row: int) -> torch.Tensor:
    x = torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.predict(x, torch.arange(5, 85, 10), torch.full((8,), row))


@pytest.mark.parametrize("domain", ["class", "concept"])
def test_the_erased_condition_is_predicted_as_its_anchor_and_the_kept_ones_as_before(domain: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "closed-form"}
    task, config = class_task(anchor="green", **settings) if domain == "class" else concept_task(**settings)
    model, row = task.model, task.forget[0]
    assert task.anchors is not None
    wanted, before, kept = predicted(model, task.anchors[row]), predicted(model, row), predicted(model, task.kept[-1])
    result = run_to_end(run_erasure(task, config))
    assert sum(result.passes.values()) == 0  # with a named anchor the network is not asked once
    assert result.edit.trained_parameters == 0
    patch = ErasurePatch.load(result.edit.save(tmp_path / "patch.safetensors"))
    with patch.applied(model):
        assert (predicted(model, row) - wanted).square().mean() < 0.3 * (before - wanted).square().mean()
        assert (predicted(model, task.kept[-1]) - kept).square().mean() < 0.3 * (before - wanted).square().mean()


def test_the_factors_are_the_update() -> None:
    task, _ = class_task(anchor="green")
    assert task.anchors is not None
    found = name_edit(task.model, task.anchors, task.kept)
    null = [] if task.model.null is None else [task.model.null]
    rows = [list(task.anchors), list(task.anchors.values()), [*task.kept, *null]]
    inputs = [task.model.name_inputs(torch.tensor(each)) for each in rows]
    for name, layer in name_layers(task.model).items():
        space, core = found.subspaces[name], found.cores[name]
        dense = (space.left @ core @ space.right.transpose(1, 2))[0]
        torch.testing.assert_close(
            dense, update(layer.weight.detach(), *inputs).float(), rtol=0, atol=2e-3 * float(dense.abs().max())
        )


def test_the_default_carries_the_name_edit_and_trains_no_layer_of_it() -> None:
    task, config = class_task(anchor="green", layers=("all",))
    patch = run_to_end(run_erasure(task, config)).edit
    named = name_edit(task.model, task.anchors or {}, task.kept)
    assert set(named.subspaces) <= set(patch.layers)
    for name in named.subspaces:
        wanted = _delta(named, name)
        torch.testing.assert_close(patch.layers[name].delta(), wanted, rtol=0, atol=2e-2 * float(wanted.abs().max()))


def _delta(named: Any, name: str) -> torch.Tensor:
    space = named.subspaces[name]
    return (space.left @ named.cores[name] @ space.right.transpose(1, 2))[0].float()


def test_a_model_without_such_layers_says_so() -> None:
    config = ClassErasureConfig(forget=("red",), method="closed-form", target="unconditional")
    planned = classes.plan(tiny_model(), config)
    with pytest.raises(InputError, match="--method closed-form needs --target fixed"):
        run_to_end(run_erasure(classes.task(planned.model, planned, config), config))
