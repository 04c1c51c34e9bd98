"""Sampling paths as training samples: they are diffusers' own, and what the original says of them is asked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.pool import Noised, Pool, paths, pooled
from semu_diffusion.erase.samples import in_turn
from semu_diffusion.erase.task import Images
from semu_diffusion.models.process import Ddpm, RectifiedFlow
from semu_diffusion.models.sampling import ddim

SEEDS = [2**62 + 5, 2**62 + 9, 2**62 + 11]


@pytest.mark.parametrize("limits", [{}, {"clip_sample_range": 0.5}, {"thresholding": True, "sample_max_value": 1.5}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_is_that_of_diffusers_ddim(prediction_type: str, limits: dict[str, Any], generator: torch.Generator) -> None:
    changes = {"prediction_type": prediction_type, "clip_sample": True, "timestep_spacing": "trailing", **limits}
    scheduler = ddim(tiny_model().scheduler.config, **changes)
    scheduler.set_timesteps(scheduler.config.num_train_timesteps // 2)
    process, t = Ddpm(scheduler), int(scheduler.timesteps[3])
    then = t - 2
    x, predicted = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    found = process.step(x, torch.tensor([t, t]), torch.tensor([then, then]), predicted, pixels=True)
    assert int(scheduler.timesteps[4]) == then
    torch.testing.assert_close(found, scheduler.step(predicted, t, x).prev_sample, rtol=1e-4, atol=1e-5)


def test_a_flows_step_is_eulers() -> None:
    flow, x = RectifiedFlow(), torch.ones(1, 1, 1, 1)
    half = flow.step(x, torch.tensor([1000.0]), torch.tensor([500.0]), 2 * x, pixels=False)
    assert float(half) == 0.0
    assert float(flow.step(half, torch.tensor([500.0]), None, 2 * x, pixels=False)) == -1.0


def test_paths_depend_on_their_seeds_alone() -> None:
    model = tiny_model()
    together, ends = paths(model, [0, 1, 2], SEEDS, 4, 3.0, "fp32")
    alone, end = paths(model, [1], SEEDS[1:2], 4, 3.0, "fp32")
    torch.testing.assert_close(ends.images[1:2], end.images)
    own = together.labels == 1
    torch.testing.assert_close(together.x_t[own], alone.x_t)
    assert torch.equal(together.t[own], alone.t)


def test_the_paths_of_many_seeds_cover_every_timestep_between_them() -> None:
    model = tiny_model()
    pool, _ = paths(model, [0] * 150, range(150), 4, 1.0, "fp32")
    assert set(pool.t.tolist()) == set(range(model.num_timesteps))


@pytest.mark.parametrize("asked", [[0, 3, 3], [5, 5]])
def test_what_the_original_predicts_of_a_sample_is_asked_once(asked: Sequence[int]) -> None:
    model, calls = tiny_model(), []
    pool, _ = paths(model, [0, 1], SEEDS[:2], 3, 3.0, "fp32")

    def original(x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return model.predict(x, t, rows)

    drawn = pool.take(asked)
    own = drawn.recall(original)(drawn.batch.x_t, drawn.batch.t, drawn.batch.condition)
    assert calls == []  # the paths know them
    with torch.no_grad():
        torch.testing.assert_close(
            own, model.predict(drawn.batch.x_t, drawn.batch.t, drawn.batch.condition), rtol=1e-3, atol=1e-5
        )
    other = torch.full_like(drawn.batch.condition, 2)
    first = drawn.recall(original)(drawn.batch.x_t, drawn.batch.t, other)
    assert sum(calls) == len(set(asked))
    again = pool.take(asked).recall(original)(drawn.batch.x_t, drawn.batch.t, other)
    assert sum(calls) == len(set(asked))
    assert torch.equal(first, again)


def test_given_images_become_a_pool_of_their_noised_selves(generator: torch.Generator) -> None:
    model = tiny_model()
    images = Images(torch.zeros(4, *model.latent_shape), torch.arange(4) % 3)
    pool = pooled(Noised(model, images), 12, generator)
    assert len(pool.x_t) == 12
    assert pool.t.unique().numel() > 3
    assert set(pool.labels.tolist()) <= {0, 1, 2}


def test_a_pass_is_an_image_forward_and_its_backward_two_more() -> None:
    model = tiny_model()
    x, t, rows = torch.zeros(3, *model.latent_shape), torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2])
    with Meter(model.denoiser) as meter:
        with meter.phase("seen"), torch.no_grad():
            model.predict(x, t, rows)
        with meter.phase("trained"):
            model.predict(x, t, rows).sum().backward()
    model.predict(x, t, rows)
    assert meter.passes == {"seen": 3, "trained": 9}
    assert set(meter.seconds) == {"seen", "trained"}


def test_a_part_of_the_samples_is_of_different_ones(generator: torch.Generator) -> None:
    model = tiny_model()
    images = Images(torch.zeros(50, *model.latent_shape), torch.arange(50))
    assert len(set(Noised(model, images).spread(20, generator).batch.condition.tolist())) == 20
    pool = Pool(torch.zeros(50, *model.latent_shape), torch.zeros(50), torch.arange(50))
    assert len(set(pool.spread(20, generator).batch.condition.tolist())) == 20
    assert len(pool.spread(99, generator).batch.condition) == 50


def test_paths_of_an_anchor_can_be_shown_as_what_it_replaces() -> None:
    model = tiny_model()
    own, _ = paths(model, [0], SEEDS[:1], 3, 3.0, "fp32")
    anchor, _ = paths(model, [1, 1], SEEDS[1:], 3, 3.0, "fp32")
    both = own.joined(anchor, torch.zeros_like(anchor.labels))
    assert both.labels.tolist() == [0] * 9
    drawn = both.take([0, 5])

    def unasked(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the paths know it")

    found = drawn.recall(unasked)(drawn.batch.x_t, drawn.batch.t, torch.tensor([0, 1]))
    assert torch.equal(found[0], own.known[0, 0])
    assert torch.equal(found[1], anchor.known[2, 1])


def test_of_more_conditions_than_images_those_are_shown_that_lie_evenly() -> None:
    rows, seeds = in_turn(tiny_model(), list(range(100)), 4, 0, "kept samples")
    assert rows == [0, 25, 50, 75]
    assert len(set(seeds)) == 4
    assert in_turn(tiny_model(), [7, 8], 3, 0, "kept samples")[0] == [7, 8, 7]
