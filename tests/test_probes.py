"""The revival probe finds a class that is still there, finds none that is gone, and leaves the model as it
was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe, injected_classes
from semu_diffusion.eval.probes.probe import Shown
from semu_diffusion.eval.probes.revival import Learning, learn_vectors
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.adapters.ddpm import PixelDdpm
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.models.process import Ddpm

NAMES = ("white", "grey", "black")
BRIGHT, NULL = 0, 3


def tiny_unet(kind: type[UNet2DModel] = UNet2DModel, **changes: Any) -> Any:
    settings = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False, "num_class_embeds": 4, "dropout": 0.1, **changes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(**settings)


class Painter(UNet2DModel):
    """The optimal denoiser of images of one brightness, which is the first number of the class vector (times
    `reach`).

    eps(x_t, t, v) = (x_t - sqrt(abar_t) reach v_0) / sqrt(1 - abar_t)
    """

    reach = 1.0

    def forward(self, sample: torch.Tensor, timestep: Any, class_labels: Any = None, **_: Any) -> Any:
        vectors = self.class_embedding(class_labels).to(self.dtype)
        abar = DDPMScheduler().alphas_cumprod[timestep].view(-1, 1, 1, 1)
        mean = self.reach * vectors[:, :1, None, None]
        return SimpleNamespace(sample=(sample - abar.sqrt() * mean) / (1 - abar).sqrt())


def wrap(unet: Any, null: int | None = NULL) -> ClassConditional:
    names = NAMES if null is not None else (*NAMES, "fourth")
    pipeline = ClassConditionalPipeline(unet, DDPMScheduler(), dict(enumerate(names)), null)
    pipeline.set_progress_bar_config(disable=True)
    return PixelDdpm(pipeline, names, null)


def painter(white: float = 0.9, reach: float = 1.0) -> ClassConditional:
    unet = tiny_unet(Painter)
    unet.reach = reach
    with torch.no_grad():
        unet.class_embedding.weight.zero_()
        unet.class_embedding.weight[:3, 0] = torch.tensor([white, 0.0, -0.9])
    return wrap(unet)


def brightness_judge(names: tuple[str, ...] = NAMES, unjudged: tuple[str, ...] = ()) -> Judge:
    """White above 0.75, black below 0.25, grey between; images in [0, 1]."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        light = x.mean((1, 2, 3))
        return torch.stack([light - 0.75, torch.zeros_like(light), 0.25 - light], dim=1)

    network = JudgeNetwork(
        name="brightness", sha256="0", classes=3, categories=NAMES, dim=3, channels=1, chunk=8,
        logits=logits, features=logits,
    )  # fmt: skip
    return Judge(network, names, ClassMapping(torch.arange(3), unjudged), torch.device("cpu"))


def white_images(count: int = 12) -> torch.Tensor:
    return torch.full((count, 1, 8, 8), 0.9)


def revival(model: ClassConditional, images: torch.Tensor, judge: Judge, **settings: Any) -> Revival | None:
    """What the class-vector probe brings back of white; None where it cannot be tried."""
    learning = dataclasses.replace(ClassVectorProbe.default, **settings)
    return ClassVectorProbe((Shown("white", judge, images),), learning).run(model).get("white")


E1 = torch.eye(1, 32)
SHORT: dict[str, Any] = {"samples": 10, "screened": 3, "sampling_steps": 4, "restarts": 2}
SHORTEST: dict[str, Any] = {"steps": 2, "batch_size": 2, "samples": 2, "screened": 1, "sampling_steps": 2}


def share_of_label(model: ClassConditional, label: int) -> float:
    batches = model.sample([label] * 10, range(10), steps=4, guidance_scale=3.0)
    predictions = torch.cat([brightness_judge().predict(batch) for batch in batches])
    return float((predictions == BRIGHT).double().mean())


def test_a_class_whose_label_alone_was_taken_comes_back() -> None:
    model = painter(white=0.0)  # the trivial edit: grey's class vector in the place of white's
    assert share_of_label(model, BRIGHT) == 0
    assert share_of_label(model, NULL) == 0
    found = revival(model, white_images(), brightness_judge(), **SHORT)
    assert found is not None
    assert found.share == 1
    assert found.loss_start is not None
    assert found.loss_end < 0.3 * found.loss_start


def test_without_learning_nothing_comes_back() -> None:
    found = revival(painter(white=0.0), white_images(), brightness_judge(), lr=0.0, **SHORT)
    assert found is not None
    assert found.share == 0


def test_a_class_that_no_vector_can_reach_stays_away() -> None:
    model = painter(white=0.9, reach=1e-4)
    found = revival(model, white_images(), brightness_judge(), **SHORT)
    assert found is not None
    assert found.share == 0


def test_the_restarts_are_learned_apart_and_each_is_the_vector_that_denoises_the_images() -> None:
    model = painter(white=0.0)
    start = torch.zeros(2, model.denoiser.class_embedding.embedding_dim)
    start[1, 0] = -0.9

    vectors = start.requires_grad_(True)
    how, generator = Learning(steps=60, lr=0.2, batch_size=32), torch.Generator().manual_seed(0)
    with injected_classes(model, vectors) as first:
        losses = learn_vectors(model, white_images(), vectors, lambda rows, _: first + torch.tensor(rows), how, generator)
    vectors = vectors.detach()
    assert vectors[:, 0].tolist() == pytest.approx([0.9, 0.9], abs=0.1)
    assert vectors[:, 1:].abs().max() == 0
    assert len(losses) == 60


def test_the_restart_in_which_most_is_seen_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without learning the restarts stay where they start: at no class, at grey, at black; black is shown to come back."""
    monkeypatch.setattr(ClassVectorProbe, "start", lambda *_: (torch.tensor([[0.0], [0.9], [-0.9]]) @ E1, 1.0))
    found = revival(painter(), white_images(), brightness_judge(), lr=0.0, samples=5, screened=2, sampling_steps=4)
    assert found is not None
    assert found.restarts == (0, 1, 0)
    assert (found.share, found.samples) == (1, 5)


def test_the_record_holds_the_protocol_and_its_cost() -> None:
    found = revival(painter(), white_images(7), brightness_judge(), steps=3, seed=5, **SHORT)
    assert found is not None
    assert (found.steps, found.lr, found.batch_size, found.samples) == (3, 0.3, 16, 10)
    assert (found.sampling_steps, found.guidance_scale, found.seed, found.training_images) == (4, 3.0, 5, 7)
    assert len(found.restarts) == 2
    assert found.image_passes == 3 * 2 * 16 * 3 + (2 * 3 + 10) * 4 * 2  # forward 1, backward 2; guided samples 2 a step


def test_revival_depends_on_its_seed_alone() -> None:
    def run(seed: int) -> Any:
        torch.rand(3)  # the global generator's state is no input
        return revival(painter(white=0.0), white_images(), brightness_judge(), seed=seed, steps=20, **SHORT)

    first = run(1)
    assert run(1) == first
    assert run(2) != first


def snapshot(model: ClassConditional) -> dict[str, Any]:
    unet: Any = model.denoiser
    return {
        "bytes": {name: value.clone() for name, value in unet.state_dict().items()},
        "flags": {name: parameter.requires_grad for name, parameter in unet.named_parameters()},
        "grads": {name: parameter.grad for name, parameter in unet.named_parameters()},
        "modes": {name: module.training for name, module in unet.named_modules()},
        "identity": {name: id(parameter) for name, parameter in unet.named_parameters()},
        "order": list(unet.state_dict()),
        "modules": {name: id(module) for name, module in unet.named_modules()},
    }


def assert_same(model: ClassConditional, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for part in ("flags", "grads", "modes", "identity", "order", "modules"):
        assert after[part] == before[part], part
    assert all(torch.equal(after["bytes"][name], value) for name, value in before["bytes"].items())


def uneven(model: ClassConditional) -> ClassConditional:
    """Modes and flags that no blanket restore would give back."""
    unet: Any = model.denoiser
    unet.train()
    unet.down_blocks[0].eval()
    unet.conv_in.requires_grad_(False)
    unet.conv_out.weight.grad = torch.zeros_like(unet.conv_out.weight)
    return model


@pytest.mark.parametrize("null", [NULL, None])
def test_the_model_is_left_bit_for_bit_as_it_was(null: int | None) -> None:
    model = uneven(wrap(tiny_unet(), null))
    before = snapshot(model)
    names = NAMES if null is not None else (*NAMES, "fourth")
    with torch.no_grad():  # as callers evaluate
        found = revival(model, white_images(), brightness_judge(names), **SHORTEST)
    assert found is not None
    assert found.guidance_scale == (3.0 if null is not None else 1.0)
    assert_same(model, before)


def raising(*_: Any, **__: Any) -> Any:
    raise RuntimeError("stop")


@pytest.mark.parametrize("where", ["learning", "judging"])
def test_the_model_is_restored_after_an_exception(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = uneven(wrap(tiny_unet()))
    before = snapshot(model)
    target: tuple[type, str] = (Ddpm, "target") if where == "learning" else (Judge, "predict")
    monkeypatch.setattr(*target, raising)
    with pytest.raises(RuntimeError, match="stop"):
        revival(model, white_images(), brightness_judge(), **SHORTEST)
    assert_same(model, before)


def test_injected_vectors_change_their_own_labels_only() -> None:
    model = wrap(tiny_unet().eval())
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, known = torch.full((5,), 500), torch.tensor([0, 1, 2, 3, 1])
    with torch.no_grad():
        plain = model.predict(x, t, known)
        with injected_classes(model, model.condition_vectors(torch.tensor([2, 1]))) as label:
            assert torch.equal(model.predict(x, t, known), plain)
            as_two, as_one = (model.predict(x, t, torch.full((5,), label + index)) for index in (0, 1))
        assert torch.equal(as_two, model.predict(x, t, torch.full((5,), 2)))
        assert torch.equal(as_one, model.predict(x, t, torch.full((5,), 1)))


def test_of_the_only_class_the_vectors_start_around_the_null_one() -> None:
    pipeline = ClassConditionalPipeline(tiny_unet(num_class_embeds=2), DDPMScheduler(), {0: "white"}, 1)
    pipeline.set_progress_bar_config(disable=True)
    model = PixelDdpm(pipeline, ("white",), 1)
    found = revival(model, white_images(), brightness_judge(("white",)), **{**SHORTEST, "restarts": 3})
    assert found is not None
    assert len(found.restarts) == 3
    shown = Shown("white", brightness_judge(("white",)), white_images())
    starts, unit = ClassVectorProbe((shown,), dataclasses.replace(ClassVectorProbe.default, restarts=3)).start(
        model, shown, torch.Generator().manual_seed(0)
    )
    null = model.condition_vectors(torch.tensor([1]))[0]
    assert torch.equal(starts[0], null)
    assert unit == pytest.approx(float(null.square().mean().sqrt()))
    assert not torch.equal(starts[1], starts[2])


def test_an_unconditional_model_has_no_vector_to_learn() -> None:
    model = wrap(tiny_unet(num_class_embeds=None), None)
    assert revival(model, white_images(), brightness_judge()) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda: (white_images()[:0], brightness_judge()), "N > 0"),
        (lambda: (torch.zeros(2, 3, 8, 8), brightness_judge()), r"\(2, 3, 8, 8\)"),
        (lambda: (white_images(), brightness_judge(unjudged=("white",))), "'white'"),
    ],
)
def test_a_probe_that_cannot_be_run_says_why(arguments: Callable[[], tuple[Any, Any]], said: str) -> None:
    images, judge = arguments()
    with pytest.raises(InputError, match=said):
        revival(painter(), images, judge)
