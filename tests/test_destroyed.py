"""Promises of the verdict: a destroyed model is no success, judged or not, with however few images; nor is what never was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from patches import random_patch
from saved_models import QUICK, saved_judge, saved_model

from semu_diffusion import assets
from semu_diffusion.domains.questions import class_questions
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.guards import blank, fell, pictures_lost
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.judges.image_classifier import ImageClassifier
from semu_diffusion.eval.results import Evaluation, Protocol, Scores
from semu_diffusion.eval.scorer import Sampling, Scorer
from semu_diffusion.models.checkpoints import load_class_conditional, load_text_pipeline
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.pipelines.cli.commands.erase_class import main
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.report.words import never_made


@pytest.fixture(scope="module")
def embedded() -> ClassConditional:
    return load_class_conditional(assets.folder("ddpm-cifar10"))


@pytest.fixture(scope="module")
def pictures(embedded: ClassConditional) -> torch.Tensor:
    """Eight of the embedded model, uint8."""
    return to_uint8(torch.cat(list(embedded.sample(list(range(8)), list(range(8)), steps=6))))


def noisy(images: torch.Tensor, share: float) -> torch.Tensor:
    """With Gaussian noise of this share of the scale."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return to_uint8((images.float() / 255 + share * noise).clamp(0, 1))


def stretched(images: torch.Tensor, by: float) -> torch.Tensor:
    return (128 + (images.float() - 128) * by).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_noise_grey_and_saturated_pictures_are_none(pictures: torch.Tensor, count: int) -> None:
    before = pictures[:count]
    noise = torch.randint(0, 256, before.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for after, said in (
        (noise, "noise"),
        ((noise > 127).to(torch.uint8) * 255, "saturated"),
        (noisy(before, 0.3), "noise|saturated"),
        (stretched(before, 0.1), "contrast"),
        (stretched(before, 8), "saturated"),
        (torch.full_like(before, 128), "contrast"),
        (torch.full(before.shape, float("nan")), "contrast"),
    ):
        lost = str(pictures_lost(before, after, "they"))
        assert any(word in lost for word in said.split("|")), (said, lost)
    assert pictures_lost(before, before, "they") is None
    assert pictures_lost(before, noisy(before, 0.02), "they") is None
    assert pictures_lost(before, before.flip(-1), "they") is None


def test_large_pictures_are_looked_at_from_afar(pictures: torch.Tensor) -> None:
    """An autoencoder makes smooth blobs of a latent that is noise: neighbouring pixels still resemble each other."""
    before = to_uint8(torch.nn.functional.interpolate(pictures.float() / 255, scale_factor=8, mode="bicubic"))
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    blobs = to_uint8(torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic"))
    assert pictures_lost(before, blobs, "they") == "they are noise"
    assert pictures_lost(before, before, "they") is None


def test_latents_of_noise_are_no_pictures_of_the_embedded_text_model() -> None:
    source = str(assets.folder("tiny-sd"))
    model = adapt_text_pipeline(load_text_pipeline(source), ["a photo of a dog", "a sketch of a ship"], source)
    before = to_uint8(torch.cat(list(model.sample([0, 1, 0, 1], [0, 1, 2, 3], steps=6))))
    noise = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert pictures_lost(before, to_uint8(model.decode(noise)), "they") == "they are noise"
    assert pictures_lost(before, to_uint8(model.decode(5 * noise)), "they") is not None
    assert pictures_lost(before, before, "they") is None


def test_a_destroyed_model_is_seen_without_a_judge_and_with_two_images(embedded: ClassConditional) -> None:
    questions = class_questions(embedded.names, ["cat"])
    questions = {**questions, "in_domain": questions["in_domain"][:2]}
    scorer = Scorer("class", ("cat",), questions, Sampling(images=1, unconditional=1, steps=3, guidance_scale=3.0))
    patch = random_patch(embedded.denoiser, rank=8, size=0.5)
    destroyed, before, *_ = evaluate(scorer, embedded, patch)
    assert destroyed.collapsed is not None
    assert destroyed.before == Scores()
    unharmed, *_ = evaluate(scorer, embedded, patch.scale(0.02), known=before)
    assert unharmed.collapsed is None


def test_a_fall_is_more_than_chance_by_fishers_exact_test() -> None:
    for count in (1, 2, 5, 9, 30):
        for before in range(count + 1):
            for after in range(before + 1):
                right, every = before + after, range(max(before + after - count, 0), after + 1)
                ways = sum(math.comb(right, x) * math.comb(2 * count - right, count - x) for x in every)
                assert fell(before, after, count) == (20 * ways <= math.comb(2 * count, count)), (before, after, count)
    assert not fell(3, 0, 6)
    assert fell(4, 0, 8)  # half to none
    assert fell(3, 0, 3)
    assert fell(4500, 4300, 5000)


def evaluation(before: dict[str, dict[str, float]]) -> Evaluation:
    scores = Scores(forget_accuracy=0.0, judged_as=before, samples={"forget": 20})
    return Evaluation("class", tuple(before), Protocol(0, "DDIM", 20, 3.0, 10, 10), scores, scores)


def test_what_the_judge_saw_nowhere_before_is_named() -> None:
    assert never_made(evaluation({"cat": {"cat": 0.1, "dog": 0.9}})) is None
    assert never_made(evaluation({})) is None  # nobody judged
    said = never_made(evaluation({"cat": {"cat": 0.1, "dog": 0.9}, "ship": {"dog": 1.0}, "frog": {"frog": 0.0}}))
    assert said is not None
    assert "the judge saw ship and frog in none" in said


def test_what_a_model_without_names_never_made_is_named_too() -> None:
    never, seen = (Scores(unconditional_share=share) for share in (0.0, 0.1))
    protocol = Protocol(0, "DDIM", 20, 1.0, 16, 16, {"forget": ()})
    assert never_made(Evaluation("class", ("cat",), protocol, seen, never)) is None
    said = never_made(Evaluation("class", ("cat",), protocol, never, never))
    assert said is not None
    assert "the judge saw cat in none of the original's samples either (16" in said


def test_a_class_that_the_model_never_made_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    judge = ImageClassifier.load(folder)
    judge.head.bias.data[0] = -1e4  # it never sees red
    judge.save(tmp_path / "blind")
    flags = ["--model", source, "--classifier", str(tmp_path / "blind"), *QUICK]
    assert main(["red", *flags, "--output", str(tmp_path / "run")]) == 0
    said = "the judge saw red in none of the original's samples either (2 of what is erased)"
    assert said in capsys.readouterr().err
    assert "The judge saw red in none" in (tmp_path / "run" / "README.md").read_text()
    again = ["--images-per-class", "2", "--sampling-steps", "2", "--classifier", str(tmp_path / "blind"), "--json"]
    assert semu(["evaluate", str(tmp_path / "run"), *again, "--output", str(tmp_path / "again")]) == 0
    assert said in capsys.readouterr().err


def test_an_original_that_draws_one_colour_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As half precision does that overflows: black before and black after is no success."""
    real = Scorer.sample
    monkeypatch.setattr(Scorer, "sample", lambda *given, **named: {n: 0 * one for n, one in real(*given, **named).items()})
    main(["red", "--model", saved_model(tmp_path / "model"), "--classifier", "none", *QUICK, "--output", str(tmp_path / "run")])
    assert "the original itself draws pictures of one colour" in capsys.readouterr().err
    assert not blank(torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2))
