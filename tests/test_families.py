"""Promises of every family in `FAMILIES`: sampled as diffusers samples it, erased from, evaluated, its LoRA loaded back, and
its patch taken off again to the last bit."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import tiny_flux2_klein
from diffusers import AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from family_models import BUILDERS, TOKENS, built, tiny_dit, tiny_flux, tiny_sd3
from family_table import families_table
from patches import weight_bytes
from saved_models import saved_judge

from semu_diffusion.erase.closed_form import name_layers
from semu_diffusion.erase.pool import paths
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.families import FAMILIES, adapt_pipeline, adapt_text_pipeline, network_of
from semu_diffusion.models.precision import sampler_name
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches import lora
from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class
from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept
from semu_diffusion.pipelines.cli.main import main as semu

LATENT = [name for name in BUILDERS if name != "ddpm"]  # its own pipeline is ours, and has tests of its own
CONCEPTS = [name for name in BUILDERS if FAMILIES[name].kind == "concept"]
JOINT = ("sd3", "flux", "auraflow", "flux2", "qwen-image")  # whose text tokens are layers' inputs beside the image's
VARIANTS: dict[str, Callable[[], Any]] = {
    "dit of one embedder": lambda: tiny_dit(alike=True),
    "sd3 without T5": lambda: tiny_sd3(t5=False),
    "flux schnell": lambda: tiny_flux(schnell=True),
    "flux2 klein": tiny_flux2_klein,
    "flux2 klein distilled": lambda: tiny_flux2_klein(distilled=True),
}
PROMPTS = ("a photo of a cat", "a photo of a dog")
GUIDANCE = 3.0
QUICK = [
    "--steps", "2", "--forget-samples", "2", "--kept-samples", "4", "--images-per-condition", "1",
    "--sampling-steps", "2", "--judged-prompts", "2", "--judged-classes", "2", "--precision", "fp32", "--revival",
]  # fmt: skip


def adapted(pipeline: Any) -> DiffusionModel:
    return adapt_text_pipeline(pipeline, PROMPTS) if hasattr(pipeline, "encode_prompt") else adapt_pipeline(pipeline)


def by_diffusers(pipeline: Any, rows: list[int], seeds: list[int], steps: int) -> torch.Tensor:
    """Images in [0, 1] as the pipeline itself samples them."""
    kind = type(pipeline).__name__
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "pt"}
    options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if hasattr(pipeline, "encode_prompt") and not hasattr(pipeline, "unet"):
        options["max_sequence_length"] = 256 if getattr(pipeline, "text_encoder_3", pipeline) is None else TOKENS
    if hasattr(pipeline, "transformer") and kind not in (
        "DiTPipeline",
        "StableDiffusion3Pipeline",
    ):  # whose defaults are those of the full size
        _, options["height"], options["width"] = adapted(pipeline).image_shape
    if kind in ("PixArtSigmaPipeline", "SanaPipeline"):
        options["use_resolution_binning"] = False
    if kind in ("SanaPipeline", "ZImagePipeline", "Flux2Pipeline", "Flux2KleinPipeline"):
        options["max_sequence_length"] = 2 * TOKENS
    if kind == "ZImagePipeline":
        options["guidance_scale"] -= 1
    if kind == "QwenImagePipeline":
        options |= {"true_cfg_scale": options.pop("guidance_scale"), "negative_prompt": [" "] * len(rows)}
    if hasattr(pipeline, "unet") or kind == "PixArtSigmaPipeline":  # we sample these by DDIM at trailing timesteps
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    if hasattr(pipeline, "encode_prompt"):
        return pipeline(prompt=[PROMPTS[row] for row in rows], **options).images
    return pipeline(rows, **options).images


def test_every_family_has_a_tiny_pipeline_that_is_tested() -> None:
    assert set(BUILDERS) == set(FAMILIES)


@pytest.mark.parametrize("family", [*LATENT, *VARIANTS])
def test_samples_are_those_of_diffusers_own_pipeline(family: str) -> None:
    pipeline = built(VARIANTS.get(family, family))
    model = adapted(pipeline)
    rows, seeds = [0, 1, 1], [3, 4, 5]
    ours = torch.cat(list(model.sample(rows, seeds, steps=3, guidance_scale=GUIDANCE)))
    theirs = by_diffusers(pipeline, rows, seeds, 3)
    assert ours.shape == theirs.shape == (3, *model.image_shape)
    assert ours[0].std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    (alone,) = model.sample([1], [5], steps=3, guidance_scale=GUIDANCE)
    assert torch.equal(alone[0], ours[2])  # of its seed and condition alone


def test_what_save_lora_writes_of_a_family_is_what_the_registry_says() -> None:
    forms = {name: family.lora for name, family in FAMILIES.items()}
    assert {*lora.WITHOUT_LOADER} == {name for name, form in forms.items() if form == "peft"}
    assert {*lora.FAMILIES} == {name for name, form in forms.items() if form in ("kohya", "comfyui")}


def test_one_step_of_a_schedule_that_ends_above_zero_is_refused() -> None:
    model = adapted(built("qwen-image"))
    with pytest.raises(InputError, match="at least two"):
        list(model.sample([0], [1], steps=1))


@pytest.mark.parametrize(("family", "pixels"), [("flux", 256), ("z-image", 1024)])
def test_an_autoencoder_without_a_size_of_its_own_is_drawn_at_the_pipelines(family: str, pixels: int) -> None:
    pipeline = built(family)
    assert adapted(pipeline).image_shape[1:] == (8, 8)
    named = dict(pipeline.vae.config)
    pipeline.vae.register_to_config(sample_size=32)  # as AutoencoderKL has it where nobody said
    size = adapted(pipeline).image_shape[1:]
    assert size == (pixels, pixels)
    latent = named["latent_channels"]
    pipeline.vae = AutoencoderTiny(
        latent_channels=latent, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    assert adapted(pipeline).image_shape[1:] == size


def test_another_autoencoder_than_qwens_is_refused() -> None:
    pipeline = built("qwen-image")
    pipeline.vae = built("flux").vae
    with pytest.raises(InputError, match="its autoencoder is a AutoencoderKL, not an AutoencoderKLQwenImage"):
        adapted(pipeline)


SAMPLERS = {
    "DDIM": DDIMScheduler,
    "Euler": FlowMatchEulerDiscreteScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
}


@pytest.mark.parametrize("family", BUILDERS)
def test_the_sampler_is_called_what_it_is(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = adapted(built(family)), []
    for name, kind in SAMPLERS.items():

        def step(self: Any, *given: Any, name: str = name, own: Any = kind.step, **options: Any) -> Any:
            seen.append(name)
            return own(self, *given, **options)

        monkeypatch.setattr(kind, "step", step)
    list(model.sample([0], [1], steps=2))
    assert set(seen) == {model.sampler_name}
    assert sampler_name(model, "bf16") == f"{model.sampler_name} in bfloat16"


@pytest.mark.parametrize("family", [*BUILDERS, *VARIANTS])
def test_a_condition_and_its_vector_are_predicted_alike(family: str) -> None:
    model = adapted(built(VARIANTS.get(family, family)))
    rows, t = torch.tensor([0, 1, model.null]), torch.tensor([20, 50, 80])
    x = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.predict(x, t, rows)
        assert found.shape == x.shape == model.process.target(x, x, t).shape
        torch.testing.assert_close(model.predict(x, t, model.condition_vectors(rows)), found)
        torch.testing.assert_close(model.predict(x, t, rows), found)  # the model is itself again
        assert not torch.allclose(model.predict(x, t, rows.flip(0)), found, atol=1e-6)


@pytest.mark.parametrize("family", [*BUILDERS, *VARIANTS])
def test_sampling_paths_know_the_predictions_on_them(family: str) -> None:
    model = adapted(built(VARIANTS.get(family, family)))
    pool, ends = paths(model, [0, 1], [3, 4], 3, GUIDANCE, "fp32")
    assert (pool.x_t.shape, ends.images.shape) == ((6, *model.latent_shape), (2, *model.latent_shape))
    assert torch.isfinite(ends.images).all()
    assert model.process.num_timesteps >= pool.t[0] > pool.t[2] > pool.t[4] >= 0
    assert len(pool.known) == (12 if model.guided_by_null else 6)
    with torch.no_grad():
        for (sample, row), known in pool.known.items():
            expected = model.predict(pool.x_t[sample : sample + 1], pool.t[sample : sample + 1], torch.tensor([row]))
            torch.testing.assert_close(known, expected[0], rtol=1e-4, atol=1e-5)


def test_a_letter_that_a_tokenizer_does_not_have_is_said() -> None:
    """For T5 every such word is the same one, which is then erased with the one that was meant."""
    with pytest.warns(Notice, match=r"'a 猫' \(and 1 more\): the tokenizer T5.* has no letters for a part of it") as said:
        adapt_text_pipeline(built("pixart"), ["a cat", "a 猫", "a 犬"], "tiny")
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        adapt_text_pipeline(built("pixart"), ["a cat"], "tiny")


NAMED = ("ddpm", "dit of one embedder", "sd1", "sd2", "sdxl", "pixart", "sana")


@pytest.mark.parametrize("family", [*BUILDERS, *VARIANTS])
def test_the_layers_of_the_name_see_nothing_but_the_condition(family: str) -> None:
    model = adapted(built(VARIANTS.get(family, family)))
    layers = name_layers(model)
    assert list(layers) == model.name_layers
    assert bool(layers) == (family in NAMED)
    if not layers:
        return
    said = model.name_inputs(torch.tensor([1]))
    text = hasattr(model.pipeline, "encode_prompt")
    t = torch.tensor([20]) if text else torch.linspace(0, model.num_timesteps - 1, len(said)).round()
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
        for name, layer in layers.items()
    ]
    counts = torch.ones(len(said), dtype=torch.bool)
    if text and model.table.mask is not None:
        counts = model.table.mask[1] > 0
    for seed in range(2):
        x = torch.randn(len(t), *model.latent_shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.predict(x, t, torch.ones(len(t), dtype=torch.long))
        for found in seen.values():
            torch.testing.assert_close(found.flatten(0, -2)[counts], said[counts], rtol=1e-4, atol=1e-5)
    for handle in handles:
        handle.remove()
    last = said[counts][-1]
    assert torch.equal(said[~counts], last.expand(int((~counts).sum()), -1))


@pytest.mark.parametrize("family", LATENT)
def test_images_go_through_the_autoencoder_and_back_in_its_own_scale(family: str) -> None:
    pipeline = built(family)
    model = adapted(pipeline)
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(images)
    assert latents.shape[1:] == model.latent_shape
    with torch.no_grad():
        means = model.encoded(pipeline.vae, images)
    assert means.shape != latents.shape or not torch.allclose(means, latents, rtol=1e-2)
    torch.testing.assert_close(model.unscaled(latents), means)  # as samples are before diffusers' own decode them, above


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_judge(tmp_path_factory.mktemp("judge"), ("golden retriever", "cat", "dog", "tench", "red"))


def erased(family: str, folder: Path, judge: str) -> Path:
    """A run on the family's saved pipeline, by the command that a user types."""
    built(family).save_pretrained(folder / "model")
    given = ["--model", str(folder / "model"), "--classifier", judge, *QUICK, "--output", str(folder / "run")]
    if FAMILIES[family].kind == "class":
        assert erase_class(["red" if family == "ddpm" else "golden retriever", *given]) == 0
    else:
        others = ["--anchor", "dog", "--alternatives", "dog", "--retain-prompts", "a photo of a bird"]
        assert erase_concept(["cat", *given, *others]) == 0
    return folder / "run"


def predicted(model: DiffusionModel) -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    rows = [model.row("golden retriever") if "golden retriever" in model.names else 0, 1]
    with torch.no_grad():
        return model.predict(x, torch.tensor([20, 70]), torch.tensor(rows))


@pytest.mark.parametrize("family", BUILDERS)
def test_the_whole_way_of_every_family(
    family: str, tmp_path: Path, judge: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for probe in (ClassVectorProbe, PseudoWordProbe):
        monkeypatch.setattr(probe, "default", dataclasses.replace(probe.default, steps=2, screened=2))
    run = erased(family, tmp_path, judge)
    said = capsys.readouterr()
    assert "unloading restores every weight" in said.out
    metrics = json.loads((run / "metrics.json").read_text())
    layers = json.loads((run / "run.json").read_text())["layers"]  # those that the patch changes
    assert f"layers edited: {layers}\n" in said.out
    assert metrics["protocol"]["sampler"].startswith(adapted(built(family)).sampler_name)
    assert {part.rsplit(" ", 1)[0] for part in layers.split(", ")} >= {"attn.to_q", "attn.add_q_proj"} or family not in JOINT
    assert metrics["lora"]["same"]
    assert metrics["lora"]["share_of_effect"] == pytest.approx(1, abs=1e-2)
    probes = metrics["after"]["probes"]
    assert all(list(found) == list(metrics["erased"]) for found in probes.values())
    assert any(one["steps"] for found in probes.values() for one in found.values())  # one of them learned

    pipeline, patch = built(family), ErasurePatch.load(run / "patch.safetensors")
    model, network = adapted(pipeline), network_of(pipeline)
    before, plain = weight_bytes(network), predicted(model)
    patch.apply(network)
    changed = predicted(model)
    patch.remove(network)
    assert weight_bytes(network) == before
    assert float((changed - plain).norm()) > 1e-6 * float(plain.norm())  # two steps from zero

    if FAMILIES[family].lora != "peft":
        pipeline.load_lora_weights(run / "lora", adapter_name="semu")
    else:
        from peft import PeftModel

        PeftModel.from_pretrained(network, str(run / "lora"))
    torch.testing.assert_close(predicted(model), changed, rtol=1e-4, atol=1e-4)

    again = ["evaluate", str(run), "--images-per-condition", "1", "--sampling-steps", "2", "--classifier", judge]
    more = ["--judged-classes", "2"] if FAMILIES[family].kind == "class" else ["--judged-prompts", "1"]
    assert semu([*again, *more, "--output", str(tmp_path / "again")]) == 0


def test_the_table_of_families_is_what_the_registry_and_these_tests_say() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "families.md"
    assert page.read_text(encoding="utf-8") == families_table(), "run: make commands"


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_flow_is_trained_where_its_scheduler_samples(kind: str) -> None:
    pipeline = built("flux")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, time_shift_type=kind, use_dynamic_shifting=True
    )
    model = adapted(pipeline)
    steps = model.usual["sampling_steps"]
    sampled = model.sampler(steps).timesteps
    torch.testing.assert_close(model.process.path(steps, torch.zeros(1))[: len(sampled), 0], sampled, rtol=1e-3, atol=0.5)


def test_a_depthwise_filter_is_edited_and_no_lora_is_written_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built("sana").save_pretrained(tmp_path / "model")
    words = [
        "cat",
        "--model",
        str(tmp_path / "model"),
        "--anchor",
        "dog",
        "--layers",
        "conv",
        "--classifier",
        "none",
        *QUICK[:-1],
    ]
    assert erase_concept([*words, "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "no LoRA is written" in said.err
    assert "--layers …,!" in said.err
    assert "no lora/: no LoRA makes this update" in said.out
    assert not (tmp_path / "run" / "lora").exists()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "There is no LoRA of it" in card
    assert "load_lora_weights" not in card
    assert "groups" in json.loads((tmp_path / "run" / "run.json").read_text())["no_lora"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["lora"] is None
    assert ErasurePatch.load(tmp_path / "run" / "patch.safetensors").metadata["grouped"]
