"""The forget gradient is autograd's, and the model does not notice that it was taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import tiny_unet
from torch import nn

from semu_diffusion.gradients import antithetic_timesteps, collect_gradients, only_trainable
from semu_diffusion.layers import select_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def batches_of(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 2, 5, 5, generator=generator), torch.randint(0, 2, (4,), generator=generator)) for _ in range(count)
    ]


def reference(net: Net, batches, clip: float | None) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    names = ["conv", "head"]
    net.eval()
    total = {name: torch.zeros_like(net.get_submodule(name).weight) for name in names}
    for x, y in batches:
        loss = nn.functional.cross_entropy(net(x), y)
        grads = torch.autograd.grad(loss, [net.get_submodule(name).weight for name in names])
        norm = torch.cat([g.flatten() for g in grads]).norm()
        factor = 1.0 if clip is None else min(1.0, clip / float(norm))
        for name, grad in zip(names, grads, strict=True):
            total[name] += factor * grad / len(batches)
    return total


@pytest.mark.parametrize("clip", [None, 1e6, 0.1])
def test_the_gradient_is_autograds_mean_over_the_batches(net: Net, clip: float | None) -> None:
    batches = batches_of(3)
    layers = {"conv": net.conv, "head": net.head}
    found = collect_gradients(net, layers, iter(batches), lambda b: nn.functional.cross_entropy(net(b[0]), b[1]), clip)
    for name, expected in reference(net, batches, clip).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)
    if clip == 0.1:
        unclipped = reference(net, batches, None)
        assert found["conv"].norm() < unclipped["conv"].norm() / 2


def test_any_module_any_loss_any_iterable_of_any_batches(generator: torch.Generator) -> None:
    weights = torch.randn(3, generator=generator)
    layer = nn.Linear(3, 1, bias=False)

    def batches() -> Iterator[str]:
        yield "one"
        yield "three"

    found = collect_gradients(layer, {"": layer}, batches(), lambda word: len(word) * layer(weights).sum())
    torch.testing.assert_close(found[""], (3 + 5) / 2 * weights[None])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_image_counts_the_same_in_a_batch_of_any_size(clip: float | None, generator: torch.Generator) -> None:
    layer, x = nn.Linear(3, 2), torch.randn(10, 3, generator=generator)
    layers = {"": layer}

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return layer(batch).square().sum(1).mean()

    even = collect_gradients(layer, layers, [x], loss)[""]
    uneven = collect_gradients(layer, layers, [x[:8], x[8:]], loss, clip, weight=len)[""]
    if clip is None:
        torch.testing.assert_close(uneven, even)
    else:  # each batch is clipped before it is weighed
        assert uneven.norm() <= clip
        assert uneven.norm() > clip / 2


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_layer_that_no_batch_uses_has_a_zero_gradient(net: Net, clip: float | None) -> None:
    found = collect_gradients(net, select_layers(net), batches_of(1), lambda b: net(b[0]).square().sum(), clip)
    assert torch.equal(found["unused"], torch.zeros(4, 4))
    assert found["conv"].abs().max() > 0


@pytest.mark.parametrize("clip", [None, 1e-6])
def test_gradients_below_what_float16_holds_are_not_lost(clip: float | None, generator: torch.Generator) -> None:
    layer, x = nn.Linear(8, 4), torch.randn(6, 8, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 8, generator=generator))
    layer.half()
    whole = nn.Linear(8, 4)
    whole.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})

    def found(one: nn.Linear) -> torch.Tensor:
        dtype = one.weight.dtype
        return collect_gradients(one, {"": one}, [x], lambda batch: 1e-7 * one(batch.to(dtype)).float().sum(), clip)[""]

    exact = found(whole)
    assert exact.abs().max() < 1e-6
    torch.testing.assert_close(found(layer), exact, rtol=2e-2, atol=1e-10)


def test_the_gradient_of_a_half_model_is_summed_in_float32(net: Net) -> None:
    net.bfloat16()
    found = collect_gradients(net, {"head": net.head}, batches_of(2), lambda b: net(b[0].bfloat16()).sum())
    assert found["head"].dtype == torch.float32


def state_of(net: nn.Module) -> list[object]:
    parameters = [(p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    return [[m.training for m in net.modules()], parameters, {k: v.clone() for k, v in net.state_dict().items()}]


def assert_same_state(net: nn.Module, before: list[object]) -> None:
    modes, parameters, values = before
    assert [m.training for m in net.modules()] == modes
    for parameter, (flag, grad, content) in zip(net.parameters(), parameters, strict=True):  # type: ignore[call-overload]
        assert parameter.requires_grad == flag
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, content)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())  # type: ignore[index]
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("failure", [None, "loss", "batches", "interrupt"])
def test_flags_modes_grads_and_weights_are_as_before_also_after_an_exception(net: Net, clip, failure) -> None:  # type: ignore[no-untyped-def]
    net.train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.head.weight.grad = torch.full_like(net.head.weight, 7.0)
    before = state_of(net)
    modes_inside: set[bool] = set()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from batches_of(2)
        if failure == "batches":
            raise OSError("no more")

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        modes_inside.update(m.training for m in net.modules())
        if failure == "loss" and len(seen) == 1:
            raise ZeroDivisionError
        if failure == "interrupt" and len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(1)
        return net(batch[0]).sum()

    seen: list[int] = []
    layers = {"conv": net.conv, "head": net.head}
    if failure is None:
        with torch.no_grad():  # the caller's grad mode does not matter either
            found = collect_gradients(net, layers, batches(), loss, clip)
        assert all(gradient.abs().max() > 0 for gradient in found.values())
    else:
        with pytest.raises((OSError, ZeroDivisionError, KeyboardInterrupt)):
            collect_gradients(net, layers, batches(), loss, clip)
    assert modes_inside == {False}
    assert_same_state(net, before)


def test_no_batches_and_non_finite_gradients_are_refused(net: Net) -> None:
    before = state_of(net)
    with pytest.raises(ValueError, match="at least one batch"):
        collect_gradients(net, {"head": net.head}, [], lambda b: net(b[0]).sum())
    with pytest.raises(FloatingPointError, match="head"):
        collect_gradients(net, {"head": net.head}, batches_of(1), lambda b: net(b[0]).sum() * float("nan"))
    assert_same_state(net, before)


def test_unclipped_gradients_are_freed_as_they_come() -> None:
    """When the first layer's gradient is made, the last one's is gone already."""
    unet = tiny_unet()
    layers = select_layers(unet)
    alive: list[int] = []
    unet.conv_in.weight.register_hook(lambda _: alive.append(sum(layer.weight.grad is not None for layer in layers.values())))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
    collect_gradients(unet, layers, [0], lambda _: unet(x, t, class_labels=torch.tensor([0])).sample.sum())
    assert alive == [0]


def test_only_trainable_leaves_a_gradient_to_the_chosen_parameters_alone(net: Net) -> None:
    with only_trainable(net, [net.head.weight]):
        net(batches_of(1)[0][0]).sum().backward()
        assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight"]
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_antithetic_timesteps_pair_up(count: int, generator: torch.Generator) -> None:
    t = antithetic_timesteps(count, 100, generator)
    half = (count + 1) // 2
    assert t.shape == (count,)
    assert t.dtype == torch.int64
    assert torch.equal(t[half:], 99 - t[: count - half])
    assert int(t.min()) >= 0
    assert int(t.max()) <= 99
    assert torch.equal(t, antithetic_timesteps(count, 100, torch.Generator().manual_seed(0)))


def test_antithetic_timesteps_cover_all_timesteps_evenly(generator: torch.Generator) -> None:
    t = antithetic_timesteps(4000, 4, generator)
    assert torch.bincount(t, minlength=4).min() > 900


def test_layers_that_the_loss_does_not_reach_have_zero_gradients() -> None:
    used, idle = nn.Linear(3, 3), nn.Linear(3, 3)
    found = collect_gradients(nn.ModuleList([used, idle]), {"idle": idle}, [0], lambda _: used(torch.ones(1, 3)).sum())
    assert torch.equal(found["idle"], torch.zeros(3, 3))
