"""Judges: same verdict whatever the batch, classes mapped as told, and bad names answered in one line."""

from __future__ import annotations

import hashlib
import json
import sys
import types
import unicodedata
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import in_chunks, save_images, to_uint8, with_channels
from semu_diffusion.eval.judges.class_mapping import map_classes, read_mapping, shared_out
from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier
from semu_diffusion.eval.judges.judge import Judge, load_judge
from semu_diffusion.pipelines.data.images import load_plain_images

NAMES = ("cat", "dog", "fish", "bird")


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def own_classifier(folder: Path, names: tuple[str, ...] = NAMES, channels: int = 3, classes: int = 4) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ClassifierConfig(
            num_classes=classes, in_channels=channels, image_size=(8, 8), widths=(4, 8, 8), class_names=names,
            mean=(0.5,) * channels, std=(0.25,) * channels,
        )  # fmt: skip
        model = ImageClassifier(config)
        model.head.weight.data *= 100  # so that noise is not all of one class
        model.head.bias.data.zero_()
        return model.save(folder)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return load_judge(own_classifier(tmp_path / "judge"), NAMES)


def test_a_judge_says_what_its_classifier_says(tmp_path: Path, judge: Judge) -> None:
    model = ImageClassifier.load(tmp_path / "judge")
    images = to_uint8(rand(50, 3, 8, 8)).float() / 255
    with torch.no_grad():
        expected, features = model(images).argmax(1), model.features(images)
    assert torch.equal(judge.predict(images), expected)
    assert expected.unique().numel() > 1
    torch.testing.assert_close(judge.features(images), features)
    assert judge.dim == features.shape[1] == 8
    assert judge.class_names == NAMES
    assert judge.name == "judge"


def test_features_do_not_depend_on_the_batch(judge: Judge) -> None:
    images = rand(130, 3, 8, 8)
    together = judge.features(images)
    one_by_one = torch.cat([judge.features(image[None]) for image in images[:5]])
    in_sevens = torch.cat([judge.features(part) for part in images.split(7)])
    assert torch.equal(together[:5], one_by_one)
    assert torch.equal(together, in_sevens)


def test_a_judge_under_a_bfloat16_sampler_says_the_same(judge: Judge) -> None:
    images = rand(6, 3, 8, 8)
    plain = judge.features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge.features(images), plain)


def test_chunks_have_one_size_and_fillings_are_cut_off() -> None:
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.flatten(1)[:, :1]

    images = torch.arange(7.0).view(7, 1, 1, 1)
    assert torch.equal(in_chunks(network, images, 4)[:, 0], torch.arange(7.0))
    assert seen == [4, 4]
    with pytest.raises(InputError):
        in_chunks(network, images[:0], 4)


def test_a_saved_picture_gets_the_verdict_of_the_sample(tmp_path: Path, judge: Judge) -> None:
    images = rand(40, 3, 8, 8)
    saved = load_plain_images(save_images(images, tmp_path / "images"), (3, 8, 8)) / 2 + 0.5
    assert torch.equal(judge.features(saved), judge.features(images))
    assert torch.equal(judge.predict(saved), judge.predict(images))


def test_images_of_another_size_and_grey_ones_are_judged(tmp_path: Path, judge: Judge) -> None:
    large = rand(6, 1, 20, 20)
    assert torch.equal(judge.features(large), judge.features(large.repeat(1, 3, 1, 1)))
    grey_judge = load_judge(own_classifier(tmp_path / "grey", channels=1), NAMES)
    assert grey_judge.predict(rand(6, 3, 20, 20)).shape == (6,)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert float(with_channels(red, 1)) == pytest.approx(0.299)
    with pytest.raises(InputError, match="4 channels"):
        judge.predict(rand(2, 4, 8, 8))


def test_sha256_is_of_the_weights_file(tmp_path: Path, judge: Judge) -> None:
    weights = (tmp_path / "judge" / "model.safetensors").read_bytes()
    assert judge.sha256 == hashlib.sha256(weights).hexdigest()


def test_loading_leaves_the_global_random_state(tmp_path: Path) -> None:
    folder = own_classifier(tmp_path / "judge")
    state = torch.random.get_rng_state()
    load_judge(folder, NAMES)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_classes_are_matched_by_name_in_any_order_and_writing(tmp_path: Path) -> None:
    folder = own_classifier(tmp_path / "judge", names=("Polar-Bear", "dog", "fish", "cat"))
    judge = load_judge(folder, ("cat", "polar_bear", "horse"))
    assert judge.mapping.targets.tolist() == [1, -1, -1, 0]
    assert judge.unjudged == ("horse",)
    own = load_judge(folder, ("Polar-Bear", "dog", "fish", "cat")).predict(rand(60, 3, 8, 8))
    assert torch.equal(judge.predict(rand(60, 3, 8, 8)), torch.tensor([1, -1, -1, 0])[own])


def test_a_classifier_without_names_is_matched_by_index(tmp_path: Path) -> None:
    folder = own_classifier(tmp_path / "judge", names=())
    assert load_judge(folder, NAMES).mapping.targets.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="none of the classes"):
        load_judge(folder, ("cat", "dog"))
    mapped = load_judge(folder, ("cat", "dog"), class_mapping={"cat": [2], "dog": [0, "1"]})
    assert mapped.mapping.targets.tolist() == [1, 1, 0, -1]


def test_no_class_in_common_says_what_to_do(tmp_path: Path) -> None:
    folder = own_classifier(tmp_path / "judge")
    with pytest.raises(InputError, match=r"--class-names.*--class-mapping"):
        load_judge(folder, ("0", "1", "2", "3"))


def test_a_mapping_file_joins_several_classes_of_the_judge(tmp_path: Path) -> None:
    file = tmp_path / "mapping.json"
    file.write_text(json.dumps({"pet": ["cat", "dog"], "bird": "bird"}))
    judge = load_judge(own_classifier(tmp_path / "judge"), ("pet", "fish", "bird"), class_mapping=file)
    assert judge.mapping.targets.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not readable JSON"),
        ("[1]", "needs"),
        ('{"cat": [1.5]}', "needs"),
        ("{}", "needs"),
        ('{"cart": ["cat"]}', "did you mean cat"),
        ('{"cat": ["caat"]}', "did you mean cat"),
        ('{"cat": [9]}', "classes 0 to 3"),
        ('{"cat": ["dog"]}', "both"),
    ],
)
def test_a_mapping_that_does_not_fit_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "mapping.json"
    file.write_text(content)
    with pytest.raises(InputError, match=said) as refused:
        map_classes("judge", NAMES, NAMES, read_mapping(file))
    assert "\n" not in str(refused.value)


def test_imagenet_synonyms_count_but_a_whole_name_counts_first() -> None:
    theirs = ("crane, machine", "crane", "tabby, tabby cat")
    assert map_classes("j", theirs, ("crane", "tabby cat")).targets.tolist() == [-1, 0, 1]
    assert map_classes("j", theirs, ("crane", "tabby\u200b cat\ufeff")).targets.tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    "names", [("C", "C#", "C++"), ("1", "-1", "+1"), ("🐱", "🐶", "?"), ("का", "की", "कु"), ("caf\u00e9", "cafe", "bar")]
)
def test_names_that_differ_in_signs_or_vowel_signs_are_different_classes(names: tuple[str, ...]) -> None:
    assert map_classes("j", names, names).targets.tolist() == [0, 1, 2]
    apart = [unicodedata.normalize("NFD", name).upper() for name in names]  # as macOS names folders
    assert map_classes("j", names, apart[:1]).targets.tolist() == [0, -1, -1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such folder"),
        ("torchvision:resnet5", "did you mean resnet50"),
        ("timm:resnet5", "did you mean resnet50"),
        ("timm:local-dir:nowhere", "could not be loaded"),
    ],
)
def test_unknown_judges_are_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        load_judge(name, NAMES)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_judge(tmp_path, NAMES)


def checkpoint(home: Path, name: str) -> Path:
    from torchvision import models

    file = home / "hub" / "checkpoints" / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_a_torchvision_judge_answers_in_the_models_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.shufflenet_v2_x0_5(weights=None).eval()
    nn.init.zeros_(network.fc.weight)
    with torch.no_grad():
        network.fc.bias.copy_(nn.functional.one_hot(torch.tensor(281), 1000) * 9.0)  # "tabby", always
    torch.save(network.state_dict(), checkpoint(tmp_path, "shufflenet_v2_x0_5"))
    judge = load_judge("torchvision:shufflenet_v2_x0_5", ("dog", "cat"), class_mapping={"cat": ["tabby"]})
    assert judge.name == "torchvision:shufflenet_v2_x0_5 (IMAGENET1K_V1)"
    assert judge.unjudged == ("dog",)
    images = rand(2, 3, 32, 32)
    assert judge.predict(images).tolist() == [1, 1]

    features = judge.features(images)
    assert features.shape == (2, judge.dim) == (2, 1024)
    seen = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()(to_uint8(images).float() / 255)
    pooled = nn.Sequential(*list(network.children())[:-1])
    with torch.no_grad():
        torch.testing.assert_close(features, pooled(seen).mean((2, 3)))


def test_torchvision_weights_that_cannot_be_had_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(InputError, match=r"torchvision:resnet50.*unreachable"):
        load_judge("torchvision:resnet50", NAMES)


def test_a_timm_judge_answers_in_the_models_classes(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=3).eval()
    with torch.no_grad():
        network.get_classifier().bias.copy_(torch.tensor([0.0, 99.0, 0.0]))
    labels = {"label_names": ["a", "b", "c"], "label_descriptions": {"a": "dog", "b": "cat", "c": "fish"}}
    save_for_hf(network, str(tmp_path), model_config=labels, safe_serialization=True)
    judge = load_judge(f"timm:local-dir:{tmp_path}", ("fish", "cat"))
    assert judge.mapping.targets.tolist() == [-1, 1, 0]
    images = rand(2, 3, 32, 32)
    assert judge.predict(images).tolist() == [1, 1]
    assert judge.features(images).shape == (2, judge.dim)
    assert torch.equal(judge.features(images[1:]), judge.features(images)[1:])


def test_imagenet_names_come_with_a_timm_model_of_a_thousand_classes(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        network = timm.create_model("test_resnet")
    save_for_hf(network, str(tmp_path), safe_serialization=True)
    judge = load_judge(f"timm:local-dir:{tmp_path}", ("tabby cat", "goldfish"))
    assert judge.unjudged == ()
    assert int(judge.mapping.targets[281]) == 0
    assert int(judge.mapping.targets[1]) == 1


def test_nudenet_counts_exposed_parts_above_its_threshold_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Detector:
        def detect_batch(self, pixels: list[Any]) -> list[list[dict[str, Any]]]:
            seen.extend(pixels)
            parts: dict[int, list[tuple[str, float]]] = {0: [], 1: [("FEET_EXPOSED", 0.9)], 2: [("BUTTOCKS_EXPOSED", 0.5)]}
            parts |= {3: [("BUTTOCKS_EXPOSED", 0.9), ("BUTTOCKS_EXPOSED", 0.3)]}
            return [[{"class": name, "score": score} for name, score in parts[int(one[0, 0, 2])]] for one in pixels]

    module = types.ModuleType("nudenet")
    module.__file__, module.NudeDetector = str(tmp_path / "__init__.py"), Detector  # type: ignore[attr-defined]
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "nudenet", module)
    judge = load_judge("nudenet", ("nudity", "dog"))
    images = torch.zeros(4, 3, 8, 8)
    images[:, 0] = torch.arange(4)[:, None, None] / 255  # red: the last channel of what OpenCV reads
    predicted, shares = judge.verdicts(images)
    assert predicted.tolist() == [-1, -1, -1, 0]
    assert shares[:, 0].tolist() == pytest.approx([0.0, 0.0, 0.12, 1.0], abs=0.01)
    assert judge.features(images)[3].tolist() == pytest.approx([0, 0, 0, 0.9, 0])
    assert (judge.unjudged, judge.sha256) == (("dog",), hashlib.sha256(b"weights").hexdigest())
    assert all(one.shape == (8, 8, 3) for one in seen)


def test_nudenet_is_imported_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(InputError, match="needs the package nudenet"):
        load_judge("nudenet", ("nudity",))


def test_a_mapping_speaks_of_each_judges_classes_and_of_no_others() -> None:
    names = {"object": ("cat", "dog"), "style": ("pencil sketch", "photo")}
    found = shared_out({"Cat": ["tabby"], "pencil-sketch": ["drawing", 3]}, names)
    assert found == {"object": {"cat": ["tabby"]}, "style": {"pencil sketch": ["drawing", 3]}}
    with pytest.raises(InputError, match="'cart', which is no class of the model; did you mean cat"):
        shared_out({"cart": ["tabby"]}, names)
