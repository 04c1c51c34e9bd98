"""Promises of `erase_concept`: words become prompts and answers, the patch answers as asked, and nothing else is touched."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from text_models import FAMILIES, tiny_pipeline

import semu_diffusion
from semu_diffusion import erase_concept
from semu_diffusion.domains import concepts
from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.plan import plan_words
from semu_diffusion.domains.prompts import RETAIN_PROMPTS, contains, retained, with_anchor, with_article
from semu_diffusion.erase.task import Task
from semu_diffusion.erase.trainable import require_trainable
from semu_diffusion.errors import InputError
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.pipelines.data.images import load_plain_images
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

QUICK: dict[str, Any] = {
    "forget_samples": 4,
    "kept_samples": 4,
    "precision": "fp32",
    "guidance_scale": 2.0,
}


def task_of(pipeline: Any, config: ConceptErasureConfig, forget_images: torch.Tensor | None = None) -> Task[Any]:
    planned = concepts.plan(pipeline, config, images_given=forget_images is not None)
    return concepts.task(concepts.bind(pipeline, planned), planned, config, forget_images=forget_images)


BIRD = {"retain_prompts": ("a photo of a bird",)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_concept_is_answered_as_its_anchor_and_the_pipeline_is_unchanged(family: str) -> None:
    pipeline = tiny_pipeline(family)
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    patch = semu_diffusion.erase_concept(
        pipeline,
        "cat",
        anchor="dog",
        overshoot=0.0,
        retain="none",
        protect="none",
        unlabelled=0.0,
        adversarial=0.0,
        steps=60,
        lr=3e-3,
        **BIRD,
        **QUICK,
    )
    assert all(torch.equal(value, pipeline.unet.state_dict()[name]) for name, value in weights.items())
    assert patch.metadata["concept"] == ["cat"]
    assert patch.metadata["anchor"] == ["dog"]
    assert any(name.endswith(".attn2.to_k") for name in patch.layers)  # the name, in closed form
    model = adapt_text_pipeline(pipeline, ["a photo of a cat", "a photo of a dog"])
    x = torch.randn(16, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.arange(20, 100, 5)
    with torch.no_grad():
        wanted, before = (model.predict(x, t, torch.full((16,), row)) for row in (1, 0))
        patch.apply(pipeline.unet)
        after = model.predict(x, t, torch.full((16,), 0))
    assert (after - wanted).square().mean() < 0.8 * (before - wanted).square().mean()
    patch.remove(pipeline.unet)
    assert all(torch.equal(value, pipeline.unet.state_dict()[name]) for name, value in weights.items())


def test_protection_and_retain_term_keep_the_retained_prompts() -> None:
    drift = {}
    for protected in (True, False):
        pipeline = tiny_pipeline()
        flags = {} if protected else {"protect": "none", "retain": "none"}
        patch = semu_diffusion.erase_concept(pipeline, "cat", anchor="dog", steps=60, lr=3e-3, **flags, **BIRD, **QUICK)
        model = adapt_text_pipeline(pipeline, ["a photo of a bird"])
        before = torch.cat(list(model.sample([0] * 8, range(8), steps=5)))
        patch.apply(pipeline.unet)
        after = torch.cat(list(model.sample([0] * 8, range(8), steps=5)))
        drift[protected] = float((after - before).square().mean())
    assert 0 < drift[True] < 0.5 * drift[False]


def test_the_tasks_rows_are_the_prompts() -> None:
    config = ConceptErasureConfig(concept=("cat",), synonyms=("kitten",), anchor="dog", forget_samples=64)
    task = task_of(tiny_pipeline(), config)
    book = task.model.table.prompts
    forgotten = [book[row] for row in task.forget]
    assert forgotten == [
        t.format(w) for w in ("cat", "kitten") for t in ("a photo of a {}", "a picture of a {}", "an image of a {}", "{}")
    ]
    assert task.anchors is not None
    assert [book[task.anchors[row]] for row in task.forget[:4]] == [
        "a photo of a dog",
        "a picture of a dog",
        "an image of a dog",
        "dog",
    ]
    kept = [book[row] for row in task.kept]
    assert "a photo of a dog" in kept
    assert not any("cat" in prompt.split() for prompt in kept)
    assert task.forget_samples == 8


def test_an_anchor_is_chosen_and_said() -> None:
    quick = {**QUICK, "steps": 1}
    patch = semu_diffusion.erase_concept(tiny_pipeline(), "cat", **BIRD, **quick)
    assert patch.metadata["anchor"][0] not in ("", "cat", None)
    empty = semu_diffusion.erase_concept(tiny_pipeline(), "cat", anchor="", **BIRD, **quick)
    assert empty.metadata["anchor"] == [""]


def test_negative_guidance_is_the_unconditional_target_with_overshoot() -> None:
    """ESD's target: eps(x, null) - eta (eps(x, c) - eps(x, null))."""
    from semu_diffusion.erase.loss import ErasureLoss
    from semu_diffusion.erase.pool import Noised
    from semu_diffusion.erase.task import Images

    config = ConceptErasureConfig(
        concept=("cat",),
        target="unconditional",
        overshoot=2.0,
        retain="none",
        batch_size=4,
        precision="fp32",
        weighting="noise",
        adversarial=0.0,
        unlabelled=0.0,
    )
    task = task_of(tiny_pipeline(), config)
    model = task.model
    latents = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    images = Images(latents, torch.tensor([task.forget[0]] * 4))
    asked: dict[int, torch.Tensor] = {}

    def original(x_t: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked[int(rows[0])] = model.predict(x_t, t, rows)
        return asked[int(rows[0])]

    with torch.no_grad():
        loss = ErasureLoss(
            model, config, "unconditional", original, Noised(model, images), None, {}, task.kept, nullcontext, torch.Generator()
        )(1)
    null, own = asked[model.null], asked[task.forget[0]]
    target = null - 2 * (own - null)
    assert float(loss["forget"]) > 0
    assert float(loss["forget"]) == pytest.approx(float((own - target).square().mean()), rel=1e-4)


def test_given_images_are_encoded_under_the_concepts_prompts(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    images = load_plain_images(tmp_path, (3, side, side))
    task = task_of(pipeline, ConceptErasureConfig(concept=("cat",), anchor="dog"), images)
    assert task.forget_set is not None
    assert task.forget_set.images.shape == (4, *task.model.latent_shape)  # three images for four prompts
    assert sorted(task.forget_set.labels.tolist()) == sorted(task.forget)
    with pytest.raises(InputError, match="--forget-images shows one concept"):
        task_of(pipeline, ConceptErasureConfig(concept=("cat", "bird"), anchor="dog"), images)


def test_sample_counts_are_for_each_concept_not_for_all() -> None:
    one, three = (
        task_of(tiny_pipeline(), ConceptErasureConfig(concept=words, anchor="tree", forget_samples=40))
        for words in (("cat",), ("cat", "dog", "bird"))
    )
    assert one.forget_samples == three.forget_samples == 10  # of each of the four prompts of a concept


def test_several_concepts_make_one_patch() -> None:
    patch = semu_diffusion.erase_concept(
        tiny_pipeline(), "cat", "dog", anchor="bird", steps=1, retain_prompts=("a tree",), **QUICK
    )
    assert patch.metadata["concept"] == ["cat", "dog"]
    assert len(patch.metadata["prompts"]) == 8


def test_words_are_found_whole_and_replaced_with_their_article() -> None:
    assert contains("two Cats on a mat", "cat")
    assert not contains("a catalogue", "cat")
    assert contains("a photo of a cat", "cats")
    assert contains("broken glass", "glass")
    assert with_anchor("a photo of a cat", ["cats"], "owl") == "a photo of an owl"
    assert with_anchor("a photo of a cat", ["cat"], "owl") == "a photo of an owl"
    assert with_anchor("a photo of an owl", ["owl"], "cat") == "a photo of a cat"
    assert with_anchor("a house by Van Gogh", ["van gogh"], "a child") == "a house by a child"
    assert with_anchor("a photo of a cat", ["cat"], "") == ""
    assert with_anchor("a photo of a cassette player", ["cassette player"], "a radio") == "a photo of a radio"
    players = ["cassette player", "player"]
    assert with_anchor("a cassette player, a player", players, "record player") == "a record player, a record player"
    assert with_article("a photo of a {}", "the moon") == "a photo of the moon"
    assert "a photo of a cat" not in retained(RETAIN_PROMPTS, ["cat"])
    with pytest.raises(InputError, match="every retain prompt names"):
        retained(["a cat"], ["cat"])
    with pytest.raises(InputError, match="names none of cat"):
        plan_words(ConceptErasureConfig(concept=("cat",), forget_prompts=("a dog",)), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"concept": ()}, "nothing to erase"),
        ({"concept": (" ",)}, "the concept is empty"),
        ({"anchor": "Cat"}, "is what shall be erased"),
        ({"anchor": "dog", "target": "ascent"}, "--anchor contradicts --target ascent"),
        ({"explained_variance": 0.0}, r"--explained-variance 0.0: must lie in \(0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ConceptErasureConfig(**{"concept": ("cat",), **changes})


def test_no_answer_of_several_concepts_names_another_that_is_erased() -> None:
    planned, _ = plan_words(ConceptErasureConfig(concept=("cat", "sketch")), cifar_vocabulary(("cat", "dog", "bird")))
    answers = concepts._answers(planned, {"cat": "dog", "sketch": "photo"})
    assert answers["a pencil sketch of a cat"] == "a photo of a dog"
    erased = [word for one in planned for word in one.words]
    assert not [answer for answer in answers.values() if any(contains(answer, word) for word in erased)]


def test_forget_images_of_another_size_than_the_models_own_samples_are_refused() -> None:
    small = torch.zeros(2, 3, 24, 24)
    with pytest.raises(InputError, match=r"the forget images are \(3, 24, 24\), but the model makes"):
        erase_concept(tiny_pipeline(), "cat", anchor="dog", forget_images=small)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(InputError, match="unknown settings: stepz"):
        semu_diffusion.erase_concept(tiny_pipeline(), "cat", stepz=3)


@pytest.mark.parametrize(
    ("concepts", "anchor", "said"),
    [
        (("cat",), "cats", "'cats' means 'cat'"),
        (("cat",), "a kitten", "'a kitten' means 'cat'"),
        (("Cat",), "kitty", "'kitty' means 'Cat'"),
        (("cat",), "sketch", "'cat' is of the objects, --anchor 'sketch' of the styles"),
        (("cat", "sketch"), "dog", "'sketch' is of the styles, --anchor 'dog' of the objects"),
    ],
)
def test_an_anchor_that_means_the_concept_or_is_of_another_kind_is_refused(
    concepts: tuple[str, ...], anchor: str, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        plan_words(ConceptErasureConfig(concept=concepts, anchor=anchor), cifar_vocabulary(("cat", "dog", "bird")))


def test_forget_prompts_in_any_word_of_the_concept_are_taken() -> None:
    config = ConceptErasureConfig(concept=("cat",), forget_prompts=("a photo of a kitten",))
    plans, _ = plan_words(config, cifar_vocabulary(("cat", "dog", "bird")))
    assert plans[0].prompts == ("a photo of a kitten",)


@pytest.mark.parametrize("concept", ["cats", "a cat", "The Cats"])
def test_a_concept_in_the_plural_or_with_an_article_is_not_retained(concept: str) -> None:
    vocabulary = cifar_vocabulary(("cat", "dog", "bird"))
    for known in (None, vocabulary):
        (one,), kept = plan_words(ConceptErasureConfig(concept=(concept,)), known)
        assert not any(contains(prompt, "cat") or (contains(prompt, "kitten") and known) for prompt in kept)
        assert "cat" not in one.candidates()
    assert one.subject == vocabulary.subject("cat")
    assert "dog" not in plan_words(ConceptErasureConfig(concept=("dogs",)), None)[0][0].candidates()


def test_an_offloaded_pipeline_is_refused_with_what_to_do() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet._hf_hook = object()
    with pytest.raises(InputError, match="remove_all_hooks"):
        erase_concept(pipeline, "cat", anchor="dog", **QUICK)


def test_float16_weights_are_not_trained_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semu_diffusion.models.precision.has_bf16", lambda device: False)
    pipeline = tiny_pipeline()
    pipeline.unet.half()
    for precision in ("auto", "bf16", "fp32"):
        with pytest.raises(InputError, match="float16 weights are not trained on a CPU"):
            erase_concept(pipeline, "cat", anchor="dog", **{**QUICK, "precision": precision})
    weight = SimpleNamespace(dtype=torch.float16, device=torch.device("cuda"))  # of a GPU without bfloat16
    monkeypatch.setattr(pipeline.unet, "parameters", lambda: iter([weight]))
    with pytest.raises(InputError, match="float16 weights are trained in bfloat16"):
        require_trainable(pipeline.unet, ConceptErasureConfig(concept=("cat",), precision="auto"))


def test_ascent_has_no_answer() -> None:
    config = ConceptErasureConfig(concept=("cat",), target="ascent")
    task = task_of(tiny_pipeline(), config)
    assert task.anchor_words == {}
    assert task.metadata["anchor"] == []


def test_synonyms_may_be_given_as_one_string_as_on_the_command_line() -> None:
    patch = erase_concept(tiny_pipeline(), "cat", synonyms="kitten,moggy", anchor="dog", steps=1, **BIRD, **QUICK)
    assert {"a photo of a kitten", "a photo of a moggy"} <= set(patch.metadata["prompts"])
    assert {prompt.split()[-1] for prompt in patch.metadata["prompts"]} == {"cat", "kitten", "moggy"}
