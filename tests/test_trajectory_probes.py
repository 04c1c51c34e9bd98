"""The probes without training find what is still there, not what is gone, and leave the model as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from test_probes import (
    BRIGHT,
    NAMES,
    NULL,
    assert_same,
    brightness_judge,
    painter,
    snapshot,
    tiny_unet,
    uneven,
    white_images,
    wrap,
)
from torch import nn

from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.probes.completion import begun
from semu_diffusion.eval.probes.probe import Kept, Sampled, Shown
from semu_diffusion.eval.probes.quantised import fp8, int8, rounded
from semu_diffusion.eval.probes.trajectory import levels, travel
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.process import CLEAN
from semu_diffusion.models.sampling import start_noise

HOW = Sampled(samples=6, sampling_steps=8)
CHEAP = [name for name, probe in PROBES.items() if not probe.learns]


def shown(model: ClassConditional, **changes: Any) -> Shown:
    kept = Kept(torch.full((4, 1, 8, 8), -0.9), ("black",) * 4, ("black",) * 4, brightness_judge())
    given = {"clean": white_images(), "conditions": ("white",), "started": begun(model, ("white",), HOW), "kept": kept}
    return Shown("white", brightness_judge(), **{**given, **changes})


def found(name: str, model: ClassConditional, **changes: Any) -> Revival:
    return PROBES[name]((shown(painter(), **changes),), HOW).run(model)["white"]


@pytest.mark.parametrize("name", CHEAP)
def test_the_pictures_that_are_handed_out_are_those_that_were_counted(name: str) -> None:
    made: dict[str, torch.Tensor] = {}
    counted = PROBES[name]((shown(painter()),), HOW).run(painter(white=0.9), samples=made)["white"]
    assert made["white"].dtype == torch.uint8
    seen = brightness_judge().predict(made["white"]) == brightness_judge().class_names.index("white")
    assert (len(seen), float(seen.double().mean())) == (counted.samples, counted.share)


class Still(UNet2DModel):
    """Predicts no noise at all: along the path a picture is only scaled."""

    def forward(self, sample: torch.Tensor, timestep: Any, class_labels: Any = None, **_: Any) -> Any:
        return SimpleNamespace(sample=torch.zeros_like(sample))


@pytest.mark.parametrize("name", [name for name in CHEAP if name not in ("inversion", "recovery-unlabelled")])
def test_a_probe_that_asks_by_name_sees_the_original_paint_it_and_the_edited_model_not(name: str) -> None:
    assert found(name, painter(white=0.9)).share == 1
    assert found(name, painter(white=0.0)).share == 0


def test_without_a_condition_nothing_is_recovered_by_a_model_that_paints_grey_then() -> None:
    asked, unasked = (found(name, painter()) for name in ("recovery", "recovery-unlabelled"))
    assert (asked.share, asked.control) == (1, 1)
    assert (unasked.share, unasked.control) == (0, 0)
    assert asked.image_passes == (6 + 4) * 4 * 2  # half the steps, guided; the kept pictures too
    assert unasked.image_passes == (6 + 4) * 4
    assert (asked.guidance_scale, unasked.guidance_scale) == (HOW.guidance_scale, 1.0)  # as sampled, so recorded


def test_inversion_brings_back_what_is_on_the_models_path_and_counts_kept_pictures_apart() -> None:
    model = wrap(tiny_unet(Still))
    one = found("inversion", model)
    assert (one.share, one.control, one.samples) == (1, 1, 6)
    assert found("inversion", painter()).share == 0  # whose path ends in grey


def test_completion_starts_where_the_original_stopped() -> None:
    model = painter()
    first = begun(model, ("white",), HOW)
    whole = travel(model, start_noise(HOW.seeds, (1, 8, 8)), [BRIGHT] * 6, levels(model, 8), 3.0)
    rest = travel(model, first, [BRIGHT] * 6, levels(model, 8)[2:], 3.0)
    assert torch.equal(whole, rest)
    assert found("completion", model).image_passes == 6 * 6 * 2


@pytest.mark.parametrize("steps", [2, 3])
def test_completion_begins_with_the_original_on_short_paths_too(steps: int) -> None:
    how = Sampled(samples=4, sampling_steps=steps)
    assert not torch.equal(begun(painter(), ("white",), how), start_noise(how.seeds, (1, 8, 8)))
    alone = Sampled(samples=4, sampling_steps=1)  # which the original would make alone
    given = shown(painter(), started=begun(painter(), ("white",), alone))
    assert PROBES["completion"]((given,), alone).run(painter()) == {}


def test_the_path_is_the_samplers_own() -> None:
    """Against diffusers' DDIM with the same timesteps."""
    from diffusers import DDIMScheduler

    model = wrap(tiny_unet().eval())
    sampler = DDIMScheduler.from_config(
        DDPMScheduler().config, timestep_spacing="trailing", clip_sample=True, set_alpha_to_one=True
    )
    sampler.set_timesteps(8)
    assert levels(model, 8) == [*sampler.timesteps.tolist(), CLEAN]
    noise = x = start_noise(range(3), (1, 8, 8))
    labels = torch.full((3,), BRIGHT)
    with torch.no_grad():
        for t in sampler.timesteps:
            x = sampler.step(model.predict_guided(x, t.expand(3), labels, 2.0), t, x).prev_sample
    assert torch.allclose(
        travel(model, noise, [BRIGHT] * 3, levels(model, 8), 2.0), x, atol=1e-3
    )  # rounding, grown over the path


def test_with_fresh_noise_the_path_is_that_of_ddim_with_eta_one() -> None:
    from diffusers import DDIMScheduler

    model = wrap(tiny_unet().eval())
    sampler = DDIMScheduler.from_config(DDPMScheduler().config, timestep_spacing="trailing", clip_sample=False)
    model.scheduler.register_to_config(clip_sample=False)
    sampler.set_timesteps(8)
    t, s = levels(model, 8)[2:4]
    x, noise, labels = start_noise(range(2), (1, 8, 8)), start_noise(range(7, 9), (1, 8, 8)), torch.full((2,), BRIGHT)
    with torch.no_grad():
        predicted = model.predict_guided(x, torch.full((2,), t), labels, 1.0)
    expected = sampler.step(predicted, t, x, eta=1.0, variance_noise=noise).prev_sample
    assert torch.allclose(travel(model, x, [BRIGHT] * 2, [t, s], 1.0, noise[None]), expected, atol=1e-5)


@pytest.mark.parametrize("name", CHEAP)
def test_a_probe_leaves_the_model_bit_for_bit_as_it_was(name: str) -> None:
    model = uneven(wrap(tiny_unet()))
    before = snapshot(model)
    PROBES[name]((shown(model),), HOW).run(model)
    assert_same(model, before)


@pytest.mark.parametrize(("rounding", "error"), [(int8, 0.5 / 127), (fp8, 2**-4)])
def test_rounding_is_to_the_nearest_level_of_each_channel(rounding: Any, error: float) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[1] *= 1000
    weight[2] = 0
    found = rounding(weight)
    most = weight.flatten(1).abs().amax(1)
    assert ((found - weight).flatten(1).abs().amax(1) <= error * most + 1e-6).all()
    assert torch.equal(found[2], weight[2])
    assert torch.allclose(rounding(found), found)
    assert len(found[0].unique()) < len(weight[0].unique()) or rounding is fp8


def test_an_edit_below_the_rounding_does_not_survive_it_and_the_tensors_are_the_same_afterwards() -> None:
    layer = nn.Linear(8, 4)
    edited = nn.Linear(8, 4)
    edited.load_state_dict(layer.state_dict())
    with torch.no_grad():
        layer.weight[:, 0] = edited.weight[:, 0] = 1.0
        edited.weight[:, 1] += 1e-6
    version, pointer = edited.weight._version, edited.weight.data_ptr()
    with rounded(layer, int8), rounded(edited, int8):
        assert torch.equal(layer.weight, edited.weight)
    assert not torch.equal(layer.weight, edited.weight)
    assert (edited.weight._version, edited.weight.data_ptr()) == (version, pointer)


def test_an_unconditional_model_is_not_asked_by_name() -> None:
    model = wrap(tiny_unet(num_class_embeds=None), None)
    assert all(PROBES[name]((), HOW).run(model) == {} for name in CHEAP)


def test_names_are_those_the_settings_know() -> None:
    assert (NAMES[BRIGHT], NULL) == ("white", 3)
    assert CHEAP == ["completion", "recovery", "recovery-unlabelled", "noise", "inversion", "int8", "fp8"]
