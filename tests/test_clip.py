"""Promises of CLIP: unit vectors, open_clip's own transform, the nearest words, the published formulas, no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.clip import Clip, clip_score, load_clip
from semu_diffusion.eval.judges.judge import load_judge
from semu_diffusion.eval.results import Evaluation

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny CLIP that open_clip knows by name, and the file of its weights."""
    import open_clip
    from open_clip import factory
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.create_model("tiny-clip")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors")
    yield str(folder / "weights.safetensors")
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(configs)


@pytest.fixture(scope="module")
def clip(weights: str) -> Clip:
    return load_clip(f"clip:tiny-clip:{weights}")


def test_a_name_with_an_article_of_its_own_gets_no_second(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []
    real = Clip.text_features
    monkeypatch.setattr(Clip, "text_features", lambda self, texts: spoken.extend(texts) or real(self, texts))
    load_judge(f"clip:tiny-clip:{weights}", ["the Eiffel Tower", "apple", "cat"])
    assert spoken == ["a photo of the Eiffel Tower", "a photo of an apple", "a photo of a cat"]


def pictures(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_features_are_unit_vectors_whatever_the_batch(clip: Clip) -> None:
    images = pictures(35, 24, 24)
    found = clip.image_features(images)
    assert found.norm(dim=1).sub(1).abs().max() < 1e-5
    assert clip.text_features(["a cat", "a dog"]).norm(dim=1).sub(1).abs().max() < 1e-5
    assert torch.equal(clip.image_features(images[33:]), found[33:])


@pytest.mark.parametrize("shape", [(32, 32), (24, 24), (40, 60), (90, 48)])
def test_pictures_are_prepared_as_open_clip_does(clip: Clip, shape: tuple[int, int]) -> None:
    from open_clip import image_transform
    from torchvision.transforms.functional import to_pil_image

    images = pictures(3, *shape)
    theirs = image_transform(32, is_train=False, mean=clip.mean, std=clip.std)
    wanted = torch.stack([theirs(to_pil_image(image)) for image in images])
    found = clip._fitted(images.float() / 255)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().mean() < 0.02
    with torch.no_grad():
        features = torch.nn.functional.normalize(clip.network.encode_image(wanted), dim=-1)
    assert (clip.image_features(images) * features).sum(1).min() > 0.999


def test_a_sampler_in_bfloat16_changes_no_verdict(clip: Clip, weights: str) -> None:
    images, judge = pictures(4, 32, 32), load_judge(f"clip:tiny-clip:{weights}", ["cat", "owl", "dog"])
    wanted, features = judge.predict(images), clip.image_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge.predict(images), wanted)
        assert torch.equal(clip.image_features(images), features)


def test_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    import open_clip

    asked: list[bool] = []
    real = open_clip.create_model

    def create(name: str, pretrained: str, force_quick_gelu: bool, **rest: Any) -> Any:
        asked.append(force_quick_gelu)
        return real("tiny-clip", pretrained=weights, force_quick_gelu=force_quick_gelu, **rest)

    monkeypatch.setattr(open_clip, "create_model", create)
    for name in ("clip:ViT-B-32:openai", "clip:ViT-B-32:laion2b_s34b_b79k"):
        load_clip(name)
    assert asked == [True, False]


def test_the_judge_names_the_nearest_sentence(clip: Clip, weights: str) -> None:
    judge = load_judge(f"clip:tiny-clip:{weights}", ["cat", "owl", "dog"])
    texts = clip.text_features(["a photo of a cat", "a photo of an owl", "a photo of a dog"])
    images = pictures(12, 32, 32)
    assert torch.equal(judge.predict(images), (clip.image_features(images) @ texts.T).argmax(1))
    assert judge.unjudged == ()
    assert "tiny-clip" in judge.name
    assert torch.equal(judge.features(images), clip.image_features(images))  # FID and KID may be measured in them
    with pytest.raises(InputError, match="needs alternatives"):
        load_judge(f"clip:tiny-clip:{weights}", ["cat"])


def test_scores_follow_their_formulas(clip: Clip) -> None:
    images, prompts = pictures(4, 32, 32), ["a cat", "a dog", "a cat", "the moon"]
    cosine = (clip.image_features(images) * clip.text_features(prompts)).sum(1)
    found = clip_score(clip, images, prompts)
    assert found.cosine == pytest.approx(float(cosine.mean()), abs=1e-6)
    assert found.score == pytest.approx(100 * float(cosine.clamp(min=0).mean()), abs=1e-4)
    assert found.clipscore == pytest.approx(found.score / 40, abs=1e-6)
    assert (found.pairs, found.model) == (4, clip.name)
    with pytest.raises(InputError, match="3 prompts for 4 images"):
        clip_score(clip, images, prompts[:3])


def test_loading_leaves_the_global_random_state(weights: str) -> None:
    before = torch.get_rng_state()
    load_clip(f"clip:tiny-clip:{weights}")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip:ViT-B-31:openai", "did you mean ViT-B-32"),
        ("clip:ViT-B-32:nothing", "no weights 'nothing' for ViT-B-32; there are openai"),
        ("clip:tiny-clip:PICKLE", "safetensors only"),
        ("clip:tiny-clip:BROKEN", "the weights cannot be had"),
        ("blip", "CLIP models are named clip"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name: str, said: str, weights: str, tmp_path: Path) -> None:
    for file in ("weights.pt", "weights.safetensors"):
        (tmp_path / file).write_bytes(b"broken")
    name = name.replace("PICKLE", str(tmp_path / "weights.pt")).replace("BROKEN", str(tmp_path / "weights.safetensors"))
    with pytest.raises(InputError, match=said) as caught:
        load_clip(name)
    assert "\n" not in str(caught.value)


def test_a_run_is_judged_and_scored_by_clip(weights: str, tmp_path: Path) -> None:
    from text_models import tiny_pipeline

    from semu_diffusion.pipelines.cli.commands.erase_concept import main

    tiny_pipeline().save_pretrained(tmp_path / "model")
    flags = [
        "cat", "--model", str(tmp_path / "model"), "--anchor", "dog", "--steps", "2", "--forget-samples", "4",
        "--kept-samples", "4", "--images-per-prompt", "1", "--sampling-steps", "2", "--no-revival",
        "--alternatives", "dog,bird", "--classifier", f"clip:tiny-clip:{weights}", "--clip-score", f"clip:tiny-clip:{weights}",
        "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(flags) == 0
    found = Evaluation.from_json(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert found.protocol.judges["object"].name == "CLIP tiny-clip weights"
    assert found.protocol.conditions["in_domain"] == ("a photo of a dog", "a photo of a bird")
    assert found.fid is not None
    assert found.fid.extractor.name == "CLIP tiny-clip weights features (8-d)"
    for scores in (found.before, found.after):
        assert scores.in_domain_accuracy is not None
        assert scores.clip_score is not None
        assert {score.model for score in scores.clip_score.values()} == {"tiny-clip weights"}
        assert scores.clip_score["retain"].clipscore == pytest.approx(scores.clip_score["retain"].score / 40)


def test_classes_are_judged_and_scored_by_clip_too(weights: str, tmp_path: Path) -> None:
    from saved_models import QUICK, saved_model

    from semu_diffusion.pipelines.cli.commands.erase_class import main

    name, flags = f"clip:tiny-clip:{weights}", ["--forget", "red", *QUICK, "--output", str(tmp_path / "run")]
    assert main(["--model", saved_model(tmp_path / "model"), *flags, "--classifier", name, "--clip-score", name]) == 0
    found = Evaluation.from_json(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert found.protocol.judges["object"].name == "CLIP tiny-clip weights"
    assert found.after.clip_score is not None
    assert found.after.clip_score["forget"].pairs == 2
    assert found.after.clip_score["retain"].pairs == 4
