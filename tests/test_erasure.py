"""The loop trains R and nothing else, and the caller's model does not notice."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from patches import random_layers, weight_bytes
from tiny_models import tiny_model, tiny_unet
from torch import nn

from semu_diffusion import patched as patched_module
from semu_diffusion.erasure import Diverged, Step, train_patch
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.objectives import NoisyBatch, denoising, relabel
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patched import PatchedLayers
from semu_diffusion.subspace import layer_subspace


def batch_of(model: ClassConditional, seed: int = 0, count: int = 8) -> NoisyBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator).clamp(-1, 1)
    noise = torch.randn(images.shape, generator=generator)
    t = torch.randint(0, model.num_timesteps, (count,), generator=generator)
    erased, anchor = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long)
    return NoisyBatch(model.add_noise(images, noise, t), t, erased, noise, anchor)


def subspaces_of(model: ClassConditional, matricisation: str = "full", rank: int = 8):  # type: ignore[no-untyped-def]
    layers = select_layers(model.denoiser)
    gradients = collect_gradients(
        model.denoiser, layers, [batch_of(model, seed) for seed in range(2)], lambda batch: denoising(model.predict, batch)
    )
    return {
        name: layer_subspace(gradients[name], layer.weight.detach(), max_rank=rank, matricisation=matricisation)  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


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


def predict(model: ClassConditional) -> torch.Tensor:
    batch = batch_of(model, seed=5)
    with torch.no_grad():
        return model.predict(batch.x_t, batch.t, batch.condition)


# ---------------------------------------------------------------------------------------------------- patched layers


def test_the_patched_model_is_the_original_before_the_first_step(model: ClassConditional) -> None:
    before = predict(model)
    patched = PatchedLayers(model.denoiser, subspaces_of(model))
    assert sum(parameter.numel() for parameter in patched.parameters()) == patched.patch().trained_parameters > 0
    with patched.attached():
        assert (predict(model) - before).norm() <= 1e-6 * before.norm()
    patched.patch().apply(model.denoiser)
    assert torch.equal(predict(model), before)


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_attached_is_the_patch_applied_and_original_switches_it_off(model: ClassConditional, matricisation) -> None:  # type: ignore[no-untyped-def]
    before = predict(model)
    patched = random_layers(model.denoiser, matricisation=matricisation, size=0.5)
    with patched.attached():
        inside = predict(model)
        with patched.attached():
            assert torch.equal(predict(model), inside)  # not twice
        assert torch.equal(predict(model), inside)
        with patched.original():
            assert torch.equal(predict(model), before)
        assert torch.equal(predict(model), inside)
    assert torch.equal(predict(model), before)
    patched.patch().apply(model.denoiser)
    applied = predict(model)
    assert (applied - before).norm() > 1e-2 * before.norm()
    assert (applied - inside).norm() < 1e-5 * applied.norm()


def test_in_half_precision_the_trained_weights_are_the_applied_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(nn.Linear(16, 16)).bfloat16()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(patched_module, "_factored_is_cheaper", lambda *_: False)
    patched = random_layers(layer)
    with patched.attached(), torch.no_grad():
        inside = layer(x)
    patched.patch().apply(layer)
    assert torch.equal(layer(x), inside)


LAYERS = {
    "linear": (nn.Linear(12, 7), (2, 5, 12)),
    "conv": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
    "strided": (nn.Conv2d(3, 5, 3, stride=2, dilation=2, bias=False), (2, 3, 9, 9)),
    "same": (nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 6, 6)),
    "unbatched": (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    "reflecting": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_factored_and_materialised_agree_in_output_and_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS[kind]
    net = nn.Sequential(copy.deepcopy(layer)).requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    choose, thin, taken = patched_module._factored_is_cheaper, patched_module._thin, []
    monkeypatch.setattr(patched_module, "_thin", lambda *args: (taken.append(1), thin(*args))[1])
    results = {}
    for factored in (True, False):
        patched = random_layers(net, size=0.5)
        core = patched.core["0"].requires_grad_(True)
        possible = kind not in ("reflecting", "grouped")
        assert isinstance(choose(net[0], patched.subspaces["0"], x), bool)
        if possible:
            monkeypatch.setattr(patched_module, "_factored_is_cheaper", lambda *_, answer=factored: answer)
        given = x.clone().requires_grad_(True)
        with patched.attached():
            output = net(given)
        output.square().sum().backward()
        results[factored] = (output.detach(), core.grad, given.grad)
        assert bool(taken) == (factored and possible)
        taken.clear()
    for one, other in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    patched.patch().apply(net)
    torch.testing.assert_close(net(x), results[False][0], rtol=1e-4, atol=1e-5)


def test_the_way_is_chosen_by_cost() -> None:
    def factored(layer: nn.Module, rank: int, *shape: int) -> bool:
        space = random_layers(nn.Sequential(layer), rank=rank).subspaces["0"]
        return patched_module._factored_is_cheaper(layer, space, torch.zeros(shape))

    assert factored(nn.Linear(512, 512), 2, 4, 512)
    assert not factored(nn.Linear(64, 64), 32, 1000, 64)


def test_a_forward_that_a_layer_has_of_its_own_comes_back(model: ClassConditional) -> None:
    """As accelerate's hooks leave it: an attribute of the instance."""
    layer = model.denoiser.conv_in
    calls = []

    def hooked(old: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return old(x)

    own = layer.forward = functools.partial(hooked, layer.forward)
    before = predict(model)
    patched = random_layers(model.denoiser)
    with patched.attached():
        assert not torch.equal(predict(model), before)
        calls.clear()
        with patched.original():
            assert torch.equal(predict(model), before)
        assert calls == [1]
    assert layer.forward is own
    assert torch.equal(predict(model), before)
    assert all("forward" not in other.__dict__ for name, other in patched.layers.items() if name != "conv_in")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_a_weight_that_two_modules_share_is_trained_in_both(generator: torch.Generator) -> None:
    net, x = Tied(), torch.randn(5, 8, generator=generator)
    before = snapshot_of_forwards(net)
    patched = random_layers(net, size=0.5)
    assert list(patched.layers) == ["a"]
    with patched.attached(), torch.no_grad():
        inside = net(x)
    assert snapshot_of_forwards(net) == before
    patched.patch().apply(net)
    torch.testing.assert_close(net(x).detach(), inside)


def snapshot_of_forwards(net: nn.Module) -> list[bool]:
    return ["forward" in module.__dict__ for module in net.modules()]


def test_a_weight_shared_with_a_module_of_another_kind_is_refused() -> None:
    net = nn.ModuleDict({"words": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    net["head"].weight = net["words"].weight
    with pytest.raises(InputError, match=r"head is shared with words.*!head"):
        random_layers(net, seed=1)


def test_a_layer_with_a_zero_gradient_is_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    gradients = {"0": torch.zeros(3, 3), "1": torch.ones(3, 3)}
    spaces = {name: layer_subspace(gradient, net[int(name)].weight.detach()) for name, gradient in gradients.items()}
    patched = PatchedLayers(net, spaces)
    assert list(patched.core) == list(patched.patch().layers) == ["1"]


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
