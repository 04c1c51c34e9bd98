"""What happens to a model between `apply` and `remove`: weights that were changed under a patch are never thrown away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from patches import random_patch, refused, weight_bytes
from text_models import tiny_pipeline
from tiny_models import tiny_unet
from torch import nn
from torch.nn.utils import prune

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3, 3, 3)).sum().backward()
    optimizer.step()


def load(model: nn.Module) -> None:
    model.load_state_dict(net().state_dict())


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        weight = model[2].weight  # type: ignore[index]
        weight[0, 0] = torch.nextafter(weight[0, 0].float(), torch.tensor(9.0)).to(weight.dtype) + 2**-9


CHANGES = {"a training step": train, "load_state_dict": load, "one weight": nudge}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_changed_under_a_patch_are_refused_and_kept(change: str, dtype: torch.dtype) -> None:
    model, other = net(), random_patch(net(), 1)
    patch = random_patch(model)
    model.to(dtype)
    patch.apply(model)
    CHANGES[change](model if dtype == torch.float32 or change != "a training step" else model.float())
    changed = weight_bytes(model)
    for use in (patch.remove, other.apply):
        with pytest.raises(InputError, match="have changed since a patch was applied") as caught:
            use(model)
        assert "\n" not in str(caught.value)
        assert weight_bytes(model) == changed


def test_another_change_of_the_weights_inside_applied_is_not_lost(model) -> None:  # type: ignore[no-untyped-def]
    patch = random_patch(model.denoiser)
    with pytest.raises(InputError, match="have changed since"), patch.applied(model), torch.no_grad():
        model.denoiser.conv_in.weight[0, 0, 0, 0] += 1
    assert not torch.equal(model.denoiser.conv_in.weight, tiny_unet().conv_in.weight)


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "half and back": lambda model: model.half().float(),
    "bfloat16 and back": lambda model: model.bfloat16().float(),
    "another memory format": lambda model: model.to(memory_format=torch.channels_last),
    "a copy": copy.deepcopy,
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_model_that_was_cast_or_moved_under_a_patch_gets_its_originals(cast: str) -> None:
    model = net()
    original = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = random_patch(model, 0), random_patch(model, 1, only="linear")
    one.apply(model)
    two.apply(model)
    model = CASTS[cast](model)
    dtype = model[0].weight.dtype  # type: ignore[index]
    one.remove(model)
    two.remove(model)
    for name in one.layers:
        weight = model.get_submodule(name).weight
        assert weight.dtype == dtype
        assert torch.equal(weight, original[f"{name}.weight"].to(dtype))


def test_threads_do_not_decide_whether_a_patch_comes_off() -> None:
    model, threads = nn.Sequential(nn.Linear(700, 900)), torch.get_num_threads()
    patch = random_patch(model, rank=8)
    before = weight_bytes(model)
    patch.apply(model)
    try:
        torch.set_num_threads(2)
        patch.remove(model)
    finally:
        torch.set_num_threads(threads)
    assert weight_bytes(model) == before


# ---------------------------------------------------------------------------------------------------- adapters


def adapted(unet: nn.Module) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), unet, "style")


def test_a_network_with_an_adapter_is_told_so() -> None:
    unet = tiny_unet()
    patch = random_patch(unet)
    adapted(unet)
    with pytest.raises(InputError, match=r"carries an adapter \(LoRA style\)") as caught:
        patch.apply(unet)
    assert "\n" not in str(caught.value)


def test_a_patch_comes_off_under_an_adapter() -> None:
    unet = tiny_unet()
    before = weight_bytes(unet)
    patch = random_patch(unet)
    patch.apply(unet)
    adapted(unet)
    patch.remove(unet)
    plain = {name.replace(".base_layer", ""): value for name, value in weight_bytes(unet).items() if "lora_" not in name}
    assert plain == before


def test_a_patch_under_a_fused_adapter_is_refused() -> None:
    unet = tiny_unet()
    patch = random_patch(unet)
    patch.apply(unet)
    adapted(unet)
    for module in unet.modules():
        if hasattr(module, "merge"):
            module.merge()
    with pytest.raises(InputError, match="have changed since"):
        patch.remove(unet)


def test_offloaded_and_quantised_weights_are_refused() -> None:
    patch = random_patch(net())
    for change, said in ((lambda w: w.to("meta"), "is offloaded"), (lambda w: w.to(torch.int8), "is quantised")):
        model = net()
        model[2].weight = nn.Parameter(change(model[2].weight.detach()), requires_grad=False)
        with pytest.raises(InputError, match=f"the weight of 2 {said}"):
            patch.apply(model)


# ---------------------------------------------------------------------------------------------------- merged already


def layers(count: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(count)))


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.001, 0.002, 0.004])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_merged_model_does_not_take_the_patch_again_in_whatever_dtype(
    size: float, saved: torch.dtype, strength: float
) -> None:
    """Smaller than what tells a model from another."""
    model = layers()
    patch = random_patch(model, size=size)
    patch.scale(strength).merge(model)
    model.to(saved).float()
    patch.fingerprint.check(model)
    before = weight_bytes(model)
    for again in (strength, 1.0, 0.3):
        with pytest.raises(InputError, match=r"carry this patch already, at strength (1|0\.5|0\.49|0\.51)\D"):
            patch.scale(again).apply(model)
    assert weight_bytes(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-4, 0.002, 0.3])
def test_a_model_without_the_patch_takes_it_at_any_strength_and_beside_others(size: float, dtype: torch.dtype) -> None:
    model = layers()
    one, two = random_patch(model, 0, size=size), random_patch(model, 1, size=size)
    model.to(dtype)
    before = weight_bytes(model)
    for strength in (-1.0, 0.01, 0.5, 20.0):
        one.scale(strength).apply(model)
        two.apply(model)
        on_top = random_patch(model, 2, size=size)
        on_top.apply(model)
        for patch in (one.scale(strength), on_top, two):
            patch.remove(model)
        assert weight_bytes(model) == before


def test_a_patch_of_which_no_overlap_is_known_still_works() -> None:
    model = net()
    patch = random_patch(model)
    old = ErasurePatch(patch.layers, patch.fingerprint)
    assert patch.overlap is not None
    old.apply(model)
    old.remove(model)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf"), 1e38, -2e6])
def test_a_strength_beyond_measure_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match=r"strength .* must be a number"):
        random_patch(net()).scale(strength)


def test_an_update_that_a_dtype_cannot_hold_never_reaches_the_model() -> None:
    model = net()
    patch = random_patch(model).scale(1e6)
    model.half()
    before = weight_bytes(model)
    with pytest.raises(InputError, match="infinite: take a smaller strength"):
        patch.apply(model)
    assert weight_bytes(model) == before


# ---------------------------------------------------------------------------------- weights that are not simply there


def parametrised(unet: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(unet.conv_out)  # type: ignore[arg-type]


def pruned(unet: nn.Module) -> None:
    prune.l1_unstructured(unet.conv_out, "weight", amount=0.3)  # type: ignore[no-untyped-call]


def in_eight_bits(unet: nn.Module) -> None:
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)  # type: ignore[operator]


def in_inference_mode(unet: nn.Module) -> None:
    with torch.inference_mode():
        unet.conv_out.weight = nn.Parameter(unet.conv_out.weight.clone())  # type: ignore[union-attr, operator]


def fused(unet: nn.Module) -> None:
    unet.fuse_qkv_projections()  # type: ignore[operator]


@pytest.mark.parametrize(("change", "said"), [
    (parametrised, "made anew in every call"), (pruned, "made anew in every call"), (fused, "unfuse_qkv_projections"),
    (in_inference_mode, r"torch\.inference_mode"), (in_eight_bits, "quantised .*float8_e4m3fn"),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_a_weight_that_is_made_of_others_or_copied_takes_no_patch(change: Callable[[nn.Module], None], said: str) -> None:
    unet = tiny_pipeline().unet
    patch = random_patch(unet, only="*.to_k" if change in (fused, in_eight_bits) else "conv_out")
    change(unet)
    refused(patch, unet, said)


def test_a_patch_does_not_come_off_layers_that_were_fused_with_it_before_they_are_apart_again() -> None:
    pipeline = tiny_pipeline()
    patch, before = random_patch(pipeline.unet), weight_bytes(pipeline.unet)
    patch.apply(pipeline.unet)
    pipeline.fuse_qkv_projections()
    with pytest.raises(InputError, match="unfuse_qkv_projections"):  # the copies would keep it
        patch.remove(pipeline.unet)
    pipeline.unfuse_qkv_projections()
    patch.remove(pipeline.unet)
    assert before.items() <= weight_bytes(pipeline.unet).items()


def test_a_pipeline_in_place_of_its_network_is_answered_with_the_network(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    patch = random_patch(pipeline.unet)
    for use in (patch.apply, patch.remove, patch.merge, patch.check):
        with pytest.raises(InputError, match=r"a StableDiffusionPipeline is given where a network is wanted, as pipe\.unet$"):
            use(pipeline)
    with pytest.raises(InputError, match="is a folder: name the file"):
        patch.save(tmp_path)
