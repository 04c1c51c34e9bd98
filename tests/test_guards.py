"""Promises of the guard: a model in memory as people have changed it is erased from rightly, or refused in one true line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from text_models import tiny_pipeline
from tiny_models import NAMES, tiny_model, tiny_unet
from torch import nn

import semu_diffusion
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.layers import select_layers
from semu_diffusion.models.adapters.stable_diffusion import StableDiffusion
from semu_diffusion.models.families import adapt_pipeline, adapt_text_pipeline
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.models.prompt_table import encode_prompts
from semu_diffusion.models.sampling import noise_schedule
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.patches.wrappers import eager, unwrapped
from semu_diffusion.protection import collect_moments
from semu_diffusion.subspace import layer_subspace

QUICK: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "forget_samples": 4,
    "kept_samples": 6,
    "precision": "fp32",
}
SMALL: dict[str, Any] = {
    "block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False,
}  # fmt: skip


def class_pipeline(**changes: Any) -> ClassConditionalPipeline:
    return tiny_model(**changes).pipeline


def refused(pipeline: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        adapt_text_pipeline(pipeline, ["a cat"]) if hasattr(pipeline, "vae") else adapt_pipeline(pipeline)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ compiled and wrapped


def compiled(network: Any) -> Any:
    return torch.compile(network, backend="eager")


def in_place(network: Any) -> Any:
    network.compile(backend="eager")
    with torch.no_grad():  # compiled now, as in a running application
        network(torch.zeros(1, 3, 8, 8), torch.tensor([1]), class_labels=torch.tensor([0]))
    return network


def a_block(network: Any) -> Any:
    network.mid_block = torch.compile(network.mid_block, backend="eager")
    return network


@pytest.mark.parametrize("wrap", [compiled, in_place, a_block, nn.DataParallel], ids=lambda wrap: wrap.__name__)
def test_a_wrapped_network_gives_the_patch_of_the_plain_one_and_it_is_said(wrap: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    expected = semu_diffusion.erase_class(class_pipeline(**SMALL), "red", **QUICK)
    pipeline = class_pipeline(**SMALL)
    plain = pipeline.unet
    pipeline.unet = wrap(plain)
    given = pipeline.unet
    with pytest.warns(Notice, match="the UNet is wrapped"):
        patch = semu_diffusion.erase_class(pipeline, "red", **QUICK)
    assert pipeline.unet is given  # the user's pipeline is as it was
    assert patch.layers.keys() == expected.layers.keys()
    for name in patch.layers:
        assert torch.allclose(patch.delta(name), expected.delta(name), atol=1e-6)


def test_a_compiled_stable_diffusion_gives_the_patch_of_the_plain_one() -> None:
    torch._dynamo.reset()
    settings = {**QUICK, "anchor": "dog", "retain_prompts": ("a bird",), "layers": ("cross-attention",), "guidance_scale": 2.0}
    expected = semu_diffusion.erase_concept(tiny_pipeline(), "cat", **settings)
    pipeline = tiny_pipeline()
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    with pytest.warns(Notice, match="wrapped"):
        patch = semu_diffusion.erase_concept(pipeline, "cat", **settings)
    assert all(torch.allclose(patch.delta(name), expected.delta(name), atol=1e-6) for name in expected.layers)


@pytest.mark.parametrize("wrap", [nn.DataParallel, a_block], ids=lambda wrap: wrap.__name__)
def test_the_layers_of_a_wrapped_network_go_by_their_own_names(wrap: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    settings = {**QUICK, "steps": 1, "anchor": "dog", "retain_prompts": ("a bird",), "adversarial": 0.0}
    pipeline = tiny_pipeline()
    pipeline.unet = wrap(pipeline.unet)
    with pytest.warns(Notice, match="is wrapped"):
        patch = semu_diffusion.erase_concept(pipeline, "cat", layers=("mid_block.*.to_k",), method="trained", **settings)
    assert patch.layers.keys() == {f"mid_block.attentions.0.transformer_blocks.0.attn{which}.to_k" for which in (1, 2)}
    patch.apply(pipeline.unet)


def test_projections_that_were_fused_and_are_no_longer_leave_nothing_behind() -> None:
    plain, undone = tiny_pipeline(), tiny_pipeline()
    undone.fuse_qkv_projections()
    undone.unfuse_qkv_projections()
    assert any(name.endswith("to_qkv") for name, _ in undone.unet.named_modules())  # diffusers leaves the copies
    assert adapt_text_pipeline(undone, ["a cat"]).names == ("a cat",)
    assert select_layers(undone.unet).keys() == select_layers(plain.unet).keys()
    assert Fingerprint.of(undone.unet, ()).structure == Fingerprint.of(plain.unet, ()).structure


def test_the_eager_twin_has_the_same_weights_and_none_without_compilation() -> None:
    network = tiny_unet(**SMALL)
    assert eager(network) is network
    assert unwrapped(nn.DataParallel(compiled(network))) is network
    twin = eager(in_place(network))
    assert twin is not network
    assert all(a is b for a, b in zip(twin.parameters(), network.parameters(), strict=True))


def test_hooks_and_updates_count_on_a_compiled_network() -> None:
    """Else there is no protection, and nothing is trained, without a word."""
    torch._dynamo.reset()
    network = in_place(tiny_unet(**SMALL))
    layers = select_layers(network, ("conv",))
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 60]), torch.tensor([0, 1])
    moments = collect_moments(layers, [0], lambda _: network(x, t, class_labels=labels))
    assert moments.keys() == layers.keys()
    subspaces = {name: layer_subspace(torch.randn_like(layer.weight), layer.weight.detach()) for name, layer in layers.items()}
    patched = PatchedLayers(network, subspaces)
    for core in patched.parameters():
        core.fill_(0.1)
    with torch.no_grad():
        before = network(x, t, class_labels=labels).sample
        with patched.attached():
            assert not torch.allclose(network(x, t, class_labels=labels).sample, before, atol=1e-3)
        assert torch.allclose(network(x, t, class_labels=labels).sample, before)


# ------------------------------------------------------------------ what is on the network, and what it is made of


def test_adapters_on_the_network_are_refused_and_named() -> None:
    peft = pytest.importorskip("peft")
    for pipeline in (tiny_pipeline(), class_pipeline()):
        config = peft.LoraConfig(r=2, target_modules=["to_q"])
        if hasattr(pipeline.unet, "add_adapter"):
            pipeline.unet.add_adapter(config, adapter_name="style")
            refused(pipeline, r"adapters \(LoRA: style\).*unload_lora_weights")
        else:
            pipeline.unet = peft.get_peft_model(pipeline.unet, config)
            refused(pipeline, r"adapters \(LoRA: default\)")


def test_an_adapter_between_patch_and_model_is_named() -> None:
    peft = pytest.importorskip("peft")
    settings = {**QUICK, "anchor": "dog", "retain_prompts": ("a bird",), "layers": ("cross-attention",), "guidance_scale": 2.0}
    pipeline = tiny_pipeline()
    patch = semu_diffusion.erase_concept(pipeline, "cat", **settings)
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    with pytest.raises(InputError, match=r"adapter \(LoRA style\)"):
        patch.apply(pipeline.unet)


def fused(unet: Any) -> None:
    unet.fuse_qkv_projections()


def offloaded(unet: Any) -> None:
    unet.down_blocks[0]._hf_hook = object()


def cached(unet: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    HookRegistry.check_if_exists_or_initialize(unet.mid_block).register_hook(ModelHook(), "faster_cache")


def quantised(unet: Any) -> None:
    unet.conv_in.weight.data = unet.conv_in.weight.data.to(torch.float8_e4m3fn)


def without_weights(unet: Any) -> None:
    unet.conv_out.to("meta")


def mixed(unet: Any) -> None:
    unet.conv_out.half()


def spread_out(unet: Any) -> None:
    unet.conv_out.weight = nn.Parameter(torch.empty(unet.conv_out.weight.shape, device="meta"))


def broken(unet: Any) -> None:
    unet.conv_in.weight.data[0] = float("nan")


def spread_over_processes(unet: Any) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(unet, mesh=distributed.init_device_mesh("cpu", (1,)))
    finally:
        distributed.destroy_process_group()


def tied(unet: Any) -> None:
    first, second, *_ = (m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.weight.shape == (16, 16, 3, 3))
    second.weight = first.weight


def from_inference(unet: Any) -> None:
    with torch.inference_mode():
        unet.conv_in.weight = nn.Parameter(unet.conv_in.weight.clone())


CHANGES = [
    (fused, "unfuse_qkv_projections"),
    (offloaded, "remove_all_hooks"),
    (cached, r"diffusers hooks \(faster_cache\)"),
    (quantised, "quantised .*float8_e4m3fn"),
    (without_weights, "conv_out.* not loaded|unet are not loaded"),
    (mixed, r"several precisions \(float16, float32\)"),
    (spread_out, "not loaded"),
    (broken, "conv_in.weight are not finite"),
    (spread_over_processes, "of DTensor, whose weights are spread over processes"),
    (tied, "share one weight"),
    (from_inference, "torch.inference_mode"),
]


@pytest.mark.parametrize("kind", ["class", "text"])
@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_network_that_computes_otherwise_is_refused_in_one_line(kind: str, change: Callable[[Any], None], said: str) -> None:
    pipeline = class_pipeline() if kind == "class" else tiny_pipeline()
    if not (kind == "class" and change is fused):
        change(pipeline.unet)
        refused(pipeline, said)


def test_gradient_checkpointing_that_was_left_on_changes_nothing() -> None:
    settings = {**QUICK, "anchor": "dog", "retain_prompts": ("a bird",), "guidance_scale": 2.0}
    plain, checkpointed = tiny_pipeline(), tiny_pipeline()
    checkpointed.unet.enable_gradient_checkpointing()
    first, second = (semu_diffusion.erase_concept(pipeline, "cat", **settings) for pipeline in (plain, checkpointed))
    assert all(torch.allclose(first.delta(name), second.delta(name), atol=1e-6) for name in first.layers)


def test_freeu_that_was_left_on_is_spoken_of() -> None:
    pipeline = tiny_pipeline()
    pipeline.enable_freeu(0.9, 0.2, 1.2, 1.4)
    with pytest.warns(Notice, match=r"FreeU is on, .* pipe\.disable_freeu\(\) first for one without"):
        adapt_text_pipeline(pipeline, ["a cat"])
    pipeline.disable_freeu()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        adapt_text_pipeline(pipeline, ["a cat"])


# ------------------------------------------------------------------ pipelines of diffusers that look alike


def with_scheduler(pipeline: Any, scheduler: Any, **changes: Any) -> Any:
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changes)
    return pipeline


def with_config(pipeline: Any, **changes: Any) -> Any:
    pipeline.unet.register_to_config(**changes)
    return pipeline


def refiner() -> Any:
    return StableDiffusionXLImg2ImgPipeline(**tiny_pipeline("sdxl").components, requires_aesthetics_score=True)


def ip_adapter() -> Any:
    return with_config(tiny_pipeline(), encoder_hid_dim_type="ip_image_proj")


def ip_adapter_in_the_attention() -> Any:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    pipeline = tiny_pipeline()
    attention = next(module for name, module in pipeline.unet.named_modules() if name.endswith("attn2"))
    attention.set_processor(IPAdapterAttnProcessor2_0(8, 16))
    return pipeline


LOOKALIKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: with_scheduler(tiny_pipeline(), UniPCMultistepScheduler, use_flow_sigmas=True), "flow matching"),
    (lambda: with_scheduler(tiny_pipeline(), UniPCMultistepScheduler, prediction_type="flow_prediction"), "flow matching"),
    (lambda: with_scheduler(tiny_pipeline(), EulerDiscreteScheduler, timestep_type="continuous"), "continuous"),
    (lambda: with_config(tiny_pipeline(), time_cond_proj_dim=32), "distilled for guidance"),
    (lambda: with_config(tiny_pipeline(), num_class_embeds=1000), "class labels"),
    (lambda: with_config(tiny_pipeline(), class_embed_type="projection"), "class labels"),
    (lambda: with_config(tiny_pipeline(), addition_embed_type="image"), "condition beside the text"),
    (lambda: with_config(tiny_pipeline("sdxl"), addition_embed_type=None), "condition beside the text"),
    (lambda: with_config(tiny_pipeline(), sample_size=None), "no sample_size"),
    (lambda: with_config(tiny_pipeline("sdxl"), sample_size=None), "no sample_size"),
    (lambda: with_config(tiny_pipeline(), in_channels=9), "inpainting"),
    (refiner, "refiner"),
    (ip_adapter, "unload_ip_adapter"),
    (ip_adapter_in_the_attention, "unload_ip_adapter"),
]


@pytest.mark.parametrize(("make", "said"), LOOKALIKES)
def test_a_pipeline_of_another_kind_is_refused_for_what_it_is(make: Callable[[], Any], said: str) -> None:
    refused(make(), said)


def test_a_scheduler_of_distilled_networks_is_spoken_of() -> None:
    with pytest.warns(Notice, match="LCMScheduler is for networks distilled to few steps"):
        adapt_text_pipeline(with_scheduler(tiny_pipeline(), LCMScheduler), ["a cat"])
    turbo, plain = tiny_pipeline(), tiny_pipeline()
    turbo.scheduler = EulerAncestralDiscreteScheduler.from_config(turbo.scheduler.config, timestep_spacing="trailing")
    with pytest.warns(Notice, match="trailing steps is for networks distilled to few steps.*--guidance-scale 1"):
        adapt_text_pipeline(turbo, ["a cat"])
    plain.scheduler = EulerAncestralDiscreteScheduler.from_config(plain.scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        adapt_text_pipeline(plain, ["a cat"])


def test_a_decoder_that_draws_by_chance_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.vae = type("ConsistencyDecoderVAE", (torch.nn.Module,), {})()
    refused(pipeline, "ConsistencyDecoderVAE decodes by chance")


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_every_schedule_of_diffusers_is_sampled_as_it_was_trained(schedule: str) -> None:
    config = {"beta_schedule": schedule, "num_train_timesteps": 50}
    trained = noise_schedule(config, "it")
    pipeline = ClassConditionalPipeline(tiny_unet(), trained, dict(enumerate(NAMES)), 3)
    assert torch.allclose(pipeline.scheduler.alphas_cumprod, trained.alphas_cumprod)
    (images,) = adapt_pipeline(pipeline).sample([0], [0], steps=2)
    assert images.isfinite().all()


@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler, LCMScheduler])
def test_another_scheduler_on_a_pipeline_of_classes_is_sampled_by_its_schedule_without_other_random_numbers(
    scheduler: Any,
) -> None:
    plain, other = class_pipeline(), with_scheduler(class_pipeline(), scheduler)
    before = torch.get_rng_state()
    first, second = (
        [next(iter(adapt_pipeline(one).sample([0], [3], steps=4))), one([1], generator=torch.Generator().manual_seed(1),
         num_inference_steps=3, output_type="pt").images]
        for one in (plain, other)
    )  # fmt: skip
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 60])
    noised = [adapt_pipeline(one).process.add_noise(x, x.flip(0), t) for one in (plain, other)]
    assert torch.allclose(*noised)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "cubic"},
        {"beta_schedule": "linear", "prediction_type": "noise"},
        {"beta_schedule": "linear", "trained_betas": [2.0, 3.0]},
        {"beta_schedule": "linear", "trained_betas": "many"},
        {"beta_schedule": "linear", "num_train_timesteps": "many"},
    ],
)
def test_what_is_no_noise_schedule_is_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^it: ") as caught:
        noise_schedule(config, "it")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ sizes, autoencoders, text encoders


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_size_of_two_sides_is_kept(family: str) -> None:
    pipeline = with_config(tiny_pipeline(family), sample_size=[4, 8])
    model = adapt_text_pipeline(pipeline, ["a cat"])
    factor = pipeline.vae_scale_factor
    assert model.latent_shape == (4, 4, 8)
    assert model.image_shape == (3, 4 * factor, 8 * factor)
    (images,) = model.sample([0], [0], steps=2)
    assert images.shape == (1, *model.image_shape)
    if model.table.time_ids is not None:
        height, width = model.image_shape[1:]
        assert model.table.time_ids.tolist() == [height, width, 0, 0, height, width]


def test_a_tiny_autoencoder_encodes_and_decodes() -> None:
    pipeline = tiny_pipeline()
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    model = adapt_text_pipeline(pipeline, ["a cat"])
    images = torch.rand(2, *model.image_shape) * 2 - 1
    latents = model.encode(images)
    assert torch.allclose(latents, pipeline.vae.encode(images).latents.detach(), atol=1e-6)
    expected = (pipeline.vae.decode(latents).sample.detach() / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode(latents), expected, atol=1e-6)


def test_a_unet_without_a_middle_is_erased_from() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "mid_block_type": None})
    settings = {**QUICK, "anchor": "dog", "retain_prompts": ("a bird",), "guidance_scale": 1.0}
    assert semu_diffusion.erase_concept(pipeline, "cat", **settings).layers


def test_a_tokenizer_without_a_length_has_that_of_its_encoder() -> None:
    pipeline = tiny_pipeline()
    expected = encode_prompts(StableDiffusion, pipeline, ["a cat"]).embeddings
    pipeline.tokenizer.model_max_length = int(1e30)
    assert torch.equal(encode_prompts(StableDiffusion, pipeline, ["a cat"]).embeddings, expected)
    assert pipeline.tokenizer.model_max_length == int(1e30)  # the user's own is as it was
    with pytest.raises(InputError, match="takes 24"):
        encode_prompts(StableDiffusion, pipeline, [" ".join(["a photo of"] * 9)])


def test_a_learned_word_counts_as_many_tokens_as_it_has_vectors() -> None:
    pipeline = tiny_pipeline()
    width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    pipeline.load_textual_inversion({"<sks>": torch.randn(30, width)}, token="<sks>")
    with pytest.raises(InputError, match=r"'<sks>.*shorten it"):
        encode_prompts(StableDiffusion, pipeline, ["<sks>", "<sks> in the rain"])


def test_a_pipeline_of_diffusers_without_classes_is_adapted_in_memory() -> None:
    pipeline = DDPMPipeline(tiny_unet(num_class_embeds=None), tiny_model().scheduler)
    model = adapt_pipeline(pipeline)
    assert (model.names, model.null, model.conditional) == ((), None, False)
    (images,) = model.sample(None, [0], steps=2)
    assert images.shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="StableDiffusionPipeline; erase-class takes"):
        adapt_pipeline(tiny_pipeline())


def test_the_users_pipeline_is_not_changed_by_unwrapping() -> None:
    pipeline = class_pipeline(**SMALL)
    pipeline.unet = nn.DataParallel(pipeline.unet)
    config = copy.deepcopy(dict(pipeline.config))
    with pytest.warns(Notice):
        model = adapt_pipeline(pipeline)
    assert dict(pipeline.config) == config
    assert model.pipeline is not pipeline
    assert model.denoiser is pipeline.unet.module


@pytest.mark.parametrize("wrap", [compiled, a_block, nn.DataParallel], ids=lambda wrap: wrap.__name__)
def test_a_patch_goes_on_a_wrapped_network_and_off_again(wrap: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    patch = semu_diffusion.erase_class(class_pipeline(**SMALL), "red", **QUICK)
    network = class_pipeline(**SMALL).unet
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wrapped = wrap(network)
    patch.apply(wrapped)
    assert any(not torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.values(), strict=True))
    patch.remove(network if wrap is not nn.DataParallel else wrapped)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.values(), strict=True))


def test_a_pipeline_without_its_parts_or_in_accelerates_precision_is_refused() -> None:
    for family in ("sd15", "sdxl"):
        for part in (
            "text_encoder",
            "tokenizer",
            "scheduler",
            "unet",
            "vae",
            *(("text_encoder_2",) if family == "sdxl" else ()),
        ):
            pipeline = tiny_pipeline(family)
            setattr(pipeline, part, None)  # people leave out what they do not need, to save memory
            with pytest.raises(InputError, match=f"has no {part}: load the pipeline with all of its parts$"):
                semu_diffusion.erase_concept(pipeline, "cat", anchor="dog")
    for given in ("my-model", tiny_unet(), None):
        for erase in (semu_diffusion.erase_concept, semu_diffusion.erase_class):
            with pytest.raises(InputError, match="is given where a pipeline is wanted"):
                erase(given, "cat")
    for part in ("vae", "text_encoder"):
        pipeline = tiny_pipeline()
        setattr(pipeline, part, nn.DataParallel(getattr(pipeline, part)))
        refused(pipeline, rf"the {part} is wrapped \(DataParallel\)")
    pipeline = tiny_pipeline()
    pipeline.unet._original_forward = pipeline.unet.forward  # as Accelerator.prepare leaves it
    refused(pipeline, "keep_fp32_wrapper=False")
