"""Promises of the text-to-image adapter: the pipeline's own predictions, prompts as rows, nothing cut silently."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from text_models import FAMILIES, tiny_pipeline

from semu_diffusion.errors import InputError
from semu_diffusion.models import checkpoints as text_loading
from semu_diffusion.models.adapters.stable_diffusion import StableDiffusion
from semu_diffusion.models.families import adapt_text_pipeline, family_of
from semu_diffusion.models.prompt_table import encode_prompts

PROMPTS = ("a photo of a cat", "a photo of a dog", "a photo of a cat")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_predicted_as_the_pipeline_predicts_its_prompt(family: str) -> None:
    pipeline = tiny_pipeline(family)
    model = adapt_text_pipeline(pipeline, PROMPTS)
    assert model.names == PROMPTS[:2]
    assert model.table.prompts[model.null] == ""
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    forward = pipeline.unet.forward

    def watched(x: torch.Tensor, t: Any, *rest: Any, **named: Any) -> Any:
        found = forward(x, t, *rest, **named)
        seen.append(found[0] if isinstance(found, tuple) else found.sample)
        return found

    pipeline.unet.forward = watched
    pipeline(PROMPTS[1], num_inference_steps=1, guidance_scale=3.0, latents=latents, output_type="latent")
    del pipeline.unet.forward
    unconditional, conditional = seen[0].chunk(2)
    t = pipeline.scheduler.timesteps[:1]
    with torch.no_grad():
        assert torch.allclose(model.predict(latents, t, torch.tensor([1])), conditional, atol=1e-5)
        guided = unconditional + 3 * (conditional - unconditional)
        assert torch.allclose(model.predict_guided(latents, t, torch.tensor([1]), 3.0), guided, atol=1e-4)
        vectors = model.condition_vectors(torch.tensor([1]))
        if family != "sdxl":  # a vector of XL has the empty prompt's pooled part
            assert torch.allclose(model.predict(latents, t, vectors), conditional, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_depend_on_their_own_seed_and_prompt_alone(family: str) -> None:
    model = adapt_text_pipeline(tiny_pipeline(family), PROMPTS)
    every = torch.cat(list(model.sample([0, 1, 0], [5, 6, 7], steps=2, batch_size=2)))
    (alone,) = model.sample([0], [7], steps=2)
    assert every.shape == (3, *model.image_shape)
    assert torch.equal(every[2:], alone)
    assert not torch.equal(every[0], every[2])
    assert 0 <= float(every.min()) <= float(every.max()) <= 1


def test_targets_follow_the_prediction_type() -> None:
    x, noise, t = torch.ones(2, 4, 4, 4), torch.full((2, 4, 4, 4), 2.0), torch.tensor([10, 50])
    epsilon, velocity = (adapt_text_pipeline(tiny_pipeline(family), PROMPTS) for family in ("sd15", "sd21"))
    assert torch.equal(epsilon.process.target(x, noise, t), noise)
    abar = velocity.schedule.alphas_cumprod[t].view(2, 1, 1, 1)
    assert torch.allclose(velocity.process.target(x, noise, t), abar.sqrt() * noise - (1 - abar).sqrt() * x)


def test_latents_are_scaled_and_decoded_back_by_the_autoencoder() -> None:
    model = adapt_text_pipeline(tiny_pipeline(), PROMPTS)
    images = torch.rand(3, *model.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(images)
    vae = model.pipeline.vae
    with torch.no_grad():
        assert torch.allclose(latents, vae.encode(images).latent_dist.mean * vae.config.scaling_factor, atol=1e-6)
        decoded = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(model.decode(latents), decoded.clamp(0, 1), atol=1e-5)


def test_a_prompt_that_is_too_long_is_refused_and_named() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(InputError, match=r"the prompt 'a photo of a photo.*tokens, the text encoder takes 24"):
        adapt_text_pipeline(pipeline, [" ".join(["a photo of"] * 9)])


def test_other_families_are_refused_by_one_line() -> None:
    from tiny_models import tiny_model

    with pytest.raises(InputError, match="erase-concept takes Stable Diffusion 1"):
        adapt_text_pipeline(tiny_model().pipeline, PROMPTS)
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(InputError, match="inpainting"):
        adapt_text_pipeline(pipeline, PROMPTS)


def test_a_replaced_model_keeps_its_book() -> None:
    model = adapt_text_pipeline(tiny_pipeline(), PROMPTS, "there")
    assert dataclasses.replace(model, source="here").table is model.table


def test_pictures_latents_and_embeddings_do_not_depend_on_their_neighbours() -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, PROMPTS)
    latents = torch.randn(11, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(latents)[9:], model.decode(latents[9:]))
    images = torch.rand(11, *model.image_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode(images)[:3], model.encode(images[:3]))
    alone = encode_prompts(StableDiffusion, pipeline, [PROMPTS[1]]).embeddings
    assert torch.equal(alone, model.table.embeddings[1:])


def test_an_autoencoder_in_half_precision_works_in_float32_and_stays_as_it_was() -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, PROMPTS)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    pipeline.vae.half().float()  # what half precision can hold
    wanted = model.decode(latents)
    pipeline.vae.half()
    assert torch.equal(model.decode(latents), wanted)
    assert pipeline.vae.dtype == torch.float16
    pipeline.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="autoencoder"):
        model.decode(latents)
    assert not model.decode(latents * float("nan")).isfinite().any()  # a destroyed network is no matter of the autoencoder


def test_a_family_is_told_by_its_text_encoders() -> None:
    pipelines = [tiny_pipeline(family) for family in FAMILIES]
    pipelines[1].unet.register_to_config(cross_attention_dim=1024)  # the tiny one is narrower
    assert [family_of(pipeline).name for pipeline in pipelines] == ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_an_error_is_weighed_by_how_far_it_moves_the_image(kind: str) -> None:
    model = adapt_text_pipeline(tiny_pipeline(), [])
    model.schedule.register_to_config(prediction_type=kind)
    t = torch.tensor([5, 30])
    abar = model.schedule.alphas_cumprod[t]
    moved = {"epsilon": ((1 - abar) / abar).sqrt(), "v_prediction": (1 - abar).sqrt(), "sample": torch.ones(2)}[kind]
    weight = model.process.image_weight(t)
    assert float(weight[1] / weight[0]) == pytest.approx(float(moved[1] / moved[0]), rel=1e-4)
    assert float(model.process.image_weight(torch.arange(model.num_timesteps)).mean()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("given", "side"), [("epsilon", 64), ("v_prediction", 96)])
def test_a_single_file_of_sd2_is_loaded_as_the_user_says_and_not_by_guess(
    given: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers takes every SD 2.x for the 768 pixel model; its reader is replaced here, it fetches configs from the Hub."""

    def read(path: str, **options: Any) -> Any:
        pipeline = tiny_pipeline("sd21")
        pipeline.unet.register_to_config(sample_size=96)
        return pipeline

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_single_file", read)
    save_file({text_loading.TEXT_KEY: torch.zeros(2, 1024)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="give --prediction epsilon"):
        text_loading.load_text_pipeline(str(tmp_path / "model.safetensors"))
    pipeline = text_loading.load_text_pipeline(str(tmp_path / "model.safetensors"), prediction=given)
    assert pipeline.scheduler.config.prediction_type == given
    assert pipeline.unet.config.sample_size == side
    save_file({text_loading.TEXT_KEY: torch.zeros(2, 768)}, tmp_path / "first.safetensors")
    text_loading.load_text_pipeline(str(tmp_path / "first.safetensors"))  # SD 1.x predicts noise
    with pytest.raises(InputError, match="--prediction is for a single file"):
        text_loading.load_text_pipeline(str(tmp_path), prediction=given)


@pytest.mark.parametrize("width", [16, 24])
def test_a_text_that_the_unet_projects_first_is_what_its_cross_attention_sees(width: int) -> None:
    pipeline = tiny_pipeline("sd15")
    config = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        projected = {"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": width}
        pipeline.unet = UNet2DConditionModel(**{**config, **projected}).eval()
    model, seen = adapt_text_pipeline(pipeline, PROMPTS), []
    layer = model.denoiser.get_submodule(model.name_layers[0])
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.predict(torch.zeros(1, *model.latent_shape), torch.tensor([5]), torch.tensor([1]))
    handle.remove()
    torch.testing.assert_close(model.name_inputs(torch.tensor([1])), seen[0][0], rtol=1e-4, atol=1e-5)
