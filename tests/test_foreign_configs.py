"""Promises of loading: a config that does not fit its network, or the rest of its folder, is one line before any work."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved_model
from text_models import tiny_pipeline
from tiny_models import tiny_unet

from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.adapters.ddpm import check_unet
from semu_diffusion.models.checkpoints import load_class_conditional, load_text_pipeline
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.models.guards import sides, small_sides
from semu_diffusion.models.sampling import noise_schedule


def edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused_class(folder: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_class_conditional(folder)
    assert "\n" not in str(caught.value)


def refused_text(folder: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        adapt_text_pipeline(load_text_pipeline(str(folder)), ["a cat"], str(folder))
    assert "\n" not in str(caught.value)


UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    (UNET, {"mid_block_scale_factor": "one"}, "UNet does not compute|cannot be loaded"),
    (UNET, {"mid_block_scale_factor": 0}, "other than finite numbers"),
    (UNET, {"norm_eps": -1.0}, "other than finite numbers"),
    (UNET, {"attention_head_dim": -8}, "UNet does not compute|cannot be loaded"),
    (UNET, {"norm_num_groups": True}, "UNet does not compute|cannot be loaded"),
    (UNET, {"sample_size": 8.0}, "no sample_size that is a size"),
    (UNET, {"sample_size": True}, "no sample_size that is a size"),
    (UNET, {"sample_size": [8, True]}, "no sample_size that is a size"),
    (UNET, {"sample_size": 2**20}, "no sample_size that is a size"),
    (UNET, {"sample_size": 2**40}, "holds the number 1099511627776"),
    (UNET, {"block_out_channels": [2**30, 16]}, "holds the number"),
    (UNET, {"transformer": {"width": 2.0**40}}, "holds the number"),
    (UNET, {"layers_per_block": 10**6}, "no number of layers"),
    (UNET, {"layers_per_block": 2}, "no weights for|cannot be loaded"),
    (UNET, {"add_attention": False}, "no place for"),
    (SCHEDULER, {"num_train_timesteps": 2**31}, "no number of timesteps"),
    (SCHEDULER, {"num_train_timesteps": True}, "no number of timesteps"),
    (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "2 betas for 100 timesteps"),
    (SCHEDULER, {"clip_sample_range": "wide"}, "not the config of a noise schedule"),
    (SCHEDULER, {"timestep_spacing": "even"}, "not the config of a noise schedule"),
    (SCHEDULER, {"steps_offset": -5}, "steps_offset -5"),
    (SCHEDULER, {"thresholding": True, "dynamic_thresholding_ratio": 7}, "not the config of a noise schedule"),
    (SCHEDULER, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "rescale_betas_zero_snr leaves no signal"),
]


@pytest.mark.parametrize(("file", "changes", "said"), CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_of_a_class_model_that_breaks_it_is_one_line(
    tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    saved_model(tmp_path)
    edited(tmp_path, file, **changes)
    refused_class(tmp_path, said)


TEXT_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    (UNET, {"mid_block_scale_factor": "one"}, "denoiser does not compute|cannot be loaded"),
    (UNET, {"attention_head_dim": -2}, "denoiser does not compute|cannot be loaded"),
    (UNET, {"sample_size": 4.0}, "no sample_size that is a size"),
    (UNET, {"mid_block_type": None}, "no place for"),
    (VAE, {"norm_num_groups": True}, "autoencoder does not compute"),
    (VAE, {"shift_factor": "far"}, "autoencoder does not compute"),
    (VAE, {"shift_factor": [1, 2]}, "autoencoder does not compute"),
    (VAE, {"scaling_factor": 0}, "autoencoder does not compute"),
    (VAE, {"scaling_factor": None}, "autoencoder does not compute"),
    (SCHEDULER, {"num_train_timesteps": 2**31}, "no number of timesteps"),
    ("text_encoder/config.json", {"num_hidden_layers": 4}, "no weights for encoder.layers.3"),
    ("text_encoder/config.json", {"num_hidden_layers": 2}, "no place for, encoder.layers.2"),
    ("text_encoder/config.json", {"num_attention_heads": 3}, "cannot be loaded|do not encode"),
    ("text_encoder/config.json", {"eos_token_id": 5}, "do not belong together: a text ends"),
]


@pytest.mark.parametrize(("file", "changes", "said"), TEXT_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_of_a_text_model_that_breaks_it_is_one_line(
    tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    edited(tmp_path, file, **changes)
    refused_text(tmp_path, said)


def test_a_tokenizer_of_another_model_is_one_line(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    other = tiny_pipeline().tokenizer
    other.add_tokens([f"word{number}" for number in range(50)])
    shutil.rmtree(tmp_path / "tokenizer")
    other.save_pretrained(tmp_path / "tokenizer")
    refused_text(tmp_path, "tokenizer and the text encoder do not belong together: the tokenizer has tokens up to")


def test_text_encoders_of_numbers_that_are_none_are_one_line() -> None:
    pipeline = tiny_pipeline()
    pipeline.text_encoder.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"do not encode .*other than finite"):
        adapt_text_pipeline(pipeline, ["a cat"])


def test_a_network_is_tried_in_eval_mode_without_a_random_number_and_left_as_it_was() -> None:
    unet = tiny_unet(dropout=0.5).train()
    state = torch.get_rng_state()
    check_unet(unet, "it")
    assert unet.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_the_trial_is_small_whatever_the_model_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network for large pictures is tried on the smallest that goes through it: a whole pass takes as long as a step."""
    assert small_sides((96, 128), 4) == [16, 16]
    assert small_sides((28, 30), 3) == [12, 14]  # the remainders of halving stay
    assert small_sides((4, 4), 4) == [4, 4]
    unet = tiny_unet(sample_size=1024)
    asked: list[torch.Size] = []
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, *rest, **named: asked.append(x.shape) or forward(x, *rest, **named))
    start = time.perf_counter()
    check_unet(unet, "it")
    assert asked == [(1, 3, 4, 4)]
    assert time.perf_counter() - start < 1


def test_sizes_are_whole_numbers_of_pixels() -> None:
    assert sides(8, "it") == (8, 8)
    assert sides([8, 16], "it") == (8, 16)
    for wrong in (None, True, 0, -8, 8.0, "8", [8], [8, 8, 8], [8, True], [8, 2**20], {"height": 8}, []):
        with pytest.raises(InputError, match="no sample_size"):
            sides(wrong, "it")


def test_an_infinite_bound_of_another_sampler_is_passed_over(tmp_path: Path) -> None:
    """DPMSolverMultistepScheduler saves one, and its configs are everywhere."""
    saved_model(tmp_path)
    edited(tmp_path, SCHEDULER, lambda_min_clipped=float("-inf"), _class_name="DPMSolverMultistepScheduler")
    assert load_class_conditional(tmp_path).names
    assert noise_schedule({"beta_schedule": "linear", "lambda_min_clipped": float("-inf")}, "it") is not None


def test_weights_of_a_whole_clip_make_its_text_encoder(tmp_path: Path) -> None:
    """What it has beside the text is left, and is nothing that is missing."""
    from safetensors.torch import load_file, save_file

    tiny_pipeline().save_pretrained(tmp_path)
    expected = load_text_pipeline(str(tmp_path)).text_encoder.state_dict()
    file = tmp_path / "text_encoder" / "model.safetensors"
    more = {"vision_model.post_layernorm.weight": torch.ones(4), "logit_scale": torch.ones(1)}
    more["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    found = load_text_pipeline(str(tmp_path)).text_encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objects": {"cat": "kitten"}}, "lists of words"),
        ({"objects": {}}, "an object without a word"),
        ({"styles": {}}, "a style without a sentence"),
        ({"prompts": {"photo": 3.5}}, "no readable vocabulary"),
        ({"prompts": {"photo": "a photo of {thing}"}}, "no readable vocabulary"),
        ({"prompts": ["photo"]}, "no readable vocabulary"),
        ({"guidance_scale": "strong"}, "a guidance scale that is no number"),
        ({"judges": {"object": 3}}, "a judge that is no name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_vocabulary_of_other_kinds_of_values_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    content: dict[str, Any] = {
        "objects": {"cat": ["kitten"]}, "styles": {"photo": ["photo"]}, "prompts": {"photo": "a photo of a {}"},
        "templates": {"photo": ["{} here"]}, "held_out_templates": {"photo": ["see {}"]}, "guidance_scale": 3.0, "judges": {},
    }  # fmt: skip
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path) is not None
    (tmp_path / "vocabulary.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(InputError, match=said) as caught:
        read_vocabulary(tmp_path)
    assert str(caught.value).isprintable()


def test_a_refusal_cites_a_strangers_words_without_what_a_terminal_obeys() -> None:
    for kind in (InputError, Notice):
        assert str(kind("the class \x1b[2J\u202e\r\nis none")) == "the class  [2J   is none"
