"""DiT's own: ImageNet's labels, the null class after the last, channels of the variance, images given as pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from family_models import built, tiny_dit

from semu_diffusion.domains.classes import forget_set_of
from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.dit import DiT
from semu_diffusion.models.class_names import NO_NULL
from semu_diffusion.models.guards import check_network

T = torch.tensor([20, 70])


@pytest.fixture(scope="module")
def model() -> DiT:
    return DiT.adapt(built("dit"))


def latents(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def asked(pipeline: Any, classes: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = pipeline.transformer(latents(), T, class_labels=torch.tensor(classes)).sample
    return found


def test_a_label_is_found_by_its_name_by_one_of_its_words_and_by_its_number(model: DiT) -> None:
    assert model.class_index("golden retriever") == model.class_index("207") == 207
    assert model.class_index("Tinca tinca") == model.class_index("tench") == 0
    assert model.class_index("crane (517)") == 517  # two are called so
    with pytest.raises(InputError, match="golden retriever"):
        model.class_index("golden retreiver")


def test_the_null_class_is_the_index_after_the_last(model: DiT) -> None:
    assert (len(model.names), model.null, model.null_index) == (1000, 1000, 1000)
    with torch.no_grad():
        found = model.predict(latents(), T, torch.tensor([model.null, 3]))
    assert torch.equal(found, asked(model.pipeline, [1000, 3])[:, :4])
    assert DiT.adapt(built("dit"), null_class=NO_NULL).null is None
    with pytest.raises(InputError, match="the null class of the pipeline is 1000, after its classes"):
        DiT.adapt(built("dit"), null_class=0)


def test_latents_are_not_clipped_where_the_scheduler_says_nothing_of_it() -> None:
    pipeline = built("dit")
    pipeline.scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", num_train_timesteps=1000)
    assert "clip_sample" not in pipeline.scheduler.config
    assert DiT.adapt(pipeline).sampler(4).config.clip_sample is False
    pipeline.scheduler = DDIMScheduler(clip_sample=True)  # what it does say holds
    assert DiT.adapt(pipeline).sampler(4).config.clip_sample is True


def test_the_pipeline_that_was_given_keeps_its_config() -> None:
    pipeline = built("dit")
    before = dict(pipeline.config)
    DiT.adapt(pipeline)
    assert dict(pipeline.config) == before


def test_of_twice_the_channels_the_first_half_is_the_noise(model: DiT) -> None:
    whole = asked(model.pipeline, [1, 2])
    assert whole.shape == (2, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(model.predict(latents(), T, torch.tensor([1, 2])), whole[:, :4])
    pipeline = built(lambda: tiny_dit(variance=False))
    with torch.no_grad():
        found = DiT.adapt(pipeline).predict(latents(), T, torch.tensor([1, 2]))
    assert torch.equal(found, asked(pipeline, [1, 2]))


def test_images_given_as_pictures_are_encoded(model: DiT) -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = forget_set_of(model, [207], images)
    vae = model.pipeline.vae
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    assert found is not None
    torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [207] * 3
    with pytest.raises(InputError, match="the forget images are"):
        forget_set_of(model, [207], images[:, :, :4])


def test_a_refusal_speaks_of_the_network_that_there_is() -> None:
    transformer = built("dit").transformer
    transformer.pos_embed._hf_hook = object()
    with pytest.raises(InputError, match=r"the transformer is offloaded .* pipe\.transformer on one device"):
        check_network(transformer, "the pipeline")


def test_vectors_in_checkpointed_blocks_have_their_own_gradient_and_checkpointing_stays_on() -> None:
    gradients = []
    for checkpointing in (False, True):
        pipeline = built("dit")
        if checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        model = DiT.adapt(pipeline)
        vectors = model.condition_vectors(torch.tensor([1, 2])).requires_grad_()
        (gradient,) = torch.autograd.grad(model.predict(latents(), T, vectors).square().sum(), vectors)
        gradients.append(gradient)
        assert pipeline.transformer.is_gradient_checkpointing == checkpointing
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(gradients[1], gradients[0])
