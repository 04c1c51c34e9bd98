"""Promises of `semu train autoencoder` and `semu train text-to-image`: a pipeline that diffusers loads, resumable, honest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_training import stop_at

from semu_diffusion.domains.prompts import article
from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier
from semu_diffusion.pipelines.data.images import load_images
from semu_diffusion.pipelines.train.autoencoder import Autoencoder, AutoencoderTraining, perceptual_distance
from semu_diffusion.pipelines.train.captioned_latents import CaptionedLatents
from semu_diffusion.pipelines.train.captions import HELD_OUT_WORDS, WORDS, captions, every_caption
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES, drawn_styles, in_style, in_styles
from semu_diffusion.pipelines.train.text_to_image import TextToImage, TextToImageTraining
from semu_diffusion.pipelines.train.text_to_image_parts import new_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, base in (("cat", 60), ("airplane", 190)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(base - 50, base + 50, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:02d}.png")
    return folder


def autoencoder_config(data: Path, output: Path, **changes: Any) -> AutoencoderTraining:
    tiny: dict[str, Any] = {"channels": (8, 16), "norm_groups": 4, "latent_channels": 4, "batch_size": 8, "steps": 4}
    return AutoencoderTraining(**{"data": str(data), "output": str(output), **tiny, **changes})


def sd_config(data: Path, output: Path, **changes: Any) -> TextToImageTraining:
    tiny: dict[str, Any] = {"channels": (16, 32), "head_dim": 8, "norm_groups": 4, "text_width": 32, "text_layers": 1}
    return TextToImageTraining(**{"data": str(data), "output": str(output), **tiny, "batch_size": 8, "steps": 4, **changes})


@pytest.fixture(scope="module")
def autoencoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Autoencoder(autoencoder_config(data, tmp_path_factory.mktemp("autoencoder"))).train()


@pytest.fixture(scope="module")
def tiny_sd(data: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TextToImage(sd_config(data, tmp_path_factory.mktemp("sd"), autoencoder=str(autoencoder))).train()


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {f"{path}:{k}": v for path in sorted(model.rglob("*.safetensors")) for k, v in load_file(path).items()}


def same(one: Path, other: Path) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_an_autoencoder_scales_its_latents_to_variance_one_and_says_how_well_it_keeps_pictures(
    data: Path, autoencoder: Path
) -> None:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(autoencoder)
    images = load_images(data, "train").images.float().div(127.5).sub(1)
    with torch.no_grad():
        latents = model.encode(images).latent_dist.mean * model.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.01)
    last = json.loads((autoencoder.parent / "train.jsonl").read_text().splitlines()[-1])
    assert set(last["test_psnr"]) == set(STYLES)
    assert f"| photo | {last['test_psnr']['photo']:.1f} |" in (autoencoder / "README.md").read_text()


def test_an_autoencoder_learns(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    longer = Autoencoder(autoencoder_config(data, tmp_path, steps=150, lr=5e-3, ema=0.9)).train()
    first, last = (
        json.loads((folder.parent / "train.jsonl").read_text().splitlines()[-1])["test_psnr"]["sepia"]
        for folder in (autoencoder, longer)
    )
    assert last > first + 3


def test_an_autoencoder_goes_on_from_another_and_keeps_what_a_classifier_sees(
    data: Path, autoencoder: Path, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):  # how far features can be matched differs from critic to critic
        torch.manual_seed(0)
        judge = ImageClassifier(ClassifierConfig(2, image_size=(16, 16), widths=(4, 8, 8), class_names=("airplane", "cat")))
    judge.save(tmp_path / "critic")
    more = {"init_from": str(autoencoder), "steps": 60, "lr": 2e-3, "ema": 0.9, "classifier": str(tmp_path / "critic")}
    folders = [
        Autoencoder(autoencoder_config(data, tmp_path / name, **more, **changes)).train()
        for name, changes in (("plain", {}), ("seen", {"perceptual": str(tmp_path / "critic"), "perceptual_weight": 1.0}))
    ]
    plain, seen = (distance_in_features(folder, data, tmp_path / "critic") for folder in folders)
    start = distance_in_features(autoencoder, data, tmp_path / "critic")
    assert plain < start
    assert seen < 0.9 * plain
    card = (folders[1] / "README.md").read_text()
    assert "on top of an earlier training" in card
    assert "that the judge" in card


def test_a_pipeline_moves_to_another_latent_space(data: Path, tiny_sd: Path, autoencoder: Path, tmp_path: Path) -> None:
    other = Autoencoder(autoencoder_config(data, tmp_path / "other", seed=1)).train()
    moved = TextToImage(sd_config(data, tmp_path / "sd", init_from=str(tiny_sd), autoencoder=str(other), steps=1)).train()
    assert same(moved / "vae", other)
    assert not same(moved / "vae", autoencoder)


def test_an_autoencoder_of_another_picture_size_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    for name in ("cat", "airplane"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / "train" / name / "0.png")
    with pytest.raises(InputError, match="is for images of 16 pixels a side, these are of 32"):
        TextToImage(sd_config(tmp_path / "data", tmp_path / "sd", autoencoder=str(autoencoder))).train()


def distance_in_features(folder: Path, data: Path, critic: Path) -> float:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(folder)
    x = load_images(data, "train").images.float() / 255
    with torch.no_grad():
        decoded = model.decode(model.encode(2 * x - 1).latent_dist.mean).sample
        return float(perceptual_distance(ImageClassifier.load(critic), (decoded + 1) / 2, x))


def test_the_perceptual_distance_is_that_of_unit_features() -> None:
    critic = ImageClassifier(ClassifierConfig(2, image_size=(8, 8), widths=(4, 8))).eval()
    x, y = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = [(critic.stage_maps(x)[level], critic.stage_maps(y)[level]) for level in range(2)]
    by_cosine = [2 - 2 * torch.cosine_similarity(a, b, dim=1).mean() for a, b in maps]  # |a - b|^2 of unit vectors
    assert float(perceptual_distance(critic, x, y)) == pytest.approx(float(sum(by_cosine)) / 2, rel=1e-5)
    assert float(perceptual_distance(critic, x, x)) == 0


def test_a_stopped_and_resumed_training_equals_one_that_was_not(
    data: Path, autoencoder: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[Any, Any, Path]] = [
        (Autoencoder, autoencoder_config(data, tmp_path / "ae"), autoencoder),
        (TextToImage, sd_config(data, tmp_path / "sd", autoencoder=str(autoencoder)), tiny_sd),
    ]
    for recipe, config, whole in jobs:
        with monkeypatch.context() as patch:
            stop_at(1, patch)
            with pytest.raises(KeyboardInterrupt, match="Step 2 is kept"):
                recipe(config).train()
        assert not same(Path(config.output) / "model", whole)
        assert same(recipe(config).train(), whole)


def test_diffusers_loads_the_pipeline_and_it_samples_prompts(tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    images = pipeline(["a photo of a cat", "a zebra"], num_inference_steps=3, generator=seeds, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()
    assert not torch.equal(images[0], images[1])  # the same noise, so the text is what differs
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert all(value.dtype == torch.float16 for value in weights(tiny_sd).values())
    assert "4 steps, 32 images seen" in (tiny_sd / "README.md").read_text()


def test_the_card_says_what_the_judges_measured(data: Path, tiny_sd: Path, autoencoder: Path, tmp_path: Path) -> None:
    from saved_models import saved_judge

    objects = saved_judge(tmp_path / "objects", names=("airplane", "cat"))
    styles = saved_judge(tmp_path / "styles", names=tuple(STYLES))
    (tmp_path / "checkpoint.pt").write_bytes((tiny_sd.parent / "checkpoint.pt").read_bytes())
    judges = {"classifier": objects, "style_classifier": styles, "judged_samples": 2, "export_only": True}
    folder = TextToImage(sd_config(data, tmp_path, autoencoder=str(autoencoder), **judges)).train()
    measured = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[-1])
    assert measured["object_accuracy"] == pytest.approx(sum(measured["per_object"].values()) / 2)
    assert set(measured["per_style"]) == set(STYLES)
    assert f"**{measured['style_accuracy']:.3f}**" in (folder / "README.md").read_text()
    assert same(folder, tiny_sd)


def test_a_training_goes_on_from_a_pipeline(data: Path, tiny_sd: Path, tmp_path: Path) -> None:
    folder = TextToImage(sd_config(data, tmp_path, init_from=str(tiny_sd), steps=1, lr=1e-30, final_lr=0.0)).train()
    assert same(folder, tiny_sd)
    assert "on top of an earlier training" in (folder / "README.md").read_text()
    other = shutil.copytree(tiny_sd, tmp_path / "other")
    schedule = other / "scheduler" / "scheduler_config.json"
    changed = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "num_train_timesteps": 100}
    schedule.write_text(json.dumps({**json.loads(schedule.read_text()), **changed}))
    folder = TextToImage(sd_config(data, tmp_path / "more", init_from=str(other), steps=1)).train()
    assert changed.items() <= json.loads((folder / "scheduler" / "scheduler_config.json").read_text()).items()


def test_words_of_the_captions_are_single_tokens_and_anything_else_is_spelled() -> None:
    tokenizer = new_tokenizer(tuple(WORDS), 32)
    for words in WORDS.values():
        for word in words:
            assert len(tokenizer(word).input_ids) == 3  # start, the word, end
    spelled = tokenizer("Ein Züricher Zebra!").input_ids
    assert tokenizer.decode(spelled, skip_special_tokens=True) == "ein züricher zebra !"
    assert tokenizer.unk_token_id not in spelled[1:-1]


def test_no_caption_held_out_is_trained_on() -> None:
    trained, held = (set(every_caption(tuple(WORDS), held_out)) for held_out in (False, True))
    assert not trained & held
    assert len(HELD_OUT_WORDS) == 10
    assert article("a photo of a airplane") == "a photo of an airplane"
    assert captions("my_thing")[0] == "a photo of a my thing"


def test_a_caption_names_what_its_latent_shows(data: Path) -> None:
    images = load_images(data, "train")
    tokenizer = new_tokenizer(images.class_names, 32)
    marks = torch.arange(len(STYLES)).view(-1, 1, 1, 1, 1).repeat(1, len(images), 1, 1, 1)
    examples = CaptionedLatents(marks, images, tokenizer)
    chosen = torch.arange(len(images))
    latents, tokens = examples.draw(chosen, 0.25, torch.Generator().manual_seed(1))
    empty = 0
    for index, (latent, row) in enumerate(zip(latents, tokens, strict=True)):
        caption = tokenizer.decode(row, skip_special_tokens=True).replace(" ,", ",").strip()
        empty += not caption
        style, name = list(STYLES)[int(latent)], images.class_names[int(images.labels[index])]
        assert not caption or caption in captions(name, style)
    assert 0 < empty < len(images)


def test_styles_are_different_deterministic_and_drawn_half_as_photos() -> None:
    photos = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    styled = {style: in_style(photos, style) for style in STYLES}
    assert torch.equal(styled[PHOTO], photos)
    for style, images in styled.items():
        assert images.shape == photos.shape
        assert images.dtype == torch.uint8
        assert torch.equal(images, in_style(photos, style))
        assert torch.equal(images[1:2], in_style(photos[1:2], style))
        assert all(not torch.equal(images, other) for name, other in styled.items() if name != style)
    mixed = in_styles(photos, torch.tensor([list(STYLES).index(style) for style in ("sepia", PHOTO, "night", "sepia")]))
    assert torch.equal(mixed[3], styled["sepia"][3])
    assert torch.equal(mixed[2], styled["night"][2])
    drawn = drawn_styles(6000, torch.Generator().manual_seed(0))
    photo, *others = drawn.bincount(minlength=len(STYLES)).tolist()
    assert photo == pytest.approx(3000, abs=200)
    assert len(others) == len(STYLES) - 1
    assert all(count == pytest.approx(600, abs=120) for count in others)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "give --autoencoder for a new model"),
        ({"autoencoder": "nowhere"}, "nowhere holds no autoencoder"),
        ({"init_from": "nowhere"}, "nowhere holds no autoencoder"),
        ({"autoencoder": "x", "channels": (12,)}, "multiples of --norm-groups and --head-dim"),
        ({"autoencoder": "x", "text_width": 100}, "take a multiple of 32"),
    ],
)
def test_what_cannot_be_trained_is_one_line(data: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TextToImage(sd_config(data, tmp_path / "sd", **changes)).train()
    assert not (tmp_path / "sd").exists()
