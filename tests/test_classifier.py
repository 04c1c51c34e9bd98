"""Promises of the image classifier: what is saved is what is loaded, features explain the logits, bad folders are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier

TINY = ClassifierConfig(3, image_size=(8, 8), widths=(4, 6, 8), class_names=("ant", "bee", "cow"))


@pytest.fixture
def model() -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageClassifier(TINY).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_saved_classifier_answers_the_same(model: ImageClassifier, images: torch.Tensor, tmp_path: Path) -> None:
    model.stages[0].widened[0].running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    loaded = ImageClassifier.load(model.save(tmp_path / "judge"))
    assert loaded.config == TINY
    assert not loaded.training
    with torch.no_grad():
        assert torch.allclose(loaded(images), model(images), atol=5e-3)
        again = ImageClassifier.load(loaded.save(tmp_path / "again"))
        assert torch.equal(again(images), loaded(images))  # half precision is lossless the second time
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["config.json", "model.safetensors"]


def test_the_head_reads_the_features(model: ImageClassifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (5, 8)
        assert torch.allclose(model.head(features), model(images))


def test_the_normalisation_is_inside(images: torch.Tensor, model: ImageClassifier) -> None:
    bright = ImageClassifier(ClassifierConfig(3, image_size=(8, 8), widths=(4, 6, 8), mean=(0.7,) * 3, std=(0.5,) * 3)).eval()
    bright.load_state_dict(model.state_dict())
    with torch.no_grad():  # (x - 0.7) / 0.5 = (x' - 0.5) / 0.25 for x' = x / 2 + 0.15
        assert torch.allclose(bright(images), model(images / 2 + 0.15), atol=1e-5)


def test_an_image_is_judged_alone(model: ImageClassifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.allclose(model(images)[2:3], model(images[2:3]), atol=1e-5)


def test_a_folder_that_is_no_classifier_is_named_in_one_line(model: ImageClassifier, tmp_path: Path) -> None:
    good = model.save(tmp_path / "good")
    weights = (good / "model.safetensors").read_bytes()
    config = json.loads((good / "config.json").read_text())
    cases = {
        "no weights": (json.dumps(config), None),
        "cut weights": (json.dumps(config), weights[:200]),
        "other shape": (json.dumps({**config, "widths": [4, 6, 9]}), weights),
        "more layers": (json.dumps({**config, "widths": [4, 6, 8, 8]}), weights),
        "other kind": (json.dumps({**config, "kind": "UNet2DModel"}), weights),
        "other names": (json.dumps({**config, "class_names": ["ant"]}), weights),
        "unknown field": (json.dumps({**config, "depth": 3}), weights),
        "a list": ("[1, 2]", weights),
        "no json": ("{", weights),
    }
    for name, (text, content) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(text)
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError) as caught:
            ImageClassifier.load(folder)
        assert "\n" not in str(caught.value), name
    with pytest.raises(InputError, match="holds no classifier"):
        ImageClassifier.load(tmp_path / "absent")


def test_images_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(InputError, match="too small"):
        ClassifierConfig(3, image_size=(4, 4), widths=(4, 6, 8, 8))


def test_a_mirrored_classifier_judges_an_image_and_its_mirror_image_alike(images: torch.Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageClassifier(ClassifierConfig(3, image_size=(8, 8), widths=(4, 6, 8), mirrored=True)).eval()
    plain = ImageClassifier(ClassifierConfig(3, image_size=(8, 8), widths=(4, 6, 8))).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.allclose(model(images), model(images.flip(-1)), atol=1e-5)
        assert not torch.allclose(plain(images), plain(images.flip(-1)), atol=1e-3)
        assert torch.allclose(model(images), (plain(images) + plain(images.flip(-1))) / 2, atol=1e-5)
        assert torch.allclose(model.train()(images), plain.train()(images), atol=1e-5)  # it learns from the images as they are
