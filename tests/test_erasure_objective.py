"""What R is trained on: the anchor that is chosen by itself, the retain term, and seeds that never meet."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from semu_diffusion.domains import classes
from semu_diffusion.domains.questions import class_questions
from semu_diffusion.erase import pool
from semu_diffusion.erase.anchors import second_nearest
from semu_diffusion.erase.collect import kept_moments
from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.erase.pool import Noised
from semu_diffusion.erase.run import gather
from semu_diffusion.erase.task import Images
from semu_diffusion.eval.scorer import Sampling, Scorer
from semu_diffusion.models import sampling
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.pipelines.runs.config import EraseClassConfig

FOUR = ("red", "green", "blue", "grey")


def placed(*places: float) -> ClassConditional:
    """A model of four classes whose embeddings lie on a line, at these places."""
    model = tiny_model(names=FOUR, num_class_embeds=5)
    rows = model.denoiser.class_embedding.weight.data
    direction = rows[0].clone()
    for index, place in enumerate(places):
        rows[index] = place * direction
    return model


def images_of(label: int, count: int = 8, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, torch.full((count,), label))


@pytest.mark.parametrize(("places", "kept", "chosen"), [
    ((0.0, 0.1, 0.3, 0.9), [1, 2, 3], 2),
    ((0.0, 0.9, 0.1, 0.3), [1, 2, 3], 3),
    ((0.0, 0.1, 0.3, 0.9), [1, 3], 3),
    ((0.0, 0.1, 0.3, 0.9), [3], 3),
])  # fmt: skip
def test_the_class_is_answered_with_the_second_nearest_of_the_kept(
    places: tuple[float, ...], kept: list[int], chosen: int, generator: torch.Generator
) -> None:
    assert second_nearest(placed(*places), 0, kept, images_of(0), generator) == chosen


def loss_parts(model: ClassConditional, original: Any, **settings: Any) -> dict[str, torch.Tensor]:
    config = EraseClassConfig(forget=("red",), batch_size=8, precision="fp32", **{"adversarial": 0.0, **settings})
    generator = torch.Generator().manual_seed(3)
    kept = Images(torch.cat([images_of(1, 4).images, images_of(2, 4).images]), torch.tensor([1] * 4 + [2] * 4))
    loss = ErasureLoss(
        model,
        config,
        "fixed",
        original,
        Noised(model, images_of(0)),
        Noised(model, kept),
        {0: 1},
        [1, 2],
        nullcontext,
        generator,
    )
    return dict(loss(1))


def test_the_self_retain_term_is_zero_at_the_original_and_keeps_predictions_with_and_without_label(
    model: ClassConditional,
) -> None:
    asked: list[torch.Tensor] = []

    def original(x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels)
        return model.predict(x_t, t, labels)

    with torch.no_grad():
        parts = loss_parts(model, original)
        assert float(parts["retain"]) < 1e-9
        assert float(parts["forget"]) > 0
        kept = asked[-1]
        assert (kept == model.null).sum() == 2  # a quarter of eight
        assert set(kept.tolist()) <= {1, 2, model.null}
        moved, twice = (
            float(loss_parts(model, lambda *given: model.predict(*given) + 0.1, retain_weight=weight)["retain"])
            for weight in (2.0, 4.0)
        )
    assert moved > 0
    assert twice == pytest.approx(2 * moved)


def test_unlabelled_predictions_lose_the_direction_of_the_class(model: ClassConditional) -> None:
    """Theirs is the target null + kappa (anchor - erased); the erased label's is anchor + eta (anchor - erased)."""
    answers = {0: 5.0, 1: 7.0, 2: 0.0, 3: 1.0}
    asked: list[torch.Tensor] = []

    def original(x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels)
        return torch.tensor([answers[int(label)] for label in labels]).view(-1, 1, 1, 1).expand_as(x_t)

    with torch.no_grad():
        settings = {"overshoot": 2.0, "unlabelled": 0.25, "unlabelled_shift": 1.5, "weighting": "noise"}
        found = float(loss_parts(model, original, **settings)["forget"])
        assert asked[1].tolist() == [model.null] * 2 + [1] * 6  # a quarter of eight, and nobody else
        targets = torch.tensor([1 + 1.5 * (7 - 5)] * 2 + [7 + 2.0 * (7 - 5)] * 6)
        assert found == pytest.approx(float(targets.square().mean()), rel=0.2)  # the tiny model answers about zero


@pytest.mark.parametrize("count", [1, 3, 4, 8, 12, 20])
def test_every_kept_class_is_protected_under_its_own_label_and_without(count: int, generator: torch.Generator) -> None:
    """However many there are: of eight in turn, every fourth would always be the same two."""
    names = tuple("abcdefghijklmnopqrst"[:count])
    model = tiny_model(names=names, num_class_embeds=count + 1)
    kept = Images(torch.zeros(120, 3, 8, 8), torch.arange(120) % count)
    asked: list[torch.Tensor] = []
    model.denoiser.register_forward_pre_hook(lambda _, args, named: asked.append(named["class_labels"]), with_kwargs=True)
    config = EraseClassConfig(forget=("a",))
    kept_moments(model, config, {"conv_in": model.denoiser.conv_in}, Noised(model, kept), generator, None)
    conditions = torch.cat(asked)
    assert set(conditions.tolist()) == {*range(count), model.null}
    assert 0.1 < float((conditions == model.null).double().mean()) <= 0.25


def test_without_a_retain_term_there_is_none(model: ClassConditional) -> None:
    with torch.no_grad():
        assert set(loss_parts(model, model.predict, retain="none")) == {"forget"}


def test_seeds_of_the_evaluation_are_never_those_of_the_erasure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judged images would else be the very ones that the erasure was trained on."""
    drawn: list[set[int]] = []
    real = sampling.start_noise

    def watched(seeds: Any, shape: Any) -> Any:
        drawn.append(set(seeds))
        return real(seeds, shape)

    for module in (sampling, pool):
        monkeypatch.setattr(module, "start_noise", watched)
    model = tiny_model()
    for seed in (0, 1, 2, 7, 2**31 - 1):
        config = EraseClassConfig(forget=("red",), forget_samples=4, kept_samples=4, seed=seed)
        planned = classes.plan(model, config)
        gather(classes.task(model, planned, config), config)
        training, drawn[:] = set().union(*drawn), []
        Scorer("class", ("red",), class_questions(model.names, ["red"]), Sampling(4, 4, 1, 3.0, seed)).sample(model)
        judged, drawn[:] = set().union(*drawn), []
        assert len(training) == 8
        assert len(judged) == 16
        assert not training & judged


def test_a_moving_target_moves_the_anchor_alone(model: ClassConditional) -> None:
    """What is kept, and what an adversary imitates, is the original's word, not that of the model in training."""
    asked: list[torch.Tensor] = []

    def original(x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels)
        return model.predict(x_t, t, labels) + 0.1

    with torch.no_grad():
        assert float(loss_parts(model, original, moving_target=True)["retain"]) > 0
    assert len(asked) == 1  # by the retain term
    assert not (asked[0] == 0).any()
