"""`semu evaluate --edited` of a UNet alone, as ESD and others publish theirs: whole or in part, by either kind of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import weight_bytes
from safetensors.torch import save_file
from text_models import tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.errors import InputError
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.patches.original_names import original_unet_name
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.patches.network_alone import network_alone
from semu_diffusion.pipelines.patches.published import network_edit

Capture = pytest.CaptureFixture[str]
PROMPTS = ["a photo of a cat", "a photo of a dog"]
FEW = ("--images-per-prompt", "1", "--sampling-steps", "2", "--classifier", "none", "--unconditional-samples", "2")
DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd"
    tiny_pipeline().save_pretrained(folder)
    return folder


def edited_unet() -> Any:
    """The UNet of a tiny pipeline with another cross-attention, and how many layers these are."""
    unet, draws = tiny_pipeline().unet, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if ".attn2." in name and name.endswith("weight"):
                value += 0.3 * torch.randn(value.shape, generator=draws)
    return unet


def original(name: str, attended: tuple[str, ...]) -> str:
    module, _, kind = name.rpartition(".")
    place = original_unet_name(module, 1, 2 if name.startswith(attended) else 1)
    return f"model.diffusion_model.{place}.{kind}"


def published(form: str, folder: Path) -> Path:
    """The edited UNet as a folder, a file of either names, or the changed layers alone."""
    unet, file = edited_unet(), folder / "esd.safetensors"
    state = {name: value.contiguous() for name, value in unet.state_dict().items()}
    attended = tuple({".".join(name.split(".")[:2]) + "." for name in state if ".attentions." in name})
    if form == "folder":
        unet.save_pretrained(folder / "unet")
        return folder / "unet"
    chosen = {name: value for name, value in state.items() if ".attn2." in name or "part" not in form}
    save_file({original(name, attended) if "original" in form else name: value for name, value in chosen.items()}, file)
    return file


def answer(model: Any) -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model.predict(x, torch.tensor([10, 60]), torch.tensor([0, 1]))
    return found


@pytest.mark.parametrize("form", ["folder", "file", "original file", "part", "original part"])
def test_a_unet_in_any_form_edits_what_differs_in_it_and_comes_off(tmp_path: Path, form: str) -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, PROMPTS)
    before, first = weight_bytes(pipeline.unet), answer(model)
    pipeline.unet.load_state_dict(edited_unet().state_dict())
    wanted = answer(model)
    pipeline.unet.load_state_dict(tiny_pipeline().unet.state_dict())
    tensors = network_alone(str(published(form, tmp_path)), model.denoiser)
    assert tensors is not None
    edit = network_edit(model, tensors, form)
    with edit.applied(model) as edited:
        assert torch.allclose(answer(edited), wanted, atol=1e-6)
        assert not torch.allclose(first, wanted, atol=1e-3)
    assert weight_bytes(pipeline.unet) == before
    assert set(edit.layers) == {
        f"unet.{name}" for name, module in pipeline.unet.named_modules() if ".attn2." in name and hasattr(module, "weight")
    }


def test_a_whole_model_is_none_alone_and_a_unet_of_classes_is(tmp_path: Path, text_model: Path) -> None:
    unet = tiny_pipeline().unet
    assert network_alone(str(text_model), unet) is None
    assert network_alone("owner/name", unet) is None
    save_file(
        {f"model.diffusion_model.{DOWN}": torch.zeros(2), "first_stage_model.x": torch.zeros(2)}, tmp_path / "all.safetensors"
    )
    assert network_alone(str(tmp_path / "all.safetensors"), unet) is None
    model, other = tiny_model(), tiny_model(seed=1)
    save_file(other.denoiser.state_dict(), tmp_path / "ddpm.safetensors")
    tensors = network_alone(str(tmp_path / "ddpm.safetensors"), model.denoiser)
    assert tensors is not None
    assert network_edit(model, tensors, "other").trained_parameters <= sum(p.numel() for p in model.denoiser.parameters())


def test_cross_attention_alone_is_scored_and_what_stays_the_models_is_said(
    tmp_path: Path, text_model: Path, capsys: Capture
) -> None:
    file, out = published("part", tmp_path), tmp_path / "run"
    assert (
        semu(["evaluate", "--edited", str(file), "--model", str(text_model), "--forget", "cat", *FEW, "--output", str(out)])
        == 0
    )
    found = Evaluation.from_json(json.loads((out / "metrics.json").read_text()))
    layers = sum(".attn2." in name and hasattr(module, "weight") for name, module in edited_unet().named_modules())
    assert found.patch is not None
    assert found.patch.layers == layers
    assert found.forget_effect is not None
    assert found.forget_effect.paired["mse"] > 0
    tensors = len(network_alone(str(file), edited_unet()) or ())
    assert f"holds {tensors} of the network's" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["edited"] == str(file)


def test_the_share_of_an_edit_of_all_networks_is_that_of_all_their_numbers(tmp_path: Path, text_model: Path) -> None:
    other = tiny_pipeline()
    with torch.no_grad():
        for network in (other.unet, other.text_encoder, other.vae):
            for value in network.parameters():
                value += 0.01
    other.save_pretrained(tmp_path / "other")
    given = ["--edited", str(tmp_path / "other"), "--model", str(text_model), "--forget", "cat"]
    assert semu(["evaluate", *given, *FEW, "--output", str(tmp_path / "run")]) == 0
    found = Evaluation.from_json(json.loads((tmp_path / "run" / "metrics.json").read_text())).patch
    assert found is not None
    assert found.fraction == 1
    assert found.model_parameters > sum(value.numel() for value in other.unet.parameters())


def test_the_folder_of_a_unet_of_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny_pipeline("sdxl").unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=r"is of another architecture: .* is in one of the two networks alone"):
        network_alone(str(tmp_path / "unet"), tiny_pipeline().unet)


@pytest.mark.parametrize(("tensors", "name", "said"), [
    ({DOWN: torch.zeros(16, 16), "strange.weight": torch.zeros(2)}, "esd.safetensors", "has no strange.weight"),
    ({DOWN: torch.zeros(3, 5)}, "esd.safetensors", f"is of another architecture: its unet.{DOWN} is (3, 5)"),
    ({DOWN: torch.full((16, 16), float("nan"))}, "esd.safetensors", "holds other than finite numbers"),
    ({DOWN: torch.zeros(16, 16), f"unet.{DOWN}": torch.zeros(16, 16)}, "esd.safetensors", "names a tensor twice"),
    (None, "esd.pt", "pickled checkpoints are not read: convert it first, as by python -c"),
    (None, "esd.ckpt", "weights_only=True"),
])  # fmt: skip
def test_what_is_no_unet_of_the_model_is_refused_in_one_line(
    tmp_path: Path, text_model: Path, capsys: Capture, tensors: dict[str, torch.Tensor] | None, name: str, said: str
) -> None:
    if tensors is None:
        torch.save({DOWN: torch.zeros(16, 16)}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    given = ["--edited", str(tmp_path / name), "--model", str(text_model), "--forget", "cat"]
    code = semu(["evaluate", *given, *FEW, "--output", str(tmp_path / "no")])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "no").exists()
