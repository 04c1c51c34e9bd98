"""Promises of the noising processes: a flow is diffusers' flow, a DDPM its schedule; weights have mean 1."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from semu_diffusion.models.process import Ddpm, Process, RectifiedFlow

SHIFTS = (1.0, 3.0)


@pytest.fixture
def x0(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(6, 3, 4, 4, generator=generator)


@pytest.fixture
def noise(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(6, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_flow_noises_as_diffusers_does(shift: float, x0: torch.Tensor, noise: torch.Tensor) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    t = scheduler.timesteps[[0, 100, 400, 700, 900, 999]]
    flow = RectifiedFlow(1000, shift)
    torch.testing.assert_close(flow.add_noise(x0, noise, t), scheduler.scale_noise(x0, t, noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_flows_target_leads_diffusers_sampler_to_the_clean_sample(
    shift: float, steps: int, x0: torch.Tensor, noise: torch.Tensor
) -> None:
    """The true velocity is constant along the path, so Euler's method arrives in any number of steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(steps)
    flow = RectifiedFlow(1000, shift)
    start = scheduler.timesteps[:1].expand(len(x0))
    x = flow.add_noise(x0, noise, start)
    for t in scheduler.timesteps:
        x = scheduler.step(flow.target(x0, noise, t.expand(len(x0))), t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_flows_timesteps_are_those_of_diffusers_schedule(shift: float) -> None:
    """Evenly drawn u give the quantiles that diffusers' shifted schedule has at evenly spaced places."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    drawn = RectifiedFlow(1000, shift).timesteps(20_000, torch.Generator().manual_seed(0)).sort().values
    assert 0 < float(drawn[0]) < float(drawn[-1]) <= 1000
    wanted = scheduler.timesteps.flip(0)[99::100]
    torch.testing.assert_close(drawn[1999::2000], wanted, rtol=0, atol=12.0)


@pytest.mark.parametrize("process", [
    Ddpm(DDPMScheduler(prediction_type="epsilon")), Ddpm(DDPMScheduler(prediction_type="v_prediction")),
    Ddpm(DDPMScheduler(prediction_type="sample")), RectifiedFlow(), RectifiedFlow(shift=3.0),
], ids=["epsilon", "v", "x0", "flow", "shifted flow"])  # fmt: skip
def test_timesteps_come_in_pairs_of_the_generator_and_weights_have_mean_one(process: Process) -> None:
    one, two = (process.timesteps(8192, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(one, two)
    assert len(process.timesteps(5, torch.Generator().manual_seed(0))) == 5
    if isinstance(process, Ddpm):
        assert torch.equal(one[:4096] + one[4096:], torch.full((4096,), process.num_timesteps - 1))
    assert float(process.image_weight(one).mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_image_weight_is_how_far_an_error_moves_the_clean_sample(kind: str, x0: torch.Tensor, noise: torch.Tensor) -> None:
    process = Ddpm(DDPMScheduler(prediction_type=kind, clip_sample=False), limit=1e9)
    t = torch.tensor([10, 200, 500, 700, 900, 990])
    alpha, sigma = (
        value.sqrt()[t].view(-1, 1, 1, 1) for value in (process.scheduler.alphas_cumprod, 1 - process.scheduler.alphas_cumprod)
    )
    x = process.add_noise(x0, noise, t)

    def clean(predicted: torch.Tensor) -> torch.Tensor:
        if kind == "epsilon":
            return (x - sigma * predicted) / alpha
        return alpha * x - sigma * predicted if kind == "v_prediction" else predicted

    target = process.target(x0, noise, t)
    torch.testing.assert_close(clean(target), x0, rtol=1e-3, atol=1e-3)
    moved = (clean(target + 1.0) - clean(target)).abs().mean((1, 2, 3))
    weight = process.image_weight(t)
    torch.testing.assert_close(moved / moved.mean(), weight / weight.mean(), rtol=1e-3, atol=1e-4)


def test_a_flows_image_weight_is_how_far_an_error_moves_the_clean_sample(x0: torch.Tensor, noise: torch.Tensor) -> None:
    flow = RectifiedFlow(1000)
    t = torch.tensor([10.0, 200.0, 500.0, 700.0, 900.0, 1000.0])
    x, velocity = flow.add_noise(x0, noise, t), flow.target(x0, noise, t)
    clean = x - flow.sigmas(t).view(-1, 1, 1, 1) * (velocity + 1.0)
    moved = (x0 - clean).mean((1, 2, 3))
    torch.testing.assert_close(flow.image_weight(t), 2 * moved, rtol=1e-3, atol=1e-3)
