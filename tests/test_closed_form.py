"""The name in closed form: the minimum that it says it is, the anchor's predictions for the erased condition, a patch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import class_task, concept_task
from tiny_models import tiny_model

from semu_diffusion import erase_class
from semu_diffusion.domains import classes
from semu_diffusion.domains.config import ClassErasureConfig
from semu_diffusion.erase.closed_form import LEFT, PRESERVE, RIDGE, name_edit, share_left, update
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.patch import ErasurePatch


def test_the_closed_form_is_the_minimum_of_its_objective(generator: torch.Generator) -> None:
    w = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    c, a, k = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 4, 6))

    def objective(v: torch.Tensor) -> torch.Tensor:
        erased, kept = c @ v.T - a @ w.T, k @ (v - w).T
        return erased.square().sum() + 0.7 * kept.square().sum() + RIDGE * (v - w).square().sum()

    found = (w + update(w, c, a, k, 0.7)).requires_grad_(True)
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


class Spoken:
    """A network of one layer that sees ``rows`` (N, 8) of conditions."""

    null, device, name_layers = None, "cpu", ("said",)

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.denoiser = torch.nn.ModuleDict({"said": torch.nn.Linear(8, 5, bias=False)})
        torch.nn.init.normal_(self.denoiser["said"].weight, generator=torch.Generator().manual_seed(0))

    def name_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        return self.rows[rows]


@pytest.mark.parametrize(
    ("span", "erased", "preserve"),
    [(3, 1, PRESERVE[0]), (8, 1, PRESERVE[-1]), (3, 4, PRESERVE[-1])],
    ids=["directions left", "none left", "none left for one of five"],
)
def test_the_factors_are_the_update_by_the_largest_weight_of_the_kept_that_lets_every_name_go(
    span: int, erased: int, preserve: float, generator: torch.Generator
) -> None:
    kept = torch.randn(60, span, generator=generator) @ torch.randn(span, 8, generator=generator)
    names = torch.randn(erased, 8, generator=generator)
    if erased > 1:
        names = torch.cat([names, kept[5:6] + 0.7 * kept[9:10]])  # made of what is kept
    rows, count = torch.cat([names, kept]), len(names)
    model: Any = Spoken(rows)
    found = name_edit(model, dict.fromkeys(range(count), count), range(count, len(rows)))  # the anchor is one of the kept
    space, core = found.subspaces["said"], found.cores["said"]
    dense = (space.left @ core @ space.right.transpose(1, 2))[0]
    weight, inputs = model.denoiser["said"].weight.detach(), (names, rows[count].expand(count, -1))
    expected = {p: update(weight, *inputs, kept, p) for p in PRESERVE}
    torch.testing.assert_close(dense, expected[preserve].float(), rtol=0, atol=2e-3 * float(dense.abs().max()))
    left = {p: share_left({"said": weight}, {"said": delta}, *inputs, count) for p, delta in expected.items()}
    assert (left[PRESERVE[0]] <= LEFT) == (preserve == PRESERVE[0])
    assert share_left({"said": weight}, {"said": torch.zeros(5, 8)}, *inputs, count) == pytest.approx(1)


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


def test_settings_that_leave_nothing_to_train_are_refused_before_any_work() -> None:
    config = ClassErasureConfig(forget=("red",), layers=("*.time_emb_proj",))
    with pytest.raises(InputError, match=r"--layers names only layers that the name in closed form takes"):
        classes.plan(tiny_model(), config)
    for method in ("trained", "closed-form"):
        assert classes.plan(tiny_model(), dataclasses.replace(config, method=method)).forget == (0,)


def test_a_bound_on_memory_counts_no_layer_that_the_closed_form_takes() -> None:
    few: dict[str, Any] = {"steps": 1, "forget_samples": 2, "kept_samples": 2, "batch_size": 2, "anchor": "green"}
    patch = erase_class(tiny_model().pipeline, "red", layers=("*.time_emb_proj", "conv_in"), memory="11KB", **few)
    assert {"conv_in"} < set(patch.layers)
    with pytest.raises(InputError, match="--memory"):
        erase_class(tiny_model().pipeline, "red", layers=("*.time_emb_proj", "conv_in"), memory="11KB", method="trained", **few)
