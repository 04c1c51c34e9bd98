"""UCE's closed form is the minimum that it says it is, and gives the erased condition the anchor's predictions."""

from __future__ import annotations

import torch
from test_methods import class_task, concept_task

from semu_diffusion.peers.uce import PRESERVE, RIDGE, closed_form, uce


def test_the_closed_form_is_the_minimum_of_its_objective(generator: torch.Generator) -> None:
    w = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    c, a, k = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 4, 6))

    def objective(v: torch.Tensor) -> torch.Tensor:
        erased, kept = c @ v.T - a @ w.T, k @ (v - w).T
        return erased.square().sum() + PRESERVE * kept.square().sum() + RIDGE * (v - w).square().sum()

    found = closed_form(w, c, a, k).requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(found), found)
    assert float(gradient.abs().max()) < 1e-9
    assert float(objective(found.detach())) < float(objective(w))


def test_the_erased_condition_is_predicted_as_its_anchor_and_the_kept_ones_as_before() -> None:
    for task, config in (class_task(anchor="green"), concept_task()):
        model, row = task.model, task.forget[0]
        assert task.anchors is not None
        x = torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(1))
        t = torch.arange(5, 85, 10)

        def predicted(of: int, model=model, x=x, t=t) -> torch.Tensor:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                return model.predict(x, t, torch.full((8,), of))

        wanted, before, kept = predicted(task.anchors[row]), predicted(row), predicted(task.kept[-1])
        with uce(task, config).edit.applied(model):
            assert (predicted(row) - wanted).square().mean() < 0.3 * (before - wanted).square().mean()
            assert (predicted(task.kept[-1]) - kept).square().mean() < 0.3 * (before - wanted).square().mean()
