"""Promises of quantised networks: stored in few bits they give the patch of the same weights in float, for the float model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from patches import random_patch
from text_models import tiny_pipeline
from torch import nn
from torch.utils import _pytree

import semu_diffusion
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.weight_files import load_network
from semu_diffusion.patches.application import applied_to
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.quantised import FrozenWeight, quantised_layers, readable
from semu_diffusion.pipelines.cli.commands.erase_concept import main
from semu_diffusion.pipelines.cli.main import main as semu

QUICK: dict[str, Any] = {
    "steps": 3, "batch_size": 4, "forget_samples": 4, "kept_samples": 6, "precision": "fp32", "anchor": "dog",
    "retain_prompts": ("a bird",), "guidance_scale": 2.0, "adversarial": 0.0, "layers": ("mid_block.*",),
}  # fmt: skip


class Int8(torch.Tensor):
    """int8 and a scale for each row: a tensor as torchao's and optimum-quanto's are, that gives no gradient of itself."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scales: torch.Tensor) -> Int8:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scales.dtype, device=numbers.device)

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        self.numbers, self.scales = numbers, scales

    def dequantize(self) -> torch.Tensor:  # type: ignore[override]
        return self.numbers.to(self.scales.dtype) * self.scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scales)
        dense = _pytree.tree_map_only(cls, lambda one: one.dequantize(), (args, kwargs or {}))
        return func(*dense[0], **dense[1])


def quantise(network: nn.Module) -> None:
    for layer in (one for one in network.modules() if isinstance(one, nn.Linear)):
        weight = layer.weight.detach()
        scales = weight.abs().amax(1, keepdim=True) / 127
        numbers = (weight / scales).round().to(torch.int8)
        layer.weight = nn.Parameter(Int8(numbers, scales), requires_grad=False)


def quantised_pipeline() -> Any:
    pipeline = tiny_pipeline()
    quantise(pipeline.unet)
    return pipeline


def rounded_pipeline(quantised: Any) -> Any:
    """In float, of the weights that the quantised one stores."""
    pipeline = tiny_pipeline()
    for layer, stored in zip(pipeline.unet.modules(), quantised.unet.modules(), strict=True):
        if isinstance(layer, nn.Linear):
            layer.weight.data = stored.weight.dequantize().detach().clone()
    return pipeline


def erased(pipeline: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return semu_diffusion.erase_concept(pipeline, "cat", **{**QUICK, **settings})


def distance(patch: Any, other: Any) -> float:
    assert patch.layers.keys() == other.layers.keys()
    squares = [
        ((patch.delta(name) - other.delta(name)).square().sum(), other.delta(name).square().sum()) for name in patch.layers
    ]
    return float(sum(one for one, _ in squares) / sum(one for _, one in squares)) ** 0.5


@pytest.mark.parametrize(
    "settings", [{"method": "trained", "gradient_clip": 1.0}, {"method": "closed-form"}], ids=["trained", "name"]
)
def test_a_quantised_network_gives_the_patch_of_the_same_weights_in_float(settings: dict[str, Any]) -> None:
    pipeline = quantised_pipeline()
    given = pipeline.unet
    patch = erased(pipeline, **settings)
    assert distance(patch, erased(rounded_pipeline(pipeline), **settings)) < 1e-3
    assert {name for name in patch.layers if ".attn" in name} <= quantised_layers(given).keys()
    assert len(quantised_layers(given).keys() & patch.layers.keys()) >= 8
    assert pipeline.unet is given
    assert all(type(one.weight) is Int8 for one in quantised_layers(given).values())


def test_it_is_said_that_the_network_is_quantised() -> None:
    with pytest.warns(Notice, match="the UNet is quantised"):
        semu_diffusion.erase_concept(quantised_pipeline(), "cat", method="closed-form", **QUICK)


def test_its_patch_goes_on_the_float_model_and_on_no_other(tmp_path: Path) -> None:
    pipeline = quantised_pipeline()
    patch = semu_diffusion.ErasurePatch.load(erased(pipeline, method="trained").save(tmp_path / "patch.safetensors"))
    assert patch.fingerprint.rounding > 0.001
    unet, other = tiny_pipeline().unet, tiny_pipeline(seed=1).unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    patch.apply(unet)
    assert any(not torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    patch.remove(unet)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    for network, said in ((other, "made for another model"), (pipeline.unet, r"is quantised \(Int8\)")):
        with pytest.raises(InputError, match=said) as caught:
            patch.apply(network)
        assert "\n" not in str(caught.value)
    patch.merge(unet)
    with pytest.raises(InputError, match="already"):
        patch.apply(unet)


def test_what_quantisation_took_from_a_model_makes_it_no_other() -> None:
    """Rows with an outlier are rounded by more than a cast moves weights."""

    def network(seed: int) -> Any:
        found = nn.Sequential(nn.Linear(1024, 64, bias=False))
        found[0].weight.data = torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed))
        found[0].weight.data[:, 0] = 20.0
        return found

    plain, stored = network(0), network(0)
    quantise(stored)
    fingerprint = Fingerprint.of(readable(stored), ["0"])
    error = plain[0].weight.detach() - stored[0].weight.dequantize()
    assert 0.01 < float(error.norm() / plain[0].weight.detach().norm()) <= 1.05 * fingerprint.rounding < 0.05
    fingerprint.check(plain)
    for wrong, model in ((fingerprint, network(1)), (dataclasses.replace(fingerprint, rounding=0.0), plain)):
        with pytest.raises(InputError, match="made for another model"):
            wrong.check(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_floats_and_no_float_weight_is_kept_for_it(dtype: torch.dtype) -> None:
    network: Any = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7, bias=False)).to(dtype)
    plain: Any = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7, bias=False)).to(dtype)
    for layer in network:  # few small numbers, whose sums are exact: then every kernel gives the same
        numbers, scales = torch.randint(-2, 3, layer.weight.shape).to(torch.int8), torch.full((len(layer.weight), 1), 0.5)
        layer.weight = nn.Parameter(Int8(numbers, scales.to(dtype)), requires_grad=False)
    network[0].bias.data = torch.randint(-2, 3, (5,)).to(dtype)
    twin: Any = readable(network)
    for layer, stored, one in zip(plain, network, twin, strict=True):
        layer.weight.data, layer.bias = stored.weight.dequantize().detach().clone(), stored.bias
        assert isinstance(one.weight, FrozenWeight)
        assert one.weight.dtype == dtype
        assert one.bias is stored.bias
        one.weight.requires_grad_()
    x, kept = torch.randint(-2, 3, (2, 4, 6)).to(dtype), []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        loss = twin(x).square().sum()
    floats = [one.shape for one in kept if not isinstance(one, FrozenWeight)]
    assert kept
    assert not {(6, 5), (5, 6), (5, 7), (7, 5)} & {tuple(shape) for shape in floats}
    loss.backward()
    plain(x).square().sum().backward()
    for one, layer in zip(twin, plain, strict=True):
        assert type(one.weight.grad) is torch.Tensor
        assert torch.equal(one.weight.grad, layer.weight.grad)


def test_nothing_is_written_into_a_weight_that_could_not_keep_it() -> None:
    network: Any = nn.Sequential(nn.Linear(6, 5))
    quantise(network)
    with pytest.raises(InputError, match="quantised and cannot be changed"), torch.no_grad():
        readable(network)[0].weight.add_(1)  # type: ignore[index, operator]


def test_a_network_of_floats_is_its_own_twin() -> None:
    network = nn.Sequential(nn.Linear(6, 5))
    assert readable(network) is network


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gguf", "are quantised by gguf; those of torchao, quanto, bitsandbytes and floats are read"),
        ("quanto", "are quantised: pip install optimum-quanto to read them"),
    ],
)
def test_a_quantised_folder_that_cannot_be_read_is_refused_in_one_line(
    method: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_pipeline().unet
    unet.register_to_config(quantization_config={"quant_method": method})
    unet.save_pretrained(tmp_path / "unet")
    monkeypatch.setattr("semu_diffusion.models.weight_files.find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        load_network(tmp_path / "unet", UNet2DConditionModel, "model", torch.float32)


@pytest.fixture
def twins() -> tuple[Any, Any]:
    """A quantised network, read as floats, and one of the very weights that it stores."""
    pipeline = quantised_pipeline()
    return readable(pipeline.unet), rounded_pipeline(pipeline).unet


GIVEN = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 50]), torch.ones(2, 8, 16)


def test_a_patch_on_quantised_weights_is_read_with_them_and_comes_off(twins: tuple[Any, Any]) -> None:
    twin, plain = twins
    patches = random_patch(plain), random_patch(plain, seed=1).scale(0.5)
    stored = {name: one.read().clone() for name, one in twin.named_parameters() if isinstance(one, FrozenWeight)}
    with torch.no_grad():
        before = twin(*GIVEN).sample
        for patch in patches:
            patch.apply(twin)
            patch.apply(plain)
            assert torch.allclose(twin(*GIVEN).sample, plain(*GIVEN).sample, atol=1e-4)
            assert not torch.allclose(twin(*GIVEN).sample, before, atol=1e-2)
        with pytest.raises(InputError, match="already applied"):
            patches[0].apply(twin)
        for patch in patches:
            patch.remove(twin)
        assert torch.equal(twin(*GIVEN).sample, before)
    assert stored
    assert all(torch.equal(one.read(), stored[name]) for name, one in twin.named_parameters() if name in stored)


def test_a_patch_that_would_make_a_quantised_weight_infinite_changes_nothing(twins: tuple[Any, Any]) -> None:
    twin, plain = twins
    before = twin(*GIVEN).sample
    with pytest.raises(InputError, match="infinite"):
        random_patch(plain, size=1e33).scale(1e6).apply(twin)
    assert torch.equal(twin(*GIVEN).sample, before)
    assert not applied_to(twin).patches


def test_nothing_is_merged_into_quantised_weights(twins: tuple[Any, Any]) -> None:
    twin, plain = twins
    with pytest.raises(InputError, match="nothing can be written into quantised weights: merge into the model in float"):
        random_patch(plain).merge(twin)
    assert not applied_to(twin).patches


def torchao_int8() -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from diffusers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def quanto_int8() -> Any:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    from diffusers import QuantoConfig

    return QuantoConfig(weights_dtype="int8")


@pytest.mark.parametrize("config", [torchao_int8, quanto_int8])
@pytest.mark.filterwarnings("ignore")
def test_a_denoiser_loaded_by_the_quantisation_of_diffusers_is_erased_from(config: Any, tmp_path: Path) -> None:
    quantised = config()
    pipeline = tiny_pipeline()
    pipeline.unet.save_pretrained(tmp_path / "unet")
    pipeline.unet = UNet2DConditionModel.from_pretrained(
        tmp_path / "unet", quantization_config=quantised, torch_dtype=torch.float32
    )
    patch = erased(pipeline)
    assert len(quantised_layers(pipeline.unet)) == 50
    assert distance(patch, erased(rounded_pipeline(pipeline))) < 1e-3
    unet = tiny_pipeline().unet
    given = torch.randn(2, 4, 4, 4), torch.tensor([3, 50]), torch.randn(2, 8, 16)
    with torch.no_grad():
        changes = [-one(*given).sample for one in (unet, pipeline.unet)]
        patch.apply(unet)
        semu_diffusion.save_lora(patch, tmp_path / "lora")
        pipeline.load_lora_weights(tmp_path / "lora")
        for index, one in enumerate((unet, pipeline.unet)):
            changes[index] += one(*given).sample
    assert (changes[0] - changes[1]).norm() < 0.05 * changes[0].norm()


def stand_in(unet: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that says that torchao quantised it, and a loader that reads it as torchao's would: in `Int8`."""
    unet.register_to_config(quantization_config={"quant_method": "torchao"})
    unet.save_pretrained(folder)

    def loaded(*args: Any, **options: Any) -> Any:
        made = tiny_pipeline().unet
        quantise(made)
        return made, {"missing_keys": [], "unexpected_keys": []}

    monkeypatch.setattr("semu_diffusion.models.weight_files.find_spec", lambda name: name)
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", loaded)


def by_library(config: Any) -> Any:
    def save(unet: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        quantised = config()
        unet.save_pretrained(folder)
        made = UNet2DConditionModel.from_pretrained(folder, quantization_config=quantised)
        shutil.rmtree(folder)
        made.save_pretrained(folder)

    return save


@pytest.mark.parametrize(
    "save", [stand_in, by_library(torchao_int8), by_library(quanto_int8)], ids=["stand-in", "torchao", "quanto"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_folder_goes_the_whole_way_of_a_command(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    save(pipeline.unet, tmp_path / "model/unet", monkeypatch)
    given = ["--model", tmp_path / "model", "--output", tmp_path / "run", "--classifier", "none", "--anchor", "dog"]
    few = ["--steps", 2, "--forget-samples", 4, "--kept-samples", 6, "--images-per-prompt", 2, "--sampling-steps", 2]
    words = ["--retain-prompts", "a bird", "--unconditional-samples", 2, "--adversarial", 0]
    assert main([str(word) for word in ["cat", *given, *few, *words]]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["forget_effect"]["paired"]["mse"] > 1e-4
    assert metrics["lora"]["same"]
    assert semu(["export", str(tmp_path / "run"), "--lora", str(tmp_path / "lora")]) == 0
    capsys.readouterr()
    assert semu(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged")]) == 2
    assert "is quantised" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
