"""The class-conditional family: sampling, guidance, names of classes, and every layout a model may lie in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_models import saved_model
from tiny_models import NAMES, tiny_model, tiny_unet

from semu_diffusion.domains.classes import plan, task
from semu_diffusion.domains.config import ClassErasureConfig
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.class_names import row_of
from semu_diffusion.models.families import adapt_pipeline
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.peers.trivial import copy_embedding

SCHEDULER = {"num_train_timesteps": 100, "clip_sample": True}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def images_of(model: ClassConditional, count: int = 4, **settings: Any) -> torch.Tensor:
    labels = [i % len(NAMES) for i in range(count)]
    return torch.cat(list(model.sample(labels, range(count), **{"steps": 2, **settings})))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("size", [8, 16])
def test_images_do_not_depend_on_the_batch_size(size: int) -> None:
    model = tiny_model(sample_size=size)
    together = images_of(model, 21, batch_size=64)
    for batch_size in (1, 3, 7, 16):
        batches = list(model.sample([i % 3 for i in range(21)], range(21), steps=2, batch_size=batch_size))
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        assert torch.equal(torch.cat(batches), together)


def test_an_image_depends_on_its_seed_and_class_alone(model: ClassConditional) -> None:
    (alone,) = model.sample([2], [17], steps=2)
    (among_others,) = model.sample([0, 1, 2, 0], [5, 6, 17, 8], steps=2)
    assert torch.equal(alone[0], among_others[2])
    (other_seed,), (other_class,) = model.sample([2], [18], steps=2), model.sample([1], [17], steps=2)
    assert not torch.equal(alone, other_seed)
    assert not torch.equal(alone, other_class)


def test_sampling_leaves_the_global_random_state_and_the_training_mode(model: ClassConditional) -> None:
    model.denoiser.train()
    model.denoiser.mid_block.eval()
    modes = [module.training for module in model.denoiser.modules()]
    before = torch.get_rng_state()
    images_of(model)
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.denoiser.modules()] == modes


def test_sampling_draws_no_bars_and_leaves_the_pipelines_own(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.pipeline.set_progress_bar_config(disable=False, desc="mine")
    images_of(model)
    assert capsys.readouterr().err == ""
    model.pipeline([0], num_inference_steps=2)
    assert "mine: 100%" in capsys.readouterr().err


def test_more_steps_than_the_model_has_are_refused(model: ClassConditional) -> None:
    with pytest.raises(InputError, match="has 100 timesteps"):
        images_of(model, steps=101)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_a_half_precision_model_samples_and_predicts_like_the_full_one(
    tmp_path: Path, dtype: torch.dtype, close: float
) -> None:
    source = saved_model(tmp_path / "model")
    full, half = load_class_conditional(source), load_class_conditional(source, dtype=dtype)
    difference = (images_of(full) - images_of(half)).abs().max()
    assert 0 < difference < close
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 60])
    vectors = full.condition_vectors(torch.tensor([0, 1]))
    for condition in (torch.tensor([0, 1]), vectors):
        with torch.no_grad():
            found = half.predict(x, t, condition)
            assert found.dtype == dtype
            assert torch.allclose(found.float(), full.predict(x, t, condition), atol=close)


def test_guidance_is_null_plus_w_times_the_difference(model: ClassConditional, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 8, 8, generator=generator)
    t, labels = torch.tensor([10, 90]), torch.tensor([0, 2])
    with torch.no_grad():
        conditional, null = model.predict(x, t, labels), model.predict(x, t, torch.tensor([3, 3]))
        assert torch.allclose(model.predict_guided(x, t, labels, 2.5), null + 2.5 * (conditional - null), atol=1e-6)
        assert torch.equal(model.predict_guided(x, t, labels, 1.0), conditional)


def test_the_pipeline_takes_the_guided_ddim_step(model: ClassConditional, generator: torch.Generator) -> None:
    pipeline = model.pipeline
    x = torch.randn(1, 3, 8, 8, generator=generator)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    with torch.no_grad():
        noise = model.predict_guided(x, t.expand(1), torch.tensor([1]), 4.0)
    expected = (scheduler.step(noise, t, x).prev_sample / 2 + 0.5).clamp(0, 1)
    found = pipeline([1], guidance_scale=4.0, num_inference_steps=1, latents=x, output_type="pt").images
    assert torch.allclose(found, expected, atol=1e-6)


def test_class_vectors_stand_in_for_labels(model: ClassConditional, generator: torch.Generator) -> None:
    x, t, labels = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([1, 2]), torch.tensor([1, 3])
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, labels), model.predict(x, t, model.condition_vectors(labels)))
        assert torch.equal(model.predict(x, t, labels), model.predict(x, t, labels))  # the embedding is itself again


# ------------------------------------------------------------------ the pipeline's interface


def test_the_pipeline_speaks_like_dits(model: ClassConditional) -> None:
    pipeline = model.pipeline
    assert pipeline.labels == {"red": 0, "green": 1, "blue": 2}
    assert pipeline.get_label_ids("blue") == [2]
    assert pipeline.get_label_ids(["green", "red"]) == [1, 0]
    with pytest.raises(ValueError, match="'pink' is not a class of this model; it has red, green, blue"):
        pipeline.get_label_ids(["pink"])
    wrong_labels: tuple[tuple[Any, str], ...] = (
        ("red", "get_l"),
        (["red"], "get_l"),
        ([0.5], "get_l"),
        ([4], "0 to 3"),
        ([-1], "0 to 3"),
    )
    for wrong, said in wrong_labels:
        with pytest.raises(ValueError, match=said):
            pipeline(wrong, num_inference_steps=2)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    (pictures,) = pipeline([0, 1], generator=generators, num_inference_steps=2, return_dict=False)
    assert [type(p) for p in pictures] == [Image.Image] * 2
    assert pictures[0].size == (8, 8)
    arrays = pipeline([0], generator=torch.Generator().manual_seed(4), num_inference_steps=2, output_type="np").images
    assert arrays.shape == (1, 8, 8, 3)
    (sampled,) = model.sample([0], [4], steps=2)
    assert torch.allclose(torch.from_numpy(arrays).permute(0, 3, 1, 2), sampled, atol=1e-4)


def test_guidance_without_a_null_class_is_refused_by_the_pipeline_and_left_out_by_the_adapter() -> None:
    model = tiny_model(num_class_embeds=3)
    assert model.null is None
    with pytest.raises(ValueError, match="no null class"):
        model.pipeline([0], guidance_scale=3.0, num_inference_steps=1)
    assert torch.equal(images_of(model, guidance_scale=3.0), images_of(model, guidance_scale=1.0))


# ------------------------------------------------------------------ layouts


def test_a_saved_pipeline_is_the_same_however_it_is_loaded(tmp_path: Path, model: ClassConditional) -> None:
    model.pipeline.save_pretrained(tmp_path)
    expected = images_of(model)
    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    for found in (adapt_pipeline(pipeline), load_class_conditional(tmp_path)):
        assert (found.names, found.null) == (NAMES, 3)
        assert torch.allclose(images_of(found), expected, atol=1e-5)


def write_layout(folder: Path, layout: str, unet: UNet2DModel) -> None:
    scheduler: Any = DDPMScheduler(**SCHEDULER)
    if layout == "DDPMPipeline":
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
    elif layout == "DDIMPipeline":
        DDIMPipeline(unet, DDIMScheduler(**SCHEDULER)).save_pretrained(folder)
    else:
        root = layout == "files at the root"
        unet.save_pretrained(folder if root else folder / "unet")
        scheduler.save_pretrained(folder if root else folder / "scheduler")
        if root:  # as google/ddpm-cifar10-32
            index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
            (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["DDPMPipeline", "DDIMPipeline", "bare unet/ and scheduler/", "files at the root"])
@pytest.mark.parametrize("classes", [4, None])
def test_every_layout_is_the_same_model(tmp_path: Path, layout: str, classes: int | None) -> None:
    write_layout(tmp_path, layout, tiny_unet(num_class_embeds=classes))
    found = load_class_conditional(tmp_path, NAMES if classes else ())
    expected = tiny_model(num_class_embeds=classes)
    assert found.conditional is (classes is not None)
    assert (found.names, found.null) == ((NAMES, 3) if classes else ((), None))
    assert found.num_timesteps == 100
    assert torch.allclose(images_of(found), images_of(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"in_channels": 1, "out_channels": 1}, (1, 8, 8)),
        ({"sample_size": 16}, (3, 16, 16)),
        ({"sample_size": (8, 16)}, (3, 8, 16)),
    ],
)
def test_grey_and_other_sizes_are_sampled_at_their_own_shape(
    tmp_path: Path, changes: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    model = load_class_conditional(saved_model(tmp_path / "m", **changes))
    assert model.image_shape == shape
    assert images_of(model).shape == (4, *shape)


def test_class_names_and_null_class_are_found_or_given(tmp_path: Path) -> None:
    DDPMPipeline(tiny_unet(), DDPMScheduler(**SCHEDULER)).save_pretrained(tmp_path)
    cases = {
        ((), None): (("0", "1", "2", "3"), None),  # no names: every embedding may be a class
        ((), 3): (("0", "1", "2"), 3),
        (NAMES, None): (NAMES, 3),
        ((*NAMES, "grey"), None): ((*NAMES, "grey"), None),
    }
    for (names, null), expected in cases.items():
        model = load_class_conditional(tmp_path, names, null)
        assert (model.names, model.null) == expected
    edit_json(tmp_path / "model_index.json", id2label={"2": "blue", "0": "red", "1": "green"})
    assert load_class_conditional(tmp_path).names == NAMES
    assert load_class_conditional(tmp_path).null == 3


def test_attention_weights_of_old_checkpoints_are_read(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 still calls them query, key, value and proj_attn."""
    unet = tiny_unet(num_class_embeds=None)
    write_layout(tmp_path, "files at the root", unet)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert torch.allclose(images_of(load_class_conditional(tmp_path)), images_of(tiny_model(num_class_embeds=None)), atol=1e-5)


def test_full_weights_are_preferred_to_a_variant_which_serves_alone(tmp_path: Path) -> None:
    saved_model(tmp_path)
    tiny_unet(seed=1).half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert torch.allclose(images_of(load_class_conditional(tmp_path)), images_of(tiny_model()), atol=1e-5)
    (tmp_path / "unet" / WEIGHTS).unlink()
    assert torch.allclose(images_of(load_class_conditional(tmp_path)), images_of(tiny_model(1)), atol=1e-2)


def test_a_hub_id_is_fetched_and_its_commit_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / "0123abcd"
    saved_model(snapshot)
    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, sorted(k["allow_patterns"]))) or str(snapshot)
    )
    model = load_class_conditional("someone/their-ddpm")
    assert (model.source, model.revision) == ("someone/their-ddpm", "0123abcd")
    assert asked[0][0] == ("someone/their-ddpm",)
    assert not any(pattern.endswith(("bin", "py", "pt")) for pattern in asked[0][1])  # nothing that could carry code
    assert torch.allclose(images_of(model), images_of(tiny_model()), atol=1e-5)


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"someone/else: no such folder, and loading it from the Hub failed \(no route\)"):
        load_class_conditional("someone/else")


# ------------------------------------------------------------------ classes by name


def test_a_class_is_found_by_name_case_or_index(model: ClassConditional) -> None:
    assert [model.class_index(name) for name in ("green", "GREEN", "1")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "said"),
    [("gren", "did you mean green"), ("3", "its classes are red, green, blue"), ("²", "no class '²'"), ("", "no class ''")],
)
def test_an_unknown_class_is_answered_with_the_nearest_names(model: ClassConditional, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.class_index(name)


def test_suggestions_are_written_as_the_class_is() -> None:
    with pytest.raises(InputError, match="did you mean Tabby Cat"):
        tiny_model(names=("Tabby Cat", "Dog", "Fish")).class_index("tabby cats")


def test_a_class_may_be_given_by_its_number_as_a_number(model: ClassConditional) -> None:
    assert model.class_index(1) == 1
    assert model.class_index(np.int64(1)) == model.class_index(torch.tensor(1)) == 1  # type: ignore[arg-type]
    for wrong in (True, ["red", "green"], None, 1.5):
        with pytest.raises(InputError, match="by its name or its number"):
            model.class_index(wrong)  # type: ignore[arg-type]


def test_a_number_that_is_another_class_by_name_is_asked_for() -> None:
    names = ("1", "2", "10")
    assert [row_of(one, names) for one in ("1", "2", 0, 10)] == [0, 1, 0, 2]
    with pytest.raises(InputError, match="1 is the number of the class '2' and the name of another: give the name"):
        row_of(1, names)


# ------------------------------------------------------------------ the null class, wherever it stands


@pytest.mark.parametrize("null", [0, 1, 3])
def test_a_null_class_in_any_place_is_guided_by_and_its_classes_keep_their_names(tmp_path: Path, null: int) -> None:
    """The classes are the rows 0 to N - 1 and the null class is row N, whatever embeddings they have."""
    unet, order = tiny_unet(), [index for index in range(4) if index != null]
    moved = tiny_unet()
    with torch.no_grad():
        for row, index in enumerate([*order, null]):
            moved.class_embedding.weight[index] = unet.class_embedding.weight[row]
    DDPMPipeline(unet, DDPMScheduler(**SCHEDULER)).save_pretrained(tmp_path / "last")
    DDPMPipeline(moved, DDPMScheduler(**SCHEDULER)).save_pretrained(tmp_path / "moved")
    last, found = load_class_conditional(tmp_path / "last", NAMES), load_class_conditional(tmp_path / "moved", NAMES, null)
    assert (found.names, found.null, found.null_index) == (NAMES, 3, null)
    assert torch.equal(found.condition_vectors(torch.arange(4)), last.condition_vectors(torch.arange(4)))
    assert torch.equal(images_of(found), images_of(last))
    x, t = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 20, 50, 99])
    rows = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert torch.equal(found.predict(x, t, rows), last.predict(x, t, rows))
        assert torch.equal(found.predict_guided(x, t, rows, 2.0), last.predict_guided(x, t, rows, 2.0))
    assert found.row("") == 3
    found.pipeline.save_pretrained(tmp_path / "again")
    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path / "again")
    assert pipeline.get_label_ids(list(NAMES)) == order
    for again in (load_class_conditional(tmp_path / "again"), adapt_pipeline(pipeline)):
        assert (again.names, again.null, again.null_index) == (NAMES, 3, null)
        assert torch.allclose(images_of(again), images_of(last), atol=1e-5)


@pytest.mark.parametrize("called", ["unconditional", "Null", "no_class", "(none)", "uncond", "empty"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_null_class_that_has_a_name_is_known_by_it_and_that_is_said(tmp_path: Path, called: str, place: int) -> None:
    saved_model(tmp_path)
    names = [*NAMES[:place], called, *NAMES[place:]]
    edit_json(tmp_path / "model_index.json", id2label=dict(enumerate(names)), null_class=None)
    if called == "(none)":
        assert load_class_conditional(tmp_path).null is None
        return
    with pytest.warns(Notice, match=f"class {place} is called '{called}'"):
        found = load_class_conditional(tmp_path)
    assert (found.names, found.null, found.null_index) == (NAMES, 3, place)
    assert load_class_conditional(tmp_path, (), -1).names == tuple(names)  # a class like the others, if the user says so
    with pytest.raises(InputError, match="no class"):
        found.class_index(called)


def test_an_embedding_without_a_name_is_the_null_class(tmp_path: Path) -> None:
    saved_model(tmp_path)
    edit_json(tmp_path / "model_index.json", id2label={"1": "red", "2": "green", "3": "blue"}, null_class=None)
    assert load_class_conditional(tmp_path).null_index == 0
    with pytest.warns(Notice, match="--null-class 0 if it is the first"):
        assert load_class_conditional(tmp_path, NAMES).null_index == 3


def test_peers_touch_the_embeddings_of_their_classes(tmp_path: Path) -> None:
    DDPMPipeline(tiny_unet(), DDPMScheduler(**SCHEDULER)).save_pretrained(tmp_path)
    model = load_class_conditional(tmp_path, NAMES, 0)
    config = ClassErasureConfig(forget=("red",), anchor="blue", forget_samples=2)
    planned = plan(model, config)
    edit = copy_embedding(task(planned.model, planned, config), config).edit
    before = model.condition_vectors(torch.arange(4)).clone()
    with edit.applied(model):
        assert torch.equal(model.condition_vectors(torch.arange(4)), before[[2, 1, 2, 3]])


# ------------------------------------------------------------------ what is no such model


def refused(source: Any, said: str, *arguments: Any) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_class_conditional(source, *arguments)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder, and not a Hub id")
    refused("none", "no such folder, and not a Hub id of the form owner/name")
    refused("none/", "no such folder, and not a Hub id of the form owner/name")
    refused(tmp_path, "neither unet/config.json nor config.json")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "config.json").write_text("[1")
    refused(tmp_path, "not readable JSON")
    (tmp_path / "config.json").write_text("[1]")
    refused(tmp_path, "not a JSON object")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    refused(tmp_path, "holds a UNet2DConditionModel; erase-class takes a UNet2DModel")


def test_broken_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    saved_model(tmp_path)
    file = tmp_path / "unet" / WEIGHTS
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        file.write_bytes(content)
        refused(tmp_path, "cannot be loaded")
    tensors = tiny_unet().state_dict()
    save_file({k: v for k, v in tensors.items() if k != "conv_in.weight"}, file, metadata={"format": "pt"})
    refused(tmp_path, "no weights for conv_in.weight")
    save_file({**tensors, "conv_in.weight": torch.zeros(8, 3, 5, 5)}, file, metadata={"format": "pt"})
    refused(tmp_path, "cannot be loaded.*conv_in.weight")
    file.rename(file.with_suffix(".bin"))
    refused(tmp_path, "pickled .bin weights are not read")


def test_class_names_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    saved_model(tmp_path)
    refused(tmp_path, "has 3 classes, but 2 class names were given", ("a", "b"))
    refused(tmp_path, "'a' is the name of several classes", ("a", "b", "a"))
    refused(tmp_path, "a class name is empty", ("a", " ", "b"))
    refused(tmp_path, "--null-class 7: .* has class embeddings 0 to 3", (), 7)
    refused(tmp_path, "--null-class -2: .* has class embeddings 0 to 3", (), -2)
    index = tmp_path / "model_index.json"
    for id2label, said in ((["red"], "must map class indices"), ({"a": "b"}, "must map"), ({"1": "red"}, "0 to 0, each once")):
        edit_json(index, id2label=id2label)
        refused(tmp_path, said)
    edit_json(index, id2label={"0": "red", "1": "", "2": "blue"})
    assert load_class_conditional(tmp_path).names == ("red", "1", "blue")
    edit_json(index, id2label=dict(enumerate(NAMES)), null_class="last")
    refused(tmp_path, "--null-class last")


def test_networks_and_schedules_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    for number, (changes, said) in enumerate(
        [
            ({"out_channels": 6}, "also predicts the variance"),
            ({"in_channels": 4, "out_channels": 4}, "4 channels"),
            ({"sample_size": None}, "no sample_size"),
            ({"class_embed_type": "timestep", "num_class_embeds": None}, "class_embed_type 'timestep'"),
        ]
    ):
        folder = tmp_path / str(number)
        write_layout(folder, "bare", tiny_unet(**changes))
        refused(folder, said)
    saved_model(tmp_path / "m")
    edit_json(tmp_path / "m" / "model_index.json", vqvae=["diffusers", "VQModel"])
    refused(tmp_path / "m", "latent diffusion")
    saved_model(tmp_path / "m")
    schedule = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    edit_json(schedule, beta_schedule="cubic")
    refused(tmp_path / "m", "not the config of a noise schedule")
    schedule.write_text('{"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0}')
    refused(tmp_path / "m", "ScoreSdeVeScheduler has no beta_schedule")
    schedule.write_text("{")
    refused(tmp_path / "m", "not readable JSON")
    shutil.rmtree(schedule.parent)
    refused(tmp_path / "m", "noise schedule is unknown")


def test_a_pipeline_without_names_has_its_indices_as_names() -> None:
    pipeline = ClassConditionalPipeline(tiny_unet(), DDPMScheduler(**SCHEDULER), None, 3)
    assert adapt_pipeline(pipeline).names == ("0", "1", "2")


LAYERS = [
    {"act_fn": "silu"},
    {"act_fn": "gelu"},
    {"act_fn": "relu"},
    {"time_embedding_type": "learned", "num_train_timesteps": 100},
]


@pytest.mark.parametrize("changes", LAYERS)
def test_the_layers_of_the_name_are_told_what_they_see(changes: dict[str, Any]) -> None:
    """The closed form fits what a layer sees, which another activation or a learned time embedding changes."""
    model = tiny_model(**changes)
    seen: list[torch.Tensor] = []
    layer = model.denoiser.get_submodule(model.name_layers[0])
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.predict(torch.zeros(1, 3, 8, 8), torch.tensor([99]), torch.tensor([1]))
    handle.remove()
    torch.testing.assert_close(model.name_inputs(torch.tensor([1]))[-1:], seen[0], rtol=1e-4, atol=1e-6)


def test_a_class_name_that_no_file_can_hold_is_one_line() -> None:
    with pytest.raises(InputError, match=r"the class name 'a\\ud800' is no text"):
        adapt_pipeline(tiny_model(names=("red", "a\ud800", "blue")).pipeline)
