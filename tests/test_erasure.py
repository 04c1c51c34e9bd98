"""The loop trains R and nothing else, and the caller's model does not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from patches import weight_bytes
from tiny_models import tiny_model, tiny_unet
from torch import nn
from toy_batches import batch_of, predict, relabel, subspaces_of

from semu_diffusion.erasure import Diverged, Step, train_patch
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.objectives import denoising
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.patched import PatchedLayers


def toy(model: ClassConditional, **settings: object) -> tuple[PatchedLayers, Callable[[int], dict[str, torch.Tensor]]]:
    """A relabelling of class 0 to class 1, always on the same batch."""
    patched, batch = PatchedLayers(model.denoiser, subspaces_of(model, **settings)), batch_of(model)  # type: ignore[arg-type]

    def original(*args: object) -> torch.Tensor:
        with patched.original():
            return model.predict(*args)  # type: ignore[arg-type]

    return patched, lambda index: {"forget": relabel(model.predict, original, batch)}


def finish(steps) -> tuple[list[Step], ErasurePatch]:  # type: ignore[no-untyped-def]
    records = []
    while True:
        try:
            records.append(next(steps))
        except StopIteration as done:
            return records, done.value


# ---------------------------------------------------------------------------------------------------- the loop


def snapshot(net: nn.Module) -> list[object]:
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone().numpy().tobytes()) for p in net.parameters()]
    instance = [name for name, module in net.named_modules() if "forward" in module.__dict__]
    hooks = [name for name, module in net.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return [weight_bytes(net), flags, [module.training for module in net.modules()], instance, hooks]


def unusual_state(net: nn.Module) -> None:
    net.train()
    net.conv_in.eval()
    net.conv_out.weight.requires_grad_(False)
    net.conv_in.weight.grad = torch.full_like(net.conv_in.weight, 3.0)


@pytest.mark.parametrize("end", ["finished", "closed", "failed"])
def test_the_model_is_untouched_between_steps_and_afterwards(end: str, model: ClassConditional) -> None:
    patched, loss = toy(model)
    unusual_state(model.denoiser)
    before, answer = snapshot(model.denoiser), predict(model)

    def loss_or_failure(index: int) -> dict[str, torch.Tensor]:
        if end == "failed" and index == 3:
            raise ZeroDivisionError
        return loss(index)

    steps = train_patch(patched, loss_or_failure, 4, 1e-2)
    for _ in range(2):
        next(steps)
        assert snapshot(model.denoiser) == before
        assert torch.equal(predict(model), answer)
    if end == "closed":
        steps.close()
    elif end == "failed":
        with pytest.raises(ZeroDivisionError):
            next(steps)
    else:
        finish(steps)
    assert snapshot(model.denoiser) == before
    assert torch.equal(predict(model), answer)


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_the_loss_falls_and_the_patch_makes_it_real(model: ClassConditional, matricisation: str) -> None:
    patched, loss = toy(model, matricisation=matricisation)
    records, patch = finish(train_patch(patched, loss, 25, 3e-2, metadata={"why": "test"}))
    assert [record.index for record in records] == list(range(1, 26))
    assert records[-1].loss < 0.5 * records[0].loss
    assert all(record.parts == {"forget": pytest.approx(record.loss)} and record.gradient_norm > 0 for record in records)
    assert records[-1].seconds >= records[0].seconds > 0
    assert patch.metadata == {"why": "test"}
    with patched.attached():
        inside = predict(model)
    patch.apply(model.denoiser)
    torch.testing.assert_close(predict(model), inside, rtol=1e-4, atol=1e-5)
    batch = batch_of(model)
    answer = model.predict(batch.x_t, batch.t, batch.condition).detach()
    patch.remove(model.denoiser)
    target = model.predict(batch.x_t, batch.t, batch.anchor).detach()
    assert float((answer - target).square().mean()) < 0.5 * records[0].loss


def test_a_caller_that_stops_early_gets_the_patch_as_trained_so_far(model: ClassConditional) -> None:
    patched, loss = toy(model)
    steps = train_patch(patched, loss, 100, 1e-2)
    for _ in range(2):
        next(steps)
    early = patched.patch()
    _, two = finish(train_patch(*toy(tiny_model()), 2, 1e-2))
    next(steps)
    assert early.same_as(two)  # and the third step did not reach into it
    steps.close()


def test_the_same_run_gives_the_same_patch() -> None:
    runs = [finish(train_patch(*toy(tiny_model()), 3, 1e-2, decay=True))[1] for _ in range(2)]
    assert runs[0].same_as(runs[1])
    assert not runs[0].same_as(finish(train_patch(*toy(tiny_model()), 3, 1e-2))[1])


def test_zero_steps_give_a_patch_that_changes_nothing(model: ClassConditional) -> None:
    patched, loss = toy(model)
    before = weight_bytes(model.denoiser)
    records, patch = finish(train_patch(patched, loss, 0))
    assert records == []
    patch.apply(model.denoiser)
    assert weight_bytes(model.denoiser) == before


@pytest.mark.parametrize("kind", ["nan loss", "infinite loss", "nan gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(kind: str, model: ClassConditional) -> None:
    patched, loss = toy(model)
    before = snapshot(model.denoiser)

    def broken(index: int) -> dict[str, torch.Tensor]:
        part = loss(index)["forget"]
        if index == 2:
            return {
                "nan loss": lambda: {"forget": part, "retain": part * float("nan")},
                "infinite loss": lambda: {"forget": part / 0},
                "nan gradient": lambda: {"forget": part, "retain": (part * 0).sqrt()},
            }[kind]()
        return {"forget": part}

    steps = train_patch(patched, broken, 5, 1e-2)
    next(steps)
    core = {name: value.detach().clone() for name, value in patched.core.items()}
    said = "gradient is not finite" if kind == "nan gradient" else "loss is (nan|inf)"
    with pytest.raises(Diverged, match=rf"{said} at step 2.*--lr") as caught:
        next(steps)
    assert "\n" not in str(caught.value)
    assert snapshot(model.denoiser) == before
    assert all(torch.equal(value, core[name]) for name, value in patched.core.items())


def test_the_parts_are_summed_and_the_clip_bounds_what_the_optimizer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.Adam.step

    def watched(self, *args):  # type: ignore[no-untyped-def]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    patched, loss = toy(tiny_model())

    def loud(index: int) -> dict[str, torch.Tensor]:
        part = loss(index)["forget"]
        return {"forget": 1e4 * part, "retain": 2e4 * part}

    for clip in (0.5, None):
        (record,), _ = finish(train_patch(patched, loud, 1, 0.0, clip=clip))
        assert record.loss == pytest.approx(sum(record.parts.values()))
        assert record.gradient_norm > 1
        assert seen.pop() == pytest.approx(clip or record.gradient_norm, rel=1e-3)


def test_only_r_is_trained(model: ClassConditional) -> None:
    patched, loss = toy(model)
    frozen = {name: (patched.left[name].clone(), patched.right[name].clone()) for name in patched.core}
    finish(train_patch(patched, loss, 3, 1e-2))
    assert all(torch.equal(patched.left[n], u) and torch.equal(patched.right[n], v) for n, (u, v) in frozen.items())
    assert all(core.abs().max() > 0 for core in patched.core.values())
    assert not any(parameter.grad is not None for parameter in model.denoiser.parameters())


def test_per_channel_padding_stays_zero(model: ClassConditional) -> None:
    patched, loss = toy(model, matricisation="per_channel", rank=9)
    finish(train_patch(patched, loss, 3, 1e-2))
    ragged = 0
    for name, space in patched.subspaces.items():
        for rank, core in zip(space.ranks.tolist(), patched.core[name], strict=True):
            ragged += rank < len(core)
            assert not core[rank:].any()
            assert not core[:, rank:].any()
    assert ragged


def test_an_unconditional_model_is_erased_too() -> None:
    model = tiny_model(names=(), num_class_embeds=None)
    patched, _ = toy(model)
    assert not model.conditional
    records, patch = finish(train_patch(patched, lambda index: {"ascent": -denoising(model.predict, batch_of(model))}, 2, 1e-2))
    assert records[1].loss < records[0].loss
    assert patch.layers.keys() <= {name for name, _ in tiny_unet(num_class_embeds=None).named_modules()}
